"""`pipeline reconcile`: whatever differs between our ledger and the provider's bill is found, and nothing else."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from pipeline.jobs import State
from pipeline.lifecycle import decide
from pipeline.lifecycle.audit import Comparison, Kind, audit
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.wavespeed import WaveSpeed
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import MODEL, execute, queued, row, state, swept, until

StartWorker = Callable[..., Worker]


def compared(rt: Runtime, *, grace_s: float = 0.0, until_: datetime | None = None) -> Comparison:
    """Compare the last hour."""
    end = until_ or datetime.now(UTC) + timedelta(seconds=1)
    grace = timedelta(seconds=grace_s)
    return audit(rt, end - timedelta(hours=1), end, grace=grace, progress=lambda _: None)


def kinds(found: Comparison) -> list[Kind]:
    return [one.kind for one in found.differences]


def elsewhere(rt: Runtime, *, key: str) -> str:
    """A task made past the pipeline, by whoever has that key."""

    async def submit() -> str:
        provider = WaveSpeed(key, rt.settings.wavespeed_base_url)
        try:
            return (await provider.submit(MODEL, {"prompt": "by hand"})).id
        finally:
            await provider.close()

    return asyncio.run(submit())


@pytest.fixture
def done(rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker) -> list[UUID]:
    """Give three completed jobs."""
    jobs = [queued(rt, caller.service, f"a lighthouse {n}") for n in range(3)]
    worker = start_worker()
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})
    return jobs


def test_ledgers_that_agree_are_said_to_agree(rt: Runtime, done: list[UUID]) -> None:
    """Failed tasks are refunded, so they are no difference either."""
    found = compared(rt)
    assert found.agrees
    assert (found.tasks, float(found.usd), found.others) == (3, 0.36, 0)


def test_a_failed_and_refunded_job_is_no_difference(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It was charged, and paid back."""
    sandbox.faults(fail=1.0)
    job_id = queued(rt, caller.service)
    swept(start_worker(), lambda: state(rt, job_id) == State.FAILED)
    found = compared(rt)
    assert (found.agrees, found.tasks, float(found.usd)) == (True, 1, 0.0)


def test_a_job_charged_twice_is_found(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A person had it submitted again, and both tasks were made."""
    sandbox.faults(lose_answer=1.0, webhook_drop=1.0, list_lag_s=600)
    job_id = queued(rt, caller.service)
    worker = start_worker()
    swept(worker, lambda: state(rt, job_id) == State.UNKNOWN)
    until(lambda: sandbox.arrivals()["running"] == 0)
    (first,) = [charge["prediction_id"] for charge in sandbox.ledger()]
    sandbox.faults(lose_answer=0.0, webhook_drop=0.0)
    decide.resubmit(rt, job_id)
    swept(worker, lambda: state(rt, job_id) == State.COMPLETED)
    assert kinds(compared(rt)) == [Kind.UNKNOWN_TO_US]
    (one,) = compared(rt).differences
    assert (one.prediction_ids, one.job_ids) == ((first,), (job_id,))
    execute(rt, "UPDATE attempts SET outcome = 'absent' WHERE number = 1")  # the provider's list was late
    assert compared(rt).differences == [one]

    execute(rt, "UPDATE attempts SET outcome = 'accepted', prediction_id = :id WHERE number = 1", id=first)
    (twice,) = compared(rt).differences
    assert (twice.kind, twice.job_ids, float(twice.usd)) == (Kind.CHARGED_TWICE, (job_id,), 0.24)
    assert set(twice.prediction_ids) == {first, row(rt, job_id).prediction_id}


def test_a_task_made_with_our_key_that_we_do_not_know_is_found(rt: Runtime, done: list[UUID]) -> None:
    """Somebody has our key, or we lost something."""
    strange = elsewhere(rt, key="sandbox")
    (one,) = compared(rt).differences
    assert (one.kind, one.prediction_ids, one.job_ids, one.model) == (Kind.UNKNOWN_TO_US, (strange,), (), MODEL)


def test_what_others_make_with_keys_of_their_own_is_only_counted(
    make_rt: Callable[..., Runtime], rt: Runtime, done: list[UUID]
) -> None:
    """Unless nobody else is supposed to use the account."""
    elsewhere(rt, key="another")
    found = compared(rt)
    assert (found.agrees, found.others, float(found.others_usd)) == (True, 1, 0.12)
    assert kinds(compared(make_rt(account_exclusive=True))) == [Kind.UNKNOWN_TO_US]


def test_a_job_of_ours_that_was_never_charged_is_found(rt: Runtime, done: list[UUID], sandbox: Sandbox) -> None:
    """Good news, perhaps; or its result is not what it says."""
    execute(rt, "UPDATE attempts SET prediction_id = 'nobody-knows' WHERE job_id = :id", id=done[0])
    execute(rt, "UPDATE jobs SET prediction_id = 'nobody-knows' WHERE id = :id", id=done[0])
    found = {one.kind: one for one in compared(rt).differences}
    assert found[Kind.NEVER_CHARGED].job_ids == (done[0],)
    assert Kind.UNKNOWN_TO_US in found
    assert len(found) == 2


def test_a_cancelled_job_that_was_charged_all_the_same_is_found(rt: Runtime, done: list[UUID]) -> None:
    """It went back to the queue, as never accepted, and was taken back there; then its task came to light."""
    execute(rt, "UPDATE jobs SET state = 'cancelled', outputs = NULL, prediction_id = NULL WHERE id = :id", id=done[0])
    (one,) = compared(rt).differences
    assert (one.kind, one.job_ids, float(one.usd)) == (Kind.CHARGED_IN_VAIN, (done[0],), 0.12)


def test_a_refund_that_is_overdue_is_shown_and_no_more(rt: Runtime, done: list[UUID]) -> None:
    """It is the provider's to make."""
    execute(
        rt, "UPDATE jobs SET state = 'failed', error = '{}', outputs = NULL, reserved = 0 WHERE id = :id", id=done[0]
    )
    assert kinds(compared(rt)) == []
    execute(rt, "UPDATE attempts SET started_at = started_at - interval '4 h', ended_at = ended_at - interval '4 h'")
    found = compared(rt)
    assert kinds(found) == [Kind.NOT_REFUNDED]
    assert found.agrees


def test_what_is_younger_than_the_grace_is_let_be(rt: Runtime, done: list[UUID]) -> None:
    """A charge may take its time to show in the bill, and an answer to reach us."""
    elsewhere(rt, key="sandbox")
    execute(rt, "UPDATE attempts SET prediction_id = 'nobody-knows' WHERE job_id = :id", id=done[0])
    assert compared(rt, grace_s=600).agrees


def test_a_bill_of_many_pages_is_read_to_its_end(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It has 100 lines a page."""
    jobs = [queued(rt, caller.service, f"a lighthouse {n}") for n in range(205)]
    worker = start_worker()
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED}, 60.0)
    found = compared(rt)
    assert (found.tasks, found.agrees) == (205, True)
