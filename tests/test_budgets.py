"""Money: what jobs cost, and that no budget is ever overshot; in callers' requests, in the queue, and when they end."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pipeline.errors import BudgetExceeded, InvalidInput, Unavailable
from pipeline.jobs import FINAL, Outcome, State
from pipeline.lifecycle import decide
from pipeline.lifecycle.accept import accept, check
from pipeline.models import UNREAD
from pipeline.predictions import Prediction, Status
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import alarms, budgets, inbox
from pipeline.store.answers import Answer, record
from pipeline.store.budgets import ACCOUNT
from pipeline.store.moves import Move, advance
from pipeline.store.services import Service
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import (
    MODEL,
    Attempted,
    at_once,
    claimed,
    execute,
    happened,
    processing,
    queued,
    row,
    scalar,
    state,
    submitting,
    swept,
    unknown,
    until,
)
from tests.http import post

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]

HD = {"prompt": "a lighthouse", "size": "1024*1792", "quality": "hd"}
"""0.12 USD on the sandbox's price list, of dall-e-3; without the two options, 0.04."""


def limit(rt: Runtime, usd: str, service: Service | None = None, period: budgets.Period = "day") -> None:
    """Set a budget as the command line does."""
    scope = str(service.id) if service else ACCOUNT
    with rt.db.transaction() as tx:
        budgets.open_(tx, scope, period, Decimal(usd))
    with rt.db.transaction() as tx:
        budgets.catch_up(tx)


def purse(rt: Runtime, scope: str | None = None) -> tuple[float, float]:
    """What is reserved and spent, in USD."""
    with rt.db.transaction() as tx:
        (found,) = [one for one in budgets.everything(tx) if scope in (None, one.scope)]
    return float(found.reserved), float(found.spent)


def ask(rt: Runtime, service: Service, model: str = MODEL, **model_input: Any) -> UUID:
    request = check(
        {"model": model, "input": {"prompt": "a lighthouse", **model_input}}, default_model=MODEL, catalogue=UNREAD
    )
    return accept(rt, service, request)[0]


def answered(rt: Runtime, job: Attempted, to: State, outcome: Outcome = Outcome.ACCEPTED, **facts: Any) -> None:
    due_s = None if to in FINAL else 0.0
    move = Move(job.job_id, to, attempt_id=job.attempt_id, due_s=due_s, prediction_id=job.prediction_id, **facts)
    with rt.db.transaction() as tx:
        record(tx, [Answer(job.attempt_id, outcome, move, prediction_id=job.prediction_id)])


# In a caller's request


def test_of_eight_racing_clients_with_500_jobs_exactly_those_the_budget_covers_are_accepted(
    rt: Runtime, web: str, caller: Caller
) -> None:
    """Over HTTP, and from a price that nobody has asked for yet: not one job too many, not one too few."""
    execute(rt, "DELETE FROM prices")
    limit(rt, "12")
    limit(rt, "12", caller.service, "month")

    def client(number: int) -> list[int]:
        bodies = [{"input": {"prompt": f"a lighthouse {number} {n}"}} for n in range(63 if number < 4 else 62)]
        return [post(f"{web}/v1/jobs", body, key=caller.key).status for body in bodies]

    answers = [status for found in at_once(client, 8) for status in found]

    assert len(answers) == 500
    assert (answers.count(201), answers.count(402)) == (100, 400)
    assert scalar(rt, "SELECT count(*) FROM jobs") == 100
    assert purse(rt, ACCOUNT) == purse(rt, str(caller.service.id)) == (12.0, 0.0)


