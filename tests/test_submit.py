"""Submit: what becomes of a job and of the account after each answer to a paid POST, over real HTTP."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pipeline.jobs import FINAL, State, Via
from pipeline.lifecycle.submit import BEGIN_WITHIN_S, Submitter
from pipeline.lifecycle.window import FIRST
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import alarms
from pipeline.store.claims import BATCH
from pipeline.store.tables import new_id
from pipeline.threads import Loop
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import (
    MODEL,
    account,
    attempts,
    claimed,
    execute,
    happened,
    kinds,
    queued,
    row,
    scalar,
    state,
    swept,
    turns,
    until,
)
from tests.test_wavespeed import closed_port
from tests.wire import Handler, Request, hang_up, http, reset, says, wire

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]

SIZED = "openai/dall-e-3"
TASK = {"id": "e6832d4abffb4d79bfbca19783fca133", "model": MODEL, "status": "created"}


def many(rt: Runtime, caller: Caller, count: int, name: str = "job") -> list[UUID]:
    return [queued(rt, caller.service, f"{name} {number}") for number in range(count)]


def states(rt: Runtime, jobs: Iterable[UUID]) -> Counter[str]:
    with rt.db.transaction() as tx:
        return Counter(tx.execute(text("SELECT state FROM jobs WHERE id = ANY(:ids)"), {"ids": list(jobs)}).scalars())


def all_are(rt: Runtime, jobs: Iterable[UUID], wanted: State) -> Callable[[], bool]:
    return lambda: set(states(rt, jobs)) == {wanted}


def outcomes(rt: Runtime, job_id: UUID) -> list[str | None]:
    return [attempt.outcome for attempt in attempts(rt, job_id)]


def charged(sandbox: Sandbox) -> Counter[str]:
    return Counter(charge["prompt"] for charge in sandbox.ledger())


def once_each(sandbox: Sandbox, count: int) -> bool:
    charges = charged(sandbox)
    return len(charges) == count and set(charges.values()) == {1}


def resume(rt: Runtime) -> None:
    """Let the next probe of a halted account come now."""
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")


ANSWER_S = 0.3
SLOWLY: dict[str, object] = {"latency_s": ANSWER_S, "generation_s": 2 * ANSWER_S}
"""The answer to a POST takes so long, and its callback longer: where one must have come before another POST begins."""


def one_post_was_first(rt: Runtime, after: Any) -> bool:
    """Whether, of all attempts since, the second began when the first could have been answered: after ANSWER_S."""
    return bool(
        scalar(
            rt,
            "SELECT started[2] - started[1] >= make_interval(secs => :answer_s)"
            " FROM (SELECT array_agg(started_at ORDER BY started_at) AS started FROM attempts"
            "       WHERE started_at > :after) a",
            after=after,
            answer_s=ANSWER_S,
        )
    )


# Accepted


def test_an_accepted_post_makes_the_job_processing(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """From the id on it can be learnt how the task ends; its alarm is the first poll, should no callback come."""
    sandbox.faults(generation_s=60)
    job_id = queued(rt, caller.service)
    start_worker()

    until(lambda: state(rt, job_id) == State.PROCESSING)

    job, (attempt,) = row(rt, job_id), attempts(rt, job_id)
    assert job.prediction_id == attempt.prediction_id == sandbox.ledger()[0]["prediction_id"]
    assert (attempt.outcome, attempt.http_status, attempt.error) == ("accepted", 200, None)
    assert job.settled_by is None
    assert scalar(rt, "SELECT due_at - submitted_at BETWEEN '25 seconds' AND '40 seconds' FROM jobs")


def synchronous(rt: Runtime, caller: Caller, prompt: str) -> UUID:
    """A job whose POST waits for the result; callers cannot ask for it, but some models may answer so."""
    job_id = queued(
        rt,
        caller.service,
        model=SIZED,
        input={"prompt": prompt},
        run_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    )
    mode = "input || jsonb_build_object('enable_sync_mode', true)"
    now = "run_at = now(), due_at = now(), admitted = true"
    execute(rt, f"UPDATE jobs SET input = {mode}, {now} WHERE id = :id", id=job_id)
    return job_id


@pytest.mark.parametrize(
    ("faults", "end", "code"),
    [
        ({}, State.COMPLETED, None),
        ({"fail": 1}, State.FAILED, "content_moderation"),
        ({"ends_as": "cancelled"}, State.FAILED, "generation_failed"),
    ],
)
def test_a_final_answer_to_the_post_itself_settles_the_job(
    make_rt: MakeRuntime,
    caller: Caller,
    sandbox: Sandbox,
    start_worker: StartWorker,
    faults: dict[str, object],
    end: State,
    code: str | None,
) -> None:
    """Some models answer with the result; to wait for a callback then would be to wait for nothing."""
    rt = make_rt(public_url=None)
    sandbox.faults(**faults)
    job_id = synchronous(rt, caller, "at once")
    start_worker(rt)

    until(lambda: state(rt, job_id) in FINAL)

    job = row(rt, job_id)
    assert (job.state, job.settled_by, job.due_at) == (end, Via.SUBMIT, None)
    assert (job.error and job.error["code"]) == code
    assert bool(job.outputs) is (end is State.COMPLETED)
    assert outcomes(rt, job_id) == ["accepted"]


def test_a_synchronous_answer_that_gave_up_waiting_means_still_running(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Its code 5004 looks like a failure, and the task runs on: to submit again would pay twice."""
    rt = make_rt(public_url=None, poll_after_s=0.1)
    sandbox.faults(sync_window_s=0.05, generation_s=0.5)
    job_id = synchronous(rt, caller, "slow")
    worker = start_worker(rt)

    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    assert "job.processing" in kinds(rt, job_id)
    assert row(rt, job_id).settled_by == Via.POLL
    assert len(sandbox.ledger()) == 1


