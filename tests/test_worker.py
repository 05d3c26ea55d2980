"""Worker processes: how they begin, end in order, or die, and that no job and no charge hangs on which."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from pipeline.embedded import postgres as embedded_postgres
from pipeline.embedded.procfile import PROCFILE
from pipeline.errors import ConfigError
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.settings import load
from pipeline.store import schema, services
from pipeline.store.database import Database
from pipeline.worker import Worker
from tests.conftest import Caller
from tests.factories import account, attempts, execute, happened, kinds, queued, scalar, state, swept, until
from tests.test_submit import all_are, many, once_each, states, suspect
from tests.test_wavespeed import closed_port

StartWorker = Callable[..., Worker]
MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def env(environ: dict[str, str]) -> dict[str, str]:
    """Give the environment of a child process."""
    return {**os.environ, **environ}


@contextmanager
def running(env: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command line as a process of its own."""
    argv = [sys.executable, "-m", "pipeline", *arguments]
    with subprocess.Popen(argv, env=env, cwd=PROCFILE.parent) as process:
        try:
            yield process
        finally:
            process.kill()


# Without a broker


def test_a_single_sweep_does_the_work_and_waits_for_what_it_began(
    make_rt: MakeRuntime, env: dict[str, str], caller: Caller, sandbox: Sandbox
) -> None:
    """For a cron line in place of beat, broker and workers: submit in one run, fetch in a later one."""
    del env["PUBLIC_URL"]
    rt = make_rt(public_url=None)
    sandbox.faults(latency_s=0.5)
    jobs = many(rt, caller, 3)

    with running(env, "sweep") as process:
        assert process.wait(60) == 0
    assert states(rt, jobs) == {State.PROCESSING: 3}

    execute(rt, "UPDATE jobs SET due_at = clock_timestamp()")
    with running(env, "sweep") as process:
        assert process.wait(60) == 0

    assert states(rt, jobs) == {State.COMPLETED: 3}
    assert once_each(sandbox, 3)
    assert scalar(rt, "SELECT count(*) FROM workers") == 0


