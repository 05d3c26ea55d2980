"""One run: a stack, callers and troubles side by side; then none of ours until all is settled; then the judgement."""

import contextlib
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from pipeline.embedded import stack
from pipeline.embedded.memory import Memory
from pipeline.embedded.ports import hold
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox
from tests.chaos import evidence, recovery, verdict
from tests.chaos import proxy as proxies
from tests.chaos.clients import Clients
from tests.chaos.evidence import Evidence
from tests.chaos.proxy import Proxy
from tests.chaos.recovery import Recovery
from tests.chaos.troubles import FAULTS, Kill, Troubles
from tests.chaos.verdict import Breaches

TOLD_EVERY_S = 10.0
LAST_NEWS_S = 3.0
"""How long after the last job's end a late callback or charge may still arrive."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run. Everything random comes from `seed`."""

    seconds: float = 600.0
    jobs: int = 10_000
    list_input: bool = True
    seed: str = "1"
    workers: int = 3
    settle_s: float = 300.0  # after the trouble: how long the jobs may take to come to their end
    env: Mapping[str, str] | None = None  # more settings of the product than `pipeline dev` chooses
    faults: Mapping[str, object] | None = None  # instead of the usual ones
    trouble: bool = True  # False: only the provider misbehaves


@dataclass(frozen=True)
class Result:
    """What came of it."""

    plan: Plan
    began: datetime
    machine: str
    evidence: Evidence
    breaches: Breaches
    recovery: Recovery
    troubles: Sequence[tuple[float, str]]  # when, and what
    kills: Sequence[Kill]
    answers: Counter[int]  # the callers', by HTTP status; 0 is none
    settled_s: float  # from the first order to the last job's end

    @property
    def clean(self) -> bool:
        """Whether every promise was kept. How fast the recovery was is judged apart."""
        return not any(self.breaches.values())


def run(plan: Plan, data: Path, say: Callable[[str], None]) -> Result:
    """
    Run *plan* on a new stack in *data*, whose database and logs are left there; *say* is told how it goes.

    Raises:
        StackError: The stack did not start, or something could not be hurt as meant.
    """
    began = datetime.now(UTC)
    with _stack(plan, data) as (running, proxy):
        provider = Sandbox(running.sandbox_url)
        seed = int.from_bytes(plan.seed.encode()[-7:])
        provider.faults(**(plan.faults or FAULTS), list_input=plan.list_input, seed=seed)
        provider.set_balance(float(plan.jobs))  # enough for every job, and no reason to halt
        clients = Clients(
            f"http://127.0.0.1:{proxy.ports['web']}",
            running.api_key,
            count=plan.jobs,
            seconds=plan.seconds,
            seed=plan.seed,
        )
        troubles = Troubles(running, proxy, seed=plan.seed)
        start = time.monotonic()
        progress = _Progress(running, clients, troubles, start, say)
        clients.start()
        try:
            with troubles.raging() if plan.trouble else contextlib.nullcontext():
                progress.until(lambda: time.monotonic() > start + plan.seconds, plan.seconds)
            say("the trouble is over; waiting for what is left")
            progress.until(lambda: not clients.busy and progress.settled(list_input=plan.list_input), plan.settle_s)
        finally:
            clients.stop()
        settled_s = time.monotonic() - start
        time.sleep(LAST_NEWS_S)
        machine = _machine(running)
        found = evidence.gather(running.database_url, provider, clients.orders)
    return Result(
        plan=plan,
        began=began,
        machine=machine,
        evidence=found,
        breaches=verdict.judge(found, list_input=plan.list_input),
        recovery=recovery.measure(found, troubles.kills),
        troubles=troubles.made,
        kills=troubles.kills,
        answers=clients.answers,
        settled_s=settled_s,
    )


@contextlib.contextmanager
def _stack(plan: Plan, data: Path) -> Iterator[tuple[RunningStack, Proxy]]:
    """A stack whose every connection goes through the proxy: to Postgres, broker and provider, and to the web."""
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    servers = {name: _free_port() for name in ("web", "sandbox", "postgres", "valkey")}
    Memory(ports=dict(servers)).keep(data)  # the proxy has to know the ports before the stack is there
    with proxies.running(servers) as proxy:
        via = {name: port for name, port in proxy.ports.items() if name != "web"}
        env = {"PUBLIC_URL": f"http://127.0.0.1:{proxy.ports['web']}", **(plan.env or {})}
        with stack.running(data=data, workers=plan.workers, via=via, env=env) as running:
            assert running.url.endswith(f":{servers['web']}"), "somebody else took a port meanwhile"
            assert f":{servers['postgres']}/" in running.database_url
            yield running, proxy


class _Progress:
    """Watches the run from outside, and says every few seconds how it goes."""

    def __init__(
        self,
        running: RunningStack,
        clients: Clients,
        troubles: Troubles,
        start: float,
        say: Callable[[str], None],
    ) -> None:
        self._running = running
        self._clients = clients
        self._troubles = troubles
        self._start = start
        self._say = say

    def until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Wait for *condition*, up to *timeout_s* seconds: what is missing then, the verdict will say."""
        end = time.monotonic() + timeout_s
        said = time.monotonic()
        while time.monotonic() < end and not condition():
            time.sleep(0.5)
            if time.monotonic() > said + TOLD_EVERY_S:
                said = time.monotonic()
                self._say(self._line())

    def settled(self, *, list_input: bool) -> bool:
        """Whether every job is final (or held, where that is allowed)."""
        left = self._living()
        if not list_input and left is not None:
            left = {state: count for state, count in left.items() if state != "held"}
        return left is not None and not left

    def _living(self) -> Mapping[str, int] | None:
        try:
            return evidence.living(self._running.database_url)
        except psycopg.OperationalError:
            return None

    def _line(self) -> str:
        left = self._living()
        states = "Postgres is away" if left is None else ", ".join(f"{n} {state}" for state, n in sorted(left.items()))
        accepted, kills = self._clients.accepted, len(self._troubles.kills)
        made = len(self._troubles.made)
        return (
            f"{time.monotonic() - self._start:5.0f} s: {accepted} accepted; {states or 'all settled'};"
            f" {made} troubles, {kills} kills"
        )


def _free_port() -> int:
    held = hold(None)
    held.close()
    return held.number


def _machine(running: RunningStack) -> str:
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    with psycopg.connect(running.database_url) as connection:
        postgres = connection.info.server_version // 10_000
    return f"{os.cpu_count()} × {model}, {platform.system()}, Python {platform.python_version()}, Postgres {postgres}"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