def test_a_job_over_the_budget_is_refused_with_what_is_left_and_leaves_no_trace(
    rt: Runtime, web: str, caller: Caller
) -> None:
    """Its Idempotency-Key too is free for when there is money again."""
    limit(rt, "0.2", caller.service)
    assert post(f"{web}/v1/jobs", {"input": {"prompt": "a"}}, key=caller.key).status == 201

    headers = {"Idempotency-Key": "k"}
    refused = post(f"{web}/v1/jobs", {"input": {"prompt": "b"}}, key=caller.key, headers=headers)

    assert (refused.status, refused.json["code"]) == (402, "budget_exceeded")
    assert "costs 0.12 USD, and 0.08 are left of this day's budget of 0.2 USD" in refused.json["detail"]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1
    assert scalar(rt, "SELECT count(*) FROM idempotency_keys") == 0
    limit(rt, "0.24", caller.service)
    assert post(f"{web}/v1/jobs", {"input": {"prompt": "b"}}, key=caller.key, headers=headers).status == 201


def test_a_caller_learns_nothing_of_what_others_spend(rt: Runtime, caller: Caller) -> None:
    """The account's budget is everybody's."""
    limit(rt, "0.1")
    with pytest.raises(BudgetExceeded, match=r"budget of the account\.$"):
        queued(rt, caller.service)


def test_the_same_request_again_reserves_once(rt: Runtime, caller: Caller) -> None:
    """A repeat is the same job, and the same money."""
    limit(rt, "1")
    request = check({"input": {"prompt": "a"}}, default_model=MODEL, catalogue=UNREAD)
    assert [accept(rt, caller.service, request, key="k")[1] for _ in range(3)] == [True, False, False]
    assert purse(rt) == (0.12, 0.0)


def test_one_services_budget_is_no_other_services(rt: Runtime, make_caller: Callable[..., Caller]) -> None:
    """And a service without a budget is limited by the account's only."""
    poor, rich = make_caller("poor").service, make_caller("rich").service
    limit(rt, "0", poor)
    queued(rt, rich)
    with pytest.raises(BudgetExceeded):
        queued(rt, poor)


@pytest.mark.parametrize(("options", "usd"), [({}, 0.04), ({"size": "1024*1792", "quality": "hd"}, 0.12)])
def test_a_price_hangs_on_the_inputs_that_matter(
    rt: Runtime, caller: Caller, sandbox: Sandbox, options: dict[str, str], usd: float
) -> None:
    """One question for each combination of options; the words of the prompt are none of them."""
    limit(rt, "10")
    ids = [ask(rt, caller.service, "openai/dall-e-3", prompt=f"a lighthouse {n}", **options) for n in range(3)]
    assert [float(row(rt, job_id).price) for job_id in ids] == [usd] * 3
    assert sandbox.arrivals()["calls"]["price"] == 1
    assert purse(rt)[0] == pytest.approx(3 * usd)


def test_a_price_set_by_hand_goes_before_the_providers(rt: Runtime, caller: Caller) -> None:
    """A person knows of a discount, or of a model that the provider names no price for."""
    execute(rt, "UPDATE prices SET usd = 0.5")
    assert float(row(rt, queued(rt, caller.service)).price) == 0.5


def test_with_a_budget_a_model_without_a_price_is_refused_until_a_person_sets_one(rt: Runtime, caller: Caller) -> None:
    """Without a price nobody can promise to stay within a budget."""
    limit(rt, "10")
    with pytest.raises(InvalidInput) as refused:
        ask(rt, caller.service, "somebody/a-new-model")
    assert refused.value.errors[0].field == "model"
    assert "pipeline models price" in refused.value.errors[0].message
    execute(rt, "UPDATE prices SET model = 'somebody/a-new-model'")
    ask(rt, caller.service, "somebody/a-new-model")


def test_while_the_price_cannot_be_asked_a_caller_with_a_budget_is_told_to_try_again(
    rt: Runtime, caller: Caller, sandbox: Sandbox
) -> None:
    """And one without a budget never waits for a price."""
    execute(rt, "DELETE FROM prices")
    sandbox.faults(revoked=True)
    queued(rt, caller.service)
    limit(rt, "10")
    with pytest.raises(Unavailable):
        queued(rt, caller.service)
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


