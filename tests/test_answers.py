"""What becomes of each paid POST: recorded on its own attempt always, on its job while that still waits for it."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import FINAL, Outcome, State, Via
from pipeline.predictions import Prediction, Status
from pipeline.runtime import Runtime
from pipeline.store import alarms, inbox, missing
from pipeline.store.answers import Answer, record
from pipeline.store.moves import Move
from tests.conftest import Caller
from tests.factories import (
    Attempted,
    at_once,
    attempts,
    claimed,
    encoded,
    execute,
    happened,
    kinds,
    prediction,
    prediction_id,
    queued,
    row,
    state,
    submitting,
    unknown,
)


def accepted(job: Attempted, **changes: Any) -> Answer:
    move = Move(job.job_id, State.PROCESSING, attempt_id=job.attempt_id, due_s=30.0, prediction_id=job.prediction_id)
    given: dict[str, Any] = {"prediction_id": job.prediction_id, "http_status": 200, **changes}
    return Answer(job.attempt_id, Outcome.ACCEPTED, move, **given)


def ended(job: Attempted, outcome: Outcome, to: State, **facts: Any) -> Answer:
    due_s = None if to in FINAL else 0.0
    move = Move(job.job_id, to, attempt_id=job.attempt_id, due_s=due_s, **facts)
    return Answer(job.attempt_id, outcome, move, error="its words")


def told(rt: Runtime, *answers: Answer) -> set[UUID]:
    with rt.db.transaction() as tx:
        return record(tx, answers)


def heard(rt: Runtime, job: Attempted, status: Status = Status.COMPLETED) -> str:
    """A callback for the job, from the store's side of the door; gives its verdict."""
    body = prediction(job, status)
    read = Prediction(job.prediction_id, status, status, model=body["model"], outputs=tuple(body["outputs"]))
    with rt.db.transaction() as tx:
        return inbox.hear(tx, inbox.Delivery(job.token, {}, encoded(body)), read, poll_s=30.0).verdict


def tried_again(rt: Runtime, job: Attempted, outcome: Outcome = Outcome.ABSENT) -> Attempted:
    """The same job's next attempt, its POST under way; the one before ended as *outcome*."""
    assert told(rt, ended(job, Outcome.LOST if outcome is Outcome.ABSENT else outcome, State.QUEUED))
    if outcome is Outcome.ABSENT:
        execute(rt, "UPDATE attempts SET outcome = 'absent' WHERE id = :id", id=job.attempt_id)
    (start,) = claimed(rt)
    assert start.job_id == job.job_id
    return Attempted(start.job_id, start.attempt_id, start.token, prediction_id())


def outcomes(rt: Runtime, job: Attempted) -> list[str | None]:
    return [attempt.outcome for attempt in attempts(rt, job.job_id)]


@pytest.mark.parametrize(
    ("outcome", "to", "facts"),
    [
        (Outcome.ACCEPTED, State.PROCESSING, {}),
        (Outcome.ACCEPTED, State.COMPLETED, {"outputs": [{"url": "x"}], "via": Via.SUBMIT}),
        (Outcome.ACCEPTED, State.FAILED, {"error": {"code": "x"}, "via": Via.SUBMIT}),
        (Outcome.REJECTED, State.FAILED, {"error": {"code": "rejected"}, "via": Via.SUBMIT}),
        (Outcome.THROTTLED, State.QUEUED, {}),
        (Outcome.BLOCKED, State.QUEUED, {}),
        (Outcome.NOT_SENT, State.QUEUED, {}),
        (Outcome.LOST, State.UNKNOWN, {}),
    ],
)
def test_an_answer_is_recorded_on_its_attempt_and_moves_its_job(
    rt: Runtime, caller: Caller, outcome: Outcome, to: State, facts: Mapping[str, Any]
) -> None:
    """The table of answers, as the ledger keeps it."""
    job = submitting(rt, caller.service)
    assert told(rt, ended(job, outcome, to, **facts)) == {job.job_id}
    (attempt,) = attempts(rt, job.job_id)
    assert (attempt.outcome, attempt.error) == (outcome, "its words")
    assert attempt.ended_at >= attempt.started_at
    assert state(rt, job.job_id) == to
    assert kinds(rt, job.job_id)[-1] == f"job.{to}"


def test_an_accepted_answer_keeps_the_id_to_ask_for(rt: Runtime, caller: Caller) -> None:
    """On the attempt, which is the ledger, and on the job, which is polled."""
    job = submitting(rt, caller.service)
    told(rt, accepted(job))
    (attempt,) = attempts(rt, job.job_id)
    assert attempt.prediction_id == row(rt, job.job_id).prediction_id == job.prediction_id
    assert attempt.http_status == 200


def test_a_group_of_answers_is_recorded_at_once(rt: Runtime, caller: Caller) -> None:
    """Answers come in groups under load."""
    jobs = [submitting(rt, caller.service) for _ in range(5)]
    told(rt, ended(jobs[0], Outcome.LOST, State.UNKNOWN), *map(accepted, jobs[1:]))
    assert [state(rt, job.job_id) for job in jobs] == [State.UNKNOWN] + [State.PROCESSING] * 4


