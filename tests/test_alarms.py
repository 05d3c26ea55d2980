"""Alarm clocks: what the sweep gives up, expires and finds due, and who may ask the provider about it."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from pipeline.jobs import State, Via
from pipeline.runtime import Runtime
from pipeline.store import account, alarms, missing, workers
from pipeline.store.alarms import Question
from pipeline.store.missing import Missing
from pipeline.store.moves import Move, advance
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import (
    Attempted,
    at_once,
    attempts,
    claimed,
    execute,
    kinds,
    placed,
    processing,
    queued,
    row,
    scalar,
    state,
    submitting,
    unknown,
)


def given_up(rt: Runtime, dead_after_s: float = alarms.DEAD_AFTER_S) -> list[UUID]:
    with rt.db.transaction() as tx:
        return alarms.give_up_claims(tx, dead_after_s=dead_after_s)


def due(rt: Runtime) -> list[str]:
    with rt.db.transaction() as tx:
        return alarms.due(tx)


def questions(rt: Runtime, at_most: int = 50) -> list[Question]:
    with rt.db.transaction() as tx:
        return alarms.claim_questions(tx, at_most=at_most, lease_s=60.0)


def lost(rt: Runtime, at_most: int = 50) -> list[Missing]:
    with rt.db.transaction() as tx:
        return missing.claim_missing(tx, at_most=at_most, lease_s=120.0)


def ring(rt: Runtime, *jobs: Attempted) -> None:
    """Let these jobs' time have come."""
    for job in jobs:
        execute(rt, "UPDATE jobs SET due_at = now() - interval '1 s' WHERE id = :id", id=job.job_id)


def seconds_left(rt: Runtime, job_id: UUID) -> float | None:
    left: float | None = scalar(
        rt, "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM jobs WHERE id = :id", id=job_id
    )
    return left


def why(rt: Runtime, job_id: UUID) -> Any:
    return scalar(rt, "SELECT data ->> 'why' FROM events WHERE job_id = :id ORDER BY seq DESC LIMIT 1", id=job_id)


def postmaster_age_s(rt: Runtime) -> float:
    age: float = scalar(rt, "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8")
    return age


# -- claims whose worker is gone --------------------------------------------------------------------------------------


def test_a_dead_workers_posts_become_unknown_and_a_living_ones_go_on(rt: Runtime, caller: Caller) -> None:
    """A POST of a process that was killed may have been carried out: look for it, do not repeat it."""
    dead, living = new_id(), new_id()
    for _ in range(4):
        queued(rt, caller.service)
    abandoned, under_way = claimed(rt, 2, worker_id=dead), claimed(rt, 2, worker_id=living)
    execute(rt, "UPDATE workers SET beat_at = now() - interval '1 day' WHERE id = :id", id=dead)
    execute(rt, "UPDATE workers SET beat_at = now() + interval '1 day' WHERE id = :id", id=living)

    # The server has run for some seconds only, and nobody is dead for longer than that: so the limit is shorter.
    assert given_up(rt, postmaster_age_s(rt) / 2) == sorted(start.job_id for start in abandoned)
    for start in abandoned:
        assert state(rt, start.job_id) == State.UNKNOWN
        assert why(rt, start.job_id) == "worker dead"
        (attempt,) = attempts(rt, start.job_id)
        assert (attempt.outcome, attempt.error) == ("lost", "the worker died")
        assert "reconcile" in due(rt)
    assert {state(rt, start.job_id) for start in under_way} == {State.SUBMITTING}


def test_while_the_database_was_away_nobody_could_beat_and_nobody_is_dead(rt: Runtime, caller: Caller) -> None:
    """After a restart of Postgres each worker has the time to be heard again, but no more: it may restart often."""
    job = submitting(rt, caller.service)
    execute(rt, "UPDATE workers SET beat_at = now() - interval '1 day'")
    assert given_up(rt, 2 * postmaster_age_s(rt) + 60) == []
    assert state(rt, job.job_id) == State.SUBMITTING
    assert given_up(rt, 1.5 * postmaster_age_s(rt)) == [job.job_id]


def test_a_fresh_heartbeat_is_a_living_worker(rt: Runtime, caller: Caller) -> None:
    """The rule with its real limit: a worker that was just claiming is left alone."""
    job = submitting(rt, caller.service)
    assert given_up(rt) == []
    assert state(rt, job.job_id) == State.SUBMITTING


