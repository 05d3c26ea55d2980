"""The proof that a lost POST never came to be is as good as the provider's list; one that is late costs little."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import pytest

from pipeline.jobs import Outcome, State
from pipeline.lifecycle.proof import Trust
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import missing
from pipeline.store.answers import Answer, record
from pipeline.store.missing import Missing
from pipeline.store.moves import Move
from pipeline.store.tables import new_id
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import (
    MODEL,
    attempts,
    claimed,
    execute,
    happened,
    kinds,
    prediction_id,
    processing,
    queued,
    row,
    scalar,
    state,
    swept,
    unknown,
)
from tests.test_reconcile import LOST, NEVER, WELL, look_now, looked, lose
from tests.wire import Request, Wire, http, wire

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]

PATIENCE_S = 900.0
DAY_S = 86_400.0

NOW = datetime(2026, 1, 15, 10, 0, tzinfo=UTC)


def later(rt: Runtime, by_s: float) -> None:
    """Let *by_s* seconds pass for what was lost; rows are locked in the order in which workers do."""
    for table, columns in {"attempts": ("started_at", "ended_at", "absent_at"), "jobs": ("deadline_at",)}.items():
        moved = ", ".join(f"{column} = t.{column} - make_interval(secs => :by_s)" for column in columns)
        locked = f"SELECT id FROM {table} ORDER BY id FOR UPDATE"
        execute(rt, f"WITH l AS ({locked}) UPDATE {table} t SET {moved} FROM l WHERE t.id = l.id", by_s=by_s)


# What is believed of a list


def lost(*, absences: int = 0, past_deadline: bool = False) -> Missing:
    """An attempt of a job whose earlier ones were proven absent."""
    now, attempt_id = datetime.now(UTC), new_id()
    return Missing(new_id(), attempt_id, MODEL, {}, now, now, 0.0, None, None, attempt_id, absences, past_deadline)


def trust(*, late: bool = False, behind: bool = False, newest_at: datetime | None = None) -> Trust:
    return Trust(PATIENCE_S, late=late, behind=behind, newest_at=newest_at)


def test_each_absence_of_a_job_makes_the_next_proof_take_twice_as_long() -> None:
    """A list that hid one task for so long has to hide the next for longer."""
    assert [trust().patience_s(lost(absences=count)) for count in range(4)] == [900, 1800, 3600, 7200]


@pytest.mark.parametrize(
    ("one", "how", "reason"),
    [
        pytest.param(lost(), trust(), None, id="the first time"),
        pytest.param(lost(absences=1), trust(), None, id="the second time"),
        pytest.param(lost(absences=2), trust(), "nothing newer", id="the third time, and nobody was accepted since"),
        pytest.param(lost(absences=2), trust(newest_at=NOW), "nothing newer", id="and nobody was for as long"),
        pytest.param(lost(absences=2), trust(newest_at=NOW + timedelta(seconds=1)), None, id="and others were"),
        pytest.param(lost(), trust(late=True), None, id="late these days"),
        pytest.param(lost(absences=1), trust(late=True), "tasks late", id="late these days, the second time"),
        pytest.param(lost(absences=1, past_deadline=True), trust(late=True), None, id="not to be paid any more"),
        pytest.param(lost(absences=2, past_deadline=True), trust(), None, id="not to be paid either"),
        pytest.param(lost(), trust(behind=True), "behind", id="behind"),
        pytest.param(lost(past_deadline=True), trust(behind=True), "behind", id="behind: it may yet be shown"),
    ],
)
def test_what_speaks_against_a_list_is_said(one: Missing, how: Trust, reason: str | None) -> None:
    """Evidence decides, and not the number of jobs that fare alike: an outage is no lie."""
    said = how.against(one, until=NOW, age_s=5000.0)
    assert said is None if reason is None else reason in str(said)


def test_what_the_provider_keeps_no_longer_is_not_absent_for_that() -> None:
    """After a week its list shows nothing of anybody."""
    assert trust().against(lost(), until=NOW, age_s=5 * DAY_S) is None
    assert "long ago" in str(trust().against(lost(), until=NOW, age_s=6.5 * DAY_S))
    assert trust().against(lost(past_deadline=True), until=NOW, age_s=6.5 * DAY_S) is None


def test_a_list_is_known_to_be_late_by_the_tasks_it_did_not_show_in_time(rt: Runtime, caller: Caller) -> None:
    """Whatever brought them in the end; what was in time, or never came, or was long ago, says nothing."""

    def lateness_s() -> float | None:
        with rt.db.transaction() as tx:
            return missing.lateness_s(tx)

    def absent_for(job_id: UUID, seconds: float) -> None:
        execute(
            rt,
            "UPDATE attempts SET absent_at = started_at + make_interval(secs => :s) WHERE job_id = :id",
            s=seconds,
            id=job_id,
        )

    in_time, late, never = processing(rt, caller.service), processing(rt, caller.service), unknown(rt, caller.service)
    absent_for(never.job_id, 5000)
    assert state(rt, in_time.job_id) == State.PROCESSING
    assert lateness_s() is None
    absent_for(late.job_id, 1000)
    assert lateness_s() == 1000
    later(rt, 8 * DAY_S)
    assert lateness_s() is None


# A provider whose list is late


def calm(rt: Runtime) -> None:
    """Let go of the account's brakes: they have tests of their own."""
    execute(rt, "UPDATE account SET trial = false, recent = '', backoff_until = NULL, pacer = NULL")


