"""How the provider writes: JSON and times as Go prints them, and errors in its envelope."""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NANOSECONDS = 1_000_000_000
_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)


class Refusal(Exception):
    """An answer other than 200: raised anywhere below a route, sent as the provider would."""

    def __init__(self, status: int, message: str, /, *, headers: Mapping[str, str] | None = None, **extra: object):
        """*extra* joins `code` and `message` in the body."""
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body: dict[str, object] = {"code": status, "message": message, **extra}


def encode(value: object) -> bytes:
    """Compact JSON in UTF-8. These signs only occur inside strings, so that one pass over the text will do."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(_GO_ESCAPES)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: Go writes the replacement character
        return re.sub("[\ud800-\udfff]", "\ufffd", text).encode()


def decode(body: bytes) -> Any:
    """
    Parse *body* as Go does: NaN and Infinity are no JSON.

    Raises:
        ValueError: It is not JSON, or nested too deep.
    """
    try:
        return json.loads(body, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """*value* as the whole body, without an envelope."""
    return web.Response(body=encode(value), status=status, headers=headers, content_type="application/json")


def success(data: object) -> web.Response:
    """*data* in the provider's envelope."""
    return reply({"code": 200, "message": "success", "data": data})


def refusing(answer: Handler) -> Handler:
    """*answer*, with every Refusal raised below it sent as a response."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await answer(request)
        except Refusal as refusal:
            return reply(refusal.body, refusal.status, refusal.headers)

    return handle


async def read_object(request: web.Request) -> dict[str, Any]:
    """
    The JSON object that is the request's body; none sent means an empty one.

    Raises:
        Refusal: 400, it is something else; 413, it is too large.
    """
    try:
        value = decode(await request.read() or b"{}")
    except web.HTTPRequestEntityTooLarge:
        raise Refusal(413, "request body too large") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, "invalid request body: a JSON object is expected")
    return value


def money(amount: float) -> float:
    """Dollars without the dust of binary fractions; a whole number is written without `.0`, as in Go."""
    rounded = round(amount, 6)
    return int(rounded) if rounded == int(rounded) else rounded


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC with nine digits: `2026-01-15T10:00:00.123456789Z`."""
    seconds, fraction = divmod(nanoseconds, NANOSECONDS)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction:09d}Z"


def nanoseconds(text: object) -> int:
    """
    Read a time as in `timestamp`; fewer digits and offsets are fine, no zone means UTC.

    Raises:
        ValueError: It is not an ISO 8601 time.
    """
    found = _TIME.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("not an ISO 8601 time")
    whole, fraction, zone = found.groups()
    moment = datetime.fromisoformat(whole + (zone or "Z"))
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NANOSECONDS + int((fraction or "").ljust(9, "0"))
