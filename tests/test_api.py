"""The API over real HTTP: what a caller is promised, and that nothing it may send is more than a clear refusal."""

import json
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.jobs import State
from pipeline.lifecycle.accept import accept, check
from pipeline.models import UNREAD
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import account, schema, services
from pipeline.store.database import Database
from pipeline.web import create_app
from tests.conftest import Caller
from tests.factories import execute, processing, queued, row, scalar, until
from tests.http import Answer, get, post, request
from tests.serving import serving

KIB = 1024
LIMIT = 256 * KIB
A_JOB = {"input": {"prompt": "a lighthouse"}}
DALL_E = {"model": "openai/dall-e-2"}
ANY_MODEL = {"model": "some/other-model"}  # of which we know no schema


def create(web: str, caller: Caller, body: Any = A_JOB, *, idempotency_key: str | None = None) -> Answer:
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    return post(f"{web}/v1/jobs", body, headers, key=caller.key)


def is_problem(answer: Answer, status: int, code: str) -> Any:
    """Check that it is an RFC 9457 problem, and give it."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"type", "title", "status", "detail", "code", "errors"}
    assert (problem["type"], problem["status"], problem["code"]) == ("about:blank", status, code)
    assert problem["title"]
    assert problem["detail"]
    for error in problem["errors"]:
        assert set(error) == {"field", "message"}
    return problem


def nothing_is_stored(rt: Runtime) -> bool:
    counts = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM idempotency_keys)"
    return bool(scalar(rt, f"{counts} + (SELECT count(*) FROM events)") == 0)


# Handing in a job


def test_a_job_is_accepted_and_shown(rt: Runtime, web: str, caller: Caller) -> None:
    """201 with the whole job: the caller needs no second request to know what was understood."""
    body = {
        **DALL_E,
        "input": {"prompt": "a lighthouse", "enable_base64_output": True},
        "priority": 3,
        "deadline_s": 600,
        "metadata": {"order": "42"},
    }

    answer = create(web, caller, body)

    assert answer.status == 201
    assert answer.headers["content-type"] == "application/json"
    job = answer.json
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert get(f"{web}{answer.headers['location']}", key=caller.key).json == job
    created, run_at, deadline = (datetime.fromisoformat(job[name]) for name in ("created_at", "run_at", "deadline_at"))
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)
    assert deadline - run_at == timedelta(minutes=10)
    assert job == {
        "id": job["id"],
        "state": "queued",
        "model": "openai/dall-e-2",
        "input": {"prompt": "a lighthouse", "enable_base64_output": True},
        "outputs": [],
        "error": None,
        "service": "shop",
        "metadata": {"order": "42"},
        "priority": 3,
        "run_at": job["run_at"],
        "deadline_at": job["deadline_at"],
        "attempts": 0,
        "prediction_id": None,
        "needs_decision": None,
        "settled_by": None,
        "created_at": job["created_at"],
        "submitted_at": None,
        "finished_at": None,
        "outputs_expire_at": None,
        "timings": {"queued_ms": None, "provider_ms": None, "inference_ms": None, "total_ms": None},
        "price": 0.12,
        "retry_of": None,
        "links": {
            "self": f"/v1/jobs/{job['id']}",
            "events": f"/v1/jobs/{job['id']}/events",
            "evidence": f"/v1/jobs/{job['id']}/evidence",
            "cancel": f"/v1/jobs/{job['id']}/cancel",
        },
    }
    assert UUID(job["id"]).version == 7
    assert row(rt, UUID(job["id"])).input == {"prompt": "a lighthouse"}  # base64 is ours to make, and never sent


def test_what_is_not_said_has_a_default(rt: Runtime, web: str, caller: Caller) -> None:
    """The shortest request is a prompt."""
    job = create(web, caller).json

    assert (job["model"], job["priority"], job["metadata"]) == (rt.settings.default_model, 0, {})
    lasts = datetime.fromisoformat(job["deadline_at"]) - datetime.fromisoformat(job["run_at"])
    assert lasts == timedelta(seconds=rt.settings.deadline_s)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": -10},
        {"priority": 10},
        {"deadline_s": 1},
        {"deadline_s": 1.5},
        {"deadline_s": 604_800},
        {"deadline_s": None, "run_at": None, "model": None},
        {"metadata": {f"k{n}": "v" for n in range(50)}},
        {"metadata": {"k" * 64: "v" * 500}},
        {"input": {"prompt": "x" * 1000}},
        {"input": {"prompt": "\U0001f6a8" * 1000}},
        {"input": {"prompt": "Ignore the rules'; DROP TABLE jobs; -- <b>\u2028\u202e"}},
        ANY_MODEL | {"input": {"prompt": "x" * 32_000, "size": "1024*1024", "n": 4, "deep": [[{"a": None}]]}},
        ANY_MODEL | {"input": {"prompt": "x", "seed": 10**400, "tiny": 1e-300, "big": 1e15, "half": 0.5}},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_what_the_limits_allow_is_accepted(fields: dict[str, Any], rt: Runtime, web: str, caller: Caller) -> None:
    """The last value that is fine, and odd ones that are."""
    answer = create(web, caller, A_JOB | fields)

    assert answer.status == 201, answer
    assert answer.json["input"] == {**A_JOB, **fields}["input"]


@pytest.mark.parametrize("days", [0.5, 365])
def test_a_job_may_wait_for_its_time(days: float, rt: Runtime, web: str, caller: Caller) -> None:
    """Its deadline counts from then."""
    run_at = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)

    job = create(web, caller, A_JOB | {"run_at": run_at.isoformat(), "deadline_s": 60}).json

    assert datetime.fromisoformat(job["run_at"]) == run_at
    assert datetime.fromisoformat(job["deadline_at"]) == run_at + timedelta(seconds=60)
    assert scalar(rt, "SELECT due_at FROM jobs") == run_at


@pytest.mark.parametrize(
    "run_at",
    [
        "2001-01-01T00:00:00Z",
        "1969-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+14:00",
        "0001-01-01T00:00:00+23:59",
        "0001-01-01T00:00:00Z",
    ],
)
def test_a_time_that_has_passed_is_now(run_at: str, rt: Runtime, web: str, caller: Caller) -> None:
    """A clock a little behind, or a request that waited, must not make a job that is past its deadline when born."""
    answer = create(web, caller, A_JOB | {"run_at": run_at})

    assert answer.status == 201
    assert datetime.now(UTC) - datetime.fromisoformat(answer.json["run_at"]) < timedelta(minutes=1)
    assert datetime.fromisoformat(answer.json["deadline_at"]) > datetime.now(UTC)


# Refusing one


WRONG: list[tuple[str, Any, list[str]]] = [
    ("no input", {}, ["input"]),
    ("input not an object", {"input": "a lighthouse"}, ["input"]),
    ("input null", {"input": None}, ["input"]),
    ("no prompt", {"input": {}}, ["input.prompt"]),
    ("empty prompt", {"input": {"prompt": ""}}, ["input.prompt"]),
    ("prompt not a text", {"input": {"prompt": 5}}, ["input.prompt"]),
    ("prompt null", {"input": {"prompt": None}}, ["input.prompt"]),
    ("prompt a list", {"input": {"prompt": ["a"]}}, ["input.prompt"]),
    ("prompt too long", DALL_E | {"input": {"prompt": "x" * 1001}}, ["input.prompt"]),
    ("prompt too long for any", ANY_MODEL | {"input": {"prompt": "x" * 32_001}}, ["input.prompt"]),
    ("blank prompt", {"input": {"prompt": " \n"}}, ["input.prompt"]),
    ("model that is an endpoint", A_JOB | {"model": "predictions/delete"}, ["model"]),
    ("model that is another endpoint", A_JOB | {"model": "Billings/search"}, ["model"]),
    ("model that leaves no record", A_JOB | {"model": "some/model/stream"}, ["model"]),
    ("unknown option", DALL_E | {"input": {"prompt": "x", "size": "1024*1024"}}, ["input.size"]),
    ("option of another type", DALL_E | {"input": {"prompt": "x", "enable_base64_output": "yes"}},
     ["input.enable_base64_output"]),
    ("two wrong options", DALL_E | {"input": {"a": 1, "b": 2}}, ["input.a", "input.b", "input.prompt"]),
    ("unknown field", A_JOB | {"promt": "x"}, ["promt"]),
    ("prompt outside", {"prompt": "a lighthouse"}, ["input", "prompt"]),
    ("several fields", {"input": 5, "priority": 99, "deadline_s": 0, "x": 1}, ["deadline_s", "input", "priority", "x"]),
    ("model not a text", A_JOB | {"model": 5}, ["model"]),
    ("model without a maker", A_JOB | {"model": "dall-e-2"}, ["model"]),
    ("model with a path", A_JOB | {"model": "../../etc/passwd"}, ["model"]),
    ("model with dots", A_JOB | {"model": "openai/.."}, ["model"]),
    ("model with a query", A_JOB | {"model": "openai/dall-e-2?webhook=x"}, ["model"]),
    ("model with a line end", A_JOB | {"model": "openai/dall-e-2\n"}, ["model"]),
    ("model too long", A_JOB | {"model": "a/" + "b" * 200}, ["model"]),
    ("priority too high", A_JOB | {"priority": 11}, ["priority"]),
    ("priority too low", A_JOB | {"priority": -11}, ["priority"]),
    ("priority a text", A_JOB | {"priority": "1"}, ["priority"]),
    ("priority a truth", A_JOB | {"priority": True}, ["priority"]),
    ("priority a fraction", A_JOB | {"priority": 1.5}, ["priority"]),
    ("priority huge", A_JOB | {"priority": 10**400}, ["priority"]),
    ("deadline too short", A_JOB | {"deadline_s": 0.5}, ["deadline_s"]),
    ("deadline too long", A_JOB | {"deadline_s": 604_801}, ["deadline_s"]),
    ("deadline negative", A_JOB | {"deadline_s": -1}, ["deadline_s"]),
    ("deadline a text", A_JOB | {"deadline_s": "60"}, ["deadline_s"]),
    ("deadline a truth", A_JOB | {"deadline_s": True}, ["deadline_s"]),
    ("deadline huge", A_JOB | {"deadline_s": 10**400}, ["deadline_s"]),
    ("run_at without a zone", A_JOB | {"run_at": "2027-01-01T00:00:00"}, ["run_at"]),
    ("run_at in two years", A_JOB | {"run_at": (datetime.now(UTC) + timedelta(days=730)).isoformat()}, ["run_at"]),
    ("run_at at the end of time", A_JOB | {"run_at": "9999-12-31T23:59:59-14:00"}, ["run_at"]),
    ("run_at no time", A_JOB | {"run_at": "tomorrow"}, ["run_at"]),
    ("run_at a list", A_JOB | {"run_at": []}, ["run_at"]),
    ("run_at 1e300", A_JOB | {"run_at": 1e300}, ["run_at"]),
    ("run_at a number, of whatever unit", A_JOB | {"run_at": 1_800_000_000}, ["run_at"]),
    ("callback of another kind", A_JOB | {"callback_url": "ftp://shop.example.com/"}, ["callback_url"]),
    ("callback with credentials", A_JOB | {"callback_url": "http://me:secret@shop.example.com/"}, ["callback_url"]),
    ("callback to port 0", A_JOB | {"callback_url": "http://shop.example.com:0/"}, ["callback_url"]),
    ("callback to no port", A_JOB | {"callback_url": "http://shop.example.com:99999/"}, ["callback_url"]),
    ("callback with a fragment", A_JOB | {"callback_url": "http://shop.example.com/#a"}, ["callback_url"]),
    ("callback with an umlaut", A_JOB | {"callback_url": "http://shöp.example.com/"}, ["callback_url"]),
    ("callback too long", A_JOB | {"callback_url": "http://shop.example.com/" + "a" * 2000}, ["callback_url"]),
    ("callback to a private address", A_JOB | {"callback_url": "http://10.0.0.1/"}, ["callback_url"]),
    ("callback to metadata", A_JOB | {"callback_url": "http://169.254.169.254/latest/"}, ["callback_url"]),
    ("callback in hexadecimal", A_JOB | {"callback_url": "http://0x7f000001/"}, ["callback_url"]),
    ("callback with a NUL", A_JOB | {"callback_url": "http://shop.example.com/\x00"}, ["callback_url"]),
    ("metadata a list", A_JOB | {"metadata": []}, ["metadata"]),
    ("metadata with a number", A_JOB | {"metadata": {"order": 42}}, ["metadata.order"]),
    ("metadata nested", A_JOB | {"metadata": {"order": {"id": "42"}}}, ["metadata.order"]),
    ("metadata of 51", A_JOB | {"metadata": {f"k{n}": "v" for n in range(51)}}, ["metadata"]),
    ("metadata value too long", A_JOB | {"metadata": {"k": "v" * 501}}, ["metadata.k"]),
    ("metadata name too long", A_JOB | {"metadata": {"k" * 65: "v"}}, ["metadata." + "k" * 65]),
    ("metadata name empty", A_JOB | {"metadata": {"": "v"}}, ["metadata."]),
    ("NUL in the prompt", {"input": {"prompt": "a\x00b"}}, ["input.prompt"]),
    ("surrogate in the prompt", {"input": {"prompt": "a\ud800"}}, ["input.prompt"]),
    ("NUL in an option", ANY_MODEL | {"input": {"prompt": "x", "a": [{"b": "\x00"}]}}, ["input.a.0.b"]),
    ("NUL in a name", ANY_MODEL | {"input": {"prompt": "x", "a\x00": 1}}, ["input.a\ufffd"]),
    ("NUL in a metadata value", A_JOB | {"metadata": {"k": "\x00"}}, ["metadata.k"]),
    ("surrogate in a metadata name", A_JOB | {"metadata": {"\udfff": "v"}}, ["metadata.\ufffd"]),
    ("NUL in the model", A_JOB | {"model": "openai/dall-e-2\x00"}, ["model"]),
    ("surrogate in a field", A_JOB | {"\ud800": 1}, ["\ufffd"]),
    ("not an object", [A_JOB], [""]),
    ("a text", "a lighthouse", [""]),
    ("null", None, [""]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "fields"), [pytest.param(body, fields, id=name) for name, body, fields in WRONG])
def test_a_wrong_field_is_named(body: Any, fields: list[str], rt: Runtime, web: str, caller: Caller) -> None:
    """All of them at once, and nothing is stored."""
    answer = create(web, caller, json.dumps(body).encode(), idempotency_key="k")

    problem = is_problem(answer, 422, "invalid_input")
    assert sorted({error["field"] for error in problem["errors"]}) == fields
    assert all(error["message"].endswith(".") for error in problem["errors"])
    assert nothing_is_stored(rt)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"input":{"prompt":"x","n":1e400}}', "input.n"),
        (b'{"input":{"prompt":"x"},"deadline_s":1e400}', "deadline_s"),
        (b'{"input":{"prompt":"x"},"run_at":1e400}', "run_at"),
        (b'{"input":{"prompt":"x","a":' + b"[" * 100 + b"]" * 100 + b"}}", "input.a" + ".0" * 31),
    ],
    ids=["1e400 in the input", "1e400 seconds", "1e400 as a time", "a hundred lists"],
)
def test_what_json_allows_and_postgres_does_not_is_named(
    body: bytes, field: str, rt: Runtime, web: str, caller: Caller
) -> None:
    """Python's JSON reader makes infinities of them."""
    problem = is_problem(create(web, caller, body), 422, "invalid_input")

    assert [error["field"] for error in problem["errors"]] == [field]
    assert nothing_is_stored(rt)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"input":{"prompt":"x"}',
        b'{"input":{"prompt":"x"}}}',
        b"{'input':{}}",
        b"prompt=x",
        b'{"input":{"prompt":"\xff"}}',
        json.dumps(A_JOB).encode("utf-16"),
        b'{"input":{"prompt":"\xc3"}}',
        b'{"input":{"prompt":"\xe9t\xe9"}}',
        b'{"input":{"prompt":"x","n":NaN}}',
        b'{"input":{"prompt":"x","n":Infinity}}',
        b'{"input":{"prompt":"x","n":-Infinity}}',
        b'{"input":{"prompt":"x","n":' + b"9" * 5000 + b"}}",
        b'{"input":{"prompt":"raw \x00"}}',
        b"[" * 100_000,
        b'{"a":' * 40_000,
        b"\xff\xfe",
        b"\x1f\x8b\x08\x00",
    ],
    ids=lambda body: ascii(body[:36]),
)
def test_what_is_not_json_is_refused(body: bytes, rt: Runtime, web: str, caller: Caller) -> None:
    """400: no field can be named."""
    is_problem(create(web, caller, body, idempotency_key="k"), 400, "malformed_request")

    assert nothing_is_stored(rt)


