"""SIGTERM to every process at once, as platforms send it: what was begun is ended, and whatever is away, all leave."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from celery import Celery
from sqlalchemy import text

from pipeline.broker import QUEUE
from pipeline.embedded import procfile
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, Server
from pipeline.errors import Unavailable
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from tests.conftest import Caller
from tests.factories import happened, queued, scalar, state, until
from tests.http import get, post
from tests.test_submit import many, once_each, states
from tests.test_worker import own_database

pytestmark = pytest.mark.xdist_group("stopping")

POOLS = {"threads": "--pool threads", "prefork": "--pool prefork --concurrency 2"}
POOL_KINDS = ["threads", pytest.param("prefork", marks=pytest.mark.slow)]
LEAVES_S = 25.0
ALIVE = "SELECT count(*) FROM workers"
LOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


class Worker:
    """The Procfile's worker line as processes."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def children(self) -> list[psutil.Process]:
        """Its pool's processes."""
        return [one for one in self.process.look() if one.pid != self.process.pid]

    def sigterm(self) -> None:
        """Ask each process to stop."""
        for one in self.process.look():
            with contextlib.suppress(psutil.NoSuchProcess):  # it was about to leave
                one.send_signal(signal.SIGTERM)

    def leaves(self) -> int | None:
        """Its exit status; None when not all of it goes by itself before a platform would kill it."""
        end = time.monotonic() + LEAVES_S
        # The first thread of a process may be gone a moment before the others: then it cannot be waited for yet.
        while (self.process.poll() is None or self.process.look()) and time.monotonic() < end:
            time.sleep(0.05)
        return None if self.process.look() else self.process.poll()


@contextmanager
def running(line: str, env: dict[str, str], folder: Path, options: str = "") -> Iterator[Worker]:
    """Run a line of the Procfile; nothing of it is left."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    program = Program(
        name=line,
        argv=procfile.shell(f"{procfile.read()[line]} {options}"),
        log=folder / f"{line}.log",
        cwd=procfile.PROCFILE.parent,
        env={**os.environ, **env, "PATH": path},
    )
    process = Process(program)
    try:
        yield Worker(process)
    finally:
        process.end()


@pytest.fixture
def env(environ: dict[str, str], valkey: Server) -> dict[str, str]:
    """Give the environment of the product, with an empty broker."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return {**environ, "BROKER_URL": valkey.url}


