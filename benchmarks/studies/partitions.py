"""
Whether it would pay to partition `jobs`, `events`, `callbacks` by time, which their ids begin with: one for each week.

    python -m benchmarks.studies.partitions                         3,000,000 jobs, twice: about 40 minutes, 20 GB
    python -m benchmarks.studies.partitions --jobs 200000           about 5 minutes

Two databases with the same history, one as it is and one with those three tables in weekly partitions, on one durable
server. First their sizes; then the same life goes by in both by turns, and lists are read; in the end the oldest week
goes: by the product's own statements, and by dropping partitions, and deleting from the tables that have none.

What partitions forbid is left out there: what is unique must have the time in it (`attempts.token` and `prediction_id`
do not, so attempts stay whole), and a foreign key to `jobs` would have every drop read the tables that have it.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import event

from benchmarks import filled
from benchmarks.life import Life, timed
from pipeline.embedded import scratch
from pipeline.jobs import State
from pipeline.retention import ENDED
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import lists, pruning, services
from pipeline.store.database import Database
from pipeline.store.lists import Wanted
from pipeline.store.retention import Rule
from pipeline.store.tables import id_from

WEEK_S = 7 * 86_400
KEYS = {"jobs": "id", "events": "job_id", "callbacks": "id"}
"""What is partitioned, and by which column."""

BESIDE = {"labels": "job_id", "notifications": "job_id", "assets": "job_id", "attempts": "job_id"}
"""What hangs on jobs as well, and is deleted from; with notifications go deliveries."""

PARTED = """
    ALTER TABLE attempts DROP CONSTRAINT attempts_job_id_fk;
    ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_job_id_fk;
"""

ONE = """
    ALTER TABLE {table} RENAME TO {table}_whole;
    CREATE TABLE {table} (LIKE {table}_whole INCLUDING ALL) PARTITION BY RANGE ({key});
    DROP TABLE {table}_whole;
"""

TRIGGERS = """
    CREATE TRIGGER jobs_label AFTER INSERT ON jobs
        REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION label_jobs();
    CREATE TRIGGER jobs_unlabel AFTER DELETE ON jobs
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION unlabel_jobs();
"""

SIZES = """
    SELECT t.name, sum(pg_relation_size(c.oid)) FILTER (WHERE c.relkind = 'r') / 1e6,
           sum(pg_relation_size(c.oid)) FILTER (WHERE c.relkind = 'i') / 1e6
    FROM unnest(%s::text[]) t(name) JOIN pg_class c ON c.relnamespace = 'pipeline'::regnamespace
    LEFT JOIN pg_index i ON i.indexrelid = c.oid
    WHERE (SELECT relname FROM pg_class WHERE oid = coalesce(i.indrelid, c.oid)) ~ ('^' || t.name || '(_w[0-9]+)?$')
    GROUP BY 1 ORDER BY 1
"""


@dataclass
class Variant:
    """One of the two databases."""

    name: str
    url: str
    db: Database
    life: Life
    service: Any
    ids: list[Any]

    def lists(self) -> Mapping[str, Any]:
        """Two pages of lists, by what they are called."""
        one = self.ids[len(self.ids) // 2]
        return {
            "list of all, first page": lambda tx: lists.page(tx, Wanted()),
            "list of one service's completed, from the middle": lambda tx: lists.page(
                tx, Wanted(service_ids=[self.service], state=State.COMPLETED), after=one
            ),
        }


def main() -> None:
    """Fill two databases, let life go by in both, take the oldest week away, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=3_000_000)
    parser.add_argument("--times", type=int, default=40, help="how often 50 jobs come and go, in each of both")
    parser.add_argument("--data", type=Path, help="where to keep the databases; by default they go")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(filled.server(arguments.data))
        archive = stack.enter_context(scratch.directory("archive"))
        variants = [variant(stack, server, name, arguments.jobs, archive) for name in ("whole", "weekly")]
        for one in variants:
            print(f"{one.name}: MB of rows and of indexes: {sizes(one.url)}", flush=True)
        for name, figures in lived(variants, arguments.times).items():
            print(f"{name}: {', '.join(f'{figure} {value:.1f}' for figure, value in figures.items())}", flush=True)
        for one in variants:
            print(f"{one.name}: {(deleted if one.name == 'whole' else dropped)(one)}", flush=True)