def chunks(body: bytes) -> Iterable[bytes]:
    return iter([body[n : n + 16 * KIB] for n in range(0, len(body), 16 * KIB)])


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [LIMIT + 1, 4 * LIMIT])
def test_a_body_over_256_kib_is_refused(size: int, chunked: bool, rt: Runtime, web: str, caller: Caller) -> None:
    """With or without a length in front."""
    body = json.dumps(A_JOB).encode().ljust(size)

    answer = create(web, caller, chunks(body) if chunked else body)

    if answer.status:  # the server hangs up on what it will not read; then the answer may be lost on its way
        assert "262,144" in is_problem(answer, 413, "body_too_large")["detail"]
    assert nothing_is_stored(rt)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_256_kib_is_taken(chunked: bool, rt: Runtime, web: str, caller: Caller) -> None:
    """The limit is the last size that is fine."""
    body = json.dumps(A_JOB).encode().ljust(LIMIT)

    assert create(web, caller, chunks(body) if chunked else body).status == 201


def test_a_broken_off_body_stores_nothing(rt: Runtime, web: str, caller: Caller) -> None:
    """Half a request is none, even if its half reads as a whole."""
    parts = urlsplit(web)
    body = json.dumps(A_JOB)
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {caller.key}\r\nContent-Length: {len(body) + 9}"
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as wire:
        wire.sendall(f"{head}\r\n\r\n{body}".encode())
        wire.shutdown(socket.SHUT_WR)
        wire.recv(1000)

    assert create(web, caller).status == 201  # after it, the server still serves
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


