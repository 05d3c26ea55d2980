"""New jobs in: accepted when committed, one job for one key whatever the race."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from pipeline.errors import IdempotencyConflict
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store.intake import NewJob, add, add_once
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import MODEL, at_once, execute, kinds, row, scalar


@pytest.fixture
def job(caller: Caller) -> NewJob:
    """Give a job ready to be stored."""
    return NewJob(caller.service.id, MODEL, {"prompt": "a lighthouse"}, deadline_s=60.0)


def once(rt: Runtime, job: NewJob, key: str = "k", fingerprint: bytes = b"f") -> tuple[UUID, bool]:
    with rt.db.transaction() as tx:
        job_id, stored = add_once(tx, replace(job, id=new_id()), key, fingerprint)
    return job_id, stored is not None


def test_a_stored_job_is_queued_due_and_has_a_history(rt: Runtime, job: NewJob) -> None:
    """It can be claimed in the next moment."""
    with rt.db.transaction() as tx:
        add(tx, [replace(job, metadata={"order": "7"}, options={"enable_base64_output": True}, priority=3)])
    stored = row(rt, job.id)
    assert (stored.state, stored.priority, stored.attempts) == (State.QUEUED, 3, 0)
    assert (stored.input, stored.caller_data) == ({"prompt": "a lighthouse"}, {"order": "7"})
    assert stored.options == {"enable_base64_output": True}
    assert stored.due_at == stored.run_at
    assert stored.deadline_at - stored.run_at == timedelta(seconds=60)
    assert kinds(rt, job.id) == ["job.queued"]


def test_a_job_for_later_is_due_then_and_its_deadline_counts_from_there(rt: Runtime, job: NewJob) -> None:
    """A job for tomorrow must not be dead before it began."""
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with rt.db.transaction() as tx:
        add(tx, [replace(job, run_at=tomorrow)])
    stored = row(rt, job.id)
    assert stored.due_at == stored.run_at == tomorrow
    assert stored.deadline_at == tomorrow + timedelta(seconds=60)


def test_ten_thousand_jobs_are_one_statement(rt: Runtime, job: NewJob) -> None:
    """A batch is all or nothing, and the event of each comes with it."""
    with rt.db.transaction() as tx:
        add(tx, [replace(job, id=new_id()) for _ in range(10_000)])
    assert scalar(rt, "SELECT count(*) FROM jobs j JOIN events e ON e.job_id = j.id AND e.seq = j.last_seq") == 10_000


def test_one_odd_job_takes_its_batch_with_it(rt: Runtime, job: NewJob) -> None:
    """Half a batch would be the caller's riddle."""
    with pytest.raises(Exception, match="priority"), rt.db.transaction() as tx:
        add(tx, [job, replace(job, id=new_id(), priority=11)])
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_a_batch_of_none_is_nothing(rt: Runtime) -> None:
    """Nobody has to ask first."""
    with rt.db.transaction() as tx:
        add(tx, [])
    assert scalar(rt, "SELECT count(*) FROM jobs") == 0


def test_of_twenty_equal_requests_at_once_one_makes_the_job(rt: Runtime, job: NewJob) -> None:
    """A caller whose connection was cut repeats, perhaps while the first is still being stored."""
    for number in range(8):
        answers = at_once(lambda _, key=f"key {number}": once(rt, job, key), 20)  # type: ignore[misc]
        assert len({job_id for job_id, _ in answers}) == 1
        assert sum(made for _, made in answers) == 1
    assert scalar(rt, "SELECT count(*) FROM jobs") == 8


def test_the_same_key_with_another_body_is_a_conflict(rt: Runtime, job: NewJob) -> None:
    """To answer it with the first job would hide the caller's mistake."""
    first, _ = once(rt, job)
    with pytest.raises(IdempotencyConflict):
        once(rt, job, fingerprint=b"other")
    assert once(rt, job) == (first, False)
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1


def test_of_different_bodies_at_once_one_wins_and_the_others_conflict(rt: Runtime, job: NewJob) -> None:
    """The race decides which, but never two."""

    def attempt(number: int) -> bool:
        try:
            return once(rt, job, fingerprint=bytes([number]))[1]
        except IdempotencyConflict:
            return False

    assert sorted(at_once(attempt, 12)) == [False] * 11 + [True]


def test_each_service_has_keys_of_its_own(rt: Runtime, job: NewJob, caller: Caller) -> None:
    """Two callers may both count from one."""
    other = new_id()
    execute(rt, "INSERT INTO services (id, name, key_hash) VALUES (:id, 'other', 'x')", id=other)
    first, _ = once(rt, job)
    second, made = once(rt, replace(job, service_id=other), fingerprint=b"another body")
    assert made
    assert first != second


def test_a_request_that_fails_leaves_its_key_free(rt: Runtime, job: NewJob) -> None:
    """Otherwise the caller's repeat would be answered with a job that does not exist."""
    with rt.db.transaction() as tx:
        add_once(tx, job, "k", b"f")
        tx.rollback()
    assert scalar(rt, "SELECT count(*) FROM idempotency_keys") == 0
    assert once(rt, job)[1] is True


def test_who_waited_for_a_request_that_was_rolled_back_makes_the_job(rt: Runtime, job: NewJob) -> None:
    """The one it waited for left nothing behind."""

    def attempt(number: int) -> bool:
        with rt.db.transaction() as tx:
            _, stored = add_once(tx, replace(job, id=new_id()), "k", b"f")
            if stored and number == 0:
                tx.rollback()
                return False
            return stored is not None

    for _ in range(8):
        assert sum(at_once(attempt, 4)) == 1
        execute(rt, "DELETE FROM jobs")  # their keys go with them
        assert scalar(rt, "SELECT count(*) FROM idempotency_keys") == 0
