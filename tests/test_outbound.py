"""The guarded client against real sockets: what it must not reach, and who must not keep it busy."""

import asyncio
import gzip
import socket
import ssl
import threading
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from structlog.testing import capture_logs

from pipeline.connector import HEAD_BYTES, Connector, Lookup, Refused, system_lookup
from pipeline.errors import OutboundError
from pipeline.outbound import Answer, Blocked, Misled, Outbound, TooMuch, Unreachable
from tests.wire import Handler, Request, drips, endless, floods, hang_up, http, raw, reset, says, silent, wire

T = TypeVar("T")

US = ip_network("127.0.0.1")
"""What tests allow: the rest of loopback, where servers may listen too, stays forbidden."""

INSIDE = "127.0.0.2"
CERTIFICATE = Path(__file__).with_name("shop.test.pem")
QUIET_S = 0.3
ENOUGH_S = 20.0
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\n"


def call(work: Callable[[Outbound], Awaitable[T]], *, allow: Sequence[Any] = (US,), **changes: Any) -> T:
    """Make calls with a client of their own."""

    async def within() -> T:
        client = Outbound(allow, **changes)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(within())


def post(url: str, *, total_s: float = ENOUGH_S, answer_bytes: int = 2048, **changes: Any) -> Answer:
    return call(
        lambda client: client.post(url, headers={}, body=b"{}", total_s=total_s, answer_bytes=answer_bytes), **changes
    )


def get(
    url: str,
    *,
    total_s: float = ENOUGH_S,
    idle_s: float = ENOUGH_S,
    max_bytes: int = 100_000,
    least_bytes_s: float = 0.0,
    **changes: Any,
) -> tuple[int, bytes]:
    async def fetch(client: Outbound) -> tuple[int, bytes]:
        taken = bytearray()
        async with client.get(
            url, total_s=total_s, idle_s=idle_s, max_bytes=max_bytes, least_bytes_s=least_bytes_s
        ) as download:
            async for piece in download.pieces():
                taken += piece
        return download.status, bytes(taken)

    return call(fetch, **changes)


def names(**places: str) -> Lookup:
    """A resolver of our own in the place of the system's; each name has the addresses that stand by it."""

    def lookup(host: str, port: int) -> Sequence[tuple[Any, ...]]:
        found = places.get(host.partition(".")[0])
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [info for place in found.split() for info in socket.getaddrinfo(place, port, type=socket.SOCK_STREAM)]

    return lookup


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0177.0.0.1", "017700000001", "0x7f.0.0.1", "0x7f000001", "127.1", "127.0.0.1."),
        *("0.0.0.0", "0", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
        *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1%25lo]", "[fe80::1%25lo]", "%31%32%37.0.0.1"),
        *("localhost", "LOCALHOST.", "shop.localhost", "１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "ⓛocalhost"),
        *("me:hunter2@127.0.0.1", "shop.example.com@127.0.0.1", "127.0.0.1\\", "inside.example.com"),
    ],
)
def test_nobody_reaches_this_machine_through_us(host: str) -> None:
    """Not in any notation, and not by a name that leads there; not a connection is made, and no secret told."""
    with wire(says(200)) as server:
        url = f"http://{host}:{server.port}/admin?token=hunter2"
        for attempt in (post, get):
            with pytest.raises(Blocked) as refused:
                attempt(url, allow=(), lookup=names(inside="127.0.0.1"))
            assert "hunter2" not in f"{refused.value} {refused.value.detail} {refused.value.__context__}"
            assert "the address must " in refused.value.detail
            assert isinstance(refused.value, Misled) == host.startswith("inside"), "only DNS may think better of it"
        assert server.untouched