# Who may


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic c2hvcDpwdw==",
        "Token {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {key} x",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 8000,
        "Bearer ' OR 1=1 --",
    ],
    ids=lambda value: str(value)[:16],
)
def test_without_a_key_of_ours_nothing_is_said(
    authorization: str | None, rt: Runtime, web: str, caller: Caller
) -> None:
    """401 everywhere, whether the job exists or not."""
    job_id = queued(rt, caller.service)
    headers = {} if authorization is None else {"Authorization": authorization.format(key=caller.key)}

    for method, path in (("POST", "/v1/jobs"), ("GET", f"/v1/jobs/{job_id}"), ("GET", f"/v1/jobs/{uuid4()}")):
        answer = request(method, f"{web}{path}", b"{}" if method == "POST" else None, headers)
        is_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


def test_a_revoked_key_is_refused_at_once(rt: Runtime, web: str, caller: Caller) -> None:
    """And so is the one before a rotation."""
    assert create(web, caller).status == 201
    with rt.db.transaction() as tx:
        assert services.revoke(tx, "shop")
    is_problem(create(web, caller), 401, "unauthorized")

    with rt.db.transaction() as tx:
        key = services.rotate(tx, "shop")
    assert key
    is_problem(create(web, caller), 401, "unauthorized")
    assert create(web, Caller(caller.service, key)).status == 201


