"""
The same product on RabbitMQ (`make test-rabbitmq`): web, worker and beat as the Procfile has them, on Debian's server.

Left out of `make test`, which needs nothing but Python and the package index.
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from celery import Celery
from kombu.connection import Connection

from pipeline.broker import QUEUE
from pipeline.embedded import procfile
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, wait_until
from pipeline.jobs import State
from pipeline.lifecycle.examine import broker as examination
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from tests.conftest import Caller
from tests.factories import scalar, state, until
from tests.http import get, post
from tests.test_drill import assert_harmless, drill
from tests.test_stopping import POOLS, running
from tests.test_submit import many, states

pytestmark = [pytest.mark.rabbitmq, pytest.mark.xdist_group("rabbitmq")]

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's wrapper beside PATH wants an account of its own


class Broker:
    """A RabbitMQ node with its own port mapper and data, as children of ours."""

    def __init__(self, folder: Path) -> None:
        self._held = [hold(None) for _ in range(3)]
        port, distribution, mapper = (str(held.number) for held in self._held)
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"pipeline-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_DIST_PORT": distribution,
            "ERL_EPMD_PORT": mapper,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        self._folder = folder
        # In the foreground: the one RabbitMQ would start is a daemon, and would outlive us.
        self._mapper = self._process("epmd", "epmd", "-port", mapper, "-address", "127.0.0.1")
        self._node: Process | None = None

    def start(self) -> None:
        """Start the node, and wait until it takes connections."""
        self._node = self._process("rabbitmq", str(SERVER))
        assert wait_until(self._answers, 90.0), (self._folder / "rabbitmq.log").read_text()

    def stop(self) -> None:
        """Stop the node; its queues are kept."""
        if self._node:
            self._node.stop(30.0)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Let the node take connections, and say nothing."""
        assert self._node
        os.killpg(self._node.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._node.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop everything."""
        self.stop()
        self._mapper.stop(5.0)
        for held in self._held:
            held.close()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), Connection(self.url, connect_timeout=2) as connection:  # type: ignore[no-untyped-call]
            connection.connect()
            return True
        return False

    def _process(self, name: str, *argv: str) -> Process:
        log = self._folder / f"{name}.log"
        return Process(Program(name=name, argv=argv, log=log, cwd=self._folder, env=self._env))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Run RabbitMQ."""
    assert SERVER.exists(), "RabbitMQ is missing: apt-get install rabbitmq-server"
    assert shutil.which("epmd"), "Erlang's port mapper is missing: it comes with rabbitmq-server"
    broker = Broker(tmp_path_factory.mktemp("rabbitmq"))
    try:
        broker.start()
        yield broker
    finally:
        broker.close()


@pytest.fixture
def product(broker: Broker, environ: Mapping[str, str], rt: Runtime, tmp_path: Path) -> Iterator[dict[str, Process]]:
    """Run web, worker and beat on it."""
    env = {**os.environ, **environ, "BROKER_URL": broker.url, "PORT": environ["PUBLIC_URL"].rpartition(":")[2]}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    lines = procfile.read()
    started = {
        name: Process(
            Program(
                name=name,
                argv=procfile.shell(lines[name]),
                log=tmp_path / f"{name}.log",
                cwd=procfile.PROCFILE.parent,
                env=env,
            )
        )
        for name in ("web", "worker", "beat")
    }
    try:
        until(lambda: get(f"{environ['PUBLIC_URL']}/healthz").status == 200)
        yield started
    finally:
        for process in started.values():
            process.stop(30.0)


def test_jobs_go_through_and_survive_the_brokers_restart(
    product: dict[str, Process], broker: Broker, environ: Mapping[str, str], caller: Caller, sandbox: Sandbox
) -> None:
    """A broker that comes back finds its workers again; what was accepted meanwhile is done."""
    url = f"{environ['PUBLIC_URL']}/v1/jobs"

    def enqueue(count: int) -> list[str]:
        answers = [post(url, {"input": {"prompt": f"a lighthouse {n}"}}, key=caller.key) for n in range(count)]
        assert {answer.status for answer in answers} == {201}
        return [answer.json["id"] for answer in answers]

    def states(ids: list[str]) -> set[str]:
        return {get(f"{url}/{job_id}", key=caller.key).json["state"] for job_id in ids}

    ids = enqueue(20)
    until(lambda: states(ids) == {State.COMPLETED})
    broker.stop()
    ids += enqueue(20)
    broker.start()
    until(lambda: states(ids) == {State.COMPLETED}, 60.0)
    assert len(sandbox.ledger()) == 40


def test_another_app_on_the_broker_enqueues_by_name(
    product: dict[str, Process], broker: Broker, rt: Runtime, caller: Caller
) -> None:
    """Its queue is declared with the other app's defaults: ours must not quarrel with them."""
    theirs = Celery("shop", broker=broker.url, set_as_current=False)
    body = {"service": caller.service.name, "input": {"prompt": "a lighthouse"}}
    theirs.send_task("pipeline.enqueue", queue="pipeline", kwargs=body)

    job_id = until(lambda: scalar(rt, "SELECT id FROM pipeline.jobs"))
    until(lambda: state(rt, job_id) == State.COMPLETED)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_deployment_under_load_loses_nothing_and_pays_for_nothing_twice(pool: str, broker: Broker) -> None:
    """Messages of processes that leave go back to their queue, whatever the broker is."""
    assert_harmless(drill(pool, "--broker-url", broker.url))


def test_the_doctor_knows_it_and_does_not_wait_for_it(broker: Broker, make_rt: Callable[..., Runtime]) -> None:
    """Before the first worker has made the queue, with messages in it, and while it says nothing."""
    rt = make_rt(broker_url=broker.url)
    with Connection(broker.url) as connection:  # type: ignore[no-untyped-call]
        channel = connection.channel()
        channel.queue_delete(QUEUE)
        assert [finding.words for finding in examination.broker(rt)][1:] == ["0 messages wait in `pipeline`"]
        channel.queue_declare(QUEUE, durable=True, auto_delete=False)
        channel.basic_publish(channel.prepare_message("{}", content_encoding="utf-8"), routing_key=QUEUE)
        until(lambda: "1 messages" in [*examination.broker(rt)][-1].words)
        channel.queue_purge(QUEUE)
    with broker.silent():
        assert [finding.code for finding in examination.broker(rt)] == ["broker_unreachable"]


def catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has come so far that this signal does not simply end it."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("kind", POOLS)
def test_all_leave_while_the_broker_says_nothing(
    kind: str,
    broker: Broker,
    rt: Runtime,
    environ: dict[str, str],
    caller: Caller,
    sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    """It takes connections and answers none: Celery would wait for it for ever, after the answers have come."""
    sandbox.faults(latency_s=3, generation_s=60)
    jobs = many(rt, caller, 8)
    env = {**environ, "BROKER_URL": broker.url}
    with running("worker", env, tmp_path, POOLS[kind]) as worker, running("beat", env, tmp_path) as beat:
        until(lambda: len(sandbox.ledger()) == 8, 60.0)
        until(lambda: catches(beat.process.pid, signal.SIGTERM), 60.0)
        with broker.silent():
            worker.sigterm()
            beat.sigterm()
            assert (worker.leaves(), beat.leaves()) == (0, 0)
    assert states(rt, jobs) == {State.PROCESSING: 8}