def test_no_answers_are_nothing(rt: Runtime) -> None:
    """Nobody has to ask first."""
    assert told(rt) == set()


def test_an_answer_that_comes_after_the_sweep_said_unknown_still_counts(rt: Runtime, caller: Caller) -> None:
    """The worker was slow, not dead; what it learnt is better than a doubt."""
    job = submitting(rt, caller.service)
    execute(rt, "DELETE FROM workers")
    with rt.db.transaction() as tx:
        assert alarms.give_up_claims(tx) == [job.job_id]
    assert outcomes(rt, job) == [Outcome.LOST]

    assert told(rt, accepted(job)) == {job.job_id}
    assert outcomes(rt, job) == [Outcome.ACCEPTED]
    assert state(rt, job.job_id) == State.PROCESSING


@pytest.mark.parametrize("before", [Outcome.ACCEPTED, Outcome.REJECTED, Outcome.THROTTLED, Outcome.NOT_SENT])
def test_what_is_known_for_sure_is_not_overwritten(rt: Runtime, caller: Caller, before: Outcome) -> None:
    """A group that is written twice, because the answer to its COMMIT was lost, must not change the ledger."""
    job = submitting(rt, caller.service)
    if before is Outcome.REJECTED:
        told(rt, ended(job, before, State.FAILED, error={"code": "rejected"}))
    elif before is Outcome.ACCEPTED:
        told(rt, accepted(job))
    else:
        told(rt, ended(job, before, State.QUEUED))
    known, history = row(rt, job.job_id), kinds(rt, job.job_id)

    assert told(rt, ended(job, Outcome.LOST, State.UNKNOWN)) == set()
    assert outcomes(rt, job) == [before]
    assert row(rt, job.job_id) == known
    assert kinds(rt, job.job_id) == history


def test_the_same_answer_twice_changes_nothing_more(rt: Runtime, caller: Caller) -> None:
    """Writing is repeated when nobody can say whether it was done."""
    job = submitting(rt, caller.service)
    assert told(rt, accepted(job)) == {job.job_id}
    history = kinds(rt, job.job_id)
    assert told(rt, accepted(job)) == set()
    assert kinds(rt, job.job_id) == history


def test_a_callback_first_and_then_the_answer_is_no_change(rt: Runtime, caller: Caller) -> None:
    """Webhooks may overtake the answer to the POST they belong to."""
    job = submitting(rt, caller.service)
    assert heard(rt, job) == "applied"
    before, history = row(rt, job.job_id), kinds(rt, job.job_id)

    assert told(rt, accepted(job)) == set()
    assert row(rt, job.job_id) == before
    assert kinds(rt, job.job_id) == history
    assert outcomes(rt, job) == [Outcome.ACCEPTED]


def test_a_late_answer_of_an_earlier_attempt_is_kept_there_and_moves_nothing(rt: Runtime, caller: Caller) -> None:
    """The fence is the attempt: the job now waits for another POST."""
    first = submitting(rt, caller.service)
    second = tried_again(rt, first)
    assert told(rt, accepted(first)) == set()
    assert outcomes(rt, first) == [Outcome.ACCEPTED, None]
    assert state(rt, first.job_id) == State.SUBMITTING
    assert row(rt, second.job_id).prediction_id is None


@pytest.mark.parametrize("late_first", [True, False], ids=["late one first", "late one last"])
def test_two_accepted_attempts_are_a_double_charge_and_said_so_once(
    rt: Runtime, caller: Caller, late_first: bool
) -> None:
    """It was paid for twice: whoever reads the job's history must find it, whichever answer came last."""
    first = submitting(rt, caller.service)
    second = tried_again(rt, first)
    for answer in (first, second) if late_first else (second, first):
        told(rt, accepted(answer))
    told(rt, accepted(first), accepted(second))

    assert outcomes(rt, first) == [Outcome.ACCEPTED, Outcome.ACCEPTED]
    (flagged,) = happened(rt, first.job_id, "job.charged_twice")
    assert flagged == {"prediction_ids": [first.prediction_id, second.prediction_id], "charges": 2}
    assert row(rt, first.job_id).prediction_id == second.prediction_id


def test_a_double_charge_found_by_a_callback_is_said_too(rt: Runtime, caller: Caller) -> None:
    """The second answer was lost, its callback was not."""
    first = submitting(rt, caller.service)
    second = tried_again(rt, first)
    told(rt, accepted(first), ended(second, Outcome.LOST, State.UNKNOWN))
    assert heard(rt, second) == "applied"
    assert kinds(rt, first.job_id).count("job.charged_twice") == 1


