"""The provider's client over real HTTP: what may be done after each answer, what is sent, and what is never told."""

import asyncio
import gzip
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

import pytest

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
from pipeline.predictions import Status
from pipeline.sandbox import Sandbox
from pipeline.wavespeed import MAX_ANSWER_BYTES, Timeouts, WaveSpeed
from tests.factories import MODEL, until
from tests.wire import (
    Handler,
    Request,
    begin_and_hang_up,
    begin_and_reset,
    endless,
    hang_up,
    http,
    raw,
    reset,
    says,
    silent,
    wire,
)

T = TypeVar("T")

KEY = "wsk_0123456789abcdef"
HOOK = "https://hooks.example.com/webhooks/wavespeed/a-Token_0~1?a=1&b=ü/%2F"
HASTY = Timeouts(connect_s=5.0, submit_s=0.3, read_s=0.3)
TASK = {"id": "e6832d4abffb4d79bfbca19783fca133", "model": MODEL, "status": "created", "outputs": []}


def call(url: str, work: Callable[[WaveSpeed], Awaitable[T]], timeouts: Timeouts | None = None) -> T:
    """Make one call, with a client of its own."""

    async def within() -> T:
        client = WaveSpeed(KEY, url, timeouts=timeouts)
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(within())


def submit(url: str, timeouts: Timeouts | None = None, webhook: str | None = HOOK) -> Any:
    return call(url, lambda client: client.submit(MODEL, {"prompt": "a lighthouse"}, webhook=webhook), timeouts)


def refused_submit(url: str, timeouts: Timeouts | None = None) -> ProviderError:
    """The error of a submit, checked for what no error may ever tell."""
    with pytest.raises(ProviderError) as caught:
        submit(url, timeouts)
    keeps_quiet(caught.value)
    return caught.value


def keeps_quiet(error: ProviderError) -> None:
    shown = f"{error} {error!r} {error.detail} {error.args} {error.__dict__}"
    assert KEY not in shown
    assert "a-Token" not in shown
    assert "\n" not in error.detail
    assert len(error.detail) <= 500


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of this machine on which nobody listens, kept so."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


ACCEPTED = [
    pytest.param(says(200, {"code": 200, "message": "success", "data": TASK}), id="200"),
    pytest.param(says(201, {"code": 200, "message": "success", "data": TASK}), id="201"),
    pytest.param(says(200, {"data": {"id": TASK["id"]}}), id="an id and nothing else"),
    pytest.param(says(200, {"code": 500, "message": "odd", "data": TASK}), id="200 whatever the envelope's code"),
    pytest.param(says(200, {"data": {**TASK, "status": "dreaming"}}), id="a status nobody knows"),
    pytest.param(
        raw(http(200, gzip.compress(b'{"data":{"id":"' + TASK["id"].encode() + b'"}}'), Content_Encoding="gzip")),  # type: ignore[attr-defined]
        id="compressed",
    ),
]


@pytest.mark.parametrize("handler", ACCEPTED)
def test_a_2xx_with_an_id_is_accepted(handler: Handler) -> None:
    """The id is all that is needed to learn the rest; anything stricter would forget a task that was paid for."""
    with wire(handler) as server:
        found = submit(server.url)

    assert found.id == TASK["id"]
    assert found.status is Status.RUNNING
    assert len(server.requests) == 1


