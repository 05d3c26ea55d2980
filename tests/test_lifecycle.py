"""A job's life from end to end, through real threads, HTTP and Postgres, in one process."""

from collections.abc import Callable

from pipeline.jobs import State, Via
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import attempts, queued, row, state, turns, until


def test_an_accepted_job_is_submitted_called_back_and_completed(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """The whole way: one row, one attempt, one charge, one verdict by webhook."""
    job_id = queued(rt, caller.service)
    start_worker()

    until(lambda: state(rt, job_id) == State.COMPLETED)

    assert row(rt, job_id).settled_by == Via.WEBHOOK
    assert turns(rt, job_id) == ["job.queued", "job.submitting", "job.processing", "job.completed"]
    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["accepted"]
    assert len(sandbox.ledger()) == 1