def test_an_old_price_will_do_while_the_provider_cannot_be_asked(
    rt: Runtime, make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox
) -> None:
    """Better yesterday's price than no jobs today; asked again it is the new one."""
    limit(rt, "10")
    ask(rt, caller.service, "openai/dall-e-3")
    execute(rt, "UPDATE prices SET usd = 0.03, fetched_at = fetched_at - interval '25 hours'")
    sandbox.faults(revoked=True)
    assert float(row(rt, ask(rt, caller.service, "openai/dall-e-3")).price) == 0.03
    sandbox.faults(revoked=False)
    rt = make_rt()  # the first does not ask again so soon
    assert float(row(rt, ask(rt, caller.service, "openai/dall-e-3")).price) == 0.04


# When a job ends


def test_completed_is_spent(rt: Runtime, caller: Caller) -> None:
    """Once, however often the verdict comes."""
    limit(rt, "1")
    job = processing(rt, caller.service)
    for _ in range(2):
        answered(rt, job, State.COMPLETED, outputs=[])
    assert purse(rt) == (0.0, 0.12)


@pytest.mark.parametrize("to", [State.FAILED, State.CANCELLED, State.EXPIRED])
def test_what_never_ran_gives_its_money_back(rt: Runtime, caller: Caller, to: State) -> None:
    """The provider was never asked, so it cannot charge."""
    limit(rt, "1")
    job_id = queued(rt, caller.service)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job_id, to, error={})])
    assert purse(rt) == (0.0, 0.0)


def test_failed_gives_its_money_back(rt: Runtime, caller: Caller) -> None:
    """The provider refunds failed tasks."""
    limit(rt, "1")
    answered(rt, processing(rt, caller.service), State.FAILED, error={})
    assert purse(rt) == (0.0, 0.0)


@pytest.mark.parametrize("to", [State.QUEUED, State.UNKNOWN, State.PROCESSING])
def test_money_stays_reserved_while_a_job_is_not_over(rt: Runtime, caller: Caller, to: State) -> None:
    """It may be needed yet, or may be spent already."""
    limit(rt, "1")
    job = submitting(rt, caller.service)
    accepted = to is State.PROCESSING
    answered(rt, job, to, Outcome.ACCEPTED if accepted else Outcome.LOST)
    assert purse(rt) == (0.12, 0.0)


def test_an_expired_job_keeps_its_money_while_its_verdict_may_come_and_has_spent_it_then(
    rt: Runtime, caller: Caller
) -> None:
    """The provider took it, so it was paid for."""
    limit(rt, "1")
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.EXPIRED, attempt_id=job.attempt_id, due_s=0.0)])
    assert purse(rt) == (0.12, 0.0)
    execute(rt, "UPDATE jobs SET deadline_at = clock_timestamp() - interval '25 hours'")
    with rt.db.transaction() as tx:
        alarms.stop_asking(tx)
    assert purse(rt) == (0.0, 0.12)
    answered(rt, job, State.COMPLETED, outputs=[])
    assert purse(rt) == (0.0, 0.12)


def test_a_second_charge_counts_too_even_over_the_limit(rt: Runtime, caller: Caller) -> None:
    """It was made: a budget that hid it would let more be spent than it says."""
    limit(rt, "0.12")
    first = submitting(rt, caller.service)
    answered(rt, first, State.QUEUED, Outcome.LOST)
    execute(rt, "UPDATE attempts SET prediction_id = NULL")
    (start,) = claimed(rt)
    second = Attempted(start.job_id, start.attempt_id, start.token, "second")
    answered(rt, second, State.COMPLETED, outputs=[])
    for _ in range(2):
        answered(rt, first, State.PROCESSING)

    assert len(happened(rt, first.job_id, "job.charged_twice")) == 1
    assert purse(rt) == (0.0, 0.24)