@pytest.fixture
def send(env: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Give another app on the broker: `send("pipeline.enqueue", service="shop", …)`."""
    app = Celery("shop", broker=env["BROKER_URL"], set_as_current=False)
    yield lambda name, **kwargs: app.send_task(name, kwargs=kwargs, queue=QUEUE)
    app.close()


@pytest.fixture
def own_port() -> Iterator[int]:
    """Choose a port that no other web server of these tests shares: two of granian's may listen on one."""
    held = hold(None)
    yield held.number
    held.close()


@contextmanager
def locked(rt: Runtime) -> Iterator[None]:
    """Hold every statement that looks at jobs back."""
    with rt.db.engine.begin() as connection:
        connection.execute(text("LOCK TABLE pipeline.jobs IN ACCESS EXCLUSIVE MODE"))
        yield


@pytest.mark.parametrize(
    "remapped",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"REMAP_SIGTERM": "SIGQUIT"}, id="remapped", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", POOL_KINDS)
def test_a_second_sigterm_cuts_no_answer_off(
    kind: str,
    remapped: dict[str, str],
    rt: Runtime,
    env: dict[str, str],
    caller: Caller,
    sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    """A platform may ask twice, a shell passes on what the kernel has sent already, and Celery is told of neither."""
    sandbox.faults(latency_s=2, generation_s=60)
    jobs = many(rt, caller, 8)
    env |= remapped
    with running("worker", env, tmp_path, POOLS[kind]) as worker:
        until(lambda: len(sandbox.ledger()) == 8, 60.0)
        worker.sigterm()
        time.sleep(0.5)
        worker.sigterm()
        assert worker.leaves() == 0

    assert states(rt, jobs) == {State.PROCESSING: 8}
    assert [happened(rt, job_id, "job.unknown") for job_id in jobs] == [[]] * 8
    assert scalar(rt, ALIVE) == 0
    assert once_each(sandbox, 8)


@pytest.mark.parametrize("kind", POOL_KINDS)
def test_a_message_in_the_middle_of_its_task_is_not_lost(
    kind: str, rt: Runtime, env: dict[str, str], caller: Caller, send: Callable[..., Any], tmp_path: Path
) -> None:
    """It is acknowledged once its row is committed: a task that was cut off goes back to the queue."""
    with running("worker", env, tmp_path, POOLS[kind]) as worker:
        until(lambda: scalar(rt, ALIVE) == (2 if kind == "prefork" else 1), 60.0)
        with locked(rt):
            send("pipeline.enqueue", service="shop", input={"prompt": "in the middle"})
            until(lambda: scalar(rt, f"{LOCKED} AND query ILIKE '%INSERT%'"))
            worker.sigterm()
            time.sleep(0.5)
        assert worker.leaves() == 0
    with running("worker", env, tmp_path, POOLS[kind]):
        job_id = until(lambda: scalar(rt, "SELECT id FROM jobs"), 60.0)
        until(lambda: state(rt, job_id) not in {State.QUEUED, State.SUBMITTING})


def test_a_message_whose_process_is_killed_goes_to_another(
    rt: Runtime, env: dict[str, str], caller: Caller, send: Callable[..., Any], tmp_path: Path
) -> None:
    """Memory runs out in one pool process: what it had taken was not acknowledged."""
    with running("worker", env, tmp_path, POOLS["prefork"]) as worker:
        until(lambda: scalar(rt, ALIVE) == 2, 60.0)
        with locked(rt):
            send("pipeline.enqueue", service="shop", input={"prompt": "in the middle"})
            until(lambda: scalar(rt, f"{LOCKED} AND query ILIKE '%INSERT%'"))
            for child in worker.children:
                child.kill()
        until(lambda: scalar(rt, "SELECT count(*) FROM jobs") == 1, 90.0)


@pytest.mark.slow  # of the pool that the Procfile does not choose
def test_a_pool_process_asked_alone_ends_its_posts_and_is_replaced(
    rt: Runtime, env: dict[str, str], caller: Caller, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Its answers come home, and the next job finds a process again."""
    sandbox.faults(latency_s=2, generation_s=60)
    jobs = many(rt, caller, 8)
    with running("worker", env, tmp_path, "--pool prefork --concurrency 1") as worker:
        until(lambda: len(sandbox.ledger()) == 8, 60.0)
        (child,) = worker.children
        child.send_signal(signal.SIGTERM)
        until(lambda: not child.is_running())
        assert states(rt, jobs) == {State.PROCESSING: 8}
        later = queued(rt, caller.service, "later")
        until(lambda: len(sandbox.ledger()) == 9, 60.0)
        worker.sigterm()
        assert worker.leaves() == 0
    assert states(rt, [*jobs, later]) == {State.PROCESSING: 9}


@pytest.mark.parametrize("kind", POOL_KINDS)
def test_all_leave_while_the_database_is_away(
    kind: str, environ: dict[str, str], env: dict[str, str], sandbox: Sandbox, send: Callable[..., Any], tmp_path: Path
) -> None:
    """Messages wait for it inside tasks, and the process for its first heartbeat: neither may hold it."""
    with own_database(environ) as (server, _, _):
        server.stop()
        with running("worker", {**env, "DATABASE_URL": server.url}, tmp_path, POOLS[kind]) as worker:
            for _ in range(8):
                send("pipeline.sweep")
                send("pipeline.enqueue", service="shop", input={"prompt": "patient"})
            until(lambda: "worker.waiting" in (tmp_path / "worker.log").read_text(), 60.0)
            with redis.Redis.from_url(env["BROKER_URL"]) as client:
                until(lambda: client.hlen("unacked"), 60.0)
            worker.sigterm()
            assert worker.leaves() == 0


@pytest.mark.slow
def test_posts_whose_answers_find_no_database_at_the_end_are_found_again(
    environ: dict[str, str], env: dict[str, str], sandbox: Sandbox, tmp_path: Path
) -> None:
    """A deployment in the middle of an outage: the process leaves in time, and nothing is paid for twice."""
    sandbox.faults(latency_s=2, generation_s=0.1, webhook_drop=1)
    with own_database(environ) as (server, rt, caller):
        env |= {"DATABASE_URL": server.url, "UNKNOWN_PATIENCE_S": "600"}
        jobs = many(rt, caller, 8)
        with running("worker", env, tmp_path, POOLS["threads"]) as worker:
            until(lambda: len(sandbox.ledger()) == 8, 60.0)
            server.stop()
            worker.sigterm()
            assert worker.leaves() == 0
        assert "worker.left_silently" in (tmp_path / "worker.log").read_text()

        server.start()
        sandbox.faults(latency_s=0)
        with contextlib.suppress(Unavailable):
            states(rt, jobs)  # on a connection of before
        with running("worker", env, tmp_path, POOLS["threads"]):
            until(lambda: states(rt, jobs) == {State.COMPLETED: 8}, 60.0)
        assert once_each(sandbox, 8)


@pytest.mark.parametrize("kind", POOL_KINDS)
def test_a_process_may_be_stopped_while_it_starts(
    kind: str, rt: Runtime, env: dict[str, str], caller: Caller, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Whatever it has begun by then it ends, and what it has not, others begin."""
    sandbox.faults(latency_s=1, generation_s=60)
    jobs = many(rt, caller, 8)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(running("worker", env, tmp_path, POOLS[kind])) for _ in range(4)]
        for worker in workers:
            time.sleep(0.5)
            worker.sigterm()
        assert None not in [worker.leaves() for worker in workers]
    assert set(states(rt, jobs)) <= {State.QUEUED, State.PROCESSING}
    assert len(sandbox.ledger()) == states(rt, jobs)[State.PROCESSING]


def test_requests_under_way_are_answered_before_the_web_server_leaves(
    rt: Runtime, env: dict[str, str], caller: Caller, tmp_path: Path, own_port: int
) -> None:
    """Each was accepted: a caller who hears nothing would hand it in again."""
    url = f"http://127.0.0.1:{own_port}"
    answers: list[int] = []

    def ask(number: int) -> None:
        answers.append(post(f"{url}/v1/jobs", {"input": {"prompt": f"{number}"}}, key=caller.key).status)

    with running("web", {**env, "PORT": str(own_port)}, tmp_path) as server:
        until(lambda: post(f"{url}/v1/jobs", {"input": {"prompt": "first"}}, key=caller.key).status == 201)
        callers = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        with locked(rt):
            for one in callers:
                one.start()
            until(lambda: scalar(rt, LOCKED) >= 5)
            server.sigterm()
            time.sleep(0.5)
            server.sigterm()
        for one in callers:
            one.join()
        assert server.leaves() is not None
    assert set(answers) <= {201, 503}, "a caller heard nothing, or something odd"
    assert scalar(rt, "SELECT count(*) FROM jobs") == 1 + answers.count(201)
    assert len(answers) == 5


def test_those_who_wait_for_jobs_do_not_hold_the_web_server_up(
    rt: Runtime, env: dict[str, str], caller: Caller, tmp_path: Path, own_port: int
) -> None:
    """Waits are answered with the job as it is, and streams end as if done: their callers come back to another."""
    url = f"http://127.0.0.1:{own_port}"
    path = f"/v1/jobs/{queued(rt, caller.service)}"

    def ask(path: str) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", own_port, timeout=LEAVES_S)
        connection.request("GET", path, headers={"Authorization": f"Bearer {caller.key}", "Prefer": "wait=25"})
        return connection

    with running("web", {**env, "PORT": str(own_port)}, tmp_path) as server:
        until(lambda: get(f"{url}/healthz").status == 200)
        waits = [ask(path) for _ in range(5)]
        streams = [ask(f"{path}/events").getresponse() for _ in range(5)]
        for stream in streams:
            assert any(line.startswith(b"event: job.queued") for line in stream)
        server.sigterm()
        answers = [wait.getresponse() for wait in waits]
        assert [(answer.status, json.load(answer)["state"]) for answer in answers] == [(200, "queued")] * 5
        assert [b"event: " in stream.read() for stream in streams] == [False] * 5
        server.sigterm()
        assert server.leaves() is not None
    assert "refused to gracefully stop" not in (tmp_path / "web.log").read_text()