def variant(stack: ExitStack, server: str, name: str, jobs: int, archive: Path) -> Variant:
    """One of the two, filled; or as it was kept."""
    url = filled.named(server, name)
    with psycopg.connect(server, autocommit=True) as db:
        if not db.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            db.execute(f"CREATE DATABASE {name}")
            filled.migrate(url)
            if name == "weekly":
                partition(url)
            filled.fill(url, jobs)
    database = Database(load({"DATABASE_URL": url}).database_url, name="benchmark", pool_size=2)
    stack.callback(database.close)
    rt = Runtime(load({"DATABASE_URL": url, "ARCHIVE_URL": archive.as_uri()}), database)
    with database.transaction() as tx:
        everyone = services.everyone(tx)
    living = Life(rt, [one.id for one in everyone if one.name != filled.OPERATOR])
    shop = next(one.id for one in everyone if one.name == filled.SHOP)
    return Variant(name, url, database, living, shop, filled.some(url))


def partition(url: str) -> None:
    """Put weeks in the place of the tables that are partitioned, while they are empty."""
    first = time.time() - filled.DAYS * 86_400
    weeks = filled.DAYS // 7 + 2
    with psycopg.connect(url, autocommit=True, options="-c search_path=pipeline") as db:
        db.execute(PARTED)
        for table, key in KEYS.items():
            db.execute(ONE.format(table=table, key=key))
            for week in range(weeks):
                least, most = (id_from(first + n * WEEK_S) for n in (week, week + 1))
                fills = " WITH (fillfactor = 80)" if table == "jobs" else ""
                db.execute(
                    f"CREATE TABLE {table}_w{week:02} PARTITION OF {table}"
                    f" FOR VALUES FROM ('{least}') TO ('{most}'){fills}"
                )
        db.execute(TRIGGERS)


def sizes(url: str) -> str:
    """How large the partitioned tables are: rows and indexes."""
    with psycopg.connect(url) as db:
        rows = db.execute(SIZES, [list(KEYS)]).fetchall()
    return ", ".join(f"{name} {heap:,.0f} + {index:,.0f}" for name, heap, index in rows)