REFUSALS: list[Any] = [
    # (answer, what it means, HTTP status)
    pytest.param(says(400, {"code": 400, "message": "model not found"}), Rejected, 400, id="400"),
    pytest.param(says(404, {"code": 404, "message": "not found"}), NotFound, 404, id="404"),
    pytest.param(says(409, {"code": 409, "message": "conflict"}), Rejected, 409, id="409"),
    pytest.param(says(413, b"too large"), Rejected, 413, id="413"),
    pytest.param(says(422, {"error": "prompt is required"}), Rejected, 422, id="422"),
    pytest.param(says(402, {"message": "Payment required"}), NoCredit, 402, id="402"),
    pytest.param(
        says(400, {"code": 400, "message": "Insufficient credits. Please top up your account to continue."}),
        NoCredit,
        400,
        id="400 insufficient credits",
    ),
    pytest.param(says(400, {"error": "insufficient credit"}), NoCredit, 400, id="400 bare insufficient credit"),
    pytest.param(says(400, {"message": "Insufficient account balance"}), NoCredit, 400, id="400 insufficient balance"),
    pytest.param(says(400, {"message": "Your credits are exhausted"}), NoCredit, 400, id="400 credits exhausted"),
    pytest.param(says(400, {"message": "no credit card picture"}), Rejected, 400, id="400 about a credit card"),
    pytest.param(
        says(400, {"message": "size: 'insufficient credits, top up' is not one of ['1024*1024']"}),
        Rejected,
        400,
        id="400 that echoes a caller's words about credit",
    ),
    pytest.param(says(401, {"code": 401, "message": "invalid authentication"}), KeyRefused, 401, id="401"),
    pytest.param(says(403, {"message": "account suspended", "error_code": "X"}), KeyRefused, 403, id="403"),
    pytest.param(says(429, {"message": "You have reached your concurrency limit"}), Throttled, 429, id="429"),
    pytest.param(says(300, b""), Ambiguous, 300, id="300"),
    pytest.param(says(301, b"", Location="/elsewhere"), Ambiguous, 301, id="301"),
    pytest.param(says(302, b"", Location="/elsewhere"), Ambiguous, 302, id="302"),
    pytest.param(says(303, b"", Location="/elsewhere"), Ambiguous, 303, id="303"),
    pytest.param(says(304, b""), Ambiguous, 304, id="304"),
    pytest.param(says(307, b"", Location="/elsewhere"), Ambiguous, 307, id="307"),
    pytest.param(says(308, b"", Location="/elsewhere"), Ambiguous, 308, id="308"),
    pytest.param(says(408, b"request timeout"), Ambiguous, 408, id="408"),
    pytest.param(says(425, b"too early"), Ambiguous, 425, id="425"),
    pytest.param(says(500, {"code": 500, "message": "internal server error"}), Ambiguous, 500, id="500"),
    pytest.param(says(500, {"message": "insufficient credits"}), Ambiguous, 500, id="500 whatever it says"),
    pytest.param(says(502, b"<html><h1>502 Bad Gateway</h1></html>"), Ambiguous, 502, id="502 HTML"),
    pytest.param(says(503, b""), Ambiguous, 503, id="503 empty"),
    pytest.param(says(504, b"<html>504 Gateway Time-out</html>"), Ambiguous, 504, id="504"),
    pytest.param(says(599, b""), Ambiguous, 599, id="599"),
    pytest.param(says(200, b""), Ambiguous, 200, id="200 empty"),
    pytest.param(says(204, b""), Ambiguous, 204, id="204"),
    pytest.param(says(200, b"{"), Ambiguous, 200, id="200 broken JSON"),
    pytest.param(says(200, b"[" * 100_000), Ambiguous, 200, id="200 bottomless JSON"),
    pytest.param(says(200, b"\xff\xfe\x00"), Ambiguous, 200, id="200 no UTF-8"),
    pytest.param(says(200, b"<html>hello</html>"), Ambiguous, 200, id="200 HTML"),
    pytest.param(says(200, [TASK]), Ambiguous, 200, id="200 a list"),
    pytest.param(says(200, {"code": 200, "data": None}), Ambiguous, 200, id="200 without data"),
    pytest.param(says(200, {"data": [TASK]}), Ambiguous, 200, id="200 with a list of data"),
    pytest.param(says(200, {"data": {"id": ""}}), Ambiguous, 200, id="200 with an empty id"),
    pytest.param(says(200, {"data": {"id": 7}}), Ambiguous, 200, id="200 with a number for an id"),
    pytest.param(says(200, {"data": {"id": "x" * 10_000}}), Ambiguous, 200, id="200 with an endless id"),
    pytest.param(
        raw(http(200, b"not gzip", Content_Encoding="gzip")), Ambiguous, None, id="200 compressed, but it is not"
    ),
    pytest.param(raw(b"\x16\x03\x01 what is this\r\n\r\n"), Ambiguous, None, id="no HTTP at all"),
    pytest.param(hang_up, Ambiguous, None, id="hangs up before the headers"),
    pytest.param(reset, Ambiguous, None, id="reset before the headers"),
    pytest.param(begin_and_hang_up, Ambiguous, None, id="hangs up after the headers"),
    pytest.param(begin_and_reset, Ambiguous, None, id="reset after the headers"),
    pytest.param(endless, Ambiguous, None, id="a body without an end"),
]