def test_the_scheme_is_the_same_in_any_case(web: str, caller: Caller) -> None:
    """RFC 9110 says so, and some clients count on it."""
    answer = post(f"{web}/v1/jobs", A_JOB, {"Authorization": f"bEaReR  {caller.key}"})

    assert answer.status == 201


def test_a_service_sees_its_own_jobs_only(rt: Runtime, web: str, make_caller: Callable[..., Caller]) -> None:
    """To every other its job does not exist; operators see all."""
    shop, blog, operator = make_caller("shop"), make_caller("blog"), make_caller("ops", operator=True)
    url = f"{web}/v1/jobs/{queued(rt, shop.service)}"

    assert get(url, key=shop.key).status == 200
    assert get(url, key=operator.key).json == get(url, key=shop.key).json
    other = is_problem(get(url, key=blog.key), 404, "unknown_job")
    none = is_problem(get(f"{web}/v1/jobs/{uuid4()}", key=blog.key), 404, "unknown_job")
    assert other == none


@pytest.mark.parametrize(
    "job_id", ["x", "0", "null", "%00", "%ED%A0%80", "%FF", "..", "a" * 5000, "1" * 33, "%C2%B2" * 32, "{}", "'--"]
)
def test_what_is_no_id_is_no_job(job_id: str, web: str, caller: Caller) -> None:
    """404 as for any other."""
    answer = get(f"{web}/v1/jobs/{job_id}", key=caller.key)

    is_problem(answer, 404, "unknown_job")


