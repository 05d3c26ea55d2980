"""
End to end: enqueued by batch, submitted, called back, archived or not, told or not.

Every part shares the machine: web, worker and beat, Postgres with fsync, Valkey, and the provider's imitation. A run is
a stack of its own, so that no run meets what another left; the first jobs warm it up and are not counted.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg

from benchmarks import costs, stacks
from benchmarks.harness import Case, Figures, Plan, Side
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox

WARM_UP = 200

_ENDED = "SELECT count(*) FROM pipeline.jobs WHERE state = 'completed'"
_STORED = "SELECT count(*) FROM pipeline.assets WHERE state = 'stored'"
_TOLD = "SELECT count(*) FROM pipeline.notifications WHERE state = 'delivered'"


def _run(plan: Plan, *, archive: bool, notify: bool) -> Figures:
    jobs = int(plan.options.get("jobs", plan.pick(4000, 40)))
    with stacks.unlimited(archive=archive) as running:
        told = {"callback_url": f"{running.sandbox_url}/_sandbox/receiver"} if notify else {}
        with costs.Meter(running) as meter:
            _through(running, plan.pick(WARM_UP, 10), 0, told, archive=archive, notify=notify)
            meter.forget()
            before, calls = meter.read(), _polls(running)
            seconds = _through(running, jobs, plan.pick(WARM_UP, 10), told, archive=archive, notify=notify)
            used = before.until(meter.read())
            if "show" in plan.options:
                print(*meter.statements(int(plan.options["show"])), sep="\n")
            return {
                "jobs/s": jobs / seconds,
                **used.each(jobs),
                "polls/job": (_polls(running) - calls) / jobs,
                **{f"CPU ms/job, {name}": 1000 * cpu_s / jobs for name, cpu_s in used.cpu_s.items()},
            }


def _through(
    running: RunningStack, jobs: int, done: int, told: Mapping[str, str], *, archive: bool, notify: bool
) -> float:
    """Put so many jobs through all of it, after *done* others; give the seconds from the first request to the end."""
    queries = [_ENDED, *([_STORED] if archive else []), *([_TOLD] if notify else [])]
    began = time.monotonic()
    for start in range(0, jobs, 1000):
        stacks.hand_in(running, stacks.prompts(min(1000, jobs - start), **told))
    with psycopg.connect(running.database_url, autocommit=True) as db:
        while any(db.execute(query).fetchone() != (done + jobs,) for query in queries):
            time.sleep(0.1)
            assert time.monotonic() - began < 60 + jobs / 10, "the jobs do not come to an end"
    return time.monotonic() - began


def _polls(running: RunningStack) -> int:
    """How many results were asked for so far, by the provider's own count."""
    calls: dict[str, int] = Sandbox(running.sandbox_url).arrivals()["calls"]
    return calls.get("result", 0)


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """Without and with each of what follows a completion."""
    yield {
        name: lambda archive=archive, notify=notify: _run(plan, archive=archive, notify=notify)  # type: ignore[misc]
        for name, archive, notify in (
            ("settled", False, False),
            ("settled, archived", True, False),
            ("settled, notified", False, True),
            ("settled, archived, notified", True, True),
        )
        if plan.options.get("side", name) == name
    }


CASE = Case(
    "pipeline",
    "Jobs from a batch over HTTP to their end, settled by webhooks; files of 100 KB; each caller told.",
    sides,
    baseline="settled",
    options=("jobs", "show", "side"),
)