@pytest.mark.parametrize(("handler", "meaning", "status"), REFUSALS)
def test_every_other_answer_to_a_paid_post_has_one_meaning_and_is_asked_for_once(
    handler: Handler, meaning: type[ProviderError], status: int | None
) -> None:
    """The type of the error is the whole retry policy; a client that repeats or follows by itself pays twice."""
    with wire(handler) as server:
        error = refused_submit(server.url)

    assert type(error) is meaning
    assert error.http_status == status
    assert len(server.requests) == 1


def test_an_answer_that_does_not_come_is_ambiguous() -> None:
    """The POST arrived: whether a task was made, nobody can tell."""
    with wire(silent) as server:
        error = refused_submit(server.url, HASTY)

    assert type(error) is Ambiguous
    assert len(server.requests) == 1


def test_an_answer_that_only_trickles_is_ambiguous_too() -> None:
    """A byte now and then must not hold a POST for longer than connecting and reading may take together."""

    def trickle(request: Request, connection: socket.socket) -> None:
        stop = threading.Event()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not stop.wait(0.05):
            connection.sendall(b" ")

    with wire(trickle) as server:
        error = refused_submit(server.url, Timeouts(connect_s=0.3, submit_s=0.3, read_s=0.3))

    assert type(error) is Ambiguous


def test_a_refused_connection_sent_nothing() -> None:
    """Nobody listens: the same POST may be made again."""
    with closed_port() as port:
        error = refused_submit(f"http://127.0.0.1:{port}")

    assert type(error) is Transient
    assert error.http_status is None


def test_a_name_that_does_not_resolve_sent_nothing() -> None:
    """Without an address nothing left this machine."""
    assert type(refused_submit("http://provider.invalid")) is Transient


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None], ids=["plain", "closes", "silent"])
def test_a_failed_tls_handshake_sent_nothing(reply: bytes | None) -> None:
    """The request is only written once the connection is encrypted."""
    heard = b""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def shake() -> None:
            nonlocal heard
            connection, _ = listener.accept()
            with connection:
                heard = connection.recv(65536)
                if reply:
                    connection.sendall(reply)
                while reply is None and (more := connection.recv(65536)):
                    heard += more

        thread = threading.Thread(target=shake)
        thread.start()
        error = refused_submit(
            f"https://127.0.0.1:{listener.getsockname()[1]}", Timeouts(connect_s=0.5, submit_s=5.0, read_s=5.0)
        )
        thread.join()

    assert type(error) is Transient
    assert heard.startswith(b"\x16")  # the handshake, and then nothing
    assert KEY.encode() not in heard


