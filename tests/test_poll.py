"""Poll: a job whose callback never comes learns its verdict by asking, within a budget, and no sooner than it must."""

import socket
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import FINAL, State, Via
from pipeline.lifecycle.poll import LEASE_S
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import (
    account,
    execute,
    expired_at,
    happened,
    kinds,
    prediction,
    processing,
    queued,
    row,
    scalar,
    state,
    swept,
    until,
)
from tests.wire import Request, http, says, silent, wire

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]


def look_now(rt: Runtime, job_id: UUID) -> None:
    """Let a job's alarm go off."""
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() WHERE id = :id", id=job_id)


def polled(rt: Runtime, worker: Worker, job_id: UUID, calls: Callable[[], int]) -> float:
    """Poll a job once more, wait for what comes of it, and give the seconds until its next poll (0 when final)."""
    before = calls()
    look_now(rt, job_id)
    swept(worker, lambda: calls() > before)

    def next_s() -> float:
        sql = "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM jobs WHERE id = :id"
        return float(scalar(rt, sql, id=job_id) or 0)

    until(lambda: not LEASE_S - 5 < next_s() <= LEASE_S)  # so long it is only taken by whoever asks
    return next_s()


def test_a_dropped_callback_is_made_good_by_a_poll(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Four tries of the provider's may all fail; the job must not wait for an operator."""
    rt = make_rt(poll_after_s=0.3)
    sandbox.faults(webhook_drop=1)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)

    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    job = row(rt, job_id)
    assert job.settled_by == Via.POLL
    assert job.outputs[0]["url"].startswith(sandbox.url)
    assert happened(rt, job_id, "job.completed") == [{"from": "processing", "via": "poll"}]
    assert [delivery["state"] for delivery in sandbox.deliveries()] == ["dropped"]


def test_without_a_public_address_everything_is_polled(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """On a laptop nobody can call back: the first poll comes after two seconds then, not after thirty."""
    rt = make_rt(public_url=None)
    assert rt.settings.first_poll_s == 2.0
    jobs = [queued(rt, caller.service, f"job {number}") for number in range(5)]
    worker = start_worker(rt)

    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})

    assert sandbox.deliveries() == []
    assert {row(rt, job_id).settled_by for job_id in jobs} == {Via.POLL}


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("completed", State.COMPLETED),
        ("failed", State.FAILED),
        ("cancelled", State.FAILED),
        ("timeout", State.FAILED),
        ("deleted", State.FAILED),
    ],
)
def test_every_status_that_ends_a_task_ends_its_job(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker, said: str, end: State
) -> None:
    """The last three are not announced by a callback: a poll is all that ever tells."""
    rt = make_rt(public_url=None, poll_after_s=0.1)
    sandbox.faults(ends_as=said)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)

    swept(worker, lambda: state(rt, job_id) in FINAL)

    job = row(rt, job_id)
    assert (job.state, job.settled_by, job.due_at) == (end, Via.POLL, None)
    assert job.error is None or job.error["message"]


@pytest.mark.parametrize("said", ["created", "pending", "processing", "dreaming", "COMPLETED"])
def test_any_other_status_means_keep_waiting(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker, said: str
) -> None:
    """The provider adds statuses without notice; to give up at one would throw away what was paid for."""
    with wire(says(200)) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job = processing(rt, caller.service)
        server.handler = says(200, {"code": 200, "data": prediction(job, said)})
        worker = start_worker(rt)
        next_s = polled(rt, worker, job.job_id, lambda: server.count("GET"))
        assert state(rt, job.job_id) == State.PROCESSING
        assert next_s > 10

        server.handler = says(200, {"code": 200, "data": prediction(job)})
        look_now(rt, job.job_id)
        swept(worker, lambda: state(rt, job.job_id) == State.COMPLETED)


