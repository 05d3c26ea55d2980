"""
What a snapshot costs that somebody else holds: an idle REPEATABLE READ transaction, a long report, a replica's query.

While it is held, no dead row version can be removed: every update leaves one more to step over.

    python -m benchmarks.studies.snapshot                      held for a minute, twice: about 6 minutes
    python -m benchmarks.studies.snapshot --held-s 600 --free-s 120 --times 1      the ten-minute form: about 15 minutes

The same backlog is worked off all the time, as fast as the machine can; only the snapshot comes and goes.
Before, between and after, nobody holds one: the mean of these is what the held ones are compared with. Beside the rate
stands what a job costs in CPU time, of all processes together: that does not hang on what else the machine does.
"""

import argparse
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import psycopg

from benchmarks.life import snapshot
from pipeline.embedded import stack
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox
from pipeline.settings import load
from pipeline.store import intake, services
from pipeline.store.database import Database

BACKLOG = 1000
LIMITS = {"SUBMITS_PER_MINUTE": "1000000", "MAX_IN_FLIGHT": "5000"}  # the machine shall be the limit
QUEUED = "SELECT count(*) FROM jobs WHERE state = 'queued' AND due_at >= (SELECT queued_from FROM account)"
"""From the low-water mark on: to count what is left of the dead would be this script's own cost, not the product's."""

WARM_UP_S = 15.0
NAMES = ("jobs", "seconds", "cpu_s")
SAMPLE_S = 30.0


@contextmanager
def backlog(running: RunningStack) -> Iterator[None]:
    """Keep so many jobs queued that workers never run out."""
    database = Database(load({"DATABASE_URL": running.database_url}).database_url, name="benchmark", pool_size=1)
    with database.transaction() as tx:
        services.create(tx, "benchmark")
        service = services.by_name(tx, "benchmark")
    assert service
    done = threading.Event()
    numbers = itertools.count()

    def fill() -> None:
        while not done.wait(0.25):
            with database.transaction() as tx:
                queued = tx.exec_driver_sql(QUEUED).scalar_one()
                prompts = [f"a lighthouse {next(numbers)}" for _ in range(BACKLOG - queued)]
                intake.add(
                    tx,
                    [
                        intake.NewJob(service.id, "openai/dall-e-2", {"prompt": prompt}, deadline_s=86_400.0)
                        for prompt in prompts
                    ],
                )

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        database.close()


def completed(watch: psycopg.Connection) -> int:
    """How many jobs have been completed so far."""
    row = watch.execute("SELECT count(*) FROM pipeline.jobs WHERE state = 'completed'").fetchone()
    assert row
    return int(row[0])


def dead(watch: psycopg.Connection) -> str:
    """How many dead versions the busiest tables hold, as far as Postgres has counted."""
    rows = watch.execute(
        "SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE relname IN ('jobs', 'attempts', 'account')"
        " ORDER BY relname"
    ).fetchall()
    return ", ".join(f"{name} {count}" for name, count in rows)


def cpu_s() -> float:
    """The CPU time of all processes of the stack so far, and of those of theirs that have ended."""
    total = 0.0
    for one in psutil.Process().children(recursive=True):
        try:
            total += sum(one.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


@dataclass(frozen=True)
class Pace:
    """What was done in a phase."""

    jobs: int
    seconds: float
    cpu_s: float


def measured(watch: psycopg.Connection, phase_s: float, *, held: bool) -> Pace:
    """Work for a phase, said sample by sample."""
    end = time.monotonic() + phase_s
    began, before, used = time.monotonic(), completed(watch), cpu_s()
    first, used_first = before, used
    while (left := end - time.monotonic()) > 0.5:
        sampled = time.monotonic()
        time.sleep(min(SAMPLE_S, left))
        now = completed(watch)
        rate = (now - before) / (time.monotonic() - sampled)
        using = cpu_s()
        cpu_ms = 1000 * (using - used) / max(1, now - before)
        before, used = now, using
        print(
            f"  {'held' if held else 'free'}  {rate:6.1f} jobs/s   {cpu_ms:5.2f} ms of CPU a job"
            f"   load {os.getloadavg()[0]:.1f}   dead: {dead(watch)}",
            flush=True,
        )
    return Pace(before - first, time.monotonic() - began, used - used_first)


def main() -> None:
    """Run phases without and with a held snapshot, in turn, and print what the snapshot cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--held-s", type=float, default=60.0)
    parser.add_argument("--free-s", type=float, default=60.0)
    parser.add_argument("--times", type=int, default=2)
    arguments = parser.parse_args()
    paces: dict[bool, list[Pace]] = {False: [], True: []}
    with stack.running(workers=arguments.workers, env=LIMITS) as running:
        provider = Sandbox(running.sandbox_url)
        provider.faults(generation_s=0.5)
        provider.set_balance(1e9)
        with backlog(running), psycopg.connect(running.database_url, autocommit=True) as watch:
            time.sleep(WARM_UP_S)
            for held in (False, *(True, False) * arguments.times):
                with snapshot(running.database_url, held=held):
                    seconds = arguments.held_s if held else arguments.free_s
                    paces[held].append(measured(watch, seconds, held=held))
    jobs, seconds, cpu = ({held: sum(getattr(one, name) for one in paces[held]) for held in paces} for name in NAMES)
    rate = {held: jobs[held] / seconds[held] for held in paces}
    each_ms = {held: 1000 * cpu[held] / jobs[held] for held in paces}
    print(f"free {rate[False]:.1f} jobs/s, held {rate[True]:.1f}: {100 * (1 - rate[True] / rate[False]):.1f} % less")
    print(
        f"free {each_ms[False]:.2f} ms of CPU a job, held {each_ms[True]:.2f}:"
        f" {100 * (each_ms[True] / each_ms[False] - 1):.1f} % more"
    )


if __name__ == "__main__":
    main()