def test_a_connection_that_cannot_be_made_in_time_sent_nothing() -> None:
    """Packets that vanish on the way, here into a full backlog, took no request with them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queue = [socket.socket() for _ in range(4)]
        for each in queue:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())

        error = refused_submit(f"http://127.0.0.1:{listener.getsockname()[1]}", Timeouts(0.2, 5.0, 5.0))

        for each in queue:
            each.close()
    assert type(error) is Transient


def test_a_kept_connection_that_turns_out_dead_is_no_reason_to_post_twice() -> None:
    """Idle connections die in the middle of a POST; the HTTP library must not repeat it by itself."""
    answers = iter([says(200, {"data": TASK}), hang_up])

    def one_after_another(request: Request, connection: socket.socket) -> None:
        next(answers)(request, connection)

    async def twice(client: WaveSpeed) -> None:
        await client.submit(MODEL, {"prompt": "one"})
        with pytest.raises(Ambiguous):
            await client.submit(MODEL, {"prompt": "two"})

    with wire(one_after_another) as server:
        call(server.url, twice)

    assert [request.body for request in server.requests] == [b'{"prompt":"one"}', b'{"prompt":"two"}']


def test_a_redirect_is_not_followed() -> None:
    """A 307 followed is the same paid POST a second time."""
    with wire(lambda request, connection: says(307, b"", Location=request.target)(request, connection)) as server:
        assert type(refused_submit(server.url)) is Ambiguous
        with pytest.raises(Transient):
            call(server.url, lambda client: client.result("abc"))

    assert [request.method for request in server.requests] == ["POST", "GET"]


def test_an_endless_body_is_read_to_the_cap_and_no_further() -> None:
    """A worker must not run out of memory by one answer."""
    sent = 0

    def counting(request: Request, connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 0x100000)
            sent += 0x100000

    with wire(counting) as server:
        refused_submit(server.url)

    assert sent < 4 * MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("sent", "understood"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("86400", 3600.0),
        ("9999999999999999", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
        ("²", None),
    ],
)
def test_retry_after_is_understood_or_ignored(sent: str, understood: float | None) -> None:
    """Both forms of the header are honoured up to an hour; nonsense must not stop the queue for a year."""
    with wire(raw(http(429, {"message": "slow down"}, Retry_After=sent))) as server:
        error = refused_submit(server.url)

    assert type(error) is Throttled
    assert error.retry_after_s == understood


def test_retry_after_may_be_a_date() -> None:
    """The other form of the header, as gateways send it."""
    at = datetime.now(UTC) + timedelta(seconds=100)
    with wire(says(429, b"", Retry_After=format_datetime(at, usegmt=True))) as server:
        error = refused_submit(server.url)

    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 100


@pytest.mark.parametrize(
    ("message", "concurrency"),
    [("You have reached your concurrency limit", True), ("Too many concurrent tasks", True), ("Slow down", False)],
)
def test_a_429_tells_which_limit_was_reached(message: str, concurrency: bool) -> None:
    """Too many at a time is cured by fewer at a time, too many a minute by waiting."""
    with wire(says(429, {"code": 429, "message": message})) as server:
        error = refused_submit(server.url)

    assert isinstance(error, Throttled)
    assert error.concurrency is concurrency


MESSAGES: list[Any] = [
    # (body, the words that are kept, the provider's code)
    pytest.param({"code": 400, "message": "model not found"}, "model not found", "400", id="an envelope"),
    pytest.param({"error": "no base64 with a webhook"}, "no base64 with a webhook", None, id="a bare error"),
    pytest.param({"error": {"message": "bad size", "type": "x"}}, "bad size", None, id="an error object"),
    pytest.param({"code": 400, "data": {"error": "bad size"}}, "bad size", "400", id="an error within the data"),
    pytest.param({"message": "success", "error": "bad size"}, "bad size", None, id="a message of success"),
    pytest.param({"message": "", "error": "bad size"}, "bad size", None, id="an empty message"),
    pytest.param({"message": 7, "error": ["x"]}, '{"message": 7, "error": ["x"]}', None, id="no text at all"),
    pytest.param({"code": 1401, "error_code": "E_SIZE", "message": "m"}, "m", "E_SIZE", id="a code by name"),
    pytest.param({"code": True, "message": "m"}, "m", None, id="a code that is none"),
    pytest.param({"message": "a\r\n b\x00\t c \ud800"}, "a b\ufffd c \ufffd", None, id="bytes that nothing can keep"),
    pytest.param({"message": "x" * 10_000}, "x" * 499 + "…", None, id="a long one"),
    pytest.param(
        b"<html><style>h1 {color: red}</style><script>alert(1)</script><h1>Bad\nRequest</h1></html>",
        "Bad Request",
        None,
        id="HTML",
    ),
    pytest.param(b"<" + b"a" * 100_000, "<" + "a" * 498 + "…", None, id="a tag without an end"),
    pytest.param(b"", "HTTP 400", None, id="nothing"),
    pytest.param(b"\xff\xfe", "\ufffd\ufffd", None, id="no UTF-8"),
    pytest.param(b"null", "null", None, id="null"),
]


@pytest.mark.parametrize(("body", "words", "code"), MESSAGES)
def test_the_providers_words_are_found_cut_and_scrubbed(body: object, words: str, code: str | None) -> None:
    """They are what a caller and an operator get to read, whichever shape they came in."""
    with wire(says(400, body)) as server:
        error = refused_submit(server.url)

    assert error.detail == words
    assert error.provider_code == code


@pytest.mark.parametrize(
    "body",
    [
        {"message": f"the key {KEY} is not valid"},
        {"error_code": KEY, "message": f"cannot reach {HOOK}"},
        f"<p>Bearer {KEY}, cannot reach {HOOK}</p>".encode(),
        {"message": f"{'x' * 490} {KEY}"},
        b'{"message": "see ?webhook=https%3A%2F%2Fhooks.example.com%2Fwebhooks%2Fwavespeed%2Fa-Token_0~1'
        b'%3Fa%3D1%26b%3D%C3%BC%2F%252F"}',
    ],
)
@pytest.mark.parametrize("status", [307, 400, 401, 429, 500])
def test_no_error_repeats_the_key_or_a_callbacks_token(body: object, status: int) -> None:
    """A provider that echoes what it got would otherwise have us show our secrets to callers and logs."""
    with wire(says(status, body)) as server:
        refused_submit(server.url)  # looks for both


def test_what_is_sent_is_what_the_documentation_asks_for() -> None:
    """Slashes of a model separate paths, the callback's address is one encoded value, the rest is plain JSON."""
    with wire(says(200, {"data": TASK})) as server:
        call(
            server.url,
            lambda client: client.submit("openai/gpt-image-1.5/text-to-image", {"prompt": "ü & <1>"}, webhook=HOOK),
        )
    (request,) = server.requests

    assert request.target == (
        "/api/v3/openai/gpt-image-1.5/text-to-image?webhook=https%3A%2F%2Fhooks.example.com%2Fwebhooks%2Fwavespeed"
        "%2Fa-Token_0~1%3Fa%3D1%26b%3D%C3%BC%2F%252F"
    )
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-client-name"] == "wavespeed-pipeline"
    assert request.headers["x-client-version"]
    assert request.body.decode() == '{"prompt":"ü & <1>"}'