def test_what_is_refused_is_said_in_the_log_without_its_secrets() -> None:
    """Whoever operates this must see who tries what, and may not see a signed address."""
    with wire(says(302, Location=f"http://me:hunter2@{INSIDE}/a?sig=hunter2")) as server, capture_logs() as said:
        with pytest.raises(Blocked):
            get(f"{server.url}/b?sig=hunter2")
        with pytest.raises(Blocked):
            post("http://inside.example.com/c?sig=hunter2", lookup=names(inside=INSIDE))
    assert [(line["event"], line["url"], line["why"]) for line in said] == [
        ("outbound.refused", f"http://{INSIDE}/a", "must have no credentials"),
        ("outbound.refused", "http://inside.example.com/c", f"must not lead to {INSIDE}, a loopback address"),
    ]
    assert said[0]["redirected_from"] == f"{server.url}/b"
    assert "hunter2" not in str(said)


def test_a_name_with_one_private_address_is_not_called_at_all() -> None:
    """Which of its addresses is tried would be chance, or its owner's choice."""
    with wire(says(200)) as server:
        both = names(shop=f"127.0.0.1 {INSIDE}", plain="127.0.0.1")
        with pytest.raises(Blocked):
            post(f"http://shop.example.com:{server.port}/", lookup=both)
        assert server.untouched
        assert post(f"http://plain.example.com:{server.port}/", lookup=both).status == 200


def test_dns_cannot_change_its_answer_between_check_and_connection() -> None:
    """The address that was checked is the one that is connected to: nobody is asked a second time in between."""
    with wire(says(200)) as shop, socket.create_server((INSIDE, shop.port)) as inside:
        asked: list[str] = []

        def rebinding(host: str, port: int) -> Sequence[tuple[Any, ...]]:
            asked.append(host)
            return system_lookup("127.0.0.1" if len(asked) == 1 else INSIDE, port)

        url = f"http://shop.example.com:{shop.port}/"
        assert post(url, lookup=rebinding).status == 200
        assert asked == ["shop.example.com"]
        for attempt in (post, get):
            with pytest.raises(Blocked):
                attempt(url, lookup=rebinding)
        inside.setblocking(False)
        with pytest.raises(BlockingIOError):
            inside.accept()
        assert len(shop.requests) == 1


def test_no_socket_is_made_to_what_was_not_checked() -> None:
    """The last bolt, should the checks before it ever have a hole: a bare client on the same connections."""

    async def bare(url: str) -> None:
        async with aiohttp.ClientSession(connector=Connector([US], system_lookup, tls=True)) as session:
            await session.get(url)

    with wire(says(200), host=INSIDE) as inside:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            asyncio.run(bare(inside.url))
        assert isinstance(caught.value.os_error, Refused)
        assert inside.untouched


@pytest.mark.parametrize("host", ["gone.example.com", "a" * 63 + ".example.com", "xn--.example.com"])
def test_a_name_that_nobody_knows_is_unreachable(host: str) -> None:
    """It may be known again tomorrow."""
    with pytest.raises(Unreachable, match="cannot be found by its name"):
        post(f"http://{host}/", lookup=names())


def test_a_name_whose_servers_are_silent_holds_up_no_other() -> None:
    """Each is looked up in a thread of its own, and given up with its request."""
    answers = threading.Event()

    def lookup(host: str, port: int) -> Sequence[tuple[Any, ...]]:
        if host.startswith("silent"):
            answers.wait(ENOUGH_S)
        return system_lookup("127.0.0.1", port)

    async def both(client: Outbound) -> None:
        facts: dict[str, Any] = {"headers": {}, "body": b"", "answer_bytes": 0}
        slow = [
            asyncio.ensure_future(client.post(f"http://silent{n}.example.com/", total_s=QUIET_S, **facts))
            for n in range(20)
        ]
        assert (await client.post(url, total_s=ENOUGH_S, **facts)).status == 200
        outcomes = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(one) for one in outcomes} == {Unreachable}

    with wire(says(200)) as server:
        url = f"http://shop.example.com:{server.port}/"
        try:
            call(both, lookup=lookup)
        finally:
            answers.set()