def test_a_finished_job_shows_its_result(rt: Runtime, web: str, caller: Caller) -> None:
    """Outputs in the provider's order, until when it keeps them, and how long everything took."""
    job = processing(rt, caller.service)
    execute(
        rt,
        """
        UPDATE jobs SET state = 'completed', due_at = NULL, settled_by = 'webhook', inference_ms = 8421,
            run_at = now - interval '30 s', created_at = now - interval '40 s',
            submitted_at = now - interval '20 s', finished_at = now,
            outputs = '[{"url": "https://cdn/1.png", "nsfw": false}, {"value": "a poem", "nsfw": null}]'
        FROM (SELECT clock_timestamp() AS now) c WHERE id = :id
        """,
        id=job.job_id,
    )

    shown = get(f"{web}/v1/jobs/{job.job_id}", key=caller.key).json

    assert (shown["state"], shown["settled_by"], shown["attempts"]) == (State.COMPLETED, "webhook", 1)
    assert shown["prediction_id"] == job.prediction_id
    assert shown["timings"] == {
        "queued_ms": 10_000,
        "provider_ms": 20_000,
        "inference_ms": 8421,
        "total_ms": 40_000,
    }
    first, second = shown["outputs"]
    assert (first["index"], first["url"], first["source_url"], first["nsfw"]) == (
        0,
        "https://cdn/1.png",
        "https://cdn/1.png",
        False,
    )
    assert (second["index"], second["url"], second["value"], second["nsfw"]) == (1, None, "a poem", None)
    kept = datetime.fromisoformat(shown["outputs_expire_at"]) - datetime.fromisoformat(shown["finished_at"])
    assert kept == timedelta(days=7)