def test_without_a_callback_no_address_is_sent() -> None:
    """An empty parameter might be taken for an address."""
    with wire(says(200, {"data": TASK})) as server:
        submit(server.url, webhook=None)

    assert server.requests[0].target == f"/api/v3/{MODEL}"


def test_cookies_are_not_kept() -> None:
    """A gateway's cookie would pin all our POSTs to one machine of theirs."""
    with wire(says(200, {"data": TASK}, Set_Cookie="pin=1; Path=/")) as server:

        async def twice(client: WaveSpeed) -> None:
            await client.submit(MODEL, {"prompt": "one"})
            await client.submit(MODEL, {"prompt": "two"})

        call(server.url, twice)

    assert [request.headers.get("cookie") for request in server.requests] == [None, None]


READS: list[Any] = [
    pytest.param(lambda client: client.result("abc"), id="result"),
    pytest.param(lambda client: client.list(), id="list"),
    pytest.param(lambda client: client.balance(), id="balance"),
    pytest.param(lambda client: client.webhook_secret(), id="secret"),
]
UNCLEAR: list[Any] = [
    *(pytest.param(says(status, b"<html>"), id=str(status)) for status in (307, 408, 500, 502, 503, 504)),
    pytest.param(says(200, b""), id="empty"),
    pytest.param(says(200, b"{"), id="broken JSON"),
    pytest.param(says(200, {"data": None}), id="no data"),
    pytest.param(says(200, {"data": {"id": "", "items": {}, "balance": True, "secret": 7}}), id="odd data"),
    pytest.param(begin_and_reset, id="reset"),
    pytest.param(hang_up, id="hangs up"),
    pytest.param(endless, id="endless"),
]