@pytest.mark.parametrize(
    "location",
    [
        *(f"http://{INSIDE}:{{inside}}/", "http://127.1:{inside}/", "//[::1]:{inside}/"),
        *("http://inside.example.com:{inside}/", "http://[::ffff:127.0.0.2]:{inside}/", f"//{INSIDE}:{{inside}}"),
        *("http://me:secret@127.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://127.0.0.1:0/"),
        *("file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:{port}/_x", "javascript:alert(1)", "data:,x"),
        *("http://[", "http://127.0.0.1:x/", "http://\\@127.0.0.1/", "http://127.0.0.1:{port}\\@a/"),
    ],
)
def test_a_redirect_leads_nowhere_one_may_not_go(location: str) -> None:
    """Each is checked like the first address; and what is posted is not redirected at all."""
    with wire(says(200), host=INSIDE) as inside:

        def redirect(request: Request, connection: socket.socket) -> None:
            target = location.replace("{inside}", str(inside.port)).replace("{port}", str(server.port))
            connection.sendall(http(302, Location=target))

        with wire(redirect) as server:
            lookup = names(inside=INSIDE)
            with pytest.raises(Blocked, match="redirects to"):
                get(server.url, lookup=lookup)
            assert post(server.url, lookup=lookup).status == 302
            assert len(server.requests) == 2
        assert inside.untouched


def test_redirects_that_may_be_followed_are_followed_a_few_times() -> None:
    """Files move: to another path, another host; a circle is left after a while."""

    def redirect(request: Request, connection: socket.socket) -> None:
        path, _, query = request.target.partition("?")
        steps = {"/a": "b?x=%2F+", "/b": f"//there.example.com:{server.port}/c", "/c": "/d#top", "/circle": "/circle"}
        where = steps.get(path)
        connection.sendall(http(301, Location=where) if where else http(200, f"{path} {query}".encode()))

    with wire(redirect) as server:
        lookup = names(there="127.0.0.1")
        assert get(f"{server.url}/a", lookup=lookup) == (200, b"/d ")
        assert [request.target for request in server.requests] == ["/a", "/b?x=%2F+", "/c", "/d"]
        with pytest.raises(Unreachable, match="redirects more than 3 times"):
            get(f"{server.url}/circle")
        assert len(server.requests) == 8