def test_a_double_charge_found_in_the_list_is_said_too(rt: Runtime, caller: Caller) -> None:
    """The second answer was lost, its task is found by looking."""
    first = submitting(rt, caller.service)
    second = tried_again(rt, first)
    told(rt, accepted(first), ended(second, Outcome.LOST, State.UNKNOWN))
    found = Prediction(second.prediction_id, Status.RUNNING, "processing")
    with rt.db.transaction() as tx:
        (lost,) = missing.claim_missing(tx, at_most=5, lease_s=60.0)
        assert missing.adopt(tx, lost, found, poll_s=30.0, why="a test")
    assert kinds(rt, first.job_id).count("job.charged_twice") == 1


@pytest.mark.parametrize("outcome", [Outcome.THROTTLED, Outcome.NOT_SENT, Outcome.BLOCKED, Outcome.ABSENT])
def test_an_attempt_after_one_that_cost_nothing_is_no_double_charge(
    rt: Runtime, caller: Caller, outcome: Outcome
) -> None:
    """A false alarm about money is looked into once, and never again."""
    second = tried_again(rt, submitting(rt, caller.service), outcome)
    told(rt, accepted(second))
    assert "job.charged_twice" not in kinds(rt, second.job_id)


def test_absence_was_proven_and_then_the_answer_comes_after_all(rt: Runtime, caller: Caller) -> None:
    """The job waits in the queue to be paid for again: the late evidence spares it that."""
    job = unknown(rt, caller.service)
    execute(rt, "UPDATE jobs SET due_at = now() WHERE id = :id", id=job.job_id)
    with rt.db.transaction() as tx:
        (lost,) = missing.claim_missing(tx, at_most=5, lease_s=60.0)
        assert missing.requeue_absent(tx, lost, why="a test")
    assert outcomes(rt, job) == [Outcome.ABSENT]
    assert state(rt, job.job_id) == State.QUEUED

    assert told(rt, accepted(job)) == {job.job_id}
    assert outcomes(rt, job) == [Outcome.ACCEPTED]
    assert state(rt, job.job_id) == State.PROCESSING
    assert claimed(rt) == []


def test_an_id_that_another_attempt_holds_is_not_taken_from_it(rt: Runtime, caller: Caller) -> None:
    """An equal job adopted it from the list; so the other's task is still to be found, for this one."""
    holder, late = unknown(rt, caller.service), submitting(rt, caller.service)
    execute(rt, "UPDATE jobs SET due_at = now() WHERE id = :id", id=holder.job_id)
    with rt.db.transaction() as tx:
        (lost,) = missing.claim_missing(tx, at_most=5, lease_s=60.0)
        missing.adopt(tx, lost, Prediction(late.prediction_id, Status.RUNNING, "processing"), poll_s=30.0, why="a test")

    assert told(rt, accepted(late)) == {late.job_id}
    assert state(rt, late.job_id) == State.UNKNOWN
    assert outcomes(rt, late) == [Outcome.LOST]
    assert [attempt.prediction_id for attempt in attempts(rt, late.job_id)] == [None]
    assert row(rt, holder.job_id).prediction_id == late.prediction_id
    assert row(rt, late.job_id).due_at is not None


def test_two_answers_of_one_group_that_name_the_same_task_are_both_written(rt: Runtime, caller: Caller) -> None:
    """A provider that answers two with one must not keep this process from writing any answer ever again."""
    first, second, other = (submitting(rt, caller.service) for _ in range(3))
    same = Attempted(second.job_id, second.attempt_id, second.token, first.prediction_id)

    told(rt, accepted(first), accepted(same), accepted(other))

    assert state(rt, other.job_id) == State.PROCESSING
    assert sorted(state(rt, job.job_id) for job in (first, second)) == [State.PROCESSING, State.UNKNOWN]
    assert sorted(outcomes(rt, first) + outcomes(rt, second), key=str) == [Outcome.ACCEPTED, Outcome.LOST]


def test_answers_callbacks_and_sweeps_at_the_same_instant_never_deadlock(rt: Runtime, caller: Caller) -> None:
    """
    A webhook comes with the answer it belongs to, while a sweep takes the worker for dead. Who locks job and
    attempt in another order than the others makes one of them fail after a second of waiting.
    """
    for _ in range(6):
        for _ in range(12):
            queued(rt, caller.service)
        jobs = [Attempted(one.job_id, one.attempt_id, one.token, prediction_id()) for one in claimed(rt, 12)]
        execute(rt, "DELETE FROM workers")

        def act(number: int, jobs: list[Attempted] = jobs) -> None:
            if number == 0:
                told(rt, *map(accepted, jobs))
            elif number == 1:
                told(rt, *(ended(job, Outcome.LOST, State.UNKNOWN) for job in reversed(jobs)))
            elif number < 4:
                with rt.db.transaction() as tx:
                    alarms.give_up_claims(tx)
            else:
                for job in jobs[:: 1 if number % 2 else -1]:
                    heard(rt, job)

        at_once(act, 8)
        assert {state(rt, job.job_id) for job in jobs} == {State.COMPLETED}
        told(rt, *map(accepted, jobs))
        assert {outcome for job in jobs for outcome in outcomes(rt, job)} == {Outcome.ACCEPTED}