@pytest.mark.parametrize("handler", UNCLEAR)
@pytest.mark.parametrize("read", READS)
def test_a_reading_call_without_a_clear_answer_may_be_made_again(
    handler: Handler, read: Callable[[WaveSpeed], Awaitable[object]]
) -> None:
    """Reading costs nothing, so nothing about it is ambiguous."""
    with wire(handler) as server, pytest.raises(Transient) as caught:
        call(server.url, read)

    keeps_quiet(caught.value)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("status", "meaning"), [(401, KeyRefused), (403, KeyRefused), (404, NotFound), (429, Throttled), (400, Rejected)]
)
def test_a_reading_call_is_refused_like_any_other(
    read: Callable[[WaveSpeed], Awaitable[object]], status: int, meaning: type[ProviderError]
) -> None:
    """A key that is revoked shows at any call."""
    with wire(says(status, {"code": status, "message": "no"})) as server, pytest.raises(ProviderError) as caught:
        call(server.url, read)

    assert type(caught.value) is meaning
    keeps_quiet(caught.value)


@pytest.mark.parametrize("read", READS)
def test_a_reading_call_that_is_not_answered_ends(read: Callable[[WaveSpeed], Awaitable[object]]) -> None:
    """One hung GET must not hold a duty for good."""
    with wire(silent) as server, pytest.raises(Transient):
        call(server.url, read, HASTY)


@pytest.mark.parametrize(
    ("body", "secret"),
    [
        ({"code": 200, "message": "success", "data": {"secret": "whsec_a"}}, "whsec_a"),
        ({"secret": "whsec_a"}, "whsec_a"),
        ({"data": {}, "secret": "whsec_a"}, "whsec_a"),
    ],
)
def test_the_webhook_secret_comes_with_or_without_an_envelope(body: object, secret: str) -> None:
    """The documentation shows both."""
    with wire(says(200, body)) as server:
        assert call(server.url, lambda client: client.webhook_secret()) == secret

    assert (server.requests[0].method, server.requests[0].target) == ("GET", "/api/v3/webhook/secret")


@pytest.mark.parametrize("secret", ["", "whsec_", "ü", "a\nb", 7, None])
def test_a_secret_that_could_sign_nothing_is_none(secret: object) -> None:
    """To believe in an empty key would be to believe anybody."""
    with wire(says(200, {"data": {"secret": secret}})) as server, pytest.raises(Transient):
        call(server.url, lambda client: client.webhook_secret())


@pytest.mark.parametrize(("sent", "balance"), [(12.34, 12.34), (0, 0.0), (-3, -3.0), (7, 7.0)])
def test_the_balance_is_a_number_of_dollars(sent: float, balance: float) -> None:
    """Whole numbers come without a point."""
    with wire(says(200, {"code": 200, "data": {"balance": sent}})) as server:
        assert call(server.url, lambda client: client.balance()) == balance


def test_a_result_tells_all_there_is(sandbox: Sandbox) -> None:
    """What a callback would have told, by asking."""
    started = submit(sandbox.url, webhook=None)
    found = until(
        lambda: (
            (task := call(sandbox.url, lambda client: client.result(started.id))).status is not Status.RUNNING and task
        )
    )

    assert found.id == started.id
    assert found.status is Status.COMPLETED
    assert found.model == MODEL
    assert len(found.outputs) == 1
    assert found.created_at


def test_an_unknown_task_is_not_found(sandbox: Sandbox) -> None:
    """The one refusal of a GET that says something about the task."""
    with pytest.raises(NotFound):
        call(sandbox.url, lambda client: client.result("0" * 32))


def test_an_id_is_one_segment_of_the_path_whatever_it_holds() -> None:
    """Ids are opaque: one with a slash must not lead to another endpoint, and none may leave the API."""
    with wire(says(404, {"message": "Task not found"})) as server, pytest.raises(NotFound):
        call(server.url, lambda client: client.result("../a b/ü?x#y"))

    assert server.requests[0].target == "/api/v3/predictions/..%2Fa%20b%2F%C3%BC%3Fx%23y/result"


def test_the_list_shows_tasks_newest_first_page_by_page(sandbox: Sandbox) -> None:
    """With the provider's clock, without which a window could not be set."""
    ids = [submit(sandbox.url, webhook=None).id for _ in range(3)]

    first = call(sandbox.url, lambda client: client.list(model=MODEL, page_size=2))
    second = call(sandbox.url, lambda client: client.list(model=MODEL, page=2, page_size=2))

    assert [item.id for item in (*first.items, *second.items)] == ids[::-1]
    assert (first.count, second.count) == (2, 1)
    assert first.server_time
    assert first.items[0].input == {"prompt": "a lighthouse"}


