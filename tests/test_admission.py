"""Admission: what was queued unchecked is checked, priced and paid into the budgets before it is first claimed."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pipeline.errors import Unavailable
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import admission, alarms
from pipeline.store.services import Service
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import claimed, execute, placed, queued, row, scalar, state, swept, until
from tests.test_budgets import limit, purse

StartWorker = Callable[..., Worker]


def written(rt: Runtime, service: Service, **facts: Any) -> UUID:
    """A job put into the queue by SQL: nobody has checked or priced it."""
    job_id = placed(rt, service, State.QUEUED)
    execute(rt, "UPDATE jobs SET admitted = false, due_at = clock_timestamp() WHERE id = :id", id=job_id)
    for name, value in facts.items():
        execute(rt, f"UPDATE jobs SET {name} = :value WHERE id = :id", value=value, id=job_id)
    return job_id


def test_what_was_queued_unchecked_is_priced_and_reserved_before_it_is_claimed(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Jobs may be written straight into the database: they pay like all others."""
    execute(rt, "DELETE FROM prices")
    limit(rt, "0.12", caller.service)
    job_id = written(rt, caller.service)
    assert claimed(rt) == []
    with rt.db.transaction() as tx:
        assert "admit" in alarms.due(tx)

    swept(start_worker(), lambda: state(rt, job_id) == State.COMPLETED)

    assert float(row(rt, job_id).price) == 0.12
    assert purse(rt) == (0.0, 0.12)


def test_services_take_turns_at_the_admission(rt: Runtime, make_caller: Callable[..., Caller]) -> None:
    """A single job does not wait until the thousands of another service are priced."""
    crowd, single = make_caller("crowd").service, make_caller("single").service
    first, second, third = (written(rt, crowd) for _ in range(3))
    mine = written(rt, single)
    with rt.db.transaction() as tx:
        assert [one.job_id for one in admission.waiting(tx, at_most=3)] == [first, mine, second]
        assert [one.job_id for one in admission.waiting(tx, at_most=9)] == [first, mine, second, third]


def test_what_was_queued_unchecked_and_is_not_covered_fails_with_that_code(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The longest waiting come first; nothing is sent for the others."""
    limit(rt, "0.24", caller.service)
    jobs = [written(rt, caller.service) for _ in range(5)]

    worker = start_worker()
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED, State.FAILED})

    assert [state(rt, job_id) for job_id in jobs] == [State.COMPLETED] * 2 + [State.FAILED] * 3
    assert {row(rt, job_id).error["code"] for job_id in jobs[2:]} == {"budget_exceeded"}
    assert len(sandbox.ledger()) == 2
    assert purse(rt) == (0.0, 0.24)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("input", '{"prompt": 7}', "input.prompt: Must be of type string."),
        ("input", '{"prompt": "a", "size": "big"}', "input.size: Is not an option of this model; remove it."),
        ("model", "predictions/all", "model: Is an endpoint of the provider's, not a model."),
    ],
)
def test_what_was_queued_unchecked_and_is_wrong_fails_by_the_field(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker, column: str, value: str, said: str
) -> None:
    """The same checks as at the front door, before anything is paid."""
    job_id = written(rt, caller.service, **{column: value})
    swept(start_worker(), lambda: state(rt, job_id) == State.FAILED)
    assert row(rt, job_id).error == {"code": "invalid_input", "message": said, "provider_code": None}
    assert sandbox.arrivals()["count"] == 0


def test_a_job_that_waits_for_its_price_holds_up_nobody_else(
    rt: Runtime, web: str, make_caller: Callable[..., Caller], sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Only a service with a budget waits; and it goes on by itself when the provider answers."""
    execute(rt, "DELETE FROM prices")
    careful, careless = make_caller("careful").service, make_caller("careless").service
    limit(rt, "1", careful)
    waiting, other = written(rt, careful), written(rt, careless)
    with rt.db.transaction() as tx:
        tx.exec_driver_sql("UPDATE pipeline.account SET halted_reason = 'key_refused', probe_at = 'infinity'")
    sandbox.faults(revoked=True)

    worker = start_worker()
    swept(worker, lambda: scalar(rt, "SELECT admitted FROM jobs WHERE id = :id", id=other))
    assert scalar(rt, "SELECT admitted FROM jobs WHERE id = :id", id=waiting) is False
    with pytest.raises(Unavailable):
        queued(rt, careful)
    assert sandbox.arrivals()["refused"] == {}  # a refused key is left alone

    sandbox.faults(revoked=False)
    execute(rt, "UPDATE account SET probe_at = clock_timestamp()")
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp()")
    swept(worker, lambda: {state(rt, waiting), state(rt, other)} == {State.COMPLETED})


def test_two_workers_admit_a_job_once(rt: Runtime, caller: Caller, start_worker: StartWorker) -> None:
    """Its money would be reserved twice."""
    limit(rt, "100")
    execute(rt, "UPDATE account SET halted_reason = 'key_refused', probe_at = 'infinity'")
    for _ in range(50):
        written(rt, caller.service)
    for worker in [start_worker() for _ in range(3)]:
        worker.wake("admit")
    until(lambda: scalar(rt, "SELECT bool_and(admitted) FROM jobs"))
    assert purse(rt) == (6.0, 0.0)


def test_an_option_of_ours_in_a_job_that_was_queued_unchecked_is_never_sent(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The provider cannot combine it with a webhook."""
    job_id = written(rt, caller.service, input='{"prompt": "a", "enable_base64_output": true}')
    swept(start_worker(), lambda: state(rt, job_id) == State.COMPLETED)
    found = row(rt, job_id)
    assert (found.input, found.options) == ({"prompt": "a"}, {"enable_base64_output": True})


def test_what_was_admitted_without_a_price_is_priced_when_a_budget_begins(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Else it would be paid for and count nothing."""
    execute(rt, "DELETE FROM prices")
    jobs = [written(rt, caller.service) for _ in range(3)]
    execute(rt, "UPDATE jobs SET admitted = true")
    limit(rt, "0.24", caller.service)
    assert claimed(rt) == []

    swept(start_worker(), lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED, State.FAILED})

    assert purse(rt) == (0.0, 0.24)
    assert sorted(state(rt, job_id) for job_id in jobs) == [State.COMPLETED] * 2 + [State.FAILED]


def test_what_was_queued_unchecked_and_wants_to_be_told_where_nobody_may_be_called_fails(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """SQL cannot tell a private address from others; the paid job would end, and nobody could be told."""
    statement = """
        SELECT enqueue('shop', '{"prompt": "a lighthouse"}', 'openai/dall-e-2', callback_url => :callback_url)
    """
    wrong = {
        "http://shop.example.com:0/": "callback_url: must have a port from 1 to 65535.",
        "http://shop.example.com:99999/": "callback_url: must be an http:// or https:// address.",
        "http://10.0.0.1/hook": "callback_url: must not lead to 10.0.0.1, a private address.",
        "http://127.1/hook": "callback_url: must write its IPv4 address as four decimal numbers.",
    }
    with rt.db.transaction() as tx:
        jobs = {url: tx.execute(text(statement), {"callback_url": url}).scalar_one() for url in wrong}
        fine = tx.execute(text(statement), {"callback_url": "http://127.0.0.1:9/hook"}).scalar_one()

    swept(start_worker(), lambda: state(rt, fine) == State.COMPLETED)

    assert {url: row(rt, job_id).error["message"] for url, job_id in jobs.items()} == wrong
    assert {row(rt, job_id).error["code"] for job_id in jobs.values()} == {"invalid_input"}
    assert len(sandbox.ledger()) == 1