def test_a_worker_that_left_holds_nothing(rt: Runtime, caller: Caller) -> None:
    """It said so itself: whatever is still in its name is abandoned at once."""
    worker_id = new_id()
    job_id = queued(rt, caller.service)
    claimed(rt, worker_id=worker_id)
    with rt.db.transaction() as tx:
        workers.leave(tx, worker_id)
    assert given_up(rt) == [job_id]


def test_a_lease_that_is_over_ends_even_a_living_workers_claim(rt: Runtime, caller: Caller) -> None:
    """The backstop: a process may beat and yet hang."""
    job = submitting(rt, caller.service)
    ring(rt, job)
    assert given_up(rt) == [job.job_id]
    assert why(rt, job.job_id) == "lease over"
    assert attempts(rt, job.job_id)[0].error == "the lease ran out"


def test_what_was_given_up_once_is_not_given_up_again(rt: Runtime, caller: Caller) -> None:
    """Any number of sweeps do no harm."""
    jobs = [submitting(rt, caller.service) for _ in range(20)]
    execute(rt, "DELETE FROM workers")
    swept = at_once(lambda _: given_up(rt), 6)
    swept.append(given_up(rt))  # whatever two sweeps at once left to each other
    assert sorted(job_id for some in swept for job_id in some) == sorted(job.job_id for job in jobs)
    assert {kinds(rt, job.job_id).count("job.unknown") for job in jobs} == {1}


def test_only_posts_under_way_are_given_up(rt: Runtime, caller: Caller) -> None:
    """What the provider accepted needs no worker of ours."""
    jobs = [processing(rt, caller.service), unknown(rt, caller.service)]
    ring(rt, *jobs)
    execute(rt, "DELETE FROM workers")
    assert given_up(rt) == []


# -- deadlines in the queue -------------------------------------------------------------------------------------------


def test_a_queued_job_past_its_deadline_expires_unpaid(rt: Runtime, caller: Caller) -> None:
    """Nobody waits for it any more: to pay now would be waste."""
    late, early = queued(rt, caller.service), queued(rt, caller.service)
    execute(rt, "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE id = :id", id=late)
    with rt.db.transaction() as tx:
        assert alarms.expire_queued(tx) == [late]
    expired = row(rt, late)
    assert (expired.state, expired.settled_by, expired.due_at) == (State.EXPIRED, Via.DEADLINE, None)
    assert state(rt, early) == State.QUEUED
    with rt.db.transaction() as tx:
        assert alarms.expire_queued(tx) == []


@pytest.mark.parametrize("held", sorted(set(State) - {State.QUEUED}))
def test_only_queued_jobs_expire_without_being_asked_about(rt: Runtime, caller: Caller, held: State) -> None:
    """What was paid for gets one last GET first; what is unknown may be running."""
    job_id = placed(rt, caller.service, held)
    execute(rt, "UPDATE jobs SET deadline_at = now() - interval '1 h' WHERE id = :id", id=job_id)
    with rt.db.transaction() as tx:
        assert alarms.expire_queued(tx) == []
    assert state(rt, job_id) == held


# -- what is due ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "duty"),
    [
        (State.QUEUED, ["submit"]),
        (State.PROCESSING, ["poll"]),
        (State.EXPIRED, ["poll"]),
        (State.UNKNOWN, ["reconcile"]),
        (State.SUBMITTING, []),
    ],
)
def test_each_alarm_wakes_its_own_duty_when_its_time_has_come(
    rt: Runtime, caller: Caller, held: State, duty: list[str]
) -> None:
    """And not before: a sweep with nothing due wakes nobody."""
    job_id = placed(rt, caller.service, held)
    assert due(rt) == ["secrets"]  # none is known yet
    execute(rt, "UPDATE jobs SET due_at = now() WHERE id = :id", id=job_id)
    assert due(rt) == [*duty, "secrets"]


def test_a_halted_account_is_probed_when_its_time_has_come(rt: Runtime) -> None:
    """It resumes by itself."""
    with rt.db.transaction() as tx:
        account.halt(tx, "key_refused", balance=None, probe_s=60.0)
    assert "probe" not in due(rt)
    execute(rt, "UPDATE account SET probe_at = now()")
    assert "probe" in due(rt)


def test_an_alarm_that_was_written_into_the_past_is_found_when_all_is_looked_at(rt: Runtime, caller: Caller) -> None:
    """By a transaction that took an hour, or by a person; most sweeps look no further back than they need."""
    placed(rt, caller.service, State.PROCESSING)
    with rt.db.transaction() as tx:
        alarms.due(tx)
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() - interval '1 hour'")
    execute(rt, "UPDATE account SET swept_at = clock_timestamp() - interval '1 minute'")
    with rt.db.transaction() as tx:
        assert "poll" in alarms.due(tx)


