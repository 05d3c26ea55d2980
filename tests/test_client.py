"""The Python client: what is repeated and what is not, and that nothing of it depends on the rest of the product."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline.client import (
    ApiError,
    AsyncClient,
    BudgetExceeded,
    Client,
    ClientError,
    Conflict,
    ConnectionFailed,
    FieldError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Retries,
    ServerError,
    Unauthorized,
    WaitTimeout,
)
from tests.wire import Handler, Request, Wire, begin_and_hang_up, hang_up, http, reset, says, wire

PROMPTLY = Retries(base_s=0.0)
KEY = "pk_that_nobody_may_see"
JOB = {"id": "0199", "state": "completed", "model": "openai/dall-e-2", "input": {"prompt": "a lighthouse"}}
FOREIGN = ["aiohttp", "alembic", "celery", "flask", "jsonschema", "kombu", "psycopg", "pydantic", "sqlalchemy", "typer"]


def in_turn(*handlers: Handler) -> Handler:
    """Answer each request by the next of these, and all further ones by the last."""
    number = count()

    def answer(request: Request, connection: socket.socket) -> None:
        handlers[min(next(number), len(handlers) - 1)](request, connection)

    return answer


def client_of(server: Wire, retries: Retries = PROMPTLY) -> Client:
    return Client(server.url, KEY, retries=retries)


def test_it_needs_nothing_of_the_product_but_an_http_library() -> None:
    """A service that only calls the API need not install Flask, Celery or SQLAlchemy."""
    program = f"""
import sys
from importlib.abc import MetaPathFinder
class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FOREIGN}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import pipeline
from pipeline import Client, AsyncClient, verify_notification
Client("http://127.0.0.1:1", "key").close()
print(sorted(name for name in sys.modules if name.startswith("pipeline.") and not name.startswith("pipeline.client")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("['pipeline.files']", "")


@pytest.mark.parametrize(
    "trouble",
    [hang_up, reset, says(503, b"", Retry_After="0"), says(429, b"", Retry_After="0"), says(502), says(504, b"<html>")],
    ids=["hang_up", "reset", "503", "429", "502", "504"],
)
def test_a_job_is_handed_in_again_with_the_same_key(trouble: Handler) -> None:
    """However often it is sent, it is one job: whether the first was received cannot be known."""
    with wire(in_turn(trouble, trouble, says(201, JOB))) as server, client_of(server) as client:
        assert client.enqueue("a lighthouse").id == "0199"

        assert len(server.requests) == 3
        assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
        assert {request.body for request in server.requests} == {b'{"input": {"prompt": "a lighthouse"}}'}
        client.enqueue("a lighthouse")
        assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, ApiError),
        (400, InvalidRequest),
        (401, Unauthorized),
        (402, BudgetExceeded),
        (404, NotFound),
        (409, Conflict),
        (422, InvalidRequest),
        (500, ServerError),
    ],
)
def test_a_refusal_is_final_and_says_what_is_wrong(status: int, kind: type[ApiError]) -> None:
    """To ask again would be to hope."""
    problem = {
        "status": status,
        "code": "some_code",
        "detail": "So it is.",
        "errors": [{"field": "input.prompt", "message": "Is required."}],
    }
    answer = says(status, problem, Content_Type="application/problem+json", Location="/elsewhere")
    with wire(answer) as server, client_of(server) as client:
        with pytest.raises(ApiError) as refused:
            client.enqueue({})
        assert len(server.requests) == 1

    error = refused.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail) == (status, "some_code", "So it is.")
    assert error.errors == (FieldError("input.prompt", "Is required."),)
    assert "input.prompt: Is required." in str(error)
    assert KEY not in str(error)


def test_trouble_that_does_not_pass_ends_the_call() -> None:
    """A caller hears of it while it can still do something else."""
    with wire(says(503, {"code": "unavailable", "detail": "Later."}, Retry_After="0")) as server:
        with client_of(server, Retries(times=3, base_s=0.0)) as client, pytest.raises(ServerError) as refused:
            client.get("0199")
        assert len(server.requests) == 4
        assert (refused.value.code, refused.value.retry_after_s) == ("unavailable", 0.0)
    with client_of(server, Retries(times=1, base_s=0.0)) as client, pytest.raises(ConnectionFailed):
        client.get("0199")


