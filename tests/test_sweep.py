"""The sweep: what was forgotten, dropped or left by the dead is found by its alarm; two sweeps are as good as one."""

import subprocess
import sys
import threading
from collections.abc import Callable
from uuid import UUID

import pytest

from pipeline.jobs import State, Via
from pipeline.runtime import Runtime
from pipeline.store import workers
from pipeline.store.alarms import give_up_claims
from pipeline.store.tables import new_id
from pipeline.sweep import sweep
from tests.conftest import Caller
from tests.factories import (
    account,
    attempts,
    claimed,
    execute,
    expired_at,
    happened,
    kinds,
    processing,
    queued,
    row,
    scalar,
    state,
    submitting,
    unknown,
    until,
)


def woken(rt: Runtime) -> set[str]:
    """Sweep, and give who was woken, but for the keeper of the webhook secret: none was ever fetched here."""
    names: list[str] = []
    found = sweep(rt, lambda *these: names.extend(these))
    assert found == names
    return set(found) - {"secrets"}


def a_queued_job(rt: Runtime, caller: Caller) -> UUID:
    return queued(rt, caller.service)


def a_processing_job(rt: Runtime, caller: Caller) -> UUID:
    return processing(rt, caller.service).job_id


def an_unknown_job(rt: Runtime, caller: Caller) -> UUID:
    return unknown(rt, caller.service).job_id


def an_expired_job(rt: Runtime, caller: Caller) -> UUID:
    job_id = a_processing_job(rt, caller)
    execute(rt, "UPDATE jobs SET state = 'expired'")
    return job_id


@pytest.mark.parametrize(
    ("make", "duty"),
    [
        (a_queued_job, "submit"),
        (a_processing_job, "poll"),
        (an_expired_job, "poll"),
        (an_unknown_job, "reconcile"),
    ],
)
def test_a_job_whose_time_has_come_wakes_who_looks_after_it(
    rt: Runtime, caller: Caller, make: Callable[[Runtime, Caller], UUID], duty: str
) -> None:
    """Its nudge was lost, or there never was one: the alarm clock in the row is enough."""
    make(rt, caller)
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() + interval '1 minute'")
    assert woken(rt) == set()

    execute(rt, "UPDATE jobs SET due_at = clock_timestamp()")
    assert woken(rt) == {duty}


def test_a_halted_account_is_probed_when_it_is_time(rt: Runtime) -> None:
    """Resuming by itself is the sweep's work, too."""
    halted = (
        "UPDATE account SET halted_reason = 'key_refused', probe_at = clock_timestamp() + make_interval(secs => :s)"
    )
    execute(rt, halted, s=60)
    assert woken(rt) == set()

    execute(rt, halted, s=0)
    assert woken(rt) == {"probe"}


def test_the_claims_of_a_worker_that_left_are_given_up_at_once(rt: Runtime, caller: Caller) -> None:
    """It said that it stops: what it still held it will never answer for."""
    worker_id = new_id()
    job_id = queued(rt, caller.service)
    claimed(rt, worker_id=worker_id)
    with rt.db.transaction() as tx:
        workers.leave(tx, worker_id)

    assert woken(rt) == {"reconcile"}

    assert state(rt, job_id) == State.UNKNOWN
    assert happened(rt, job_id, "job.unknown") == [{"from": "submitting", "why": "worker dead"}]
    (attempt,) = attempts(rt, job_id)
    assert (attempt.outcome, attempt.error) == ("lost", "the worker died")


def give_up(rt: Runtime, dead_after_s: float) -> list[UUID]:
    with rt.db.transaction() as tx:
        return give_up_claims(tx, dead_after_s=dead_after_s)


def test_a_worker_without_a_heartbeat_is_dead(rt: Runtime, caller: Caller) -> None:
    """A beat or two may be missed; false suspicion would do no harm, but it costs a look at the list."""
    until(lambda: scalar(rt, "SELECT clock_timestamp() - pg_postmaster_start_time() > '2 seconds'"))
    job = submitting(rt, caller.service)
    execute(rt, "UPDATE workers SET beat_at = clock_timestamp() - interval '1 second'")

    assert give_up(rt, dead_after_s=60) == []
    assert give_up(rt, dead_after_s=0.9) == [job.job_id]

    assert state(rt, job.job_id) == State.UNKNOWN


