"""
How long each step takes for one job among few: due → the POST at the provider, callback → visible → its caller told.

The times are those of who saw them: the provider's ledger (POSTs) and log (callbacks), Postgres's commit timestamps
(when a state became visible to others), the receiver's own clock (notifications). All are on one machine. Jobs come one
by one over HTTP, at random (Poisson), so that now and then two meet. Outputs are not archived: callers would be told
after that.
"""

import itertools
import queue
import random
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg

from benchmarks import stacks
from benchmarks.harness import Case, Figures, Plan, Side
from pipeline.embedded import api
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox

RATES = {"1 job/s": (1.0, 30), "20 jobs/s": (20.0, 300), "80 jobs/s": (80.0, 800)}
"""Jobs a second, and how many."""

CALLERS = 16

_JOBS = """
    SELECT j.input ->> 'prompt', extract(epoch FROM j.created_at)::float8, j.prediction_id, n.id::text,
           extract(epoch FROM pg_xact_commit_timestamp(j.xmin))::float8
    FROM pipeline.jobs j JOIN pipeline.notifications n ON n.job_id = j.id
    WHERE j.state = 'completed' AND n.state = 'delivered' AND j.metadata ->> 'run' = %s
"""


class Ear:
    """Listens to the receiver, which keeps the newest only."""

    def __init__(self, running: RunningStack) -> None:
        self._url = f"{running.sandbox_url}/_sandbox/receiver"
        self.heard: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ear")

    def __enter__(self) -> "Ear":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Note what came since the last look."""
        _, said = api.call("GET", self._url)
        for one in said["heard"]:
            self.heard.setdefault(one["headers"]["webhook-id"], _seconds(one["at"]))

    def _listen(self) -> None:
        while not self._done.wait(1.0):
            self.look()


def _run(running: RunningStack, run: str, rate: float, jobs: int) -> Figures:
    with psycopg.connect(running.database_url, autocommit=True) as db, Ear(running) as ear:
        took = _sent(running, run, rate, jobs)
        end = time.monotonic() + 60
        while len(rows := db.execute(_JOBS, [run]).fetchall()) < jobs:
            assert time.monotonic() < end, "the jobs do not come to an end"
            time.sleep(0.5)
    provider = Sandbox(running.sandbox_url)
    posted = {one["prompt"]: _seconds(one["at"]) for one in provider.ledger()}
    called = {one["prediction_id"]: one["tries"][0]["at"] for one in provider.deliveries() if one["tries"]}
    return {
        **_quantiles("request → 201", took),
        **_quantiles("due → POST", [posted[prompt] - due for prompt, due, _, _, _ in rows]),
        **_quantiles("callback → visible", [visible - called[task] for _, _, task, _, visible in rows]),
        **_quantiles("visible → notified", [ear.heard[notice] - visible for _, _, _, notice, visible in rows]),
    }


def _sent(running: RunningStack, run: str, rate: float, jobs: int) -> list[float]:
    """Hand in so many jobs at that rate, each at its time whatever became of the one before; give what each took."""
    chance = random.Random(run)
    gaps = (chance.expovariate(rate) for _ in range(jobs))
    plan = queue.SimpleQueue[tuple[float, Mapping[str, Any]]]()
    told = {"callback_url": f"{running.sandbox_url}/_sandbox/receiver", "metadata": {"run": run}}
    began = time.monotonic() + 0.5
    for at, number in zip(itertools.accumulate(gaps), range(jobs), strict=True):
        plan.put((began + at, {"input": {"prompt": f"a lighthouse, {run}, {number}"}, **told}))
    took: list[float] = []

    def call() -> None:
        send = stacks.single(running)
        while not plan.empty():
            try:
                at, job = plan.get_nowait()
            except queue.Empty:
                return
            time.sleep(max(at - time.monotonic(), 0.0))
            send(job)
            took.append(time.monotonic() - at)

    callers = [threading.Thread(target=call) for _ in range(min(CALLERS, jobs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(took) == jobs, "a job was not accepted"
    return took


def _quantiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    points = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{name}, p50 ms": 1000 * points[49], f"{name}, p95 ms": 1000 * points[94]}


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """One stack for all: it is idle between the runs, as it would be at night."""
    with stacks.unlimited(archive=False) as running:
        numbers = itertools.count()
        _run(running, "warm up", 20.0, plan.pick(60, 8))

        def side(rate: float, jobs: int) -> Side:
            return lambda: _run(running, f"run {next(numbers)}", rate, jobs)

        yield {name: side(rate, jobs if not plan.smoke else 5) for name, (rate, jobs) in RATES.items()}


CASE = Case(
    "latency",
    "Jobs one by one: from due to the POST, from the callback to the state others see, from there to the caller told.",
    sides,
)