def test_nobody_is_kept_waiting_for_an_hour_unasked() -> None:
    """A long Retry-After is the caller's to decide on."""
    with wire(says(429, b"", Retry_After="3600")) as server, client_of(server) as client:
        with pytest.raises(RateLimited) as refused:
            client.get("0199")
        assert (len(server.requests), refused.value.retry_after_s) == (1, 3600.0)
        assert refused.value.code == "http_429"


def test_pauses_grow_with_jitter_and_heed_retry_after() -> None:
    """So that a thousand clients do not come back at one moment."""
    import httpx2

    retries = Retries(times=8, base_s=0.5, longest_s=20.0)
    lost = httpx2.ReadError("lost")
    for tried, longest in enumerate((0.5, 1, 2, 4, 8, 16, 20, 20), 1):
        pauses = {retries.pause_s(tried, lost) for _ in range(50)}
        assert len(pauses) > 10
        assert all(pause is not None and 0 <= pause <= longest for pause in pauses)
    assert retries.pause_s(9, lost) is None
    assert (retries.pause_s(1, httpx2.Response(503, headers={"Retry-After": "7"})) or 0) >= 7
    assert (
        retries.pause_s(1, httpx2.Response(503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"})) is not None
    )
    assert retries.pause_s(1, httpx2.Response(503, headers={"Retry-After": "soon"})) is not None


ODD_TIME = says(200, {"id": "1", "state": "queued", "model": "a/b", "input": {}, "run_at": "tomorrow"})


@pytest.mark.parametrize(
    "answer",
    [says(200, b"<html>Welcome</html>"), says(200, []), says(200, {"id": 1}), ODD_TIME, begin_and_hang_up],
    ids=["html", "list", "half", "time", "cut"],
)
def test_an_answer_that_is_none_is_said_in_words(answer: Handler) -> None:
    """A wrong address is the first mistake anybody makes."""
    with wire(answer) as server, client_of(server, Retries(times=0)) as client, pytest.raises(ConnectionFailed):
        client.get("0199")


@pytest.mark.parametrize(
    ("url", "key"), [("", KEY), ("example.com", KEY), ("ftp://example.com", KEY), ("https://a", ""), ("https://a", "é")]
)
def test_a_client_that_cannot_work_is_not_made(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Better at start-up than at the first job."""
    for name in ("PIPELINE_URL", "PIPELINE_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="PIPELINE_"):
        Client(url, key)


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a service keeps them anyway; a line's end is no part of a key."""
    with wire(says(200, JOB)) as server:
        monkeypatch.setenv("PIPELINE_URL", server.url + "/")
        monkeypatch.setenv("PIPELINE_KEY", KEY + "\n")
        with Client() as client:
            client.get("../0199?x")
            assert KEY not in repr(client._address)
        (request,) = server.requests
        assert (request.target, request.headers["authorization"]) == ("/v1/jobs/..%2F0199%3Fx", f"Bearer {KEY}")


def batches(ids: Callable[[int], list[str]]) -> Handler:
    """Accept each batch, naming its jobs."""

    def accept(request: Request, connection: socket.socket) -> None:
        connection.sendall(http(201, {"ids": ids(request.body.count(b"\n") + 1)}))

    return accept


def test_any_number_of_jobs_goes_in_parts_each_repeated_with_its_own_key() -> None:
    """The pipeline takes so many lines, and so many bytes, in one request; an iterable has no length."""
    numbers = count()
    taken = batches(lambda lines: [str(next(numbers)) for _ in range(lines)])
    with wire(in_turn(hang_up, taken)) as server, client_of(server) as client:
        ids = client.enqueue_many((f"picture {n}" for n in range(25_000)), idempotency_key="night-7")
        assert ids == [str(n) for n in range(25_000)]
        keys = [request.headers["idempotency-key"] for request in server.requests]
        assert keys == ["night-7-1", "night-7-1", "night-7-2", "night-7-3"]
        assert json.loads(server.requests[-1].body.splitlines()[-1]) == {"input": {"prompt": "picture 24999"}}
        assert client.enqueue_many([]) == []
        long = [{"input": {"prompt": "x" * 17_000_000}, "priority": 3}] * 3
        client.enqueue_many(long)
        assert [len(request.body.splitlines()) for request in server.requests[4:]] == [1, 1, 1]


def test_a_refused_part_names_the_line_of_the_whole_and_what_is_stored() -> None:
    """The caller can go on from there."""
    wrong = {"code": "invalid_input", "errors": [{"field": "input.prompt", "message": "Is required.", "line": 2}]}
    handler = in_turn(batches(lambda lines: ["a"] * lines), says(422, wrong))
    with wire(handler) as server, client_of(server) as client, pytest.raises(InvalidRequest) as refused:
        client.enqueue_many(["x"] * 10_003)
    assert refused.value.errors == (FieldError("input.prompt", "Is required.", 10_002),)
    assert refused.value.stored_ids == ("a",) * 10_000


def test_waiting_outlasts_what_passes_and_ends_in_time() -> None:
    """A deployment of the pipeline is not the end of a job; a caller's patience is its own."""
    running = says(200, JOB | {"state": "processing"})
    late = in_turn(hang_up, running, says(200, JOB))
    with wire(late) as server, client_of(server, Retries(times=0)) as client:
        assert client.wait("0199", timeout_s=60).completed
        assert server.requests[0].headers["prefer"] == "wait=25"
    with wire(running) as server, client_of(server) as client:
        with pytest.raises(WaitTimeout) as over:
            client.wait("0199", timeout_s=0)
        assert over.value.job.state == "processing"
    with wire(says(404, {"code": "unknown_job"})) as server, client_of(server) as client, pytest.raises(NotFound):
        client.wait("0199")


def stream(*events: dict[str, Any], whole: bool = True) -> Handler:
    """Answer with a stream of these events, which then ends, or breaks."""
    said = "".join(f"id: {event['seq']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n" for event in events)
    body = f"retry: 1000\n\n{said}: nothing new\n\n".encode()

    def answer(request: Request, connection: socket.socket) -> None:
        head = [f"Content-Length: {len(body) if whole else len(body) + 1}", "Content-Type: text/event-stream"]
        connection.sendall("\r\n".join(["HTTP/1.1 200 OK", *head, "", ""]).encode() + body)
        if not whole:
            connection.shutdown(socket.SHUT_RDWR)

    return answer


def event(seq: int, kind: str, **more: Any) -> dict[str, Any]:
    return {"job_id": "0199", "seq": seq, "at": "2026-01-31T12:00:00.5Z", "kind": kind, "data": {}, **more}


def test_a_broken_stream_is_taken_up_where_it_broke() -> None:
    """Each event comes once, whatever routers do to long connections."""
    first = stream(event(1, "job.queued"), event(2, "job.submitting"), whole=False)
    nothing = stream()
    rest = stream(event(3, "job.processing"), event(4, "job.completed", job=JOB))
    with wire(in_turn(hang_up, first, nothing, rest)) as server, client_of(server) as client:
        events = list(client.events("0199"))
        seen = [request.headers.get("last-event-id") for request in server.requests]
    assert [each.seq for each in events] == [1, 2, 3, 4]
    assert events[-1].job is not None
    assert events[-1].job.completed
    assert seen == [None, None, "2", "2"]
    with wire(says(204)) as server, client_of(server) as client:
        assert list(client.events("0199", after=4)) == []
        assert server.requests[0].headers["last-event-id"] == "4"


@pytest.mark.parametrize("answer", [stream(), says(200, b"<html>"), stream({"seq": 1, "kind": "odd"})])
def test_a_stream_that_never_says_anything_ends(answer: Handler) -> None:
    """Bounded, as every other repetition."""
    with wire(answer) as server, client_of(server, Retries(times=2, base_s=0.0)) as client:
        with pytest.raises(ConnectionFailed):
            list(client.events("0199"))
        assert len(server.requests) <= 4


FILE = b"a picture" * 100


def files(request: Request, connection: socket.socket) -> None:
    """Answer as a pipeline that stores nothing, and as its provider."""
    if request.target.startswith("/v1/"):
        connection.sendall(http(409, {"code": "not_stored_yet"}, Retry_After="5"))
    else:
        connection.sendall(http(200, FILE))


def outputs(server: Wire, **fields: Any) -> dict[str, Any]:
    return JOB | {"outputs": [{"index": 0, "source_url": f"{server.url}/files/1.png?token=1", **fields}]}


def test_a_file_comes_from_our_copy_and_else_from_the_provider_who_never_sees_the_key(tmp_path: Path) -> None:
    """The provider's addresses are the provider's business; our key is not."""
    from pipeline.client import Job

    with wire(files) as server, client_of(server) as client:
        job = Job.read(outputs(server))
        path = client.download(job, to=tmp_path)
        assert (path, path.read_bytes()) == (tmp_path / "0199-0.png", FILE)
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in server.requests[1].headers
        with pytest.raises(NotFound):
            client.download(job, 7, to=tmp_path)

        server.handler = in_turn(says(409, {"code": "not_stored_yet"}, Retry_After="0"), says(200, FILE))
        coming = Job.read(outputs(server, source_url=None))
        assert client.download(coming, to=tmp_path / "new" / "mine.png").read_bytes() == FILE
        server.handler = says(409, {"code": "quarantined"})
        with pytest.raises(Conflict):
            client.download(job, to=tmp_path)


def test_what_the_reference_says_of_a_job_is_there_to_be_read() -> None:
    """A field that the client drops is one that its users never hear of, such as that a file is lost."""
    from dataclasses import fields

    from pipeline.client import Job
    from pipeline.client.answers import Output
    from pipeline.web.api import shapes

    for read, told in ((Job, shapes.Job), (Output, shapes.Output)):
        assert {one.name for one in fields(read)} == set(told.model_fields)
    assert Job.read(JOB | {"outputs": [{"index": 0, "lost": True}]}).outputs[0].lost


@pytest.mark.parametrize(("value", "text"), [("a red house", "a red house"), ({"score": 1}, '{"score": 1}')])
def test_a_result_that_is_no_file_becomes_one(value: Any, text: str, tmp_path: Path) -> None:
    """Some models answer with words: there is nothing to wait for, five minutes long."""
    from pipeline.client import Job

    with wire(files) as server, client_of(server) as client:
        job = Job.read(outputs(server, source_url=None, value=value))
        assert job.outputs[0].value == value
        path = client.download(job, to=tmp_path)
        assert (path, path.read_text()) == (tmp_path / "0199-0.txt", text)
        assert not server.requests


@pytest.mark.parametrize("mode", ["cut", "damaged"])
def test_a_file_is_there_whole_or_not_at_all(mode: str, tmp_path: Path) -> None:
    """Nobody can tell half a picture from a whole one by its name."""
    from pipeline.client import Job

    place = tmp_path / "picture.png"
    place.write_bytes(b"the old one")
    bad = begin_and_hang_up if mode == "cut" else says(200, b"something else")
    with wire(bad) as server, client_of(server, Retries(times=2, base_s=0.0)) as client:
        digest = "6b7e3d1f5e1a8b3f0c7f6e6e3a4d4f4a5d1f2c3b4a5968778695a4b3c2d1e0f0"
        job = Job.read(outputs(server, sha256=digest))
        with pytest.raises(ConnectionFailed):
            client.download(job, to=place)
        assert len(server.requests) == 3
    assert place.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [place]


def test_the_asynchronous_client_keeps_the_same_rules(tmp_path: Path) -> None:
    """One set of rules, carried out without blocking."""

    async def calls(server: Wire) -> None:
        async with AsyncClient(server.url, KEY, retries=PROMPTLY) as client:
            server.handler = in_turn(hang_up, says(201, JOB))
            job = await client.enqueue("a lighthouse", priority=3, metadata={"order": "7"})
            assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
            assert await client.wait(job) == await client.get(job) == await client.cancel(job)
            assert await client.retry(job)
            server.handler = in_turn(
                says(200, {"items": [JOB], "next": "x"}), says(200, {"items": [JOB], "next": None})
            )
            assert [each.id async for each in client.jobs(state="completed", metadata={"order": "7"})] == ["0199"] * 2
            assert server.requests[-1].target == "/v1/jobs?limit=100&state=completed&metadata.order=7&after=x"
            server.handler = in_turn(
                stream(event(1, "job.queued"), whole=False), stream(event(2, "job.completed", job=JOB))
            )
            assert [each.seq async for each in client.events(job)] == [1, 2]
            server.handler = batches(lambda lines: ["a"] * lines)
            assert await client.enqueue_many(["x", "y"]) == ["a", "a"]
            server.handler = in_turn(begin_and_hang_up, says(200, FILE))
            client_job = type(job).read(outputs(server))
            assert (await client.download(client_job, to=tmp_path)).read_bytes() == FILE
            server.handler = says(422, {"code": "invalid_input"})
            with pytest.raises(ClientError):
                await client.enqueue({})

    with wire(hang_up) as server:
        asyncio.run(calls(server))
