"""Celery's door, with a real worker process, as the Procfile starts it, on a real broker."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from pipeline.broker import QUEUE, make_celery
from pipeline.embedded import procfile
from pipeline.embedded.processes import Process, Program, Server
from pipeline.jobs import State, Via
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import lists, refusals
from pipeline.store.lists import Wanted
from tests.conftest import Caller
from tests.factories import kinds, row, scalar, state, until
from tests.test_worker import own_database

SECRET = "what-a-customer-wrote"


class WorkerProcess:
    """The worker, its log, and another app on its broker."""

    def __init__(self, process: Process, log: Path, broker_url: str) -> None:
        self.process = process
        self._log = log
        self.url = broker_url
        self.broker = redis.Redis.from_url(broker_url)
        self.app = Celery("shop", broker=broker_url, set_as_current=False)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def send(self, task_id: str | None = None, **kwargs: Any) -> None:
        self.app.send_task("pipeline.enqueue", kwargs=kwargs, queue=QUEUE, task_id=task_id)

    def publish(self, body: str) -> None:
        """Send a message as no Celery would."""
        with self.app.connection_for_write() as connection:
            connection.Producer().publish(
                body,
                routing_key=QUEUE,
                content_type="application/json",
                content_encoding="utf-8",
                headers={"task": "pipeline.enqueue", "id": "by-hand"},
            )

    def idle(self) -> bool:
        """Whether every message was taken and acknowledged."""
        return not self.broker.exists(QUEUE, "unacked")


@contextmanager
def worker_process(env: dict[str, str], log: Path) -> Iterator[WorkerProcess]:
    """Run the Procfile's worker on an empty broker; it is stopped in order at the end."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    program = Program(
        name="worker",
        argv=procfile.shell(procfile.read()["worker"]),
        log=log,
        cwd=procfile.PROCFILE.parent,
        env={**os.environ, **env, "PATH": path},
    )
    with redis.Redis.from_url(env["BROKER_URL"]) as client:
        client.flushall()
    process = Process(program)
    running = WorkerProcess(process, log, env["BROKER_URL"])
    try:
        yield running
        assert process.stop(25.0)
    finally:
        process.end()
        running.broker.close()
        running.app.close()


@pytest.fixture
def worker(environ: dict[str, str], valkey: Server, rt: Runtime, web: str, tmp_path: Path) -> Iterator[WorkerProcess]:
    """Give a running worker process."""
    with worker_process({**environ, "BROKER_URL": valkey.url}, tmp_path / "worker.log") as running:
        yield running


def jobs(rt: Runtime) -> list[Any]:
    with rt.db.transaction() as tx:
        return list(lists.page(tx, Wanted(), limit=100).rows)


def test_a_message_from_another_app_becomes_a_finished_job(
    worker: WorkerProcess, rt: Runtime, caller: Caller, sandbox: Sandbox
) -> None:
    """By the task's name and three words of JSON: the other app imports nothing of ours."""
    worker.send(service="shop", input={"prompt": "a lighthouse"}, metadata={"order": "7"})

    (job,) = until(lambda: jobs(rt), 60.0)
    until(lambda: state(rt, job.id) == State.COMPLETED)

    assert row(rt, job.id).caller_data == {"order": "7"}
    assert row(rt, job.id).settled_by == Via.WEBHOOK
    assert len(sandbox.ledger()) == 1
    until(worker.idle)
    assert [key for key in worker.broker.scan_iter() if not bytes(key).startswith((b"_kombu", b"unacked"))] == []


def test_a_message_delivered_twice_is_one_job(
    worker: WorkerProcess, rt: Runtime, caller: Caller, sandbox: Sandbox
) -> None:
    """Brokers deliver at least once: the task's id is the key unless the sender has a better one."""
    for _ in range(3):
        worker.send(service="shop", input={"prompt": "one"}, task_id="the-same-message")
        worker.send(service="shop", input={"prompt": "two"}, idempotency_key="the-same-order")
    worker.send(service="shop", input={"prompt": "the last"})

    until(lambda: len(jobs(rt)) == 3 and {job.state for job in jobs(rt)} == {State.COMPLETED}, 60.0)

    until(worker.idle)
    assert sorted(job.input["prompt"] for job in jobs(rt)) == ["one", "the last", "two"]
    assert len(sandbox.ledger()) == 3
    assert scalar(rt, "SELECT count(*) FROM idempotency_keys WHERE key IN ('the-same-message', 'the-same-order')") == 2