def test_a_callback_that_overtakes_the_posts_answer_counts(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The answer to the POST then finds the job done, and must not move it back."""
    sandbox.faults(webhook_early=1, latency_s=0.2)
    job_id = queued(rt, caller.service)
    worker = start_worker()

    until(lambda: state(rt, job_id) == State.COMPLETED)
    worker.stop()  # once the answer has come

    assert turns(rt, job_id) == ["job.queued", "job.submitting", "job.completed"]
    assert row(rt, job_id).settled_by == Via.WEBHOOK
    assert outcomes(rt, job_id) == ["accepted"]


def test_three_processes_post_each_job_once(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Claims exclude one another by the rows' locks alone."""
    jobs = many(rt, caller, 60)
    worker, *_ = (start_worker() for _ in range(3))

    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert once_each(sandbox, 60)
    assert sandbox.arrivals()["count"] == 60


# What is sent


def test_the_callback_address_carries_the_attempts_token(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It is the only way by which our own reference comes back."""
    sandbox.faults(generation_s=0)
    queued(rt, caller.service)
    start_worker()

    (delivery,) = until(sandbox.deliveries)

    token = scalar(rt, "SELECT token FROM attempts")
    assert delivery["url"] == f"{rt.settings.public_url}/webhooks/wavespeed/{token}"


def test_without_a_public_address_no_callback_is_asked_for(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """The provider would call nobody, four times a task."""
    with wire(says(200, {"data": TASK})) as server:
        rt = make_rt(public_url=None, wavespeed_base_url=server.url)
        job_id = queued(rt, caller.service)
        start_worker(rt)
        until(lambda: state(rt, job_id) == State.PROCESSING)

    assert server.requests[0].target == f"/api/v3/{MODEL}"


def test_options_that_are_ours_are_not_sent(make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker) -> None:
    """The provider refuses base64 output together with a callback; we convert our own copy."""
    with wire(says(200, {"data": TASK})) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job_id = queued(rt, caller.service, input={"prompt": "as text", "enable_base64_output": True})
        start_worker(rt)
        until(lambda: state(rt, job_id) == State.PROCESSING)

    assert server.requests[0].body == b'{"prompt":"as text"}'
    assert row(rt, job_id).options == {"enable_base64_output": True}


# Refused for good


@pytest.mark.parametrize(
    ("handler", "status", "code", "message", "provider_code"),
    [
        (says(400, {"code": 400, "message": "model not found"}), 400, "rejected", "model not found", "400"),
        (says(400, {"error": "bad size"}), 400, "rejected", "bad size", None),
        (says(404, {"code": 404, "message": "no such route"}), 404, "rejected", "no such route", "404"),
        (says(413, b"<h1>Too Large</h1>"), 413, "rejected", "Too Large", None),
        (says(422, {"error_code": "E_PROMPT", "message": "too long"}), 422, "rejected", "too long", "E_PROMPT"),
    ],
)
def test_a_refused_request_fails_its_job_in_the_providers_words_and_is_never_repeated(
    make_rt: MakeRuntime,
    caller: Caller,
    start_worker: StartWorker,
    handler: Handler,
    status: int,
    code: str,
    message: str,
    provider_code: str | None,
) -> None:
    """The same request would be refused the same way; the caller has to change it, and needs to know what."""
    with wire(handler) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job_id = queued(rt, caller.service)
        start_worker(rt)
        until(lambda: state(rt, job_id) == State.FAILED)

    job, (attempt,) = row(rt, job_id), attempts(rt, job_id)
    assert job.error == {"code": code, "message": message, "provider_code": provider_code}
    assert (job.settled_by, job.due_at) == (Via.SUBMIT, None)
    assert (attempt.outcome, attempt.http_status, attempt.error) == ("rejected", status, message)
    assert server.count("POST") == 1
    assert account(rt).halted_reason is None


def test_what_the_provider_checks_and_we_do_not_fails_with_its_complaint(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Models we have no schema of are passed on unseen."""
    job_id = queued(rt, caller.service, model=SIZED, input={"prompt": "x", "size": "insufficient credits, top up"})
    start_worker()

    until(lambda: state(rt, job_id) == State.FAILED)

    assert row(rt, job_id).error["message"].startswith("size: 'insufficient credits, top up' is not one of")
    assert account(rt).halted_reason is None  # though a caller made the provider say so
    assert sandbox.ledger() == []


def test_a_model_we_may_not_use_fails_its_jobs_and_no_others(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A 403 beside a balance that answers is about the model: the account works, and must go on working."""
    sandbox.faults(forbidden=SIZED)
    forbidden = queued(rt, caller.service, model=SIZED)
    allowed = queued(rt, caller.service)
    start_worker()

    until(lambda: state(rt, forbidden) == State.FAILED and state(rt, allowed) == State.COMPLETED)

    assert row(rt, forbidden).error == {
        "code": "forbidden",
        "message": "account suspended",
        "provider_code": "ACCOUNT_SUSPENDED",
    }
    assert outcomes(rt, forbidden) == ["rejected"]
    assert account(rt).halted_reason is None


# The account is in trouble


def test_a_revoked_key_halts_the_account_until_a_probe_finds_it_restored(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """No job may fail for it, nothing but the probe may knock, and nobody should have to restart anything."""
    sandbox.faults(revoked=True)
    jobs = many(rt, caller, 5)
    worker = start_worker()

    until(lambda: account(rt).halted_reason == "key_refused" and all_are(rt, jobs, State.QUEUED)())
    assert {tuple(outcomes(rt, job_id)) for job_id in jobs} == {("blocked",)}

    jobs += many(rt, caller, 5, "later")
    posts = sandbox.arrivals()["count"]
    assert posts == 5
    asked = sandbox.arrivals()["refused"]["balance"]
    resume(rt)
    swept(worker, lambda: sandbox.arrivals()["refused"]["balance"] > asked)
    until(lambda: account(rt).probe_at > scalar(rt, "SELECT clock_timestamp() + interval '50 seconds'"))
    assert account(rt).halted_reason == "key_refused"
    assert sandbox.arrivals()["count"] == posts

    sandbox.faults(revoked=False, **SLOWLY)
    now = scalar(rt, "SELECT clock_timestamp()")
    resume(rt)
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert account(rt).halted_reason is None
    assert one_post_was_first(rt, now)
    assert once_each(sandbox, 10)


def test_a_key_revoked_in_the_middle_costs_few_posts_and_no_job(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Two processes with a long queue: what was under way is refused, then only the probe knocks; then all goes on."""
    sandbox.faults(latency_s=0.2)
    jobs = many(rt, caller, 120)
    workers = [start_worker(), start_worker()]
    until(lambda: sandbox.arrivals()["count"] >= 2 * FIRST)
    sandbox.faults(revoked=True)
    until(lambda: account(rt).halted_reason and not states(rt, jobs)[State.SUBMITTING])

    refused = scalar(rt, "SELECT count(*) FROM attempts WHERE outcome = 'blocked'")
    assert 0 < refused <= len(workers) * BATCH
    posts, asked = sandbox.arrivals()["count"], sandbox.arrivals()["refused"]["balance"]
    resume(rt)
    swept(workers[0], lambda: sandbox.arrivals()["refused"]["balance"] == asked + 1)
    assert claimed(rt, BATCH) == []
    assert sandbox.arrivals()["count"] == posts

    sandbox.faults(revoked=False, latency_s=0)
    resume(rt)
    swept(workers[0], all_are(rt, jobs, State.COMPLETED))
    assert once_each(sandbox, 120)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_halts_even_when_the_balance_cannot_be_asked(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker, status: int
) -> None:
    """Jobs that go back to the queue without a brake would be posted as fast as they are refused."""

    def refuse(request: Request, connection: Any) -> None:
        connection.sendall(http(status if request.method == "POST" else 503, {"message": "no"}))

    with wire(refuse) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job_id = queued(rt, caller.service)
        worker = start_worker(rt)
        until(lambda: account(rt).halted_reason and state(rt, job_id) == State.QUEUED)
        worker.stop()

    assert server.count("POST") == 1
    assert outcomes(rt, job_id) == ["blocked"]


@pytest.mark.parametrize("credit_402", [False, True])
def test_an_empty_account_halts_until_it_is_topped_up(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker, credit_402: bool
) -> None:
    """The documented answer is a 400, which must not fail the jobs like any other 400."""
    sandbox.faults(credit_402=credit_402)
    sandbox.set_balance(0.05)
    jobs = many(rt, caller, 5)
    worker = start_worker()

    until(lambda: account(rt).halted_reason and all_are(rt, jobs, State.QUEUED)())
    assert account(rt).halted_reason == "insufficient_credits"
    assert account(rt).halted_balance == 0.05
    posts = sandbox.arrivals()["count"]
    assert posts == 5

    asked = sandbox.arrivals()["calls"]["balance"]
    resume(rt)
    swept(worker, lambda: sandbox.arrivals()["calls"]["balance"] > asked)
    assert account(rt).halted_reason == "insufficient_credits"
    assert sandbox.arrivals()["count"] == posts

    sandbox.set_balance(50)
    sandbox.faults(**SLOWLY)
    now = scalar(rt, "SELECT clock_timestamp()")
    resume(rt)
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert one_post_was_first(rt, now)
    assert once_each(sandbox, 5)


def test_where_no_price_is_known_a_top_up_that_is_still_too_little_costs_one_post(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It tries, and halts the account again."""
    execute(rt, "UPDATE prices SET usd = NULL")
    sandbox.set_balance(0.01)
    jobs = many(rt, caller, 5)
    worker = start_worker()
    until(lambda: account(rt).halted_reason and all_are(rt, jobs, State.QUEUED)())
    posts = sandbox.arrivals()["count"]

    sandbox.set_balance(0.02)
    resume(rt)
    swept(worker, lambda: account(rt).halted_balance == 0.02)

    until(all_are(rt, jobs, State.QUEUED))
    assert sandbox.arrivals()["count"] == posts + 1


# Throttled


def test_a_429_holds_the_account_for_as_long_as_the_provider_asks(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The limit is the account's: if every job waited by itself, each would knock for all the others."""
    sandbox.faults(status_429=1, retry_after_s=300)
    jobs = many(rt, caller, 5)
    worker = start_worker()

    until(lambda: account(rt).backoff_until and all_are(rt, jobs, State.QUEUED)())
    assert {tuple(outcomes(rt, job_id)) for job_id in jobs} == {("throttled",)}
    assert scalar(rt, "SELECT backoff_until - clock_timestamp() BETWEEN '250 s' AND '300 s' FROM account")

    sandbox.faults(status_429=0)
    jobs += many(rt, caller, 1, "later")
    worker.sweep()
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp(), in_flight_cap = NULL, pacer = NULL")
    assert sandbox.arrivals()["count"] == 5
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert once_each(sandbox, 6)
    until(lambda: (account(rt).backoff_until, account(rt).backoff_s) == (None, 0.0))


def test_without_a_retry_after_each_429_doubles_the_wait_up_to_a_window(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """The provider documents no header; its limits reset every minute, so longer than that is never needed."""
    waits = []
    answers = threading.Semaphore()

    def one_by_one(_: Request, connection: socket.socket) -> None:
        answers.acquire(timeout=60)
        connection.sendall(http(429, {"message": "Slow down"}))

    with wire(one_by_one) as server:
        rt = make_rt(wavespeed_base_url=server.url)
        job_id = queued(rt, caller.service)
        worker = start_worker(rt)
        for number in range(1, 9):
            swept(worker, lambda number=number: outcomes(rt, job_id)[:number] == ["throttled"] * number)  # type: ignore[misc]
            waits.append(account(rt).backoff_s)
            execute(rt, "UPDATE account SET backoff_until = clock_timestamp(), pacer = NULL")
            answers.release()

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert account(rt).in_flight_cap is None  # it said nothing of tasks at a time


def test_a_refusal_for_too_many_at_a_time_teaches_a_lower_cap(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The level promises more than the provider gives: after a few refusals we ask for no more than that."""
    sandbox.faults(limits={"concurrent": 3}, generation_s=0.3)
    jobs = many(rt, caller, 9)
    worker = start_worker()

    until(lambda: account(rt).in_flight_cap)
    assert account(rt).in_flight_cap <= 3
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert once_each(sandbox, 9)


def test_a_learnt_cap_is_regained_step_by_step_and_forgotten(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """What was refused once may be allowed a little later, but not all at once."""
    rt = make_rt(max_in_flight=12)
    execute(rt, "UPDATE account SET in_flight_cap = 4, cap_changed_at = clock_timestamp()")
    worker = start_worker(rt)
    caps = []
    for number in range(4):
        execute(rt, "UPDATE account SET cap_changed_at = clock_timestamp() - interval '61 seconds'")
        job_id = queued(rt, caller.service, f"job {number}")
        swept(worker, lambda job_id=job_id: state(rt, job_id) == State.COMPLETED)  # type: ignore[misc]
        caps.append(account(rt).in_flight_cap)

    assert caps == [8, None, None, None]


# Nothing was sent, or nobody knows


def test_what_was_surely_not_sent_goes_back_and_is_tried_later(
    make_rt: MakeRuntime, rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Nobody listens at the provider: no charge, no doubt, and none of the account's allowance used."""
    with closed_port() as port:
        cut_off = make_rt(wavespeed_base_url=f"http://127.0.0.1:{port}")
        job_id = queued(cut_off, caller.service)
        worker = start_worker(cut_off)
        swept(worker, lambda: len(attempts(rt, job_id)) >= 2)
        worker.stop()

    assert state(rt, job_id) == State.QUEUED
    assert set(outcomes(rt, job_id)) == {"not_sent"}
    assert "job.unknown" not in kinds(rt, job_id)
    assert all(event["why"] for event in happened(rt, job_id, "job.queued")[1:])

    execute(rt, "UPDATE account SET backoff_until = NULL, pacer = NULL")
    worker = start_worker()
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)
    assert once_each(sandbox, 1)


def test_five_posts_in_a_row_that_reach_nobody_hold_the_account(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """A thousand jobs must not each find out for themselves that the provider is away."""
    with closed_port() as port:
        rt = make_rt(wavespeed_base_url=f"http://127.0.0.1:{port}")
        many(rt, caller, 5)
        start_worker(rt)
        until(lambda: account(rt).backoff_until)

    assert account(rt).trial


@pytest.mark.parametrize(
    ("faults", "status"),
    [
        ({"lose_answer": 1}, None),
        ({"gateway_504": 1}, 504),
        ({"redirect_307": 1}, 307),
        ({"status_500": 1}, 500),
    ],
    ids=str,
)
def test_a_post_whose_answer_is_no_answer_leaves_the_job_unknown(
    rt: Runtime,
    caller: Caller,
    sandbox: Sandbox,
    start_worker: StartWorker,
    faults: dict[str, object],
    status: int | None,
) -> None:
    """The task may run and cost money: the one thing not to do is to post again."""
    sandbox.faults(generation_s=60, list_lag_s=60, **faults)
    job_id = queued(rt, caller.service)
    start_worker()

    until(lambda: state(rt, job_id) == State.UNKNOWN)

    (attempt,) = attempts(rt, job_id)
    assert (attempt.outcome, attempt.http_status) == ("lost", status)
    assert attempt.error
    assert row(rt, job_id).due_at
    assert sandbox.arrivals()["count"] == 1


@pytest.mark.parametrize(
    "handler", [hang_up, reset, says(200, {"code": 200, "data": {}}), says(200, b"{"), says(408, b"")]
)
def test_any_other_unclear_end_of_a_post_leaves_the_job_unknown_too(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker, handler: Handler
) -> None:
    """What the provider never documented is no reason to pay twice."""
    with wire(handler) as server:
        rt = make_rt(wavespeed_base_url=server.url, public_url=None)
        job_id = queued(rt, caller.service)
        start_worker(rt)
        until(lambda: state(rt, job_id) == State.UNKNOWN)

    assert outcomes(rt, job_id) == ["lost"]
    assert len([request for request in server.requests if MODEL in request.target]) == 1


def test_whatever_became_of_the_answers_every_job_is_charged_once(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Cut connections, gateways, redirects and failures with and without a task, all at once."""
    rt = make_rt(poll_after_s=0.5)
    sandbox.faults(seed=7, lose_answer=0.4, gateway_504=0.4, redirect_307=0.3, status_500=0.6, webhook_drop=0.5)
    jobs = many(rt, caller, 40)
    worker = start_worker(rt)
    until(lambda: states(rt, jobs)[State.UNKNOWN] > 5)

    sandbox.faults(lose_answer=0, gateway_504=0, redirect_307=0, status_500=0, webhook_drop=0)
    swept(worker, all_are(rt, jobs, State.COMPLETED), 60.0)

    assert once_each(sandbox, 40)
    assert scalar(rt, "SELECT count(*) FROM attempts WHERE outcome = 'accepted'") == 40


def test_a_failing_provider_is_tried_with_one_post_at_a_time(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Each POST into a failing provider may be a lost charge: find out with one, wait longer, try one again."""
    sandbox.faults(redirect_307=1)
    jobs = many(rt, caller, 6, "first")
    worker = start_worker()
    until(all_are(rt, jobs, State.UNKNOWN))
    until(lambda: account(rt).trial)

    jobs += many(rt, caller, 30, "later")
    waits = []
    for number in range(1, 4):
        posts = scalar(rt, "SELECT count(*) FROM attempts")
        execute(rt, "UPDATE account SET backoff_until = clock_timestamp(), pacer = NULL")
        worker.wake("submit")
        until(lambda: account(rt).backoff_s > 2**number - 1)  # noqa: B023
        waits.append(account(rt).backoff_s)
        assert scalar(rt, "SELECT count(*) FROM attempts") == posts + 1
    assert waits == [2, 4, 8]

    sandbox.faults(redirect_307=0, **SLOWLY)
    now = scalar(rt, "SELECT clock_timestamp()")
    execute(rt, "UPDATE account SET backoff_until = clock_timestamp(), pacer = NULL")
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert one_post_was_first(rt, now)
    assert not account(rt).trial
    assert once_each(sandbox, 36)


def test_before_anything_is_known_of_the_provider_few_posts_leave(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """However long the queue: all that are under way when the provider falls silent must be looked for one by one."""
    sandbox.faults(latency_s=1.0)
    jobs = many(rt, caller, 3 * FIRST)
    start_worker()
    until(lambda: states(rt, jobs)[State.COMPLETED] == 3 * FIRST)

    first, *others = sorted(sandbox.arrivals()["at"])
    assert len([at for at in others if at < first + 1.0]) == FIRST - 1  # before its answer, nothing was known
    assert once_each(sandbox, 3 * FIRST)


# Late answers


def suspect(rt: Runtime) -> list[UUID]:
    """Take every worker for dead, in one transaction, so that none can object."""
    with rt.db.transaction() as tx:
        tx.execute(text("DELETE FROM workers"))
        return alarms.give_up_claims(tx)


def test_an_answer_that_comes_after_the_sweep_gave_up_still_counts(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A frozen process is taken for dead; when it wakes, what it learnt is as true as ever."""
    sandbox.faults(latency_s=1.0, webhook_drop=1, list_lag_s=60)
    job_id = queued(rt, caller.service)
    start_worker()
    until(sandbox.ledger)

    assert suspect(rt) == [job_id]
    until(lambda: state(rt, job_id) == State.PROCESSING)

    assert outcomes(rt, job_id) == ["accepted"]
    assert kinds(rt, job_id) == ["job.queued", "job.submitting", "job.unknown", "job.processing"]


def test_a_second_accepted_attempt_is_shown_as_a_double_charge(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It should never happen; if the provider hid a task for longer than we waited, somebody has to be told."""
    rt = make_rt(unknown_patience_s=0.3, public_url=None)
    sandbox.faults(latency_s=4.0, generation_s=60, list_lag_s=60)
    job_id = queued(rt, caller.service)
    worker = start_worker(rt)
    until(sandbox.ledger)
    sandbox.faults(latency_s=0)
    assert suspect(rt) == [job_id]

    swept(worker, lambda: "job.charged_twice" in kinds(rt, job_id))

    assert outcomes(rt, job_id) == ["accepted", "accepted"]
    assert row(rt, job_id).prediction_id == attempts(rt, job_id)[1].prediction_id
    (told,) = happened(rt, job_id, "job.charged_twice")
    assert told["prediction_ids"] == [attempt.prediction_id for attempt in attempts(rt, job_id)]
    assert len(sandbox.ledger()) == 2


# Claims that come too late


class Blocked:
    """An event loop that does nothing until it is let go, as in a process that was held up."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._go = threading.Event()
        held = threading.Event()

        async def hold() -> None:
            held.set()
            self._go.wait()

        self.loop.spawn(hold())
        held.wait()

    def let_go(self) -> None:
        self._go.set()


def test_a_claim_that_cannot_begin_in_time_goes_back_unsent(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox
) -> None:
    """A process that was held up may be taken for dead, and its job be looked for: it must not send any more."""
    rt = make_rt()
    job_id = queued(rt, caller.service)
    blocked = Blocked()
    submitter = Submitter(rt, new_id(), blocked.loop, rt.provider(), wake=lambda: None)
    submitter.look()
    too_late = time.monotonic() + BEGIN_WITHIN_S
    until(lambda: time.monotonic() > too_late)

    blocked.let_go()
    until(lambda: state(rt, job_id) == State.QUEUED)
    blocked.loop.stop()

    assert outcomes(rt, job_id) == ["not_sent"]
    assert sandbox.arrivals()["count"] == 0
    assert scalar(rt, "SELECT due_at <= clock_timestamp() FROM jobs")


def test_a_process_that_stops_sends_nothing_it_has_not_begun(rt: Runtime, caller: Caller, sandbox: Sandbox) -> None:
    """What is claimed and unsent goes back at once, for another process to take."""
    jobs = many(rt, caller, 3)
    blocked = Blocked()
    submitter = Submitter(rt, new_id(), blocked.loop, rt.provider(), wake=lambda: None)
    submitter.look()
    assert states(rt, jobs) == {State.SUBMITTING: 3}

    stopping = threading.Thread(target=submitter.stop, args=(30.0,))
    stopping.start()
    until(lambda: submitter._stopping)
    assert submitter.look() is None
    assert states(rt, jobs) == {State.SUBMITTING: 3}
    blocked.let_go()
    stopping.join()
    blocked.loop.stop()

    assert states(rt, jobs) == {State.QUEUED: 3}
    assert sandbox.arrivals()["count"] == 0


# The account's limits


def test_no_more_tasks_run_at_a_time_than_the_account_allows(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Counted by the provider itself, over all processes."""
    rt = make_rt(max_in_flight=3)
    sandbox.faults(generation_s=[0.05, 0.2])
    jobs = many(rt, caller, 15)
    worker, *_ = (start_worker(rt) for _ in range(3))

    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert sandbox.arrivals()["max_running"] <= 3
    assert sandbox.arrivals()["count"] == 15
    assert once_each(sandbox, 15)


def test_tasks_whose_answer_was_lost_fill_their_places(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """They run at the provider like any other, so that to forget them would exceed its limit."""
    rt = make_rt(max_in_flight=2, unknown_patience_s=60)
    sandbox.faults(lose_answer=1, generation_s=60, list_lag_s=60)
    jobs = many(rt, caller, 5)
    worker = start_worker(rt)

    until(lambda: states(rt, jobs)[State.UNKNOWN] == 2)
    for _ in range(3):
        worker.sweep()
    worker.stop()

    assert states(rt, jobs) == {State.UNKNOWN: 2, State.QUEUED: 3}
    assert sandbox.arrivals()["count"] == 2


def test_no_more_posts_arrive_in_any_window_than_the_account_allows(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Three processes, one quota, counted where it counts: by the moments at which POSTs reached the provider."""
    quota, window_s = 10, 1.5
    rt = make_rt(submits_per_minute=quota, submit_window_s=window_s + 0.5)  # the half second is the network's
    sandbox.faults(limits={"per_window": quota}, level_window_s=window_s)
    jobs = many(rt, caller, 3 * quota)
    for _ in range(3):
        start_worker(rt)

    until(all_are(rt, jobs, State.COMPLETED), 60.0)

    at = sorted(sandbox.arrivals()["at"])
    assert len(at) == 3 * quota
    assert all(later - earlier >= window_s for earlier, later in zip(at, at[quota:], strict=False))
    assert scalar(rt, "SELECT count(*) FROM attempts WHERE outcome = 'throttled'") == 0
    assert once_each(sandbox, 3 * quota)
