"""
The provider's API: one method an endpoint, answers and failures typed.

What may be done after a failure is the exception's type (see `errors`): that is the whole retry policy.
Nothing here retries, and nothing follows a redirect: a 307 would send a paid POST twice.

Source: https://wavespeed.ai/docs/rest-api and the pages of each endpoint.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_UP, Decimal
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from pipeline import __version__, catalogue, tracing
from pipeline.catalogue import Offer
from pipeline.errors import (
    Ambiguous,
    KeyRefused,
    NoCredit,
    NotFound,
    ProviderError,
    Rejected,
    Throttled,
    Transient,
)
from pipeline.predictions import Prediction, Status, Unreadable, cut, parse, parse_time, storable, task_id

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_RETRY_AFTER_S = 3600.0
_MOST_USD = 1_000_000  # for one task: more is a mistake of somebody's
_SHORTEST_ECHO = 12  # a shorter one may be a word of the provider's own
_SHORTEST_SECRET = 8  # a shorter key is a stand-in, and may be any word

_NO_CREDIT = re.compile(
    r"(insufficient|not enough)[\w ]*\b(credit|balance|fund)|\btop up\b"
    r"|\b(credits?|balance)\b[\w ]*\b(insufficient|exhausted|too low)",
    re.I,
)
_SECONDS = re.compile(r"\d{1,7}(\.\d{1,6})?", re.ASCII)  # a fraction is against the standard, and clear enough
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")  # what a caller sent, echoed: it must not halt the account
_TAGS = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for the provider, in seconds."""

    connect_s: float = 10.0
    submit_s: float = 60.0  # the provider's own clients wait as long
    read_s: float = 30.0  # of every other call; a provider in trouble may take as long, and must still be heard


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the provider's list of tasks, newest first."""

    items: tuple[Prediction, ...]
    count: int  # as sent, unreadable ones too: fewer than asked for means the last page
    server_time: datetime | None  # the provider's clock, to the second


@dataclass(frozen=True, slots=True)
class Bill:
    """One line of the account's bill: a task charged, or its charge refunded."""

    id: str
    prediction_id: str
    model: str | None
    usd: Decimal
    refund: bool
    key_id: str | None  # of the API key that made the task
    created_at: datetime | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the account has left, and the provider's clock, to the second."""

    usd: float
    server_time: datetime | None


