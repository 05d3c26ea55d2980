"""
What it costs to remove old jobs, and what those notice of it who hand in, claim and hear of new ones meanwhile.

    python -m benchmarks.studies.prune                         200,000 jobs with all that hangs on them: about 4 minutes
    python -m benchmarks.studies.prune --jobs 1000000 --phase-s 60

First one batch is explained: a table of those that grow must not be read whole. Then the same load runs all the time,
as fast as the machine can, by the statements of the product; in every other phase a worker's pruner runs beside it.
"""

import argparse
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import psycopg

from benchmarks import filled
from benchmarks.life import Life, timed
from pipeline.lifecycle import prune
from pipeline.retention import DAY_S, ENDED
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import pruning as store
from pipeline.store import retention, services
from pipeline.store.database import Database
from pipeline.store.retention import ALL, Age

GROWING = ("jobs", "attempts", "events", "callbacks", "notifications", "deliveries", "assets", "labels")
OLD_DAYS = 90
"""Half of what the database is filled with (`filled`) is older."""


@dataclass
class Phase:
    """What was done in one kind of phase."""

    jobs: int = 0
    seconds: float = 0.0
    pruned: int = 0
    callback_ms: list[float] = field(default_factory=list)
    claim_ms: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)


def main() -> None:
    """Fill a database, explain, load and prune, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--phase-s", type=float, default=15.0)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        url = filled.database(stack.enter_context(filled.server(durable=False)), arguments.jobs)
        settings = load({"DATABASE_URL": url, "ARCHIVE_URL": "off"})
        database = Database(settings.database_url, name="benchmark", pool_size=8)
        stack.callback(database.close)
        rt = Runtime(settings, database)
        with database.transaction() as tx:
            for kind in ENDED:
                retention.keep(tx, Age(ALL, kind, OLD_DAYS * DAY_S, files=False))
        explain(rt)
        phases = {False: Phase(), True: Phase()}
        with Load(rt) as load_:
            time.sleep(3.0)
            for pruning in (False, True) * arguments.times:
                run(rt, load_, phases[pruning], arguments.phase_s, pruning=pruning)
        report(phases)


def explain(rt: Runtime) -> None:
    """Remove a batch, and say how its statements read the tables that grow; those of triggers and foreign keys too."""
    seen: list[str] = []
    with rt.db.transaction() as tx:
        driver = tx.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        tx.exec_driver_sql("LOAD 'auto_explain'")
        tx.exec_driver_sql(
            "SET LOCAL auto_explain.log_min_duration = 0; SET LOCAL auto_explain.log_nested_statements = on;"
            " SET LOCAL auto_explain.log_level = notice"
        )
        driver.add_notice_handler(lambda diagnostic: seen.append(diagnostic.message_primary or ""))
        rules = retention.rules(tx)
        began = time.perf_counter()
        gone = len(store.jobs(tx, rules)) + store.keys(tx, rules)
        took_ms = 1000 * (time.perf_counter() - began)
        tx.rollback()
    plans = [one for one in seen if "plan:" in one]
    read = {index for one in plans for index in re.findall(r"Index (?:Only )?Scan.* using (\w+)", one)}
    whole = {table for one in plans for table in re.findall(r"Seq Scan on (\w+)", one)} & {*GROWING, "idempotency_keys"}
    print(f"one batch: {gone} jobs and keys in {took_ms:.0f} ms, {len(plans)} statements (explained, rolled back)")
    print(f"  read by: {', '.join(sorted(read))}")
    print(f"  read whole: {', '.join(sorted(whole)) or 'none'}", flush=True)
    for plan in plans:
        if any(f"Seq Scan on {table}" in plan for table in whole):
            print(plan)


class Load:
    """New jobs, handed in, claimed, answered and called back about, one after the other, by two threads."""

    THREADS = 2
    AT_ONCE = 10

    def __init__(self, rt: Runtime) -> None:
        self._rt = rt
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(self.THREADS)]
        self._lock = threading.Lock()
        self.phase: Phase | None = None

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        with self._rt.db.transaction() as tx:
            service = services.by_name(tx, filled.SERVICES[number])
        assert service
        mine = Life(self._rt, [service.id])
        while not self._done.is_set():
            mine.hand_in(self.AT_ONCE)
            claim_ms: list[float] = []
            callback_ms: list[float] = []
            with timed(claim_ms):
                starts = mine.claim(self.AT_ONCE)
            mine.answer(starts)
            for _ in starts:
                with timed(callback_ms):
                    mine.hear()
            with self._lock:
                if phase := self.phase:
                    phase.jobs += len(starts)
                    phase.claim_ms += claim_ms
                    phase.callback_ms += callback_ms


@contextmanager
def counted(load_: Load, phase: Phase) -> Iterator[None]:
    """Count what the load does."""
    began = time.monotonic()
    load_.phase = phase
    yield
    load_.phase = None
    phase.seconds += time.monotonic() - began


def run(rt: Runtime, load_: Load, phase: Phase, phase_s: float, *, pruning: bool) -> None:
    """One phase of load, with a pruner as a worker has it, or without."""
    with counted(load_, phase):
        end = time.monotonic() + phase_s
        while time.monotonic() < end:
            if not pruning:
                time.sleep(0.1)
                continue
            began = time.monotonic()
            phase.pruned += prune.remove(rt).total()
            took_s = time.monotonic() - began
            phase.batch_ms.append(1000 * took_s)
            time.sleep(prune.REST * took_s)


def report(phases: dict[bool, Phase]) -> None:
    """Print both kinds beside one another."""
    print(
        f"{'':10} {'jobs/s':>8} {'claim p50':>10} {'p95':>6} {'callback p50':>13} {'p95':>6} {'most':>7} {'gone/s':>7}"
    )
    for pruning, phase in phases.items():
        claim, callback = statistics.quantiles(phase.claim_ms, n=20), statistics.quantiles(phase.callback_ms, n=20)
        name = "pruning" if pruning else "free"
        most, rate = max(phase.callback_ms), phase.pruned / phase.seconds
        print(
            f"{name:10} {phase.jobs / phase.seconds:8.1f} {claim[9]:10.1f} {claim[18]:6.1f}"
            f" {callback[9]:13.1f} {callback[18]:6.1f} {most:7.1f} {rate:7.1f}"
        )
    free, pruned = (phases[one].jobs / phases[one].seconds for one in (False, True))
    batch = statistics.quantiles(phases[True].batch_ms, n=20)
    print(f"jobs/s while pruning: {pruned / free:.2f} of those while not")
    print(f"one round of batches: p50 {batch[9]:.0f} ms, p95 {batch[18]:.0f} ms")


if __name__ == "__main__":
    main()
