"""
HTTP to addresses we did not choose: where callers want to be told, where the provider says its files are.

Who names an address must not reach through us what he cannot reach himself, nor keep us busy: http and https only,
public addresses only (and those `OUTBOUND_ALLOW` opens), no cookies, proxies or keys, each byte and second counted.
"""

import asyncio
import errno
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from pipeline import __version__, addresses, telemetry
from pipeline.addresses import Network, address_problem, shown
from pipeline.connector import HEAD_BYTES, Connector, EndlessHead, Lookup, Refused, system_lookup
from pipeline.errors import Blocked, Misled, TooMuch, Unreachable

__all__ = ["Answer", "Blocked", "Download", "Misled", "Outbound", "TooMuch", "Unreachable", "address_problem", "shown"]

log = telemetry.get(__name__)

CONNECT_S = 10.0
"""How long the name's lookup, the connection and TLS may take together."""

ANSWER_S = 3.0
"""How long the body of what a POST is answered is waited for, once its status is known."""

_MOST_HEADERS = 512
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AS_IT_IS = frozenset({"", "identity"})
_UNPACKED = _AS_IT_IS | {"gzip", "deflate", "br", "zstd"}  # those aiohttp unpacks piece by piece, or says it cannot


@dataclass(frozen=True, slots=True)
class Answer:
    """What a POST was answered. `body` is unpacked; `truncated` when it went on, or broke off."""

    status: int
    headers: Mapping[str, str]  # in whatever case they are asked for
    body: bytes
    truncated: bool
    duration_ms: int  # from before the name was looked up until the last byte taken


