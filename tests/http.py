"""Plain HTTP for tests: every byte and header as given, nothing followed, retried or raised."""

import contextlib
import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """What came back; status 0 when nothing did."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str,
    url: str,
    body: bytes | Iterable[bytes] | object = None,
    headers: Mapping[str, str] | None = None,
    *,
    key: str | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    """Send one request. Bytes go as they are, an iterator of bytes in chunks, anything else as JSON."""
    sent = {"Content-Type": "application/json", **(headers or {})}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    chunked = not isinstance(body, bytes | dict | list | str | int | float | type(None)) and isinstance(body, Iterable)
    if body is not None and not isinstance(body, bytes) and not chunked:
        body = json.dumps(body).encode()
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.connect()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it hung up: its answer may say why
            connection.request(method, target, body, sent, encode_chunked=chunked)  # type: ignore[arg-type]
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    except (OSError, http.client.HTTPException):
        return Answer(0, {}, b"")
    finally:
        connection.close()


def get(url: str, *, key: str | None = None) -> Answer:
    """GET."""
    return request("GET", url, key=key)


def post(
    url: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    key: str | None = None,
    timeout_s: float = 30.0,
) -> Answer:
    """POST."""
    return request("POST", url, body, headers, key=key, timeout_s=timeout_s)