def again(rt: Runtime, worker: Worker, job_id: UUID) -> None:
    """Have a job looked for until it is submitted again, and lost again."""
    before = len(attempts(rt, job_id))

    def is_lost_again() -> bool:
        look_now(rt)
        calm(rt)
        return len(attempts(rt, job_id)) > before and state(rt, job_id) == State.UNKNOWN

    swept(worker, is_lost_again)


def test_a_provider_that_loses_each_answer_and_hides_each_task_is_paid_three_times_then_a_person_is_asked(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It cannot be told from one that is down, whose jobs go on by themselves; but it is not paid again and again."""
    rt = make_rt(unknown_patience_s=0.2)
    sandbox.faults(**LOST, list_lag_s=3600)
    worker = start_worker(rt)
    job_id = queued(rt, caller.service, deadline_s=DAY_S)
    swept(worker, lambda: state(rt, job_id) == State.UNKNOWN)
    for _ in range(2):
        again(rt, worker, job_id)

    later(rt, 10.0)
    assert "nothing newer" in looked(rt, worker, job_id)["why"]
    assert row(rt, job_id).held_at is None
    later(rt, 3700.0)
    for _ in range(3):
        looked(rt, worker, job_id)

    assert "submitted again 2 times" in row(rt, job_id).held_reason
    assert kinds(rt, job_id).count("job.needs_decision") == 1
    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["absent", "absent", "lost"]
    assert len(sandbox.ledger()) == 3


def test_with_the_usual_deadline_nobody_is_asked_and_nothing_is_paid_after_it(
    make_rt: MakeRuntime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The third proof would end after an hour and a half: the job has expired, and no person can help it."""
    rt = make_rt(unknown_patience_s=0.2)
    sandbox.faults(**LOST, list_lag_s=3600)
    worker = start_worker(rt)
    job_id = queued(rt, caller.service)
    swept(worker, lambda: state(rt, job_id) == State.UNKNOWN)
    for _ in range(2):
        again(rt, worker, job_id)

    later(rt, 3700.0)
    swept(worker, lambda: look_now(rt) or state(rt, job_id) == State.EXPIRED)  # type: ignore[func-returns-value]

    assert "job.needs_decision" not in kinds(rt, job_id)
    assert len(sandbox.ledger()) == 3


def test_once_the_list_was_late_no_job_is_submitted_a_third_time_unasked(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """One task that showed too late tells of all proofs what they are worth."""
    rt = make_rt(unknown_patience_s=0.2)
    worker = start_worker(rt)
    late = queued(rt, caller.service)
    swept(worker, lambda: state(rt, late) == State.COMPLETED)
    (job_id,) = lose(rt, caller, sandbox, worker, "a dog", how=NEVER)
    execute(rt, "UPDATE jobs SET deadline_at = deadline_at + interval '1 day' WHERE state = 'unknown'")
    sandbox.faults(**NEVER)
    again(rt, worker, job_id)
    execute(rt, "UPDATE attempts SET absent_at = started_at + interval '0.3 s' WHERE job_id = :id", id=late)

    later(rt, 10.0)
    assert "tasks late" in looked(rt, worker, job_id)["why"]
    later(rt, 3700.0)
    looked(rt, worker, job_id)

    assert kinds(rt, job_id).count("job.needs_decision") == 1
    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["absent", "lost"]


def test_after_an_hour_of_outage_everything_goes_on_by_itself(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Every POST is lost and none makes a task: were a person asked for each such job, it would be a night of them."""
    rt = make_rt(unknown_patience_s=PATIENCE_S)
    worker = start_worker(rt)
    jobs = lose(rt, caller, sandbox, worker, "a cat", "a dog", "a mill", how=NEVER)
    execute(rt, "UPDATE jobs SET deadline_at = deadline_at + interval '1 day'")
    sandbox.faults(**NEVER)
    for number, patience_s in enumerate((PATIENCE_S, 2 * PATIENCE_S), start=2):
        absent_after(rt, worker, jobs, patience_s)
        swept(worker, lambda: calm(rt) or lost_so_often(rt, number))  # type: ignore[func-returns-value]  # noqa: B023

    sandbox.faults(**WELL)
    calm(rt)
    other = queued(rt, caller.service, "a bridge")
    swept(worker, lambda: state(rt, other) == State.COMPLETED)
    absent_after(rt, worker, jobs, 4 * PATIENCE_S)
    swept(worker, lambda: {state(rt, job_id) for job_id in jobs} == {State.COMPLETED})

    assert scalar(rt, "SELECT count(*) FROM events WHERE kind = 'job.needs_decision'") == 0
    assert [attempt.outcome for attempt in attempts(rt, jobs[0])] == ["absent", "absent", "absent", "accepted"]
    assert len(sandbox.ledger()) == 4


def lost_so_often(rt: Runtime, number: int) -> bool:
    """Whether the answers to that many POSTs of every job were lost."""
    counts = "SELECT min(number) FROM jobs j JOIN attempts a ON a.id = j.current_attempt WHERE a.outcome = 'lost'"
    return bool(scalar(rt, counts) == number and scalar(rt, "SELECT every(state = 'unknown') FROM jobs"))


def absent_after(rt: Runtime, worker: Worker, jobs: list[UUID], patience_s: float) -> None:
    """Let so much time pass, and the list be read twice; not a moment earlier is anything proven."""
    later(rt, patience_s - 60)
    assert not any(looked(rt, worker, job_id)["absent"] for job_id in jobs)
    later(rt, 61)
    seen = [looked(rt, worker, job_id) for job_id in jobs]
    assert [(each["absent"], each["patience_s"]) for each in seen] == [(True, patience_s)] * len(jobs)
    later(rt, 61)
    absent = "SELECT count(*) FROM attempts WHERE outcome = 'absent'"
    before = scalar(rt, absent)
    look_now(rt)
    swept(worker, lambda: scalar(rt, absent) == before + len(jobs))


def test_a_list_that_does_not_show_what_we_know_of_proves_nothing(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """A task of an hour ago is missing from it: then so may be the lost one, which was made just as long ago."""
    rt = make_rt(unknown_patience_s=0.2)
    sandbox.faults(list_lag_s=3600)
    worker = start_worker(rt)
    known = queued(rt, caller.service, "a cat")
    swept(worker, lambda: state(rt, known) == State.COMPLETED)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse")

    later(rt, 10.0)
    seen = [looked(rt, worker, job_id) for _ in range(3)]
    assert [(each["absent"], "behind" in each["why"]) for each in seen] == [(False, True)] * 3
    assert row(rt, job_id).held_at is None
    later(rt, 3700.0)
    looked(rt, worker, job_id)

    assert "behind" in row(rt, job_id).held_reason
    assert kinds(rt, job_id).count("job.needs_decision") == 1
    assert len(sandbox.ledger()) == 2


def test_a_list_that_has_caught_up_is_believed_again(
    make_rt: MakeRuntime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """It shows what we know of: what it does not show then was never made."""
    rt = make_rt(unknown_patience_s=0.2)
    sandbox.faults(list_lag_s=3600)
    worker = start_worker(rt)
    known = queued(rt, caller.service, "a cat")
    swept(worker, lambda: state(rt, known) == State.COMPLETED)
    (job_id,) = lose(rt, caller, sandbox, worker, "a lighthouse", how=NEVER)
    later(rt, 10.0)
    assert "behind" in looked(rt, worker, job_id)["why"]

    sandbox.faults(list_lag_s=0)
    newer = queued(rt, caller.service, "a mill")
    swept(worker, lambda: state(rt, newer) == State.COMPLETED)
    look_now(rt)
    swept(worker, lambda: look_now(rt) or state(rt, job_id) == State.COMPLETED)  # type: ignore[func-returns-value]

    assert len(sandbox.ledger()) == 3


# A job that was submitted again, and lost again


@contextmanager
def listing(task: dict[str, Any], made_at: datetime) -> Iterator[Wire]:
    """A provider that lists one task, where it is asked for that time."""

    def answer(request: Request, connection: socket.socket) -> None:
        asked = json.loads(request.body)
        first, last = (asked.get(name) for name in ("created_after", "created_before"))
        shown = not first or datetime.fromisoformat(first) <= made_at <= datetime.fromisoformat(last)
        item = {"model": MODEL, "created_at": made_at.isoformat(), **task}
        date = format_datetime(datetime.now(UTC), usegmt=True)
        connection.sendall(http(200, {"data": {"items": [item] if shown else []}}, Date=date))

    with wire(answer) as server:
        yield server


def lost_twice(rt: Runtime, caller: Caller) -> UUID:
    """A job whose first POST, half an hour ago, was proven absent, and whose second was lost just now."""
    job = unknown(rt, caller.service)
    earlier = "started_at = started_at - interval '30 min', ended_at = ended_at - interval '30 min'"
    execute(rt, f"UPDATE attempts SET {earlier}, absent_at = clock_timestamp() - interval '10 min', outcome = 'absent'")
    execute(rt, "UPDATE jobs SET state = 'queued', due_at = clock_timestamp()")
    (start,) = claimed(rt)
    move = Move(job.job_id, State.UNKNOWN, attempt_id=start.attempt_id, due_s=0.0)
    with rt.db.transaction() as tx:
        record(tx, [Answer(start.attempt_id, Outcome.LOST, move)])
    return job.job_id


@pytest.mark.parametrize(
    ("status", "end", "current"),
    [
        ("completed", State.COMPLETED, 1),
        ("processing", State.PROCESSING, 1),
        ("failed", State.UNKNOWN, 2),
    ],
)
def test_its_first_task_is_found_though_it_was_taken_for_absent(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker, status: str, end: State, current: int
) -> None:
    """It was paid for, so it is the job's; but its failure does not end a job whose second task may yet be found."""
    made_at = datetime.now(UTC) - timedelta(minutes=30)
    task: dict[str, Any] = {"id": prediction_id(), "status": status, "input": {"prompt": "a lighthouse"}}
    if status == "completed":
        task["outputs"] = [f"https://cdn.example.com/predictions/{task['id']}/1.png"]
    with listing(task, made_at) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=PATIENCE_S)
        job_id = lost_twice(rt, caller)
        worker = start_worker(rt)
        swept(worker, lambda: look_now(rt) or attempts(rt, job_id)[0].outcome == "accepted")  # type: ignore[func-returns-value]
        worker.stop()

    first, second = attempts(rt, job_id)
    assert (first.outcome, first.prediction_id, second.outcome) == ("accepted", task["id"], "lost")
    assert state(rt, job_id) == end
    by_number = "SELECT number FROM attempts a JOIN jobs j ON j.current_attempt = a.id"
    assert scalar(rt, by_number) == current


def test_a_callback_that_names_its_first_task_is_followed(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """It came too late to be believed by itself, and to an attempt that was taken for absent: the provider knows it."""
    task = {
        "id": prediction_id(),
        "model": MODEL,
        "status": "processing",
        "created_at": (datetime.now(UTC) - timedelta(minutes=30)).isoformat(),
    }

    def answer(request: Request, connection: socket.socket) -> None:
        date = format_datetime(datetime.now(UTC), usegmt=True)
        connection.sendall(http(200, {"data": task if request.method == "GET" else {"items": []}}, Date=date))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=PATIENCE_S)
        job_id = lost_twice(rt, caller)
        execute(rt, "UPDATE attempts SET hint_id = :id WHERE outcome = 'absent'", id=task["id"])
        worker = start_worker(rt)
        swept(worker, lambda: look_now(rt) or state(rt, job_id) == State.PROCESSING)  # type: ignore[func-returns-value]
        worker.stop()

    assert [(one.outcome, one.prediction_id) for one in attempts(rt, job_id)] == [
        ("accepted", task["id"]),
        ("lost", None),
    ]
    assert row(rt, job_id).prediction_id == task["id"]


def test_a_task_that_may_be_its_first_keeps_it_from_a_third(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """The list shows no inputs, and now a task of that time: it was shown late, and may be ours."""
    task = {"id": prediction_id(), "status": "processing"}
    with listing(task, datetime.now(UTC) - timedelta(minutes=30)) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=0.2)
        job_id = lost_twice(rt, caller)
        worker = start_worker(rt)
        swept(worker, lambda: look_now(rt) or row(rt, job_id).held_at)  # type: ignore[func-returns-value]
        worker.stop()

    assert "may be it" in row(rt, job_id).held_reason
    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["absent", "lost"]


def test_while_its_first_time_cannot_be_read_it_is_not_submitted_again(
    make_rt: MakeRuntime, caller: Caller, start_worker: StartWorker
) -> None:
    """Half of the list proves half; and a list that fails for a moment calls nobody."""

    failed: list[str] = []

    def answer(request: Request, connection: socket.socket) -> None:
        first = json.loads(request.body).get("created_after")
        is_old = first and datetime.fromisoformat(first) < datetime.now(UTC) - timedelta(minutes=15)
        failed.extend([first] if is_old else [])
        date = format_datetime(datetime.now(UTC), usegmt=True)
        connection.sendall(http(500) if is_old else http(200, {"data": {"items": []}}, Date=date))

    with wire(answer) as server:
        rt = make_rt(wavespeed_base_url=server.url, unknown_patience_s=0.2)
        job_id = lost_twice(rt, caller)
        long_ago = "started_at = started_at - interval '2 h', ended_at = ended_at - interval '2 h'"
        execute(rt, f"UPDATE attempts SET {long_ago} WHERE outcome = 'absent'")
        worker = start_worker(rt)

        def is_absent() -> bool:
            look_now(rt)
            return any(look.get("absent") for look in happened(rt, job_id, "attempt.looked_for"))

        swept(worker, is_absent)
        failed.clear()
        swept(worker, lambda: look_now(rt) or len(failed) >= 3)  # type: ignore[func-returns-value]
        worker.stop()

    assert [attempt.outcome for attempt in attempts(rt, job_id)] == ["absent", "lost"]
    assert row(rt, job_id).held_at is None