def test_the_list_is_asked_for_a_model_and_a_window() -> None:
    """Times go as RFC 3339 in UTC, whatever zone they were given in."""
    after = datetime(2026, 1, 15, 10, 0, 0, 123456, tzinfo=UTC)
    before = after.astimezone() + timedelta(seconds=5)
    with wire(says(200, {"data": {"items": []}})) as server:
        call(
            server.url,
            lambda client: client.list(model=MODEL, created_after=after, created_before=before, page=2, page_size=50),
        )

    assert server.requests[0].target == "/api/v3/predictions"
    assert server.requests[0].body.decode() == (
        '{"page":2,"page_size":50,"model":"openai/dall-e-2","created_after":"2026-01-15T10:00:00.123456Z",'
        '"created_before":"2026-01-15T10:00:05.123456Z"}'
    )


def test_items_that_cannot_be_read_are_left_out_but_counted() -> None:
    """Else a full page would look like the last one, and the proof of absence would be false."""
    items = [TASK, {"id": ""}, None, 7, {"id": "x"}]
    with wire(says(200, {"code": 200, "data": {"page": 1, "items": items}})) as server:
        page = call(server.url, lambda client: client.list())

    assert [item.id for item in page.items] == [TASK["id"]]
    assert page.count == 5


@pytest.mark.parametrize(
    ("faults", "meaning"),
    [
        ({"no_credit": True}, NoCredit),
        ({"no_credit": True, "credit_402": True}, NoCredit),
        ({"revoked": True}, KeyRefused),
        ({"forbidden": True}, KeyRefused),
        ({"status_429": 1, "retry_after_s": 3}, Throttled),
        ({"status_500": 1}, Ambiguous),
        ({"lose_answer": 1}, Ambiguous),
        ({"gateway_504": 1}, Ambiguous),
        ({"redirect_307": 1}, Ambiguous),
    ],
)
def test_each_way_the_provider_fails_is_understood(
    sandbox: Sandbox, faults: dict[str, object], meaning: type[ProviderError]
) -> None:
    """The sandbox is written from the documentation alone, so that it and the client cannot share a mistake."""
    sandbox.faults(**faults)

    error = refused_submit(sandbox.url)

    assert type(error) is meaning
    assert sandbox.arrivals()["count"] == 1


def test_base64_with_a_callback_is_refused_in_the_providers_bare_words(sandbox: Sandbox) -> None:
    """The one error that is documented without an envelope."""
    with pytest.raises(Rejected, match="webhook callback does not support base64 output"):
        call(
            sandbox.url,
            lambda client: client.submit(MODEL, {"prompt": "x", "enable_base64_output": True}, webhook=HOOK),
        )


def test_a_client_that_was_never_used_closes() -> None:
    """A worker may stop before its first call."""
    call("http://127.0.0.1:1", lambda client: asyncio.sleep(0))


def test_many_posts_at_a_time_use_as_many_connections() -> None:
    """One slow answer must not hold up the others."""
    together = threading.Barrier(20, timeout=30)

    def all_at_once(request: Request, connection: socket.socket) -> None:
        together.wait()
        connection.sendall(http(200, {"data": TASK}))

    async def many(client: WaveSpeed) -> int:
        return len(await asyncio.gather(*(client.submit(MODEL, {"prompt": str(n)}) for n in range(20))))

    with wire(all_at_once) as server, closing(server):
        assert call(server.url, many) == 20


def test_a_prompt_repeated_by_the_provider_says_nothing_of_the_credit() -> None:
    """One caller's words must not halt the account for all; the provider's own words beside them still do."""
    prompt = "a poster: insufficient credits, please top up"

    def refused(message: str) -> ProviderError:
        with wire(says(400, {"code": 400, "message": message})) as server, pytest.raises(ProviderError) as caught:
            call(server.url, lambda client: client.submit(MODEL, {"prompt": prompt}))
        return caught.value

    assert type(refused(f"The prompt {prompt} is not allowed")) is Rejected
    assert type(refused(f"Not enough credits to run {prompt}")) is NoCredit