def test_a_new_day_begins_with_nothing_spent_but_what_is_reserved(rt: Runtime, caller: Caller) -> None:
    """Yesterday's unfinished jobs will be paid for today."""
    limit(rt, "0.36")
    answered(rt, processing(rt, caller.service), State.COMPLETED, outputs=[])
    job = processing(rt, caller.service)
    execute(rt, "UPDATE budgets SET since = since - 1")

    assert purse(rt) == (0.12, 0.0)
    queued(rt, caller.service)
    answered(rt, job, State.COMPLETED, outputs=[])
    queued(rt, caller.service)
    with pytest.raises(BudgetExceeded):
        queued(rt, caller.service)
    assert purse(rt) == (0.24, 0.12)


def test_a_new_limit_counts_what_is_reserved_and_was_spent_already(rt: Runtime, caller: Caller) -> None:
    """As if it had been there since the day, or the month, began."""
    answered(rt, processing(rt, caller.service), State.COMPLETED, outputs=[])
    long_ago = processing(rt, caller.service)
    answered(rt, long_ago, State.COMPLETED, outputs=[])
    execute(rt, "UPDATE jobs SET finished_at = finished_at - interval '2 days' WHERE id = :id", id=long_ago.job_id)
    processing(rt, caller.service)
    queued(rt, caller.service)
    limit(rt, "1")
    assert purse(rt) == (0.24, 0.12)
    limit(rt, "2")
    assert purse(rt) == (0.24, 0.12)


def test_to_set_a_limit_reads_no_job_that_has_ended(rt: Runtime) -> None:
    """Everybody who accepts or settles a job waits meanwhile; of those that have ended there may be millions."""
    with rt.db.transaction() as tx:
        tx.execute(text("SET LOCAL enable_seqscan = off"))
        told = {"scope": ACCOUNT, "period": "day", "limit_usd": 1}
        plan = "\n".join(tx.execute(text(f"EXPLAIN {budgets._OPEN}"), told).scalars())
    assert "jobs_due_idx" in plan


def test_limits_set_while_jobs_come_and_go_miss_none(rt: Runtime, caller: Caller) -> None:
    """What is reserved in a budget is what its jobs have reserved, at whatever moment it was set."""

    def work(number: int) -> None:
        if number == 0:
            for period in ("day", "month"):
                limit(rt, "1000", period=period)
            return
        for _ in range(6):
            answered(rt, submitted(rt, queued(rt, caller.service)), State.COMPLETED, outputs=[])
            queued(rt, caller.service)

    def submitted(rt: Runtime, job_id: UUID) -> Attempted:
        start = claimed(rt)[0]
        return Attempted(start.job_id, start.attempt_id, start.token, str(start.attempt_id))

    at_once(work, 6)

    reserved = scalar(rt, "SELECT sum(reserved) FROM jobs")
    spent = scalar(rt, "SELECT sum(price) FROM jobs WHERE state = 'completed'")
    with rt.db.transaction() as tx:
        assert [(one.reserved, one.spent) for one in budgets.everything(tx)] == [(reserved, spent)] * 2


# No credit