def test_a_process_that_is_killed_costs_nobody_a_job_or_a_second_charge(
    rt: Runtime, web: str, env: dict[str, str], caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """SIGKILL in the middle of paid POSTs: what it paid for is found, and what it did not is paid for once."""
    sandbox.faults(latency_s=30, webhook_drop=1)
    jobs = many(rt, caller, 5)
    with running(env, "sweep", "--loop") as process:
        until(lambda: len(sandbox.ledger()) == 5)
        process.kill()
    assert states(rt, jobs) == {State.SUBMITTING: 5}

    sandbox.faults(latency_s=0, webhook_drop=0)
    until(lambda: sandbox.arrivals()["running"] == 0)  # or they would be found running, and wait for a poll
    jobs += many(rt, caller, 1, "later")
    assert len(suspect(rt)) == 5
    assert states(rt, jobs)[State.UNKNOWN] == 5
    worker = start_worker()
    swept(worker, all_are(rt, jobs, State.COMPLETED))

    assert once_each(sandbox, 6)
    assert {len(attempts(rt, job_id)) for job_id in jobs} == {1}


def test_a_process_that_comes_back_from_a_long_pause_pays_for_nothing_and_moves_no_job_of_anothers(
    rt: Runtime, web: str, env: dict[str, str], caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Taken for dead, it is not: its answers are late news of its own attempts, whatever became of the jobs."""
    sandbox.faults(latency_s=3, webhook_drop=1)
    jobs = many(rt, caller, 5)
    with running(env, "sweep", "--loop") as process:
        until(lambda: len(sandbox.ledger()) == 5)
        process.send_signal(signal.SIGSTOP)
        sandbox.faults(latency_s=0, webhook_drop=0)
        until(lambda: sandbox.arrivals()["running"] == 0)
        assert len(suspect(rt)) == 5
        swept(start_worker(), all_are(rt, jobs, State.COMPLETED))
        until(lambda: all("output.stored" in kinds(rt, job_id) for job_id in jobs))
        before = {job_id: kinds(rt, job_id) for job_id in jobs}

        process.send_signal(signal.SIGCONT)
        jobs += many(rt, caller, 3, "later")
        until(all_are(rt, jobs, State.COMPLETED))
        process.terminate()
        assert process.wait(60) == 0

    assert {job_id: kinds(rt, job_id) for job_id in before} == before
    assert once_each(sandbox, 8)
    assert {len(attempts(rt, job_id)) for job_id in jobs} == {1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_asked_to_stop_waits_for_its_answers(
    rt: Runtime, env: dict[str, str], caller: Caller, sandbox: Sandbox, number: int
) -> None:
    """A deployment in the middle of paid POSTs leaves nothing to be looked for."""
    sandbox.faults(latency_s=1.0, generation_s=60)
    jobs = many(rt, caller, 5)
    with running(env, "sweep", "--loop") as process:
        until(lambda: len(sandbox.ledger()) == 5)
        process.send_signal(number)
        assert process.wait(60) == 0

    assert states(rt, jobs) == {State.PROCESSING: 5}
    assert scalar(rt, "SELECT count(*) FROM workers") == 0


# Stopping


def test_a_worker_that_stops_posts_nothing_more(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Whatever still reaches it on its way out, a nudge, a sweep or a beat, is left to others."""
    sandbox.faults(latency_s=1.0, generation_s=60)
    jobs = many(rt, caller, 3)
    worker = start_worker()
    until(lambda: len(sandbox.ledger()) == 3)

    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    until(lambda: worker._stopped)
    later = queued(rt, caller.service, "later")
    worker.wake("submit")
    worker.sweep()
    stopping.join()
    worker.wake("submit")
    worker.sweep()

    assert states(rt, jobs) == {State.PROCESSING: 3}
    assert state(rt, later) == State.QUEUED
    assert sandbox.arrivals()["count"] == 3


def test_answers_that_do_not_come_in_time_leave_their_jobs_unknown_at_once(
    rt: Runtime, web: str, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """The platform kills soon: better said now than found out by a sweep."""
    sandbox.faults(latency_s=30, webhook_drop=1)
    jobs = many(rt, caller, 6)
    worker = start_worker()
    until(lambda: len(sandbox.ledger()) == 6)

    worker.stop(0.1)

    assert states(rt, jobs) == {State.UNKNOWN: 6}
    assert {attempts(rt, job_id)[0].error for job_id in jobs} == {"the process was stopped before the answer came"}
    assert scalar(rt, "SELECT count(*) FROM workers") == 0
    assert account(rt).recent == ""  # that a process stopped says nothing of the provider

    sandbox.faults(latency_s=0)
    swept(start_worker(), all_are(rt, jobs, State.COMPLETED))
    assert once_each(sandbox, 6)


def test_stopping_twice_is_stopping_once(
    rt: Runtime, caller: Caller, sandbox: Sandbox, start_worker: StartWorker
) -> None:
    """Celery announces its end more than once, from more than one thread: whoever asks returns when it is done."""
    sandbox.faults(latency_s=0.5, generation_s=60)
    job_id = queued(rt, caller.service)
    worker = start_worker()
    until(sandbox.ledger)
    seen: list[str] = []

    def stop() -> None:
        worker.stop()
        seen.append(state(rt, job_id))

    threads = [threading.Thread(target=stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.stop()

    assert seen == [State.PROCESSING] * 3


def test_a_worker_without_a_key_says_so_before_it_begins(make_rt: MakeRuntime) -> None:
    """Not at its first job."""
    with pytest.raises(ConfigError, match="WAVESPEED_API_KEY"):
        Worker(make_rt(wavespeed_api_key=None))


# Heartbeats


def test_a_worker_that_lives_says_so_and_leaves_when_it_stops(rt: Runtime, start_worker: StartWorker) -> None:
    """Its row is what tells a slow POST from one that nobody waits for any more."""
    worker = start_worker()
    beats = "SELECT beat_at > started_at FROM workers WHERE id = :id AND pid = :pid"
    until(lambda: scalar(rt, beats, id=worker.id, pid=os.getpid()))
    worker.stop()

    assert scalar(rt, "SELECT count(*) FROM workers") == 0


@pytest.mark.parametrize("ago", [None, "1 minute"], ids=["nobody ever swept", "nobody for a minute"])
def test_the_heartbeat_sweeps_when_nobody_else_does(
    rt: Runtime, caller: Caller, start_worker: StartWorker, ago: str | None
) -> None:
    """Beat is away, or was never started: jobs are a little slower then, and nothing else."""
    execute(rt, "UPDATE account SET swept_at = clock_timestamp() - CAST(:ago AS interval)", ago=ago)
    job_id = queued(rt, caller.service)
    execute(rt, "UPDATE jobs SET deadline_at = clock_timestamp()")  # only a sweep expires it
    start_worker()

    until(lambda: state(rt, job_id) == State.EXPIRED)

    assert account(rt).swept_at


def test_the_heartbeat_leaves_the_sweep_to_beat(rt: Runtime, start_worker: StartWorker) -> None:
    """A hundred workers need not all sweep."""
    execute(rt, "UPDATE account SET swept_at = clock_timestamp() - interval '3 seconds'")
    before = account(rt).swept_at
    first = start_worker()
    until(lambda: scalar(rt, "SELECT beat_at > started_at FROM workers"))  # it has beaten twice
    first.stop()

    assert account(rt).swept_at == before


def test_that_beat_is_heard_is_told_with_the_heartbeat(rt: Runtime, start_worker: StartWorker) -> None:
    """Without it workers sweep by themselves, so nobody would notice."""
    worker = start_worker()
    worker.hear_beat()
    until(lambda: scalar(rt, "SELECT told_at FROM workers"))
    before = scalar(rt, "SELECT beat_at FROM workers")
    until(lambda: scalar(rt, "SELECT beat_at FROM workers") > before)

    assert scalar(rt, "SELECT told_at < beat_at FROM workers"), "it is the time when it was heard, and not now"


# The database is away


@contextmanager
def own_database(environ: dict[str, str]) -> Iterator[tuple[Any, Runtime, Caller]]:
    """A server of this test's own, to be stopped and started; the runtime on it, and a caller."""
    with embedded_postgres.running() as server:
        settings = load({**environ, "DATABASE_URL": server.url, "PUBLIC_URL": "", "POLL_AFTER_S": "0.2"})
        schema.upgrade(settings.database_url)
        db = Database(settings.database_url, name="tests")
        rt = Runtime(settings, db)
        with db.transaction() as tx:
            key = services.create(tx, "shop")
            service = services.by_name(tx, "shop")
        assert key
        assert service
        try:
            yield server, rt, Caller(service, key)
        finally:
            db.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_its_database_can_be_stopped(environ: dict[str, str], number: int) -> None:
    """It may wait for hours; a platform that gets no end out of it kills it."""
    with closed_port() as port:
        url = f"postgresql://u@127.0.0.1:{port}/d"
        argv = [sys.executable, "-m", "pipeline", "sweep", "--loop"]
        env = {**os.environ, **environ, "DATABASE_URL": url}
        with subprocess.Popen(argv, env=env, cwd=PROCFILE.parent, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr
                assert any("worker.waiting" in line for line in process.stderr)
                process.send_signal(number)
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()

    assert process.returncode == 0
    assert "Traceback" not in said


def test_a_worker_outlives_its_database(environ: dict[str, str], sandbox: Sandbox) -> None:
    """Started before it, it begins by itself; restarted under it in the middle of a POST, no answer is lost."""
    with own_database(environ) as (server, rt, caller):
        job_id: UUID = queued(rt, caller.service)
        server.stop()
        product = replace(rt, db=Database(rt.settings.database_url, name="worker"))
        worker = Worker(product)
        starting = threading.Thread(target=worker.start)
        starting.start()
        assert starting.is_alive()
        server.start()
        starting.join(60)
        rt.db.close()  # this test's own connections are of the former server
        swept(worker, lambda: state(rt, job_id) == State.COMPLETED)

        sandbox.faults(latency_s=1.0, generation_s=60)
        second = queued(rt, caller.service, "second")
        worker.wake("submit")
        until(lambda: len(sandbox.ledger()) == 2)
        server.restart()
        rt.db.close()
        swept(worker, lambda: state(rt, second) == State.PROCESSING)
        worker.stop()
        product.db.close()

        assert [attempt.outcome for attempt in attempts(rt, second)] == ["accepted"]
        assert happened(rt, second, "job.unknown") == []
    assert once_each(sandbox, 2)