def test_tls_is_checked_by_name_though_the_address_is_pinned() -> None:
    """And what is fetched over TLS is not redirected to where it could be read."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(CERTIFICATE)
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    with wire(says(302, b"hello", Location="http://shop.test/")) as plain, wire(says(200), tls=serving) as server:
        facts: dict[str, Any] = {"lookup": names(shop="127.0.0.1", other="127.0.0.1"), "tls": trusting}
        server.handler = plain.handler
        assert post(f"https://shop.test:{server.port}/", **facts).body == b"hello"
        with pytest.raises(Blocked, match="must not leave https"):
            get(f"https://shop.test:{server.port}/", **facts)
        with pytest.raises(Unreachable, match="no valid certificate for its name"):
            post(f"https://other.test:{server.port}/", **facts)
    with wire(says(200)) as plain, pytest.raises(Unreachable, match=r"TLS|cannot be connected to"):
        post(f"https://shop.test:{plain.port}/", **facts)


def test_what_is_sent_is_the_address_as_written_and_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed addresses break when rewritten. No cookies, no proxy of the environment, no netrc, no kept connection."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    target = "/a%2Fb/%7e;c?X-Sig=%2f%2B+~*'()&b=&b=%C3%BC"

    async def twice(client: Outbound) -> None:
        for _ in range(2):
            await client.post(
                server.url + target,
                headers={"Content-Type": "application/json", "webhook-id": "1"},
                body=b'{"a": 1}',
                total_s=ENOUGH_S,
                answer_bytes=100,
            )

    with wire(says(200, Set_Cookie="a=b; Path=/")) as server:
        call(twice)
        first, second = server.requests
    assert first == second
    assert (first.method, first.target, first.body) == ("POST", target, b'{"a": 1}')
    assert first.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": first.headers["user-agent"],
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "webhook-id": "1",
        "content-length": "8",
        "connection": "close",
    }


NEVER_WHOLE: list[tuple[str, Handler]] = [
    ("nothing", silent),
    ("drips of its status", drips(b"", b"H")),
    ("drips of its headers", drips(OK + b"X-Slow: ", b"x")),
    ("drips of 1xx answers", drips(b"", b"HTTP/1.1 102 Processing\r\n\r\n")),
    ("1xx answers without end", floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)),
    ("headers without end", floods(OK, b"X-Many: x\r\n" * 1000)),
    ("a header without end", floods(OK + b"X-Long: ", b"x" * 10_000)),
    ("a header name without end", floods(OK, b"x" * 10_000)),
    ("a status without end", floods(b"HTTP/1.1 200 ", b"x" * 10_000)),
    ("a huge header", raw(OK + b"X-Long: " + b"x" * HEAD_BYTES + b"\r\n\r\n")),
    ("no HTTP", raw(b"SSH-2.0-OpenSSH_9.9\r\n")),
    ("no HTTP, long", floods(b"", b"\0" * 10_000)),
    ("two lengths", raw(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")),
    ("a length and chunks", raw(OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
    ("a length below nothing", raw(OK + b"Content-Length: -5\r\n\r\nhello")),
    ("a length beyond all numbers", raw(OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello")),
    ("brotli, which it was not asked for", says(200, b"hello", Content_Encoding="br")),
    ("a word less", hang_up),
    ("a reset", reset),
]


@pytest.mark.parametrize(("what", "handler"), NEVER_WHOLE, ids=[what for what, _ in NEVER_WHOLE])
def test_who_does_not_come_to_the_point_is_left(what: str, handler: Handler) -> None:
    """In time, with bounded memory, and with a reason that says which address it was."""
    with wire(handler) as server:
        with pytest.raises(Unreachable) as by_post:
            post(f"{server.url}/hook?token=1", total_s=QUIET_S)
        with pytest.raises(Unreachable) as by_get:
            get(f"{server.url}/hook?token=1", total_s=QUIET_S)
    for error in (by_post, by_get):
        assert error.value.detail.startswith(f"{server.url}/hook ")


BODIES: list[tuple[str, Handler, type[OutboundError]]] = [
    ("endless", endless, TooMuch),
    ("endless, without a length", floods(OK + b"\r\n", b"x" * 10_000), TooMuch),
    ("longer than allowed, and said so", raw(OK + b"Content-Length: 100001\r\n\r\n"), TooMuch),
    ("a bomb", says(200, gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"), TooMuch),
    ("a bomb, deflated", says(200, zlib.compress(bytes(50_000_000)), Content_Encoding="deflate"), TooMuch),
    ("a bomb in a bomb", says(200, gzip.compress(gzip.compress(b"x")), Content_Encoding="gzip, gzip"), Unreachable),
    ("no gzip", says(200, b"hello", Content_Encoding="gzip"), Unreachable),
    ("nothing", drips(OK + b"Content-Length: 5\r\n\r\n", b""), Unreachable),
    ("drips", drips(OK + b"\r\n", b"x"), Unreachable),
    ("drips in chunks", drips(CHUNKED, b"1\r\nx\r\n"), Unreachable),
    ("a chunk's extension without end", floods(CHUNKED + b"1;", b"x" * 10_000), Unreachable),
    ("trailers without end", floods(CHUNKED + b"1\r\nx\r\n0\r\n", b"X-Many: x\r\n" * 1000), Unreachable),
    ("shorter than it said", lambda request, connection: _short(connection, WHOLE + b"hel"), Unreachable),
    ("without its last chunk", lambda request, connection: _short(connection, CHUNKED + b"3\r\nhel\r\n"), Unreachable),
    ("a broken chunk", raw(CHUNKED + b"x\r\nhello\r\n"), Unreachable),
]


def _short(connection: socket.socket, answer: bytes) -> None:
    connection.sendall(answer)
    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("what", "handler", "error"), BODIES, ids=[what for what, *_ in BODIES])
def test_no_body_is_taken_that_is_not_whole_or_too_much(
    what: str, handler: Handler, error: type[OutboundError]
) -> None:
    """A file half there would be archived as if it were whole. Whoever is told something has been told all the same."""
    with wire(handler) as server:
        with pytest.raises(error):
            get(server.url, total_s=QUIET_S)
        with suppress(Unreachable):  # where it cannot be told apart from a broken head
            answer = post(server.url, total_s=QUIET_S, answer_bytes=100)
            assert answer.status == 200
            assert len(answer.body) <= 100


def test_a_body_that_drips_is_given_up_long_before_all_time_is_over() -> None:
    """A few servers that send a byte now and then would hold every place that there is for downloads."""
    with wire(drips(OK + b"\r\n", b"x")) as server, pytest.raises(Unreachable, match="less than 1000 bytes a second"):
        get(server.url, idle_s=QUIET_S, least_bytes_s=1000.0)
    with wire(says(200, bytes(50_000))) as server:
        assert get(server.url, idle_s=QUIET_S, least_bytes_s=1000.0) == (200, bytes(50_000))


def test_an_answer_is_kept_as_far_as_it_is_wanted() -> None:
    """Its status counts, though its body is long, breaks off or is packed; what is kept can be stored."""
    with wire(says(500, b"x" * 3000, Retry_After="7", X_Odd="\xff\xe9")) as server:
        answer = post(server.url, answer_bytes=2048)
        assert (answer.status, len(answer.body), answer.truncated) == (500, 2048, True)
        assert answer.headers["retry-after"] == "7"
        assert answer.headers["X-Odd"].encode()
        server.handler = says(200, gzip.compress(b"thank you"), Content_Encoding="gzip")
        assert post(server.url).body == b"thank you"
        server.handler = says(200, b"hello", Content_Security_Policy="default-src 'self';" * 1000)
        assert post(server.url).body == b"hello"
        server.handler = raw(WHOLE + b"hello")
        answer = post(server.url, answer_bytes=5)
        assert (answer.body, answer.truncated) == (b"hello", False)
        server.handler = raw(OK + b"Content-Length: 9\r\n\r\nhello")
        answer = post(server.url, total_s=QUIET_S)
        assert (answer.status, answer.body, answer.truncated) == (200, b"hello", True)
        server.handler = raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + b"HTTP/1.1 103 Hints\r\n\r\n" + WHOLE + b"hello")
        assert post(server.url).body == b"hello"
        server.handler = floods(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", b"x" * 10_000)
        assert post(server.url).status == 101


def test_a_download_says_what_it_is_before_it_comes() -> None:
    """Whoever stores it decides by its status, type and length; errors are answers, too."""

    async def look(client: Outbound) -> list[Any]:
        async with client.get(server.url, total_s=ENOUGH_S, idle_s=ENOUGH_S, max_bytes=4) as download:
            return [download.status, download.content_type, download.length, download.headers.get("etag")]

    with wire(says(200, b"hello", Content_Type="Image/PNG; x=y", ETag='"a"')) as server:
        assert call(look) == [200, "image/png", 5, '"a"']
        server.handler = says(404, gzip.compress(b"hello"), Content_Encoding="gzip")
        assert call(look) == [404, None, None, None]
        server.handler = says(200, gzip.compress(b"hello" * 10), Content_Encoding="gzip")
        assert get(server.url) == (200, b"hello" * 10)


def test_who_does_not_listen_is_unreachable() -> None:
    """A port where nobody is; the error names the system's own word."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(Unreachable, match=r"cannot be connected to \(ECONNREFUSED\)"):
        post(f"http://127.0.0.1:{port}/")