# The same request again


def test_the_same_key_and_body_are_the_same_job(rt: Runtime, web: str, caller: Caller) -> None:
    """A caller whose answer was lost repeats its request: it is paid once."""
    first = create(web, caller, A_JOB | {"priority": 1, "metadata": {"a": "1"}}, idempotency_key="order-1")
    again = create(web, caller, {"metadata": {"a": "1"}, "priority": 1} | A_JOB, idempotency_key="order-1")

    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json
    assert again.headers["location"] == first.headers["location"]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


@pytest.mark.parametrize(
    "change",
    [{"input": {"prompt": "another"}}, {"priority": 1}, {"metadata": {"a": "1"}}, {"deadline_s": 60}, ANY_MODEL],
    ids=lambda change: str(next(iter(change))),
)
def test_the_same_key_for_another_body_is_a_mistake(
    change: dict[str, Any], rt: Runtime, web: str, caller: Caller
) -> None:
    """409: neither job is surely the one that is meant."""
    assert create(web, caller, idempotency_key="order-1").status == 201

    is_problem(create(web, caller, A_JOB | change, idempotency_key="order-1"), 409, "idempotency_conflict")

    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


def test_of_many_equal_requests_at_once_one_makes_the_job(rt: Runtime, web: str, caller: Caller) -> None:
    """Impatient callers repeat before the answer comes."""
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: create(web, caller, idempotency_key="order-1"), range(20)))

    assert sorted(answer.status for answer in answers) == [200] * 19 + [201]
    assert len({answer.json["id"] for answer in answers}) == 1
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1
    assert scalar(rt, "SELECT count(*) FROM events") == 1