def test_the_account_resumes_when_the_balance_covers_the_cheapest_waiting_job(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A balance of cents would only make it try and be refused, again and again."""
    sandbox.set_balance(0.05)
    dear = queued(rt, caller.service, priority=5)
    worker = start_worker()
    until(lambda: scalar(rt, "SELECT halted_reason FROM account"))
    posts = sandbox.arrivals()["count"]

    sandbox.set_balance(0.1)
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")
    balances = sandbox.arrivals()["calls"]["balance"]
    swept(worker, lambda: sandbox.arrivals()["calls"]["balance"] > balances)
    assert scalar(rt, "SELECT halted_reason FROM account") == "insufficient_credits"
    assert sandbox.arrivals()["count"] == posts

    cheap = ask(rt, caller.service, "openai/dall-e-3")
    swept(worker, lambda: scalar(rt, "SELECT price FROM jobs WHERE id = :id", id=cheap))
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")
    swept(worker, lambda: state(rt, cheap) == State.COMPLETED)
    until(lambda: scalar(rt, "SELECT halted_reason FROM account") and state(rt, dear) == State.QUEUED)

    sandbox.set_balance(5)
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")
    swept(worker, lambda: state(rt, dear) == State.COMPLETED)


def test_the_operator_is_told_of_each_halt_and_each_end_of_one(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Planned in the commit that halts or resumes, so that no crash can keep it quiet."""
    sandbox.set_balance(0.05)
    job_id = queued(rt, caller.service)
    worker = start_worker()
    until(lambda: scalar(rt, "SELECT halted_reason FROM account"))
    sandbox.set_balance(5)
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

    told = "SELECT array_agg(event ORDER BY created_at) FROM notifications WHERE audience = 'operator'"
    assert scalar(rt, told) == ["account.halted", "account.resumed"]
    said = "SELECT data FROM notifications WHERE event = 'account.halted'"
    assert scalar(rt, said).items() >= {"reason": "insufficient_credits", "balance_usd": 0.05}.items()


def test_callers_do_not_queue_up_behind_a_price_that_does_not_come(
    rt: Runtime, caller: Caller, sandbox: Sandbox
) -> None:
    """Each would wait for the others' time-outs as well as for its own."""
    execute(rt, "DELETE FROM prices")
    limit(rt, "10")
    sandbox.faults(revoked=True)

    def refused(number: int) -> bool:
        with pytest.raises(Unavailable):
            queued(rt, caller.service, f"a lighthouse {number}")
        return True

    assert all(at_once(refused, 6))
    assert sandbox.arrivals()["refused"]["price"] == 1


def test_a_verdict_that_comes_after_the_money_was_given_back_is_paid_for_all_the_same(
    rt: Runtime, caller: Caller
) -> None:
    """The task was proven absent, the job waited in the queue too long; then its callback came."""
    limit(rt, "1")
    job = submitting(rt, caller.service)
    answered(rt, job, State.QUEUED, Outcome.LOST)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.EXPIRED)])
    assert purse(rt) == (0.0, 0.0)
    for _ in range(2):
        answered(rt, job, State.COMPLETED, outputs=[])
    assert purse(rt) == (0.0, 0.12)


def test_a_task_of_a_job_that_was_cancelled_counts_as_paid_and_is_said_once(rt: Runtime, caller: Caller) -> None:
    """It was looked for in vain and queued again, and its caller took it back; then its callback came after all."""
    limit(rt, "1")
    job = unknown(rt, caller.service)
    decide.resubmit(rt, job.job_id)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.CANCELLED)])
    assert purse(rt) == (0.0, 0.0)

    done = Prediction(job.prediction_id, Status.COMPLETED, "completed", model=MODEL)
    for _ in range(2):
        with rt.db.transaction() as tx:
            assert inbox.hear(tx, inbox.Delivery(job.token, {}, b"{}"), done, poll_s=30.0).verdict == "late"

    assert state(rt, job.job_id) == State.CANCELLED
    assert happened(rt, job.job_id, "job.charged_in_vain") == [{"prediction_ids": [job.prediction_id]}]
    assert purse(rt) == (0.0, 0.12)


def test_what_a_person_gives_up_counts_as_paid(rt: Runtime, caller: Caller) -> None:
    """Nobody knows; and a budget that trusted in luck would let more be spent than it says."""
    limit(rt, "1")
    job = submitting(rt, caller.service)
    answered(rt, job, State.UNKNOWN, Outcome.LOST)
    decide.give_up(rt, job.job_id)
    assert purse(rt) == (0.0, 0.12)


def test_a_limit_whose_past_was_not_counted_is_counted_the_next_time(rt: Runtime, caller: Caller) -> None:
    """The command may be cut off between its two steps; said again, it ends what it began."""
    answered(rt, processing(rt, caller.service), State.COMPLETED, outputs=[])
    with rt.db.transaction() as tx:
        budgets.open_(tx, ACCOUNT, "day", Decimal(1))
    answered(rt, processing(rt, caller.service), State.COMPLETED, outputs=[])
    assert purse(rt) == (0.0, 0.12)
    for _ in range(2):
        limit(rt, "2")
    assert purse(rt) == (0.0, 0.24)