def test_polls_grow_rarer_as_a_job_grows_older(make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker) -> None:
    """Half its age: whoever ran for a minute may well run for another half. Never rarer than every two minutes."""
    delays = []
    with wire(says(200)) as server:
        rt = make_rt(wavespeed_base_url=server.url, poll_after_s=30)
        job = processing(rt, caller.service)
        server.handler = says(200, {"code": 200, "data": prediction(job, "processing")})
        worker = start_worker(rt)
        for age_s in (0, 100, 200, 1000):
            execute(rt, "UPDATE jobs SET submitted_at = clock_timestamp() - make_interval(secs => :s)", s=age_s)
            delays.append(round(polled(rt, worker, job.job_id, lambda: server.count("GET"))))

    assert delays == [30, 50, 100, 120]


def test_a_provider_that_fails_is_asked_again(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A 500 on a GET says nothing of the task."""
    rt = make_rt(public_url=None, poll_after_s=0.2)
    sandbox.faults(read_500=1)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)
    swept(worker, lambda: sandbox.arrivals()["refused"].get("result"))

    sandbox.faults(read_500=0)
    look_now(rt, job_id)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert kinds(rt, job_id).count("job.completed") == 1


def test_a_throttled_poll_waits_as_long_as_the_provider_asks(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Whether polls count against the limits is not documented; to insist would find out the hard way."""
    with wire(says(429, {"message": "slow down"}, Retry_After="500")) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job = processing(rt, caller.service)
        worker = start_worker(rt)
        look_now(rt, job.job_id)
        swept(worker, lambda: scalar(rt, "SELECT due_at > clock_timestamp() + interval '450 s' FROM jobs"))

    assert state(rt, job.job_id) == State.PROCESSING


# Results that are gone


def test_a_404_counts_only_three_times_and_over_ten_minutes(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """One 404 may be a replica that is behind. Three over ten minutes: the result is lost, and its owner must know."""
    with wire(says(404, {"code": 404, "message": "Task not found"})) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job = processing(rt, caller.service)
        worker = start_worker(rt)
        for number in range(1, 5):
            assert polled(rt, worker, job.job_id, lambda: server.count("GET")) > 20
            until(lambda: scalar(rt, "SELECT missing_polls FROM attempts") == number)  # noqa: B023
            assert state(rt, job.job_id) == State.PROCESSING  # many, but not over ten minutes

        execute(rt, "UPDATE attempts SET missing_at = clock_timestamp() - interval '11 minutes', missing_polls = 1")
        polled(rt, worker, job.job_id, lambda: server.count("GET"))
        until(lambda: scalar(rt, "SELECT missing_polls FROM attempts") == 2)
        assert state(rt, job.job_id) == State.PROCESSING  # over ten minutes, but only two

        look_now(rt, job.job_id)
        swept(worker, lambda: state(rt, job.job_id) == State.FAILED)

    assert row(rt, job.job_id).error["code"] == "result_lost"
    assert row(rt, job.job_id).settled_by == Via.POLL


def test_a_task_that_answers_again_was_never_lost(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """404s count in a row: an answer between them starts the count anew."""
    with wire(says(404)) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job = processing(rt, caller.service)
        worker = start_worker(rt)
        polled(rt, worker, job.job_id, lambda: server.count("GET"))
        until(lambda: scalar(rt, "SELECT missing_polls FROM attempts") == 1)

        server.handler = says(200, {"data": prediction(job, "processing")})
        polled(rt, worker, job.job_id, lambda: server.count("GET"))
        until(lambda: scalar(rt, "SELECT missing_polls FROM attempts") == 0)

    assert scalar(rt, "SELECT missing_at FROM attempts") is None


# Deadlines


def test_a_job_past_its_deadline_is_asked_about_once_more_and_expires(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Its alarm is set to the deadline, whenever the next poll would have been; then it is looked at for a day."""
    rt = make_rt(public_url=None, poll_after_s=3600)
    sandbox.faults(generation_s=60)
    worker = start_worker(rt)  # before its time runs
    job_id = queued(rt, caller.service, deadline_s=2)

    swept(worker, lambda: state(rt, job_id) == State.EXPIRED)

    assert row(rt, job_id).settled_by == Via.DEADLINE
    assert sandbox.arrivals()["calls"]["result"] == 1
    assert scalar(rt, "SELECT due_at - clock_timestamp() BETWEEN '25 minutes' AND '30 minutes' FROM jobs")


def test_the_last_question_may_bring_the_result(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Whoever is done in time has only not been heard of."""
    rt = make_rt(public_url=None, poll_after_s=3600)
    worker = start_worker(rt)  # before its time runs
    job_id = queued(rt, caller.service, deadline_s=2)

    swept(worker, lambda: state(rt, job_id) in {State.COMPLETED, State.EXPIRED})

    assert state(rt, job_id) == State.COMPLETED


def test_a_job_does_not_expire_unasked(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """While the provider does not answer, nobody knows that it is still running."""
    rt = make_rt(public_url=None)
    sandbox.faults(read_500=1)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)
    until(lambda: state(rt, job_id) == State.PROCESSING)
    expired_at(rt, job_id, "now")

    polled(rt, worker, job_id, lambda: sandbox.arrivals()["refused"].get("result", 0))

    assert state(rt, job_id) == State.PROCESSING
    assert row(rt, job_id).due_at


def test_a_verdict_after_the_deadline_is_taken(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It was paid for."""
    rt = make_rt(public_url=None)
    sandbox.faults(generation_s=1.5)
    worker = start_worker(rt)  # before its time runs
    job_id = queued(rt, caller.service, deadline_s=1)
    swept(worker, lambda: state(rt, job_id) == State.EXPIRED)
    until(lambda: sandbox.ledger()[0]["status"] == "completed")

    look_now(rt, job_id)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert row(rt, job_id).settled_by == Via.POLL
    assert row(rt, job_id).due_at is None


def test_an_expired_job_is_left_alone_after_a_day(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Nothing runs for a day; its row stays expired, and costs nothing any more."""
    with wire(says(200)) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job = processing(rt, caller.service)
        server.handler = says(200, {"data": prediction(job, "processing")})
        worker = start_worker(rt)
        expired_at(rt, job.job_id, "now")
        swept(worker, lambda: state(rt, job.job_id) == State.EXPIRED)

        expired_at(rt, job.job_id, "25 hours ago")
        swept(worker, lambda: row(rt, job.job_id).due_at is None)

    assert state(rt, job.job_id) == State.EXPIRED


def test_a_queued_job_past_its_deadline_expires_without_being_paid_for(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Its caller no longer waits."""
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp() + interval '1 hour'")
    job_id = queued(rt, caller.service)
    expired_at(rt, job_id, "now")
    worker = start_worker()

    swept(worker, lambda: state(rt, job_id) == State.EXPIRED)

    execute(rt, "UPDATE account SET backoff_until = NULL")
    worker.sweep()
    assert row(rt, job_id).due_at is None
    assert sandbox.arrivals()["count"] == 0


# Manners


def test_all_processes_share_one_budget_of_polls(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """A thousand lost callbacks must not become a thousand GETs a second."""
    asked: Counter[str] = Counter()

    def count(request: Request, connection: socket.socket) -> None:
        asked[request.target] += 1
        connection.sendall(http(503))

    with wire(count) as server:
        rt = make_rt(wavespeed_base_url=server.url, polls_per_minute=60)
        for number in range(40):
            processing(rt, caller.service, f"job {number}")
        execute(rt, "UPDATE jobs SET due_at = clock_timestamp()")
        start = scalar(rt, "SELECT clock_timestamp()")
        workers = [start_worker(rt) for _ in range(3)]
        swept(workers[0], lambda: sum(asked.values()) >= 11)
        for worker in workers * 3:
            worker.sweep()
        for worker in workers:
            worker.stop()
        took_s = float(scalar(rt, "SELECT extract(epoch FROM clock_timestamp() - :start)", start=start))

    assert sum(asked.values()) <= 11 + took_s  # ten seconds' worth at once, then one a second


def test_a_halted_account_polls_nothing(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """With a bad key each GET is refused, too: the probe alone asks."""
    rt = make_rt(public_url=None)
    sandbox.faults(generation_s=0, revoked=True)
    jobs = [processing(rt, caller.service, f"job {number}") for number in range(3)]
    execute(
        rt,
        "UPDATE account SET halted_reason = 'key_refused', halted_at = clock_timestamp(),"
        " probe_at = clock_timestamp() + interval '1 minute'",
    )
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp()")
    worker = start_worker(rt)
    for _ in range(3):
        worker.sweep()
    worker.stop()

    assert sandbox.arrivals()["refused"] == {}
    assert {state(rt, job.job_id) for job in jobs} == {State.PROCESSING}


def test_a_poll_that_is_refused_halts_the_account_until_the_key_works(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """While nothing is queued, polls are the first to notice a revoked key."""
    rt = make_rt(public_url=None, poll_after_s=0.2)
    sandbox.faults(generation_s=0.2)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)
    until(lambda: state(rt, job_id) == State.PROCESSING)
    sandbox.faults(revoked=True)
    swept(worker, lambda: account(rt).halted_reason == "key_refused")
    assert sandbox.arrivals()["refused"]["balance"] == 1  # it was asked whether it is the key
    assert state(rt, job_id) == State.PROCESSING

    sandbox.faults(revoked=False)
    look_now(rt, job_id)
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert account(rt).halted_reason is None


def test_a_task_that_alone_may_not_be_asked_about_does_not_stop_the_others(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """A 403 of one GET says nothing of the key while the balance can be asked for; the job waits for its deadline."""

    def answer(request: Request, connection: socket.socket) -> None:
        if "predictions" in request.target:
            connection.sendall(http(403, {"message": "not yours"}))
        else:
            connection.sendall(http(200, {"data": {"balance": 5}}))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, poll_after_s=0.1)
        job = processing(rt, caller.service)
        worker = start_worker(rt)
        look_now(rt, job.job_id)
        swept(worker, lambda: server.count("GET") == 2)
        assert account(rt).halted_reason is None
        assert state(rt, job.job_id) == State.PROCESSING

        execute(rt, "UPDATE jobs SET deadline_at = clock_timestamp(), due_at = clock_timestamp()")
        swept(worker, lambda: state(rt, job.job_id) == State.EXPIRED)

    (told,) = happened(rt, job.job_id, "job.expired")
    assert "refuses" in told["why"]
    assert account(rt).halted_reason is None


def test_a_hung_poll_holds_up_nobody_elses(make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker) -> None:
    """Each GET waits for itself alone."""
    slow: set[str] = set()

    def answer(request: Request, connection: socket.socket) -> None:
        number = request.target.split("/")[4]
        if number in slow:
            silent(request, connection)
        connection.sendall(http(200, {"data": {"id": number, "status": "failed", "error": "no"}}))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        hung, quick = processing(rt, caller.service, "hung"), processing(rt, caller.service, "quick")
        slow.add(hung.prediction_id)
        worker = start_worker(rt)
        look_now(rt, hung.job_id)
        swept(worker, lambda: server.count("GET") == 1)
        look_now(rt, quick.job_id)
        swept(worker, lambda: state(rt, quick.job_id) == State.FAILED)
        assert state(rt, hung.job_id) == State.PROCESSING
        worker.stop(0.0)


def test_a_poll_finds_the_verdict_that_a_callback_brought_first(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Two doors, one verdict: the second to come changes nothing, whichever it is."""
    rt = make_rt(poll_after_s=0.05)
    jobs = [queued(rt, caller.service, f"job {number}") for number in range(20)]
    worker = start_worker(rt)

    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})
    until(lambda: len(sandbox.deliveries()) == 20 and {d["state"] for d in sandbox.deliveries()} == {"delivered"})

    assert [kinds(rt, job_id).count("job.completed") for job_id in jobs] == [1] * 20
    settled: Any = Counter(row(rt, job_id).settled_by for job_id in jobs)
    assert set(settled) <= {Via.POLL, Via.WEBHOOK}