BAD: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((), {"service": "shop"}),
    ((), {"service": "nobody", "input": {"prompt": SECRET}}),
    ((), {"service": ["shop"], "input": {"prompt": SECRET}}),
    ((), {"service": "sh\x00op", "input": {"prompt": SECRET}}),
    ((), {"service": "shop", "input": {"prompt": [SECRET]}}),
    ((), {"service": "shop", "input": {"prompt": SECRET, "bogus": SECRET}}),
    ((), {"service": "shop", "input": {"prompt": SECRET + "\x00"}}),
    ((), {"service": "shop", "input": {"prompt": SECRET}, "priority": SECRET}),
    ((), {"service": "shop", "input": {"prompt": SECRET}, "surprise": SECRET}),
    ((), {"service": "shop", "input": {"prompt": SECRET}, "idempotency_key": 5}),
    ((), {"service": "shop", "input": {"prompt": SECRET}, "idempotency_key": [SECRET]}),
    ((), {"service": "shop", "input": {"prompt": SECRET}, "idempotency_key": "\n" + SECRET}),
    ((), {"service": "shop", "input": SECRET}),
    (("shop", None, {"prompt": SECRET}), {}),
    ((), {"self": 1, "service": "shop", "input": {"prompt": SECRET}}),
]


MALFORMED = [
    f"not JSON, {SECRET}",
    f'"{SECRET}"',
    json.dumps({"prompt": SECRET}),
    json.dumps([[], [SECRET], {}]),
    json.dumps([SECRET, {"service": "shop"}, {}]),
    json.dumps([[], {"service": "shop"}, SECRET]),
    json.dumps([[], {"service": "shop", "input": {"prompt": SECRET}}]),
]


def test_bad_arguments_are_recorded_and_the_prompt_never_logged(
    worker: WorkerProcess, rt: Runtime, caller: Caller, sandbox: Sandbox
) -> None:
    """A message that can never be a job must not come back for ever, nor vanish, nor tell the log what was in it."""
    for args, kwargs in BAD:
        worker.app.send_task("pipeline.enqueue", args=args, kwargs=kwargs, queue=QUEUE)
    worker.send(service="shop", input={"prompt": "taken"}, idempotency_key="k")
    until(lambda: jobs(rt), 60.0)
    worker.send(service="shop", input={"prompt": SECRET}, idempotency_key="k")
    worker.app.send_task("pipeline.enqeue", kwargs={"service": "shop", "input": {"prompt": SECRET}}, queue=QUEUE)
    worker.app.send_task(
        "pipeline.enqueue", kwargs={"service": "shop", "input": {"prompt": SECRET}}, queue=QUEUE, serializer="pickle"
    )
    for body in MALFORMED:
        worker.publish(body)
    worker.send(service="shop", input={"prompt": "the last"})

    until(lambda: len(jobs(rt)) == 2 and {job.state for job in jobs(rt)} == {State.COMPLETED}, 60.0)

    until(worker.idle)
    assert sorted(job.input["prompt"] for job in jobs(rt)) == ["taken", "the last"]
    assert len(sandbox.ledger()) == 2
    assert SECRET not in worker.log
    told = until(lambda: (found := refused(rt)) and len(found) == len(BAD) + 3 + len(MALFORMED) and found)
    assert Counter(one.code for one in told) == {
        "unknown_service": 4,
        "invalid_input": 12,
        "idempotency_conflict": 1,
        "unknown_task": 1,
        "malformed_request": 1 + len(MALFORMED),
    }
    assert {str(one.id) in worker.log for one in told} == {True}, "an operator finds it by the log"
    assert sum(SECRET in str(one.request) for one in told) == len(BAD) + 1, "what was said is kept, where it is a call"


def refused(rt: Runtime) -> list[refusals.Refusal]:
    with rt.db.transaction() as tx:
        return refusals.newest(tx, at_most=100)


