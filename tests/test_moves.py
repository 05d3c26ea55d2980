"""The guarded UPDATE under concurrency: moved once, by the attempt that counts, and never in a circle of waiting."""

import contextlib
import random
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import FINAL, TOLD, State, Via, sources
from pipeline.runtime import Runtime
from pipeline.store import reading
from pipeline.store.moves import Move, advance, note
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import at_once, execute, kinds, placed, processing, row, scalar, state


def move(rt: Runtime, *moves: Move) -> set[UUID]:
    with rt.db.transaction() as tx:
        return advance(tx, moves)


def events(rt: Runtime, job_id: UUID) -> list[Any]:
    with rt.db.transaction() as tx:
        return list(reading.events(tx, job_id))


def test_only_the_current_attempt_moves_its_job(rt: Runtime, caller: Caller) -> None:
    """A late answer of an attempt that was given up must not end the one that followed."""
    job = processing(rt, caller.service)
    assert move(rt, Move(job.job_id, State.COMPLETED, attempt_id=new_id(), outputs=[])) == set()
    assert state(rt, job.job_id) == State.PROCESSING
    assert move(rt, Move(job.job_id, State.COMPLETED, attempt_id=job.attempt_id, outputs=[])) == {job.job_id}


def test_a_job_without_any_attempt_is_not_moved_by_one(rt: Runtime, caller: Caller) -> None:
    """NULL is equal to nothing."""
    job_id = placed(rt, caller.service, State.QUEUED)
    assert move(rt, Move(job_id, State.FAILED, attempt_id=new_id(), error={})) == set()


def test_of_many_that_bring_a_verdict_at_once_one_moves_the_job(rt: Runtime, caller: Caller) -> None:
    """What follows a verdict is planned by who moved the job: so it must be one."""
    for _ in range(15):
        job_id = placed(rt, caller.service, State.PROCESSING)

        def verdict(number: int, job_id: UUID = job_id) -> set[UUID]:
            to = State.COMPLETED if number % 2 else State.FAILED
            return move(rt, Move(job_id, to, outputs=[{"url": str(number)}], error={"code": str(number)}))

        won = at_once(verdict, 8)
        assert sorted(map(len, won)) == [0] * 7 + [1]
        (event,) = events(rt, job_id)
        assert event.seq == 8
        assert event.kind == f"job.{state(rt, job_id)}"
        assert row(rt, job_id).outputs == [{"url": str(won.index({job_id}))}]


def test_batches_over_the_same_jobs_in_any_order_never_deadlock(rt: Runtime, caller: Caller) -> None:
    """A deadlock costs a second and an error; rows are locked in the order of their ids, whatever the batch's."""
    for _ in range(12):
        job_ids = [placed(rt, caller.service, State.PROCESSING) for _ in range(20)]

        def batch(number: int, job_ids: list[UUID] = job_ids) -> set[UUID]:
            order = job_ids[:: 1 if number % 2 else -1] if number < 2 else random.sample(job_ids, len(job_ids))
            return move(rt, *(Move(job_id, State.COMPLETED, outputs=[]) for job_id in order))

        moved = at_once(batch, 6)
        assert sum(map(len, moved)) == 20
        assert set().union(*moved) == set(job_ids)


def test_a_job_that_stands_in_a_batch_twice_moves_once(rt: Runtime, caller: Caller) -> None:
    """Two answers for one job in a group must not take the group with them."""
    twice, other = placed(rt, caller.service, State.PROCESSING), placed(rt, caller.service, State.PROCESSING)
    done = [Move(job_id, State.COMPLETED, outputs=[]) for job_id in (twice, other, twice)]
    assert move(rt, *done) == {twice, other}
    assert kinds(rt, twice) == kinds(rt, other) == ["job.completed"]


def test_losers_in_a_batch_do_not_hold_up_winners(rt: Runtime, caller: Caller) -> None:
    """A batch is many jobs' fates, not one."""
    live, done = placed(rt, caller.service, State.PROCESSING), placed(rt, caller.service, State.CANCELLED)
    moves = [Move(job_id, State.COMPLETED, outputs=[]) for job_id in (done, live, new_id())]
    assert move(rt, *moves) == {live}


def test_an_empty_batch_is_nothing(rt: Runtime) -> None:
    """Nobody has to ask first."""
    assert move(rt) == set()


def test_a_move_leaves_what_it_does_not_name(rt: Runtime, caller: Caller) -> None:
    """The list found the task's id; the verdict that comes later does not bring it again."""
    job = processing(rt, caller.service)
    move(rt, Move(job.job_id, State.EXPIRED, via=Via.DEADLINE, due_s=5.0))
    move(rt, Move(job.job_id, State.COMPLETED, outputs=[{"url": "x"}], inference_ms=7))
    done = row(rt, job.job_id)
    assert (done.prediction_id, done.settled_by, done.inference_ms) == (job.prediction_id, Via.DEADLINE, 7)