def test_two_services_may_use_the_same_key(rt: Runtime, web: str, make_caller: Callable[..., Caller]) -> None:
    """Keys are each service's own; nobody learns of another's."""
    shop, blog = make_caller("shop"), make_caller("blog")

    answers = [create(web, one, idempotency_key="order-1") for one in (shop, blog)]

    assert [answer.status for answer in answers] == [201, 201]
    assert [answer.json["service"] for answer in answers] == ["shop", "blog"]


def test_without_a_key_every_request_is_a_job(rt: Runtime, web: str, caller: Caller) -> None:
    """Two equal orders may be meant."""
    assert {create(web, caller).status, create(web, caller).status} == {201}
    assert scalar(rt, "SELECT count(*) FROM jobs") == 2


@pytest.mark.parametrize("key", ["x", "x" * 255, "a b", "~!@#$%^&*()", "019a-…".replace("…", "...")])
def test_a_key_is_printable_ascii(key: str, web: str, caller: Caller) -> None:
    """UUIDs, order numbers, hashes."""
    assert [create(web, caller, idempotency_key=key).status for _ in range(2)] == [201, 200]


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "a\tb"], ids=ascii)
def test_another_key_is_refused(key: str, rt: Runtime, web: str, caller: Caller) -> None:
    """An empty one is a caller's bug: all its jobs would be one."""
    problem = is_problem(create(web, caller, idempotency_key=key), 422, "invalid_input")

    assert [error["field"] for error in problem["errors"]] == ["Idempotency-Key"]
    assert nothing_is_stored(rt)


def test_a_refused_request_does_not_use_its_key_up(rt: Runtime, web: str, caller: Caller) -> None:
    """The mended one may carry the same."""
    assert create(web, caller, {"input": {}}, idempotency_key="order-1").status == 422
    assert create(web, caller, idempotency_key="order-1").status == 201


# Problems


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v2/jobs", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("GET", "/%00", 404, "not_found"),
        ("GET", "/%ED%A0%80/%FF", 404, "not_found"),
        ("GET", "/" + "x" * 20_000, 404, "not_found"),
        ("GET", "/static/../../etc/passwd", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("DELETE", "/v1/jobs/x", 405, "method_not_allowed"),
        ("POST", "/v1/jobs/x", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("BREW", "/v1/jobs", 405, "method_not_allowed"),
    ],
)
def test_every_error_is_a_problem(method: str, path: str, status: int, code: str, web: str) -> None:
    """A client needs one way to read them."""
    answer = request(method, f"{web}{path}")

    is_problem(answer, status, code)
    if status == 405:
        assert answer.headers["allow"]


# Arbitrary input

