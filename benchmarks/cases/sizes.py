"""
What everything costs with ten thousand, a million and ten million jobs, and while somebody holds a snapshot.

Each run lets life go by first, 20,000 moves of jobs, so that dead rows lie about as they do in life; beside a held
snapshot none of them can be removed. Then comes what is measured, and in the end as many of the oldest jobs are pruned
as came. Some thousands are queued all the time, some hundreds at the provider; the rest is history (`filled`).

    pipeline bench sizes --set sizes=10000,1000000         without the ten million, which take 40 GB
    pipeline bench sizes --set data=/var/tmp/filled        keep the databases there for the next time
"""

import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from benchmarks import asked, filled, life
from benchmarks.harness import Case, Figures, Plan, Side
from pipeline import sweep
from pipeline.embedded import scratch
from pipeline.embedded.procfile import PROCFILE
from pipeline.errors import InvalidInput
from pipeline.retention import ENDED as KINDS
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import pruning, services, stats
from pipeline.store.database import Database
from pipeline.store.retention import Rule
from pipeline.web import create_app

SIZES = (10_000, 1_000_000, 10_000_000)
BASELINE = f"{SIZES[0]:,} jobs"

QUEUED, FLYING = 3_000, 300
MOVES = 20_000
MOVES_EACH = 3  # queued to submitting, processing, completed
AT_ONCE = 50


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """A database of each size, all on one server."""
    sizes = [int(size) for size in plan.options["sizes"].split(",")] if "sizes" in plan.options else None
    data = Path(plan.options["data"]).resolve() if "data" in plan.options else None
    if data and data.is_relative_to(PROCFILE.parent.resolve()):
        raise InvalidInput(f"--set data={data}: databases of many GB do not belong into the checkout.")
    with ExitStack() as stack:
        url = stack.enter_context(filled.server(data, durable=not plan.smoke))
        archive = stack.enter_context(scratch.directory("archive"))
        found: dict[str, Side] = {}
        held: dict[str, Side] = {}
        for jobs in sizes or plan.pick(SIZES, (300, 1_000)):
            grown = Grown(filled.database(url, jobs), archive, plan)
            stack.callback(grown.close)
            found[f"{jobs:,} jobs"] = grown.run
            held[f"{jobs:,} jobs, snapshot held"] = grown.run_held
        yield found | held