def test_a_task_found_after_its_jobs_deadline_is_asked_about_by_the_next_sweep(rt: Runtime, caller: Caller) -> None:
    """An alarm set to a deadline long past would be overlooked for a minute, and its task not counted as running."""
    job = unknown(rt, caller.service)
    with rt.db.transaction() as tx:
        alarms.due(tx)
    execute(rt, "UPDATE jobs SET deadline_at = clock_timestamp() - interval '1 hour'")

    move = Move(job.job_id, State.PROCESSING, attempt_id=job.attempt_id, due_s=30.0)
    with rt.db.transaction() as tx:
        assert advance(tx, [move])

    left = seconds_left(rt, job.job_id)
    assert left is not None
    assert -15 < left <= 0
    with rt.db.transaction() as tx:
        assert "poll" in alarms.due(tx)


def test_a_sweep_is_remembered(rt: Runtime) -> None:
    """A worker whose beat finds that nobody swept for a while does it itself."""
    with rt.db.transaction() as tx:
        assert workers.beat(tx, new_id()) is None
    due(rt)
    with rt.db.transaction() as tx:
        assert workers.beat(tx, new_id()) is not None


# -- asking -----------------------------------------------------------------------------------------------------------


def test_a_question_carries_what_the_poller_must_know(rt: Runtime, caller: Caller) -> None:
    """Whom to ask about, on behalf of which attempt, and whether this is the last time."""
    job, late = processing(rt, caller.service), processing(rt, caller.service)
    execute(rt, "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE id = :id", id=late.job_id)
    execute(rt, "UPDATE jobs SET submitted_at = now() - interval '40 s' WHERE id = :id", id=job.job_id)
    ring(rt, job, late)
    asked = {question.job_id: question for question in questions(rt)}
    one = asked[job.job_id]
    assert (one.attempt_id, one.prediction_id) == (job.attempt_id, job.prediction_id)
    assert (one.state, one.past_deadline, asked[late.job_id].past_deadline) == (State.PROCESSING, False, True)
    assert 40 <= one.age_s < 100


def test_a_job_that_is_not_due_is_not_asked_about(rt: Runtime, caller: Caller) -> None:
    """Polls are the exception: the webhook is on its way."""
    processing(rt, caller.service)
    unknown(rt, caller.service)
    assert questions(rt) == []
    assert lost(rt) == []


def test_two_pollers_never_ask_the_same(rt: Runtime, caller: Caller) -> None:
    """Each question costs of the one budget."""
    jobs = [processing(rt, caller.service) for _ in range(40)]
    ring(rt, *jobs)
    asked = at_once(lambda _: [question.job_id for _ in range(4) for question in questions(rt, 5)], 6)
    flat = [job_id for some in asked for job_id in some]
    assert sorted(flat) == sorted(job.job_id for job in jobs)
    assert questions(rt) == []


def test_two_reconcilers_never_look_for_the_same(rt: Runtime, caller: Caller) -> None:
    """Two that conclude for one attempt could both send it back."""
    jobs = [unknown(rt, caller.service) for _ in range(40)]
    ring(rt, *jobs)
    found = at_once(lambda _: [one.job_id for _ in range(4) for one in lost(rt, 5)], 6)
    flat = [job_id for some in found for job_id in some]
    assert sorted(flat) == sorted(job.job_id for job in jobs)
    assert lost(rt) == []


def test_a_question_whose_asker_died_is_asked_again(rt: Runtime, caller: Caller) -> None:
    """The claim is a lease: the alarm is set again, not taken away."""
    job, doubt = processing(rt, caller.service), unknown(rt, caller.service)
    ring(rt, job, doubt)
    assert len(questions(rt)) == len(lost(rt)) == 1
    assert seconds_left(rt, job.job_id) == pytest.approx(60.0, abs=10.0)
    assert seconds_left(rt, doubt.job_id) == pytest.approx(120.0, abs=10.0)
    ring(rt, job, doubt)
    assert len(questions(rt)) == len(lost(rt)) == 1


def test_a_lost_attempt_carries_what_the_list_is_searched_for(rt: Runtime, caller: Caller) -> None:
    """Model, input and the window."""
    job = unknown(rt, caller.service, "a green lighthouse")
    ring(rt, job)
    (one,) = lost(rt)
    (attempt,) = attempts(rt, job.job_id)
    assert (one.job_id, one.attempt_id) == (job.job_id, job.attempt_id)
    assert one.input == {"prompt": "a green lighthouse"}
    assert (one.started_at, one.ended_at) == (attempt.started_at, attempt.ended_at)
    assert one.absent_s is None