def test_nobody_is_dead_because_the_database_was_away(rt: Runtime, caller: Caller) -> None:
    """No beat could be written while it was down: its start counts as everybody's beat."""
    submitting(rt, caller.service)
    execute(rt, "UPDATE workers SET beat_at = clock_timestamp() - interval '1 year'")

    assert give_up(rt, dead_after_s=86400) == []


def test_a_claim_whose_lease_is_over_is_given_up_though_its_worker_lives(rt: Runtime, caller: Caller) -> None:
    """The backstop: a thread that hangs in a process that beats."""
    job = submitting(rt, caller.service)
    sweep(rt, lambda *_: None)
    assert state(rt, job.job_id) == State.SUBMITTING

    execute(rt, "UPDATE jobs SET due_at = clock_timestamp()")
    sweep(rt, lambda *_: None)

    assert state(rt, job.job_id) == State.UNKNOWN
    assert happened(rt, job.job_id, "job.unknown")[0]["why"] == "lease over"


def test_a_job_that_waited_past_its_deadline_expires_unpaid(rt: Runtime, caller: Caller) -> None:
    """It is not woken for: nobody waits for its picture any more."""
    late, early = queued(rt, caller.service), queued(rt, caller.service)
    expired_at(rt, late, "now")
    execute(rt, "UPDATE jobs SET due_at = clock_timestamp() + interval '1 hour' WHERE id = :id", id=early)

    assert woken(rt) == set()

    assert (state(rt, late), state(rt, early)) == (State.EXPIRED, State.QUEUED)
    assert (row(rt, late).settled_by, row(rt, late).due_at) == (Via.DEADLINE, None)
    assert attempts(rt, late) == []


def test_two_sweeps_at_once_do_no_harm(rt: Runtime, caller: Caller) -> None:
    """Two beats by mistake, and every worker that found nobody sweeping."""
    worker_id = new_id()
    lost = [queued(rt, caller.service) for _ in range(40)]
    claimed(rt, 40, worker_id=worker_id)
    late = [queued(rt, caller.service) for _ in range(40)]
    execute(rt, "UPDATE jobs SET deadline_at = clock_timestamp() WHERE state = 'queued'")
    with rt.db.transaction() as tx:
        workers.leave(tx, worker_id)
    together = threading.Barrier(4)
    failed: list[BaseException] = []

    def at_once() -> None:
        together.wait()
        try:
            for _ in range(5):
                sweep(rt, lambda *_: None)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=at_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert {tuple(kinds(rt, job_id)) for job_id in lost} == {("job.queued", "job.submitting", "job.unknown")}
    assert {tuple(kinds(rt, job_id)) for job_id in late} == {("job.queued", "job.expired")}


def test_the_sweep_remembers_when_it_ran_and_forgets_the_long_dead(rt: Runtime) -> None:
    """Workers see whether anybody sweeps; their own rows do not gather for years."""
    with rt.db.transaction() as tx:
        workers.beat(tx, new_id())
        workers.beat(tx, new_id())
    execute(
        rt,
        "UPDATE workers SET beat_at = clock_timestamp() - interval '25 hours'"
        " WHERE id = (SELECT id FROM workers LIMIT 1)",
    )
    assert account(rt).swept_at is None

    sweep(rt, lambda *_: None)

    assert account(rt).swept_at
    assert scalar(rt, "SELECT count(*) FROM workers") == 1


def test_a_neighbour_that_is_gone_is_not_waited_for(rt: Runtime, caller: Caller) -> None:
    """On one machine nobody needs a heartbeat to see that a process has ended."""
    job = submitting(rt, caller.service)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    sweep(rt, lambda *names: None)
    assert state(rt, job.job_id) == State.SUBMITTING, "its process lives: it is this one"

    execute(rt, "UPDATE workers SET pid = :pid", pid=ended.pid)
    sweep(rt, lambda *names: None)
    assert state(rt, job.job_id) == State.UNKNOWN


def test_a_process_elsewhere_is_judged_by_its_heartbeat_alone(rt: Runtime, caller: Caller) -> None:
    """Its number means another process here, or none."""
    job = submitting(rt, caller.service)
    execute(rt, "UPDATE workers SET pid = 4194304, place = 'elsewhere'")
    sweep(rt, lambda *names: None)
    assert state(rt, job.job_id) == State.SUBMITTING