def test_two_apps_on_one_broker_keep_to_their_own(
    worker: WorkerProcess, rt: Runtime, caller: Caller, tmp_path: Path
) -> None:
    """A worker on Celery's default queue never sees our messages, nor ours theirs, unless somebody misaddresses one."""
    page = tmp_path / "theirs.py"
    page.write_text(
        "from celery import Celery\n"
        f"app = Celery('theirs', broker={worker.url!r}, backend={worker.url!r})\n"
        "@app.task(name='theirs.double')\n"
        "def double(number): return 2 * number\n"
    )
    argv = (
        sys.executable,
        "-m",
        "celery",
        "-A",
        "theirs",
        "worker",
        "-P",
        "solo",
        "--without-mingle",
        "-n",
        "theirs@%h",
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    theirs = Process(Program(name="theirs", argv=argv, log=tmp_path / "theirs.log", cwd=tmp_path, env=env))
    app = Celery("theirs", broker=worker.url, backend=worker.url, set_as_current=False)
    try:
        doubles = [app.send_task("theirs.double", args=[number]) for number in range(20)]
        for number in range(20):
            app.send_task(
                "pipeline.enqueue", queue="pipeline", kwargs={"service": "shop", "input": {"prompt": f"job {number}"}}
            )
        lost = app.send_task("pipeline.enqueue", kwargs={"service": "shop", "input": {"prompt": "to nobody"}})

        assert [one.get(timeout=60) for one in doubles] == [2 * number for number in range(20)]
        until(lambda: len(jobs(rt)) == 20 and {job.state for job in jobs(rt)} == {State.COMPLETED}, 60.0)
        with pytest.raises(Exception, match=r"pipeline\.enqueue"):  # without queue= it is the other app's to refuse
            lost.get(timeout=60)
    finally:
        theirs.stop(20.0)
        app.close()
    assert (refused(rt), len(jobs(rt))) == ([], 20)
    assert "theirs.double" not in worker.log


def test_waiting_and_results_are_left_to_postgres(valkey: Server) -> None:
    """No ETA, countdown, retry or result backend: what waits in a broker is lost with it, and nobody sees it."""
    app = make_celery(valkey.url)

    assert app.conf.result_backend is None
    assert app.conf.task_ignore_result is True
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"
    assert app.conf.task_default_queue == QUEUE
    assert app.conf.task_acks_late is True
    (beat,) = app.conf.beat_schedule.values()
    assert (beat["task"], beat["schedule"]) == ("pipeline.sweep", 5.0)
    assert beat["options"]["expires"] == 5.0
    assert beat["options"]["queue"] == QUEUE
    code = "".join(page.read_text() for page in (procfile.PROCFILE.parent / "pipeline").rglob("*.py"))
    for word in ("apply_async(", "eta=", "countdown=", "self.retry(", "AsyncResult"):
        assert word not in code


def test_a_real_message_can_be_read_by_anybody(worker: WorkerProcess, rt: Runtime, caller: Caller) -> None:
    """Nothing but JSON goes over the broker, in either direction."""
    worker.publish(json.dumps([[], {"service": "shop", "input": {"prompt": "by hand"}}, {}]))

    (found,) = until(lambda: jobs(rt), 60.0)
    until(lambda: state(rt, found.id) == State.COMPLETED)

    assert "job.completed" in kinds(rt, found.id)


def test_a_message_that_meets_no_database_waits_for_it(
    environ: dict[str, str], valkey: Server, sandbox: Sandbox, tmp_path: Path
) -> None:
    """It was not acknowledged, so it is not lost; and it is one job, however often it came and went."""
    with own_database(environ) as (server, rt, _):
        env = {**environ, "BROKER_URL": valkey.url, "DATABASE_URL": server.url}
        with worker_process(env, tmp_path / "worker.log") as worker:
            until(lambda: scalar(rt, "SELECT count(*) FROM workers") == 1, 60.0)
            server.stop()
            worker.send(service="shop", input={"prompt": "patient"})
            until(lambda: not worker.broker.exists(QUEUE))  # a worker has it
            server.start()
            rt.db.close()
            until(lambda: jobs(rt), 60.0)
            until(worker.idle)

        assert len(jobs(rt)) == 1