class Grown:
    """One database, and what is measured of it."""

    def __init__(self, url: str, archive: Path, plan: Plan) -> None:
        self._url, self._plan = url, plan
        settings = load({"DATABASE_URL": url, "ARCHIVE_URL": archive.as_uri(), **asked.DASHBOARD})
        self._db = Database(settings.database_url, name="benchmark", pool_size=2)
        self._rt = Runtime(settings, self._db)
        _end_all(url)
        with self._db.transaction() as tx:
            everyone = services.everyone(tx)
            keys = [services.rotate(tx, name) for name in (filled.SHOP, filled.OPERATOR)]
        self._services = [one.id for one in everyone if one.name != filled.OPERATOR]
        self._keys = [key for key in keys if key]
        self._client = create_app(self._rt).test_client()
        asked.sign_in(self._client)
        self._life = life.Life(self._rt, self._services)
        sweep.sweep(self._rt, lambda *_: None)  # says that outputs are archived, and begins to count
        for _ in range(plan.pick(QUEUED, 100) // 100):
            self._life.hand_in(100)
        for _ in range(plan.pick(FLYING, 50) // AT_ONCE):
            self._life.answer(self._life.claim(AT_ONCE))

    def close(self) -> None:
        """Leave the database alone."""
        self._db.close()

    def run(self) -> Figures:
        """Measure everything once."""
        return self._run(held=False)

    def run_held(self) -> Figures:
        """Measure everything once while a snapshot is held, from before life went by."""
        return self._run(held=True)

    def _run(self, *, held: bool) -> Figures:
        with life.snapshot(self._url, held=held):
            came = self._plan.pick(MOVES // MOVES_EACH, 30)
            self._life.go_by(came)
            claim, callback = self._claims_and_callbacks(rounds := self._plan.pick(25, 1))
            return {
                f"claim of {AT_ONCE} ms": statistics.median(claim),
                "sweep ms": statistics.median(self._sweeps(self._plan.pick(15, 1))),
                "minute counted ms": statistics.median(self._minutes(self._plan.pick(5, 1))),
                "callback ms": statistics.median(callback),
                **self._lists(self._plan.pick(4, 1)),
                **self._pages(self._plan.pick(4, 1)),
                "prune ms per 1,000 jobs": statistics.median(self._prunings(came + rounds * AT_ONCE)),
            }

    def _claims_and_callbacks(self, rounds: int) -> tuple[list[float], list[float]]:
        claim: list[float] = []
        callback: list[float] = []
        for _ in range(rounds):
            self._life.hand_in(AT_ONCE)
            with life.timed(claim):
                starts = self._life.claim(AT_ONCE)
            assert len(starts) == AT_ONCE
            self._life.answer(starts)
            for _ in range(AT_ONCE):
                with life.timed(callback):
                    self._life.hear()
            self._life.store()
            self._life.tell()
        return claim, callback

    def _sweeps(self, times: int) -> list[float]:
        took: list[float] = []
        for _ in range(times):
            with life.timed(took):
                sweep.sweep(self._rt, lambda *_: None)
        return took

    def _minutes(self, times: int) -> list[float]:
        took: list[float] = []
        minute = datetime.now(UTC).replace(second=0, microsecond=0)
        for _ in range(times):
            with life.timed(took), self._db.transaction() as tx:
                stats.count(tx, minute)
        return took

    def _lists(self, times: int) -> Figures:
        ids = filled.some(self._url)
        took = [
            asked.listed(self._client, key, wanted, after=random.choice(ids) if number % 2 else None)[0]
            for number in range(times)
            for wanted in asked.FILTERS
            for key in self._keys
        ]
        return {"list ms": statistics.median(took), "list p95 ms": statistics.quantiles(took, n=20)[-1]}

    def _pages(self, times: int) -> Figures:
        recent = filled.some(self._url, days=filled.RECENT_DAYS)
        pages = {
            "overview": asked.OVERVIEW,
            "jobs page": asked.JOBS,
            "job page": [f"/jobs/{one}" for one in random.sample(recent, min(8, len(recent)))],
            "callbacks page": asked.CALLBACKS,
            "notifications page": asked.NOTIFICATIONS,
        }
        return {
            f"{name} ms": statistics.median(
                asked.page(self._client, path)
                for path in [*paths, *asked.older(self._client, paths)]
                for _ in range(times)
            )
            for name, paths in pages.items()
        }

    def _prunings(self, jobs: int) -> list[float]:
        """Remove so many of the oldest, by an age that so many have. Gives milliseconds for each 1,000, by batches."""
        with psycopg.connect(self._url) as db:
            row = db.execute(_AGE, [jobs]).fetchone()
        assert row
        rules = [Rule(service_id, kind, int(row[0])) for kind in KINDS for service_id in self._services]
        took: list[float] = []
        gone = 0
        while gone < jobs:
            began = time.perf_counter()
            with self._db.transaction() as tx:
                batch = len(pruning.jobs(tx, rules))
            if not batch:
                break
            gone += batch
            took.append((time.perf_counter() - began) * 1000 * 1000 / batch)
        return took


_AGE = """
    SELECT extract(epoch FROM now() - coalesce(finished_at, deadline_at)) FROM pipeline.jobs
    WHERE id = (SELECT id FROM pipeline.jobs ORDER BY id OFFSET %s LIMIT 1)
"""

# What an earlier run left alive in databases that are kept; minutes since then are not worth to be counted.
_END_ALL = (
    """
    UPDATE jobs SET state = 'cancelled', due_at = NULL, finished_at = clock_timestamp(), reserved = 0, held_at = NULL
    WHERE due_at IS NOT NULL
    """,
    "UPDATE assets SET state = 'lost', due_at = NULL, worker_id = NULL WHERE state = 'pending'",
    """
    UPDATE notifications SET state = 'unaddressed', due_at = NULL, worker_id = NULL, ended_at = clock_timestamp()
    WHERE due_at IS NOT NULL
    """,
    "DELETE FROM rollup",
)


def _end_all(url: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c search_path=pipeline") as db:
        for statement in _END_ALL:
            db.execute(statement)


CASE = Case(
    "sizes",
    "What everything costs with ever more jobs in the table, and while somebody holds a snapshot.",
    sides,
    baseline=BASELINE,
    options=("data", "sizes"),
)