def lived(variants: list[Variant], times: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each step of life, medians; then those of planning; and bytes of WAL for each job."""
    took: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    wal: dict[str, int] = defaultdict(int)
    for one in variants:
        one.life.hand_in(2000)
        one.life.go_by(1000)
    for turn in range(times):
        for one in variants if turn % 2 else reversed(variants):
            before = wal_at(one.url)
            step(one, took[f"{one.name}, ms"])
            wal[one.name] += wal_at(one.url) - before
    for one in variants:
        for _ in range(5):
            step(one, took[f"{one.name}, ms of planning"], planning=True)
    found = {
        name: {figure: statistics.median(samples) for figure, samples in figures.items()}
        for name, figures in took.items()
    }
    for one in variants:
        found[f"{one.name}, ms"]["KB of WAL a job"] = wal[one.name] / times / 50 / 1000
    return found


def step(one: Variant, took: dict[str, list[float]], *, planning: bool = False) -> None:
    """Fifty jobs come and go, and two lists are read."""
    noted = planned if planning else lambda _, into: timed(into)
    with noted(one.db, took["50 handed in"]):
        one.life.hand_in(50)
    with noted(one.db, took["claim of 50"]):
        starts = one.life.claim(50)
    with noted(one.db, took["50 answers"]):
        one.life.answer(starts)
    for _ in starts:
        with noted(one.db, took["callback"]):
            one.life.hear()
    one.life.store()
    one.life.tell()
    for name, read in one.lists().items():
        with noted(one.db, took[name]), one.db.transaction() as tx:
            read(tx)


@contextmanager
def planned(db: Database, took_ms: list[float]) -> Iterator[None]:
    """Note for how long the statements of a block are planned, where each is planned anew."""
    found: list[float] = []

    def explain(_conn: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if not statement.lstrip().upper().startswith("SET"):
            with type(cursor)(cursor.connection) as beside:  # its own kind: what is prepared has `$1`
                beside.execute(f"EXPLAIN (SUMMARY, FORMAT JSON) {statement}", parameters)
                found.append(beside.fetchone()[0][0]["Planning Time"])

    event.listen(db.engine, "before_cursor_execute", explain)
    try:
        yield
    finally:
        event.remove(db.engine, "before_cursor_execute", explain)
    took_ms.append(sum(found))


def deleted(one: Variant) -> str:
    """Take the oldest week away as it is done now: job by job."""
    before = wal_at(one.url)
    began = time.perf_counter()
    with one.db.transaction() as tx:
        everyone = [service.id for service in services.everyone(tx)]
    rules = [Rule(service, kind, filled.DAYS * 86_400 - WEEK_S) for kind in ENDED for service in everyone]
    gone = batches = 0
    longest = 0.0
    while True:
        batch_began = time.perf_counter()
        with one.db.transaction() as tx:
            batch = len(pruning.jobs(tx, rules))
        longest = max(longest, time.perf_counter() - batch_began)
        gone += batch
        batches += 1
        if not batch:
            break
    took = time.perf_counter() - began
    wal = wal_at(one.url) - before
    kept = f"{gone:,} jobs in {batches:,} transactions, {took:.1f} s, the longest {longest * 1000:.0f} ms"
    return f"{kept}, {wal / 1e6:.0f} MB of WAL; {vacuumed(one.url, [*KEYS, *BESIDE, 'deliveries'])}"


def dropped(one: Variant) -> str:
    """Take the oldest week away by dropping its partitions, and deleting from the tables that have none."""
    before = wal_at(one.url)
    began = time.perf_counter()
    with psycopg.connect(one.url, autocommit=True, options="-c search_path=pipeline") as db:
        needed = db.execute("""
            SELECT count(*) FROM jobs_w00 j WHERE j.due_at IS NOT NULL OR j.reserved > 0
                OR EXISTS (
                    SELECT FROM assets a WHERE a.job_id = j.id AND (a.review = 'quarantined' OR a.due_at IS NOT NULL))
                OR EXISTS (SELECT FROM notifications n WHERE n.job_id = j.id AND n.due_at IS NOT NULL)
        """).fetchone()
        ids = [row[0] for row in db.execute("SELECT id FROM jobs_w00 ORDER BY id")]
        for first in range(0, len(ids), pruning.BATCH):
            some = ids[first : first + pruning.BATCH]
            with db.transaction():
                db.execute(
                    "DELETE FROM labels l USING jobs_w00 j CROSS JOIN LATERAL jsonb_each_text(j.metadata) e"
                    " WHERE j.id = ANY(%s) AND (l.service_id, l.name, l.value, l.job_id)"
                    " = (j.service_id, e.key, e.value, j.id)",
                    [some],
                )
                for table in ("notifications", "assets", "attempts"):
                    db.execute(f"DELETE FROM {table} WHERE job_id = ANY(%s)", [some])
        deleting_s = time.perf_counter() - began
        dropping = time.perf_counter()
        for table in KEYS:
            db.execute(f"DROP TABLE {table}_w00")
        dropping_ms = 1000 * (time.perf_counter() - dropping)
    wal = wal_at(one.url) - before
    assert needed
    return (
        f"{len(ids):,} jobs, {deleting_s:.1f} s to delete what has no partitions, {dropping_ms:.0f} ms to drop those,"
        f" {wal / 1e6:.0f} MB of WAL; {vacuumed(one.url, [*BESIDE, 'deliveries'])};"
        f" {needed[0]} of them may not go yet, and went all the same"
    )


def vacuumed(url: str, tables: list[str]) -> str:
    """Clean up after it, and say what that took."""
    before = wal_at(url)
    with psycopg.connect(url, autocommit=True, options="-c search_path=pipeline") as db:
        began = time.perf_counter()
        db.execute(f"VACUUM {', '.join(tables)}")
        took = time.perf_counter() - began
    return f"vacuum after it {took:.1f} s, {(wal_at(url) - before) / 1e6:.0f} MB of WAL"


def wal_at(url: str) -> int:
    """How many bytes of WAL there have been."""
    with psycopg.connect(url) as db:
        row = db.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
    assert row
    return int(row[0])


if __name__ == "__main__":
    main()
