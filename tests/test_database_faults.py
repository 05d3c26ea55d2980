"""
The product while its database, or the way there, fails: nothing lost, nothing paid twice, and nobody restarts anything.

Doors and workers reach the database by way of a proxy; what became of the jobs is read without it.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store.database import Database
from pipeline.web import create_app
from pipeline.worker import Worker
from tests.conftest import WEBHOOK_SECRET, Caller
from tests.factories import (
    Attempted,
    account,
    at_once,
    attempts,
    encoded,
    execute,
    happened,
    prediction,
    processing,
    queued,
    scalar,
    signed,
    state,
    swept,
    turns,
    until,
)
from tests.http import Answer, request
from tests.postgres_proxy import Proxy, proxy
from tests.serving import serving
from tests.test_submit import all_are, many, once_each, states, suspect

CLAIM = b"INSERT INTO attempts"
ANSWERS = b"UPDATE attempts a SET"
POLLS = b"UPDATE attempts SET missing_polls = 0"


@pytest.fixture
def between(rt: Runtime) -> Iterator[Proxy]:
    with proxy(rt.settings.database_url) as between:
        yield between


@pytest.fixture
def beyond(make_rt: Callable[..., Runtime], sandbox: Sandbox, between: Proxy) -> Iterator[Runtime]:
    """Give a runtime by way of the proxy, with little patience, that polls."""
    rt = make_rt(public_url=None, poll_after_s=0.2)
    settings = rt.settings.model_copy(update={"database_url": between.url(rt.settings.database_url)})
    database = Database(settings.database_url, name="beyond", patience_s=1)
    yield replace(rt, settings=settings, db=database)
    database.close()


@pytest.fixture
def worker(beyond: Runtime, start_worker: Callable[..., Worker]) -> Worker:
    """Start a worker that reaches its database by way of the proxy."""
    return start_worker(beyond)


@pytest.fixture
def door(beyond: Runtime) -> FlaskClient:
    """Give a client of a web app that reaches its database by way of the proxy."""
    return create_app(beyond).test_client()


def outcomes(rt: Runtime, job_id: UUID) -> list[str | None]:
    return [attempt.outcome for attempt in attempts(rt, job_id)]


# A worker whose COMMIT is not answered


def test_a_claim_whose_answer_is_lost_goes_back_unsent(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """This process never learnt what it claimed: nothing was sent, so nothing need be looked for."""
    between.lose_commit(of=CLAIM)
    jobs = many(rt, caller, 5)
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert between.commits_lost == 1
    assert sorted(tuple(outcomes(rt, job_id)) for job_id in jobs)[-1] == ("not_sent", "accepted")
    assert not any(happened(rt, job_id, "job.unknown") for job_id in jobs)
    assert once_each(sandbox, 5)


def test_a_claim_that_never_arrived_is_made_again(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """From here it looks the same as one whose answer was lost."""
    between.lose_commit(of=CLAIM, arrives=False)
    job_id = queued(rt, caller.service)
    swept(worker, all_are(rt, [job_id], State.COMPLETED))

    assert between.commits_lost == 1
    assert outcomes(rt, job_id) == ["accepted"]
    assert once_each(sandbox, 1)


def test_an_unclear_claim_that_others_gave_up_meanwhile_goes_back_too(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """Cut off for long, this process is taken for dead and its jobs for unknown; it knows better, and comes back."""
    between.lose_commit(of=CLAIM, then_refuse=True)
    job_id = queued(rt, caller.service)
    worker.wake("submit")
    until(lambda: between.commits_lost)
    assert suspect(rt) == [job_id]
    assert state(rt, job_id) == State.UNKNOWN

    between.come_back()
    swept(worker, all_are(rt, [job_id], State.COMPLETED))
    assert outcomes(rt, job_id) == ["not_sent", "accepted"]
    assert once_each(sandbox, 1)


def test_a_process_that_stops_gives_an_unclear_claim_back(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, beyond: Runtime
) -> None:
    """Left behind, the claim would count as that of a dead worker: unknown, for a whole patience."""
    jobs = many(rt, caller, 3)
    between.lose_commit(of=CLAIM)
    worker = Worker(beyond)
    worker.start()
    until(lambda: between.commits_lost)
    worker.stop()

    assert states(rt, jobs) == {State.QUEUED: 3}
    assert sandbox.ledger() == []


def test_answers_whose_commit_is_not_answered_are_recorded_once(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """They are written again: no event, plan or double charge comes of it."""
    between.lose_commit(of=ANSWERS)
    jobs = many(rt, caller, 5)
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert between.commits_lost == 1
    for job_id in jobs:
        assert turns(rt, job_id) == ["job.queued", "job.submitting", "job.processing", "job.completed"]
        assert outcomes(rt, job_id) == ["accepted"]
    assert scalar(rt, "SELECT count(*) FROM notifications") == 5
    assert once_each(sandbox, 5)


def test_lost_answers_whose_commit_is_not_answered_count_once_for_the_brakes(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """One bad answer must not become five in a row because the database was in trouble as well."""
    sandbox.faults(redirect_307=1)
    between.lose_commit(of=ANSWERS)
    job_id = queued(rt, caller.service)
    worker.wake("submit")
    until(lambda: between.commits_lost and state(rt, job_id) == State.UNKNOWN)
    sandbox.faults(redirect_307=0)
    second = queued(rt, caller.service, "second")
    swept(worker, all_are(rt, [second], State.COMPLETED))

    assert account(rt).recent == "-+"


def test_a_verdict_whose_commit_is_not_answered_moves_its_job_once(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    between.lose_commit(of=POLLS)
    job_id = queued(rt, caller.service)
    swept(worker, all_are(rt, [job_id], State.COMPLETED))

    until(lambda: between.commits_lost)
    assert turns(rt, job_id) == ["job.queued", "job.submitting", "job.processing", "job.completed"]
    assert scalar(rt, "SELECT count(*) FROM notifications") == 1


# A worker whose connections fail


def test_a_worker_whose_connections_are_cut_again_and_again_pays_once_for_each_job(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """By the network, and by the server in the middle of a transaction."""
    sandbox.faults(latency_s=[0.0, 0.1])
    jobs = many(rt, caller, 60)
    for number in range(8):
        posts = sandbox.arrivals()["count"]
        worker.wake("submit")
        until(lambda: sandbox.arrivals()["count"] > posts or once_each(sandbox, 60))  # noqa: B023
        if number % 2:
            between.cut()
        else:
            execute(
                rt, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pipeline-beyond'"
            )
    swept(worker, all_are(rt, jobs, State.COMPLETED))
    assert once_each(sandbox, 60)


def test_a_worker_outlives_a_silent_database(
    rt: Runtime, caller: Caller, sandbox: Sandbox, between: Proxy, worker: Worker
) -> None:
    """In the middle of its POSTs the server says nothing any more, to any connection; then it is back."""
    sandbox.faults(latency_s=0.3)
    jobs = many(rt, caller, 10)
    worker.wake("submit")
    until(lambda: sandbox.arrivals()["count"] == 10)
    between.vanish()
    more = many(rt, caller, 10, "later")
    until(lambda: len(sandbox.ledger()) == 10)
    between.come_back()

    swept(worker, all_are(rt, jobs + more, State.COMPLETED))
    assert once_each(sandbox, 20)


# Doors


@dataclass(frozen=True)
class Call:
    """One request to a door, and the status it is answered with on a good day."""

    method: str
    path: str
    status: int
    body: bytes | None = None
    headers: dict[str, str] | None = None


@pytest.fixture
def calls(rt: Runtime, caller: Caller) -> list[Call]:
    """Give one request to each door that needs the database."""
    job = processing(rt, caller.service)
    key = {"Authorization": f"Bearer {caller.key}"}
    callback = encoded(prediction(job))
    return [
        Call("POST", "/v1/jobs", 201, encoded({"input": {"prompt": "a lighthouse"}}), key),
        Call("GET", f"/v1/jobs/{job.job_id}", 200, None, key),
        Call("POST", f"/webhooks/wavespeed/{job.token}", 204, callback, signed(WEBHOOK_SECRET, callback)),
        Call("GET", "/readyz", 200),
    ]


def ask(url: str, call: Call) -> Answer:
    return request(call.method, url + call.path, call.body, call.headers)


def is_asked_to_come_again(answer: Answer) -> bool:
    """503, as a problem, and when."""
    problem = answer.headers.get("content-type") == "application/problem+json" and answer.json["code"] == "unavailable"
    return answer.status == 503 and problem and int(answer.headers["retry-after"]) > 0


def test_every_door_asks_to_come_again_while_the_database_cannot_be_used(
    rt: Runtime, environ: dict[str, str], between: Proxy, calls: list[Call], tmp_path: Path
) -> None:
    """Cut, refused, out of connections, or silent: never 500, and nobody waits without end."""
    with serving({**environ, "DATABASE_URL": between.url(environ["DATABASE_URL"])}, tmp_path) as web:

        def all_come_again() -> bool:
            return all(
                is_asked_to_come_again(answer) for answer in at_once(lambda n: ask(web.url, calls[n]), len(calls))
            )

        assert ask(web.url, calls[-1]).status == 200
        between.refuse()
        assert all_come_again()
        between.come_back()
        assert ask(web.url, calls[-1]).status == 200
        between.vanish()
        assert all_come_again()
        between.come_back()
        assert [ask(web.url, call).status for call in calls] == [call.status for call in calls]
        assert "request.crashed" not in web.log


def test_a_door_whose_pool_is_used_up_asks_to_come_again(beyond: Runtime, door: FlaskClient, calls: list[Call]) -> None:
    """However many threads wait for a connection, each does so for a few seconds."""
    with contextlib.ExitStack() as held:
        for _ in range(8):
            held.enter_context(beyond.db.transaction())
        answers = at_once(lambda n: through(door, calls[n]), len(calls))
        assert all(map(is_asked_to_come_again, answers))
    assert [through(door, call).status for call in calls] == [call.status for call in calls]


def through(door: FlaskClient, call: Call) -> Answer:
    answer = door.application.test_client().open(call.path, method=call.method, data=call.body, headers=call.headers)
    return Answer(answer.status_code, {name.lower(): value for name, value in answer.headers}, answer.data)


def test_a_request_whose_commit_is_not_answered_is_the_same_job_when_repeated(
    rt: Runtime, caller: Caller, between: Proxy, door: FlaskClient
) -> None:
    """The caller is told to come again, and its Idempotency-Key finds what was done."""
    headers = {"Authorization": f"Bearer {caller.key}", "Idempotency-Key": "order-42"}
    call = Call("POST", "/v1/jobs", 201, encoded({"input": {"prompt": "a lighthouse"}}), headers)
    between.lose_commit(of=b"INSERT INTO jobs")

    assert is_asked_to_come_again(through(door, call))
    assert between.commits_lost == 1
    again = through(door, call)

    assert again.status == 200
    assert [str(job_id) for job_id in ids(rt)] == [again.json["id"]]


def ids(rt: Runtime) -> list[Any]:
    with rt.db.transaction() as tx:
        return list(tx.exec_driver_sql("SELECT id FROM jobs").scalars())


def test_a_callback_whose_commit_is_not_answered_moves_its_job_once(
    rt: Runtime, caller: Caller, between: Proxy, door: FlaskClient
) -> None:
    """The provider sends it again."""
    job: Attempted = processing(rt, caller.service)
    body = encoded(prediction(job))
    call = Call("POST", f"/webhooks/wavespeed/{job.token}", 204, body, signed(WEBHOOK_SECRET, body))
    between.lose_commit(of=b"INSERT INTO callbacks")

    assert is_asked_to_come_again(through(door, call))
    assert through(door, call).status == 204
    assert len(happened(rt, job.job_id, "job.completed")) == 1
    assert scalar(rt, "SELECT count(*) FROM notifications") == 1
    assert scalar(rt, "SELECT array_agg(verdict ORDER BY received_at) FROM callbacks") == ["applied", "duplicate"]


def test_requests_whose_connections_are_cut_may_be_repeated_until_they_are_answered(
    rt: Runtime, caller: Caller, between: Proxy, beyond: Runtime, door: FlaskClient
) -> None:
    """Eight callers, each with its own keys, while connections are cut under them: one job for each key."""

    def call(number: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        for order in range(10):
            headers = {"Authorization": f"Bearer {caller.key}", "Idempotency-Key": f"order-{number}-{order}"}
            wanted = Call("POST", "/v1/jobs", 201, encoded({"input": {"prompt": "a lighthouse"}}), headers)
            while (status := through(door, wanted).status) == 503:
                seen[503] += 1
            seen[status] += 1
            if number == 0:
                between.cut()
        return seen

    seen = sum(at_once(call, 8), Counter())
    assert set(seen) <= {200, 201, 503}
    assert seen[200] + seen[201] == 80
    assert scalar(rt, "SELECT count(*) FROM jobs") == 80