class WaveSpeed:
    """
    A client for one account. Bound to the event loop it is first used on.

    Raises:
        ProviderError: By every method; its subclass says what may be done next.
    """

    def __init__(
        self, api_key: str, base_url: str, *, connections: int = 512, timeouts: Timeouts | None = None
    ) -> None:
        self._root = f"{base_url}/api/v3"
        self._key = api_key
        self._timeouts = timeouts or Timeouts()
        self._headers = {
            "Authorization": f"Bearer {api_key}",
            "X-Client-Name": "wavespeed-pipeline",
            "X-Client-Version": __version__,
        }
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def submit(self, model: str, payload: Mapping[str, Any], *, webhook: str | None = None) -> Prediction:
        """
        Start one paid task.

        Raises:
            Transient: Nothing was sent. Throttled: refused before a task existed.
            Rejected, KeyRefused, NoCredit: refused for good, or until a person acts.
            Ambiguous: the task may exist and cost money.
        """
        answer = await self._call("submit", "POST", f"/{model}", payload=payload, paid=True, webhook=webhook)
        data = answer.data
        try:
            identity = task_id(data if isinstance(data, dict) else {})
        except Unreadable:
            raise Ambiguous("The answer to the submit has no task id.", http_status=answer.status) from None
        try:
            return parse(data)
        except Unreadable:  # an id is all it takes to be accepted
            return Prediction(id=identity, status=Status.RUNNING, said="")

    async def result(self, prediction_id: str) -> Prediction:
        """
        Ask how one task is.

        Raises:
            NotFound: The provider knows no such task.
        """
        answer = await self._call("result", "GET", f"/predictions/{quote(prediction_id, safe='')}/result")
        return _prediction(answer)

    async def list(
        self,
        *,
        model: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page: int = 1,
        page_size: int = 100,
    ) -> Page:
        """One page of the account's tasks of the last 7 days, newest first, those of its web pages too."""
        payload: dict[str, Any] = {"page": page, "page_size": page_size}
        if model:
            payload["model"] = model
        if created_after:
            payload["created_after"] = created_after.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if created_before:
            payload["created_before"] = created_before.astimezone(UTC).isoformat().replace("+00:00", "Z")
        answer = await self._call("list", "POST", "/predictions", payload=payload)
        items = answer.data.get("items") if isinstance(answer.data, dict) else None
        if not isinstance(items, list):
            raise Transient("The answer to the list has no items.", http_status=answer.status)
        return Page(tuple(_readable(items)), len(items), answer.server_time)

    async def balance(self) -> float:
        """The account's balance in USD; also the cheapest way to try the key."""
        return (await self.standing()).usd

    async def standing(self) -> Standing:
        """The balance, and what time it is there."""
        answer = await self._call("balance", "GET", "/balance")
        balance = answer.data.get("balance") if isinstance(answer.data, dict) else None
        if isinstance(balance, bool) or not isinstance(balance, int | float):
            raise Transient("The answer to the balance has no number.", http_status=answer.status)
        return Standing(float(balance), answer.server_time)

    async def models(self) -> Sequence[Offer]:
        """
        Every model the provider offers, with the schema of its input. Some megabytes.

        Source: https://wavespeed.ai/docs/docs-common-api/list-models
        """
        answer = await self._call("models", "GET", "/models")
        if not isinstance(answer.data, list):
            raise Transient("The answer to the models has no list.", http_status=answer.status)
        return catalogue.read(answer.data)

    async def price(self, model: str, inputs: Mapping[str, Any]) -> Decimal | None:
        """
        What one task costs this account, in USD; None when the answer names no price.

        Raises:
            Rejected: The provider prices no such model.

        Source: https://wavespeed.ai/docs/pricing-api
        """
        answer = await self._call("price", "POST", "/model/price", payload={"model_id": model, "inputs": inputs})
        data = answer.data if isinstance(answer.data, dict) else {}
        if data.get("currency") not in {None, "", "USD"}:
            return None
        found = [_usd(data.get(name)) for name in ("discounted_price", "price", "unit_price")]
        named = [usd for usd in found if usd is not None]
        return next((usd for usd in named if usd), named[0] if named else None)  # an unset discount reads 0

    async def bills(self, start: datetime, end: datetime, *, page: int = 1, page_size: int = 100) -> tuple[Bill, ...]:
        """
        One page of what the account was billed for tasks between two moments; fewer than asked for is the last.

        Raises:
            Transient: Also when a line cannot be read: a bill with holes would accuse the innocent.

        Source: https://wavespeed.ai/docs/docs-common-api/check-billings
        """
        payload = {
            "page": page,
            "page_size": page_size,
            "start_time": str(round(start.timestamp() * 1000)),
            "end_time": str(round(end.timestamp() * 1000)),
        }
        answer = await self._call("bills", "POST", "/billings/search", payload=payload)
        items = answer.data.get("items") if isinstance(answer.data, dict) else None
        if not isinstance(items, list):
            raise Transient("The answer to the bill has no items.", http_status=answer.status)
        return tuple(_bill(item) for item in items)

    async def webhook_secret(self) -> str:
        """The secret that callbacks are signed with; some deployments answer without the envelope."""
        answer = await self._call("webhook_secret", "GET", "/webhook/secret")
        for holder in (answer.data, answer.envelope):
            secret = holder.get("secret") if isinstance(holder, dict) else None
            if isinstance(secret, str) and secret.isascii() and secret.isprintable() and secret.removeprefix("whsec_"):
                return secret
        raise Transient("The answer to the webhook secret has no secret.", http_status=answer.status)

    async def close(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    async def _call(
        self,
        what: str,
        method: str,
        path: str,
        *,
        payload: Mapping[str, Any] | None = None,
        paid: bool = False,
        webhook: str | None = None,
    ) -> "_Answer":
        connect_s = self._timeouts.connect_s
        read_s = self._timeouts.submit_s if paid else self._timeouts.read_s
        timeout = aiohttp.ClientTimeout(total=connect_s + read_s, sock_connect=connect_s, sock_read=read_s)
        lost: type[ProviderError] = Ambiguous if paid else Transient
        try:
            query = f"?webhook={quote(webhook, safe='')}" if webhook else ""
            url = URL(self._root + path + query, encoded=True)  # as written: what is percent-encoded stays so
            with tracing.span(f"wavespeed {what}", kind="client", method=method, address=self._root) as span:
                async with self._open().request(
                    method, url, json=payload, timeout=timeout, allow_redirects=False
                ) as response:
                    span.set(status=response.status)
                    body = await _capped(response.content)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Transient(f"The provider cannot be reached ({type(error).__name__}).") from None
        except aiohttp.InvalidURL:
            raise Rejected("The provider's address or the model's name makes no valid URL.") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise lost(f"The connection broke before the answer came ({type(error).__name__}).") from None
        echoes = [value for value in (payload or {}).values() if isinstance(value, str)] if paid else []
        answer = _Answer(response.status, response.headers, body, private=(self._key, webhook), echoes=echoes)
        answer.raise_unless_ok(lost)
        return answer

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=self._connections, ttl_dns_cache=60),
                json_serialize=lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _Answer:
    """An HTTP answer, its JSON envelope if it has one, and what it means."""

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        private: Sequence[str | None] = (),
        echoes: Sequence[str] = (),
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self._echoes = [cut(words) for words in echoes if len(words) >= _SHORTEST_ECHO]
        self._private = [words for words in private if words and len(words) >= _SHORTEST_SECRET]
        try:
            self.envelope: Any = storable(json.loads(body))
        except (ValueError, RecursionError):
            self.envelope = None

    @property
    def data(self) -> Any:
        return self.envelope.get("data") if isinstance(self.envelope, dict) else None

    @property
    def server_time(self) -> datetime | None:
        return _http_date(self.headers.get("Date", ""))

    @property
    def message(self) -> str:
        """The provider's words: `message`, else `error` (a text or an object), else `data.error`, else the text."""
        if isinstance(self.envelope, dict):
            data = self.data if isinstance(self.data, dict) else {}
            for words in (self.envelope.get("message"), self.envelope.get("error"), data.get("error")):
                found = words.get("message") if isinstance(words, dict) else words
                if isinstance(found, str) and found and found != "success":
                    return self._shown(found, 500)
        text = _TAGS.sub(" ", self.body[:4096].decode("utf-8", "replace"))
        return self._shown(text, 500) or f"HTTP {self.status}"

    @property
    def provider_code(self) -> str | None:
        if not isinstance(self.envelope, dict):
            return None
        for code in (self.envelope.get("error_code"), self.envelope.get("code")):
            if isinstance(code, str | int) and not isinstance(code, bool) and code:
                return self._shown(str(code), 60)
        return None

    def _shown(self, words: str, length: int) -> str:
        """The provider's words, for callers and logs: should they repeat our key or a callback's token, without it."""
        for secret in self._private:
            for form in (secret, quote(secret, safe="")):
                words = words.replace(form, "[removed]")
        return cut(words, length)

    def raise_unless_ok(self, lost: type[ProviderError]) -> None:
        """Sort everything but 2xx; *lost* is what an unclear answer means for this call."""
        if 200 <= self.status < 300:
            return
        raise self._meaning(lost)(
            self.message,
            http_status=self.status,
            provider_code=self.provider_code,
            retry_after_s=_retry_after(self.headers.get("Retry-After", "")),
        )

    def _own_words(self) -> str:
        """The message without what a caller sent: its echo must not be taken for the state of the account."""
        words = self.message
        for echo in self._echoes:
            words = words.replace(echo, " ")
        return _QUOTED.sub("", words)

    def _meaning(self, lost: type[ProviderError]) -> type[ProviderError]:
        if self.status == 402 or (self.status == 400 and _NO_CREDIT.search(self._own_words())):
            return NoCredit
        if self.status in {401, 403}:
            return KeyRefused
        if self.status == 404:
            return NotFound
        if self.status == 429:
            return Throttled
        # 408 and 425 come from gateways: like 3xx and 5xx they do not say whether the task was made.
        return Rejected if 400 <= self.status < 500 and self.status not in {408, 425} else lost