characters = st.text(st.characters(), max_size=20)  # lone surrogates and NUL included
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | characters | st.integers(2**62, 10**300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(characters, inner, max_size=4),
    max_leaves=10,
)
bodies = st.fixed_dictionaries(
    {"input": st.fixed_dictionaries({"prompt": characters | values}, optional={"n": values})},
    optional={
        name: values | st.dates().map(lambda day: f"{day}T00:00:00Z") | st.text("abcdefg/.-", max_size=12)
        for name in ("model", "priority", "run_at", "deadline_s", "metadata", "x")
    },
)
anything = (
    st.binary(max_size=200)
    | values.map(lambda value: json.dumps(value).encode())
    | bodies.map(lambda value: json.dumps(value).encode())
    | bodies.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
)
keys = st.none() | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=300)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=anything, key=keys)
def test_no_body_is_a_fault_of_ours(rt: Runtime, caller: Caller, body: bytes, key: str | None) -> None:
    """Accepted or refused, never a 500: it would be retried, and wake somebody."""
    headers = {"Authorization": f"Bearer {caller.key}"} | ({} if key is None else {"Idempotency-Key": key})

    answer = create_app(rt).test_client().post("/v1/jobs", data=body, headers=headers)

    assert answer.status_code in {200, 201, 400, 409, 422}, answer.text
    if answer.status_code >= 400:
        assert answer.get_json(force=True)["code"] in {"malformed_request", "invalid_input", "idempotency_conflict"}


# Health


def test_the_process_is_alive(web: str) -> None:
    """Nothing else is asked: a platform restarts what does not answer."""
    answer = get(f"{web}/healthz")

    assert (answer.status, answer.json) == (200, {"status": "ok"})


def degraded(web: str) -> dict[str, str]:
    answer = get(f"{web}/readyz")
    assert answer.status == 200, answer
    return {item["what"]: item["why"] for item in answer.json["degraded"]}


def test_ready_says_what_is_degraded(rt: Runtime, web: str) -> None:
    """Requests succeed, so it is 200; that no worker sweeps or pays is for a person to see."""
    assert "never" in degraded(web)["sweep"]

    execute(rt, "UPDATE account SET swept_at = clock_timestamp() - interval '100 s'")
    assert "100 s ago" in degraded(web)["sweep"]

    execute(rt, "UPDATE account SET swept_at = clock_timestamp()")
    assert "sweep" not in degraded(web)
    assert "account" not in degraded(web)

    with rt.db.transaction() as tx:
        assert account.halt(tx, "no_credit", balance=0.01)
    assert "no_credit" in degraded(web)["account"]

    with rt.db.transaction() as tx:
        assert account.resume(tx)
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp() + interval '50 s'")
    assert "backing off" in degraded(web)["account"]


def test_a_broker_that_is_away_is_a_degradation(web: str, caller: Caller) -> None:
    """Jobs are accepted all the same, and done with the next sweep."""
    assert create(web, caller).status == 201

    until(lambda: "broker" in degraded(web))


def test_a_schema_older_than_the_code_is_not_ready(
    environ: dict[str, str], new_database: Callable[[str], str], tmp_path: Path
) -> None:
    """503: a release that was not migrated must get no traffic. A newer schema is the next release under way."""
    url = new_database("ready")
    database = Database(load({"DATABASE_URL": url}).database_url, name="test", pool_size=1)

    def stamp(version: str) -> None:
        with database.transaction() as tx:
            tx.exec_driver_sql("UPDATE pipeline.alembic_version SET version_num = %(version)s", {"version": version})

    with serving(environ | {"DATABASE_URL": url}, tmp_path) as served:
        problem = is_problem(get(f"{served.url}/readyz"), 503, "unavailable")
        assert "pipeline migrate" in problem["detail"]

        schema.upgrade(load({"DATABASE_URL": url}).database_url)
        assert get(f"{served.url}/readyz").status == 200

        for version in schema.known()[:-1]:
            stamp(version)
            assert is_problem(get(f"{served.url}/readyz"), 503, "unavailable")
        stamp("9999_next_release")
        assert get(f"{served.url}/readyz").status == 200
    database.close()


def test_a_repeat_is_a_repeat_though_the_default_model_has_changed(
    make_rt: Callable[..., Runtime], caller: Caller
) -> None:
    """The caller sent the same request twice; what we fill in for it is our own affair."""
    request = check({"input": {"prompt": "a lighthouse"}}, default_model="openai/dall-e-2", catalogue=UNREAD)
    first = accept(make_rt(), caller.service, request, key="order-42")
    again = accept(make_rt(default_model="openai/gpt-image-2/text-to-image"), caller.service, request, key="order-42")
    assert again == (first[0], False)