class Outbound:
    """
    The guarded client. Bound to the event loop it is first used on; any number of calls at a time.

    Raises:
        Blocked: The address must not be called; nothing was sent. It is logged. `Misled` when that is so only because
            of what its name was found to lead to.
        Unreachable: No answer, or not a whole one, in time.
    """

    def __init__(
        self, allow: Sequence[Network] = (), *, lookup: Lookup = system_lookup, tls: ssl.SSLContext | None = None
    ) -> None:
        self._allow = tuple(allow)
        self._lookup = lookup
        self._tls = tls  # None: what the system trusts
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, total_s: float, answer_bytes: int
    ) -> Answer:
        """
        Send *body*, and take at most *answer_bytes* of what is answered, all within *total_s*.

        A redirect is an answer: whoever is told something is told it where he said. So is one whose body breaks off,
        or comes too slowly: its status was heard.
        """
        began = time.monotonic()
        until = asyncio.get_running_loop().time() + total_s
        target = self._checked(url)
        with _explained(url, f"took longer than {total_s:g} s"):
            async with asyncio.timeout_at(until):
                response = await self._request("POST", target, headers, body)
        try:
            heard_until = min(until, asyncio.get_running_loop().time() + ANSWER_S)
            beginning, truncated = await _beginning(response.content, answer_bytes, heard_until)
        finally:
            response.close()
        return Answer(
            status=response.status,
            headers=_storable(response.headers),
            body=beginning,
            truncated=truncated,
            duration_ms=round((time.monotonic() - began) * 1000),
        )

    @asynccontextmanager
    async def get(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        total_s: float,
        idle_s: float,
        max_bytes: int,
        least_bytes_s: float = 0.0,
        redirects: int = 3,
    ) -> AsyncIterator["Download"]:
        """
        Begin a download; to enter it waits for the headers, `Download.pieces` brings the rest.

        Args:
            url: What is fetched.
            headers: Sent wherever a redirect leads, too: nothing secret.
            total_s: How long it all may take, with what the caller does in between.
            idle_s: How long nothing of the body may come. The headers may take as long, and `CONNECT_S` before.
            max_bytes: How much the body may be, unpacked.
            least_bytes_s: How much of it must come in a second, on average, once it has been coming for *idle_s*.
            redirects: How many are followed, each checked like the first address.
        """
        until = asyncio.get_running_loop().time() + total_s
        source: URL | None = None
        target = self._checked(url)
        for followed in range(redirects + 1):
            head_until = min(until, asyncio.get_running_loop().time() + CONNECT_S + idle_s)
            with _explained(str(target), "sent no answer in time", source=source):
                async with asyncio.timeout_at(head_until):
                    response = await self._request("GET", target, headers or {})
            try:
                location = response.headers.get("Location") if response.status in _REDIRECTS else None
                if location is None:
                    yield Download(
                        response,
                        str(target),
                        until=until,
                        idle_s=idle_s,
                        max_bytes=max_bytes,
                        least_bytes_s=least_bytes_s,
                    )
                    return
            finally:
                response.close()
            if followed == redirects:
                raise Unreachable(f"{shown(url)} redirects more than {redirects} times.")
            source, target = target, self._checked(_joined(target, location), source=target)

    async def close(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    def _checked(self, url: str, *, source: URL | None = None) -> URL:
        """Give the address as it will be called, *source* being what redirects there; else Blocked."""
        try:
            target = addresses.parse(url)
            problem = addresses.host_problem(target.raw_host or "", self._allow)
            if source and (source.scheme, target.scheme) == ("https", "http"):
                problem = "must not leave https"
        except ValueError as error:
            raise _blocked(url, str(error), source) from None
        if problem:
            raise _blocked(url, problem, source)
        return target

    async def _request(
        self, method: str, target: URL, headers: Mapping[str, str], body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        sent = CIMultiDict({"User-Agent": f"wavespeed-pipeline/{__version__}", "Accept-Encoding": "identity"})
        sent.update(headers)
        return await self._open().request(method, target, headers=sent, data=body, allow_redirects=False)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=Connector(self._allow, self._lookup, self._tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_connect=CONNECT_S),
                max_line_size=HEAD_BYTES,
                max_field_size=HEAD_BYTES,
                max_headers=_MOST_HEADERS,
                trust_env=False,  # a proxy of the environment would look names up for itself
            )
        return self._session


class Download:
    """An answer whose body is still to come. `length` and `content_type` are None when they are not said."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        url: str,
        *,
        until: float,
        idle_s: float,
        max_bytes: int,
        least_bytes_s: float,
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = _storable(response.headers)
        self.content_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower() or None
        self._packed = self.headers.get("Content-Encoding", "").strip().lower()
        self.length = response.content_length if self._packed in _AS_IT_IS else None
        self._content = response.content
        self._url = url
        self._until = until
        self._idle_s = idle_s
        self._max_bytes = max_bytes
        self._least_bytes_s = least_bytes_s

    async def pieces(self) -> AsyncIterator[bytes]:
        """
        Give the body as it comes, unpacked.

        Raises:
            TooMuch: It is longer than allowed; known from its declared length before the first piece.
            Unreachable: It ends before its time, does not come in time or too slowly, or cannot be unpacked.
        """
        if self._packed not in _UNPACKED:
            raise Unreachable(f"{shown(self._url)} packs its answer, though asked not to.")
        self._still_fits(self.length or 0)
        taken, began = 0, asyncio.get_running_loop().time()
        while piece := await self._next():
            taken += len(piece)
            self._still_fits(taken)
            self._still_flows(taken, asyncio.get_running_loop().time() - began)
            yield piece
            await asyncio.sleep(0)  # what was packed well is unpacked in one go otherwise, while all else waits

    def _still_fits(self, count: int) -> None:
        if count > self._max_bytes:
            raise TooMuch(f"{shown(self._url)} has more than {self._max_bytes} bytes.")

    def _still_flows(self, count: int, seconds: float) -> None:
        if seconds > self._idle_s and count < self._least_bytes_s * seconds:
            raise Unreachable(f"{shown(self._url)} sends less than {self._least_bytes_s:g} bytes a second.")

    async def _next(self) -> bytes:
        idle_until = asyncio.get_running_loop().time() + self._idle_s
        slow = f"sent nothing for {self._idle_s:g} s" if idle_until < self._until else "was not whole in time"
        with _explained(self._url, slow):
            async with asyncio.timeout_at(min(self._until, idle_until)):
                return await self._content.readany()


async def _beginning(content: aiohttp.StreamReader, most_bytes: int, until: float) -> tuple[bytes, bool]:
    """Read what comes of a body, up to a length and a time of the loop; and whether it went on, or should have."""
    taken = bytearray()
    with suppress(aiohttp.ClientError, OSError):  # a time-out is an OSError
        async with asyncio.timeout_at(until):
            while len(taken) <= most_bytes:
                piece = await content.readany()
                if not piece:
                    return bytes(taken), False
                taken += piece
    return bytes(taken[:most_bytes]), True


def _joined(target: URL, location: str) -> str:
    """Where a redirect leads; what cannot be read is given as it is, to be refused."""
    try:
        return str(target.join(URL(location, encoded=location.isascii() and " " not in location)))
    except ValueError:
        return location


def _storable(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Headers whose values Postgres can keep: bytes that are no text came as lone surrogates."""
    return CIMultiDict(
        {name: value.encode("utf-8", "replace").decode().replace("\0", "") for name, value in headers.items()}
    )


def _blocked(url: str, problem: str, source: URL | None = None, kind: type[Blocked] = Blocked) -> Blocked:
    log.warning("outbound.refused", url=shown(url), why=problem, redirected_from=source and shown(str(source)))
    if source:
        return kind(f"{shown(str(source))} redirects to {shown(url)}: the address {problem}.")
    return kind(f"{shown(url)}: the address {problem}.")


@contextmanager
def _explained(url: str, slow: str, *, source: URL | None = None) -> Iterator[None]:
    """Raise what can go wrong as an error of ours, in our words: aiohttp's quote the address, and what came."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError:
        why = "has no valid certificate for its name"
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, Refused):
            raise _blocked(url, str(error.os_error), source, Misled) from None  # a literal one is refused before
        why = _unconnected(error)
    except aiohttp.ConnectionTimeoutError:
        why = f"cannot be connected to within {CONNECT_S:g} s"
    except TimeoutError:
        why = slow
    except EndlessHead:
        why = f"sends more than {HEAD_BYTES} bytes ahead of its answer"
    except aiohttp.ClientPayloadError:
        why = "broke off, or packed its answer wrongly"
    except aiohttp.ClientResponseError:
        why = "answers in broken HTTP, or with too many headers"
    except (aiohttp.ClientError, OSError):
        why = "hung up before it answered"
    else:
        return
    raise Unreachable(f"{shown(url)} {why}.")


def _unconnected(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "cannot be found by its name"
    if isinstance(error, aiohttp.ClientSSLError):
        return "does not agree on TLS"
    known = errno.errorcode.get(error.os_error.errno or 0)
    return f"cannot be connected to ({known or type(error.os_error).__name__})"