def again(rt: Runtime, job_id: UUID, seconds: float) -> None:
    with rt.db.transaction() as tx:
        alarms.ask_again(tx, {job_id: seconds})


@pytest.mark.parametrize(
    ("deadline_s", "asked_s", "next_s"),
    [(3600, 30, 30), (20, 30, 20), (-5, 30, 30)],
    ids=["before the deadline", "not beyond the deadline", "after it, as the poller wishes"],
)
def test_the_next_question_is_never_beyond_the_deadline(
    rt: Runtime, caller: Caller, deadline_s: float, asked_s: float, next_s: float
) -> None:
    """The last GET belongs to the deadline; one that failed is tried again, not at once and for ever."""
    job = processing(rt, caller.service)
    execute(rt, "UPDATE jobs SET deadline_at = now() + :s * interval '1 s' WHERE id = :id", s=deadline_s, id=job.job_id)
    again(rt, job.job_id, asked_s)
    assert seconds_left(rt, job.job_id) == pytest.approx(next_s, abs=5.0)


def test_an_expired_job_is_asked_about_for_a_day_and_then_left(rt: Runtime, caller: Caller) -> None:
    """Its result was paid for; but not even the provider keeps it for ever."""
    job = processing(rt, caller.service)
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.EXPIRED, attempt_id=job.attempt_id, due_s=0.0, via=Via.DEADLINE)])
    for age, asked in (timedelta(hours=1), True), (timedelta(hours=23, minutes=59), True), (timedelta(hours=24), False):
        execute(rt, "UPDATE jobs SET deadline_at = now() - :age, due_at = now() WHERE id = :id", age=age, id=job.job_id)
        assert [question.state for question in questions(rt)] == [State.EXPIRED]
        again(rt, job.job_id, 1800.0)
        with rt.db.transaction() as tx:
            assert alarms.stop_asking(tx) == ([] if asked else [job.job_id])
        assert (seconds_left(rt, job.job_id) is not None) == asked
    assert questions(rt) == []


@pytest.mark.parametrize("held", sorted(set(State) - {State.PROCESSING, State.EXPIRED}))
def test_only_a_job_that_is_still_asked_about_gets_a_next_question(rt: Runtime, caller: Caller, held: State) -> None:
    """The webhook came while the question was under way."""
    job_id = placed(rt, caller.service, held)
    before = row(rt, job_id).due_at
    again(rt, job_id, 1.0)
    assert row(rt, job_id).due_at == before


def test_answers_that_the_task_is_missing_are_counted_until_one_knows_it(rt: Runtime, caller: Caller) -> None:
    """One 404 may be a passing fault: a result is lost only after several, over some time."""
    job = processing(rt, caller.service)
    counted = []
    for _ in range(3):
        with rt.db.transaction() as tx:
            counted.append(alarms.count_missing(tx, job.attempt_id))
        execute(rt, "UPDATE attempts SET missing_at = missing_at - interval '5 minutes'")
    assert [count for count, _ in counted] == [1, 2, 3]
    assert [since_s // 300 for _, since_s in counted] == [0, 1, 2]

    with rt.db.transaction() as tx:
        alarms.found_again(tx, [job.attempt_id])
        count, since_s = alarms.count_missing(tx, job.attempt_id)
    assert count == 1
    assert since_s < 300


# -- heartbeats -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_is_one_row_that_is_renewed(rt: Runtime) -> None:
    """Many beats, one process."""
    worker_id = new_id()
    for _ in range(3):
        with rt.db.transaction() as tx:
            workers.beat(tx, worker_id)
        assert scalar(rt, "SELECT beat_at > now() - interval '1 minute' FROM workers")
        execute(rt, "UPDATE workers SET beat_at = now() - interval '1 h'")
    assert scalar(rt, "SELECT count(*) FROM workers") == 1


def test_workers_dead_for_a_day_are_forgotten(rt: Runtime) -> None:
    """Every deploy makes new ones."""
    old, new = new_id(), new_id()
    with rt.db.transaction() as tx:
        workers.beat(tx, old)
        workers.beat(tx, new)
    execute(rt, "UPDATE workers SET beat_at = now() - interval '25 h' WHERE id = :id", id=old)
    with rt.db.transaction() as tx:
        workers.forget_dead(tx)
        assert tx.execute(text("SELECT id FROM workers")).scalars().all() == [new]