async def _capped(content: aiohttp.StreamReader) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise aiohttp.ClientPayloadError("The answer is too large.")
    return bytes(body)


def _prediction(answer: _Answer) -> Prediction:
    try:
        return parse(answer.data)
    except Unreadable as error:
        raise Transient(f"The answer is no prediction: {error}", http_status=answer.status) from None


def _readable(items: Sequence[object]) -> list[Prediction]:
    found = []
    for item in items:
        try:
            found.append(parse(item))
        except Unreadable:
            continue
    return found


def _bill(item: object) -> Bill:
    line: dict[str, Any] = item if isinstance(item, dict) else {}
    of = line.get("prediction")
    prediction: dict[str, Any] = of if isinstance(of, dict) else {}
    price = line.get("price")
    usd = _usd(abs(price) if isinstance(price, int | float) else None)  # a refund may be written as a negative one
    if usd is None or not _text(line.get("uuid")):
        raise Transient("A line of the bill has no id or no price.")
    return Bill(
        id=line["uuid"],
        prediction_id=_text(prediction.get("uuid")) or "",  # a top-up has none
        model=_text(prediction.get("model_uuid")),
        usd=usd,
        refund="refund" in str(line.get("billing_type")),
        key_id=_text(line.get("access_key_id")),
        created_at=parse_time(line.get("created_at")),
    )


def _text(value: object) -> str | None:
    return storable(value) if isinstance(value, str) and value else None


def _usd(value: object) -> Decimal | None:
    """An amount as we keep it, rounded up to the millionth; None unless it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST_USD:
        return None
    return Decimal(str(value)).quantize(Decimal("0.000001"), ROUND_UP)


def _retry_after(value: str) -> float | None:
    """Seconds from either form of the header; None when absent or nonsense."""
    if _SECONDS.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER_S)
    at = _http_date(value)
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), MAX_RETRY_AFTER_S) if at else None


def _http_date(value: str) -> datetime | None:
    try:
        return parsedate_to_datetime(value).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None