def test_a_running_job_is_looked_at_by_its_deadline_at_the_latest(rt: Runtime, caller: Caller) -> None:
    """The last GET before `expired` belongs to the deadline, not to the next regular poll."""
    soon, later = placed(rt, caller.service, State.QUEUED), placed(rt, caller.service, State.QUEUED)
    execute(rt, "UPDATE jobs SET current_attempt = id, deadline_at = now() + interval '9 s' WHERE id = :id", id=soon)
    execute(rt, "UPDATE jobs SET current_attempt = id WHERE id = :id", id=later)
    move(rt, *(Move(job_id, State.PROCESSING, due_s=30.0) for job_id in (soon, later)))
    assert row(rt, soon).due_at == row(rt, soon).deadline_at
    assert row(rt, later).due_at < row(rt, later).deadline_at


@pytest.mark.parametrize(("kind", "told"), [(None, "job.queued"), ("job.resubmitted", "job.resubmitted")])
def test_a_move_may_be_told_by_another_name(rt: Runtime, caller: Caller, kind: str | None, told: str) -> None:
    """A person's decision reads differently from a proof."""
    job_id = placed(rt, caller.service, State.UNKNOWN)
    move(rt, Move(job_id, State.QUEUED, due_s=0.0, kind=kind, data={"by": "hand"}))
    (event,) = events(rt, job_id)
    assert (event.kind, event.data) == (told, {"from": "unknown", "by": "hand"})


def test_a_rolled_back_move_leaves_no_trace(rt: Runtime, caller: Caller) -> None:
    """Move and event are one commit."""
    job_id = placed(rt, caller.service, State.QUEUED)
    with rt.db.transaction() as tx:
        assert advance(tx, [Move(job_id, State.CANCELLED)])
        tx.rollback()
    assert state(rt, job_id) == State.QUEUED
    assert events(rt, job_id) == []


def test_a_note_is_the_next_line_of_the_history_and_moves_nothing(rt: Runtime, caller: Caller) -> None:
    """`Last-Event-ID` counts on a history without gaps."""
    job_id = placed(rt, caller.service, State.QUEUED)
    before = row(rt, job_id)
    with rt.db.transaction() as tx:
        note(tx, job_id, "job.remarked", why="a test")
    move(rt, Move(job_id, State.CANCELLED))
    assert [(event.seq, event.kind) for event in events(rt, job_id)] == [(8, "job.remarked"), (9, "job.cancelled")]
    assert before.state == State.QUEUED


def test_notes_and_moves_at_once_leave_a_history_without_gaps(rt: Runtime, caller: Caller) -> None:
    """Two that write the same number would undo one another's transaction."""
    job_id = placed(rt, caller.service, State.PROCESSING)

    def tell(number: int) -> None:
        if number == 3:
            move(rt, Move(job_id, State.COMPLETED, outputs=[]))
            return
        with rt.db.transaction() as tx:
            note(tx, job_id, "job.remarked", number=number)

    at_once(tell, 10)
    assert [event.seq for event in events(rt, job_id)] == list(range(8, 18))


def test_a_note_on_a_job_that_is_not_there_is_nothing(rt: Runtime) -> None:
    """Pruned jobs' stragglers."""
    with rt.db.transaction() as tx:
        note(tx, new_id(), "job.remarked")
    assert scalar(rt, "SELECT count(*) FROM events") == 0


@pytest.mark.parametrize("to", sorted(TOLD | {State.QUEUED}))
def test_what_must_be_told_is_planned_in_the_commit_of_the_move(rt: Runtime, caller: Caller, to: State) -> None:
    """A process that dies right after the verdict must not keep it from the caller; other moves tell nobody."""
    execute(rt, "UPDATE services SET callback_url = 'https://shop.example/hook'")
    job_id = placed(rt, caller.service, min(sources(to)))
    last = Move(job_id, to, due_s=None if to in FINAL else 1.0, outputs=[], error={})

    with contextlib.suppress(ZeroDivisionError), rt.db.transaction() as tx:
        assert advance(tx, [last]) == {job_id}
        raise ZeroDivisionError
    assert scalar(rt, "SELECT count(*) FROM notifications") == 0

    for _ in range(2):
        move(rt, last)
    planned = scalar(rt, "SELECT array_agg(event || ' ' || seq || ' ' || state) FROM notifications")
    assert planned == ([f"job.{to} 8 pending"] if to in TOLD else None)
