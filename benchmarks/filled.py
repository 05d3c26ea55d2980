"""
A database as half a year of work leaves it: jobs of a dozen services that have ended, with all that hangs on them.

As in life each has its attempt, events, labels, callback, output and notification; the last month has deliveries,
idempotency keys and counts of minutes, too: those are pruned by themselves. The server writes it all, two tables at a
time, and indexes whose order is not that of the ids are built afterwards.

Indexes are denser so than life leaves them, and nobody has updated a row: who measures lets some life go by (`life`).
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from pipeline import measures
from pipeline.embedded import postgres, scratch
from pipeline.jobs import Outcome, State, Via
from pipeline.measures import Latency
from pipeline.settings import load
from pipeline.store import schema, services
from pipeline.store.database import Database
from pipeline.store.tables import Verdict, id_from

DAYS = 180
"""So long ago the first job was handed in; the last one ended some minutes ago."""

RECENT_DAYS = 30
"""What is pruned by itself goes back so far."""

SHOP, OPERATOR = "a-shop", "z-operator"
SERVICES = (SHOP, *(f"service-{number}" for number in range(10)))
"""The shop has six jobs in ten, the others have the rest; the operator's own has none."""

THIN_FROM = 2_000_000
"""Of more jobs than these, one in THIN has events, callback, output, notification; in the first and last month all."""

THIN = 5


def _id(ms: str) -> str:
    """A UUIDv7 of that time, in SQL; `h` are its other digits."""
    return f"(lpad(to_hex({ms}), 12, '0') || '7' || substr(h, 1, 3) || '8' || substr(h, 4, 15))::uuid"


# Of each job everything can be told from its number: so tables are filled at once, each by itself.
_MADE = f"""
    (SELECT n, h, ms, to_timestamp(ms / 1000::float8) AS at, {_id("ms")} AS id, md5('task' || n) AS task,
            (%(services)s::uuid[])[CASE WHEN mod(n, 10) < 6 THEN 1 ELSE mod(n / 10, 10) + 2 END] AS service_id,
            CASE WHEN mod(n, 40) = 1 THEN 'failed' WHEN mod(n, 300) = 2 THEN 'cancelled'
                 WHEN mod(n, 1000) = 3 THEN 'expired' ELSE 'completed' END AS state,
            mod(n, %(thin)s) = 0 OR n < %(recent)s OR n > %(jobs)s - %(recent)s AS whole,
            n > %(jobs)s - %(recent)s AS recent
     FROM (SELECT n, md5(n::text) AS h, %(began_ms)s + (n * %(step_ms)s::float8)::bigint AS ms
           FROM generate_series(%(first)s, %(last)s) n) x) j
"""

_PAID = "state IN ('completed', 'failed')"

_ROWS: Mapping[str, str] = {
    "jobs": f"""
        INSERT INTO jobs (id, service_id, model, input, metadata, state, run_at, deadline_at, current_attempt, attempts,
                          prediction_id, outputs, error, settled_by, inference_ms, admitted, price, last_seq,
                          created_at, submitted_at, finished_at)
        SELECT id, service_id,
               CASE WHEN mod(n, 1000) = 7 THEN 'rare/model' WHEN mod(n, 5) = 0 THEN 'openai/dall-e-3'
                    ELSE 'openai/dall-e-2' END,
               jsonb_build_object('prompt', 'a lighthouse ' || n || repeat(' by the sea', 10)),
               jsonb_build_object('env', CASE WHEN mod(n, 500) = 0 THEN 'test' ELSE 'production' END, 'order', n::text,
                                  'customer', mod(n, 5000)::text)
                   || CASE WHEN n <= 2000 THEN '{{"campaign": "first"}}' ELSE '{{}}' END::jsonb,
               state, at, at + interval '1 hour', CASE WHEN {_PAID} THEN {_id("ms + 1000")} END,
               CASE WHEN {_PAID} THEN 1 ELSE 0 END, CASE WHEN {_PAID} THEN task END,
               CASE WHEN state = 'completed' THEN jsonb_build_array(jsonb_build_object(
                    'url', 'https://cdn.example/predictions/' || task || '/1.png', 'nsfw', false)) END,
               CASE WHEN state = 'failed' THEN
                    '{{"code": "generation_failed", "message": "It did not work.", "provider_code": 1500}}'::jsonb END,
               CASE WHEN {_PAID} THEN 'webhook' WHEN state = 'expired' THEN 'deadline' ELSE 'operator' END,
               CASE WHEN {_PAID} THEN 9876 END, state <> 'expired', 0.02,
               CASE state WHEN 'completed' THEN 5 WHEN 'failed' THEN 4 ELSE 2 END, at,
               CASE WHEN {_PAID} THEN at + interval '1 s' END,
               CASE WHEN state <> 'expired' THEN at + interval '12 s' END
        FROM {_MADE}
    """,
    "events": f"""
        INSERT INTO events (job_id, seq, at, kind, data)
        SELECT id, e.seq, at + e.s * interval '1 s', e.kind, e.data
        FROM {_MADE} CROSS JOIN LATERAL (VALUES
            (1, 0, 'job.queued', '{{}}'::jsonb),
            (2, CASE WHEN {_PAID} THEN 1 ELSE 12 END, 'job.' || CASE WHEN {_PAID} THEN 'submitting' ELSE state END,
             jsonb_build_object('from', 'queued', 'attempt', 1)),
            (3, 2, 'job.processing', jsonb_build_object('from', 'submitting', 'attempt', 1, 'prediction_id', task)),
            (4, 12, 'job.' || state, '{{"from": "processing", "via": "webhook"}}'),
            (5, 14, 'output.stored', jsonb_build_object('index', 0, 'sha256', h || h, 'bytes', 123456,
                                                        'content_type', 'image/png'))
        ) e(seq, s, kind, data)
        WHERE whole AND e.seq <= CASE state WHEN 'completed' THEN 5 WHEN 'failed' THEN 4 ELSE 2 END
    """,
    "callbacks": f"""
        INSERT INTO callbacks (id, received_at, token, attempt_id, job_id, prediction_id, verdict, headers, body)
        SELECT {_id("ms + 12000")}, at + interval '12 s', md5('token' || n), {_id("ms + 1000")}, id, task,
               CASE WHEN mod(n, 10000) = 77 THEN 'suspicious' WHEN mod(n, 250) = 77 THEN 'late' ELSE 'applied' END,
               jsonb_build_object('webhook-id', 'msg_' || h, 'webhook-timestamp', (ms / 1000)::text,
                                  'webhook-signature', 'v3,' || h || h, 'content-type', 'application/json'),
               convert_to(jsonb_build_object('id', task, 'status', state, 'model', 'openai/dall-e-2', 'outputs',
                   jsonb_build_array('https://cdn.example/predictions/' || task || '/1.png'), 'has_nsfw_contents',
                   '[false]'::jsonb, 'created_at', at, 'error', '', 'executionTime', 9876,
                   'timings', '{{"inference": 9876}}'::jsonb)::text, 'UTF8')
        FROM {_MADE} WHERE whole AND {_PAID}
    """,
    "labels": f"""
        INSERT INTO labels (service_id, name, value, job_id)
        SELECT service_id, l.name, l.value, id
        FROM {_MADE} CROSS JOIN LATERAL (VALUES
            ('env', CASE WHEN mod(n, 500) = 0 THEN 'test' ELSE 'production' END), ('order', n::text),
            ('customer', mod(n, 5000)::text), ('campaign', CASE WHEN n <= 2000 THEN 'first' END)) l(name, value)
        WHERE l.value IS NOT NULL
    """,
    "attempts": f"""
        INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, started_at, ended_at, outcome,
                              prediction_id, http_status)
        SELECT {_id("ms + 1000")}, id, service_id, 1, md5('token' || n), (%(services)s::uuid[])[1],
               at + interval '1 s', at + interval '2 s', 'accepted', task, 200
        FROM {_MADE} WHERE {_PAID}
    """,
    "assets": f"""
        INSERT INTO assets (id, job_id, index, service_id, state, source_url, storage_key, sha256, bytes, content_type,
                            width, height, nsfw, review, attempts, created_at, stored_at)
        SELECT {_id("ms + 12000")}, id, 0, service_id, 'stored',
               'https://cdn.example/predictions/' || task || '/1.png', 'files/' || h || h, h || h, 123456,
               'image/png', 512, 512, false, CASE WHEN mod(n, 5000) = 77 THEN 'quarantined' END, 1,
               at + interval '12 s', at + interval '14 s'
        FROM {_MADE} WHERE whole AND state = 'completed'
    """,
    "notifications": f"""
        INSERT INTO notifications (id, event, job_id, seq, state, endpoint, attempts, tries, created_at, ended_at,
                                   error)
        SELECT {_id("ms + 12000")}, 'job.' || state, id, least(4, CASE WHEN {_PAID} THEN 4 ELSE 2 END),
               CASE WHEN mod(n, 2500) = 77 THEN 'dead' ELSE 'delivered' END, 'a-shop https://shop.example', 1, 1,
               at + interval '12 s', at + interval '15 s', CASE WHEN mod(n, 2500) = 77 THEN 'answered 500' END
        FROM {_MADE} WHERE whole
    """,
    "deliveries": f"""
        INSERT INTO deliveries (notification_id, number, at, target, request, status, answer, duration_ms)
        SELECT {_id("ms + 12000")}, 1, at + interval '15 s', 'https://shop.example/hook',
               jsonb_build_object('headers', jsonb_build_object('webhook-id', id, 'webhook-signature', 'v1,' || h),
                                  'body', jsonb_build_object('type', 'job.' || state, 'data', jsonb_build_object(
                                      'id', id, 'state', state, 'model', 'openai/dall-e-2'))::text),
               204, '', 12
        FROM {_MADE} WHERE recent
    """,
    "idempotency_keys": f"""
        INSERT INTO idempotency_keys (service_id, key, fingerprint, job_id, created_at)
        SELECT service_id, 'order-' || n, sha256(h::bytea), id, at FROM {_MADE} WHERE recent AND mod(n, 2) = 0
    """,
}

_MEASURES = [
    measures.ACCEPTED,
    measures.ENDED[State.COMPLETED],
    measures.SETTLED[Via.WEBHOOK],
    measures.ATTEMPTS,
    measures.OUTCOMES[Outcome.ACCEPTED],
    measures.CALLBACKS + Verdict.APPLIED,
    measures.OUTPUTS_STORED,
    measures.OUTPUTS_BYTES,
    measures.NOTIFICATIONS_DELIVERED,
    measures.SPENT,
    *(name for latency in Latency for name in (measures.sum_of(latency), measures.intervals(latency)[6])),
]

# A minute of a service in which nothing happened has no row.
_COUNTS = """
    INSERT INTO stats (minute, service_id, measure, value)
    SELECT b.minute, b.service_id, m.measure, 1 + floor(b.rate)
    FROM (
        SELECT minute, s.id AS service_id, s.rate
        FROM generate_series(date_trunc('minute', now()) - make_interval(days => %(days)s), now(), '1 minute') minute,
             (SELECT id, %(per_minute)s::float8 * CASE WHEN n = 1 THEN 0.6 ELSE 0.04 END AS rate
              FROM unnest(%(services)s::uuid[]) WITH ORDINALITY AS u(id, n)) s
        WHERE random() < s.rate
    ) b CROSS JOIN unnest(%(measures)s::text[]) m(measure)
    ORDER BY 1, 2, 3
"""

_SUMS = (
    """
    INSERT INTO stats_hours (hour, service_id, measure, value)
    SELECT date_trunc('hour', minute, 'UTC'), service_id, measure, sum(value) FROM stats GROUP BY 1, 2, 3
    """,
    """
    INSERT INTO totals (service_id, measure, value)
    SELECT service_id, measure, sum(value) FROM stats GROUP BY 1, 2
    """,
)

_STEP = 200_000

# Each row of the fill fits no order of its own: it would be sorted in one by one.
_ASIDE = """
    SELECT c.conrelid::regclass::text, 'ALTER TABLE ' || c.conrelid::regclass || ' DROP CONSTRAINT ' || c.conname,
           'ALTER TABLE ' || c.conrelid::regclass || ' ADD CONSTRAINT ' || c.conname || ' '
               || pg_get_constraintdef(c.oid)
    FROM pg_constraint c
    WHERE c.conrelid = ANY(%(tables)s::regclass[]) AND (c.contype = 'u' OR c.contype = 'p' AND c.conname = 'labels_pk')
    UNION ALL
    SELECT i.indrelid::regclass::text, 'DROP INDEX ' || i.indexrelid::regclass,
           replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ')
    FROM pg_index i
    WHERE i.indrelid = ANY(%(tables)s::regclass[])
      AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('u', 'p'))
"""

_SESSION = (
    "-c search_path=pipeline -c session_replication_role=replica -c synchronous_commit=off"
    " -c maintenance_work_mem=512MB -c work_mem=256MB -c jit=off"
)


@contextmanager
def server(data: Path | None = None, *, durable: bool = True) -> Iterator[str]:
    """Run a server with empty databases, or those that *data* keeps from an earlier run. Gives its address."""
    with ExitStack() as stack:
        home = data or (stack.enter_context(scratch.directory("filled")) if durable else None)
        yield stack.enter_context(postgres.running(home)).url


def database(server_url: str, jobs: int) -> str:
    """The address of the database with so many jobs, which is filled unless the server has it."""
    name = f"jobs_{jobs}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            connection.execute(f"DROP DATABASE IF EXISTS {name}_unfinished")
            connection.execute(f"CREATE DATABASE {name}_unfinished")
            unfinished = named(server_url, f"{name}_unfinished")
            migrate(unfinished)
            fill(unfinished, jobs)
            connection.execute(f"ALTER DATABASE {name}_unfinished RENAME TO {name}")
    url = named(server_url, name)
    schema.upgrade(load({"DATABASE_URL": url}).database_url)  # one that was kept may be older than the code
    return url


def named(url: str, database: str) -> str:
    """The address of another database of the same server."""
    return f"{url.rpartition('/')[0]}/{database}"


def migrate(url: str) -> None:
    """Give an empty database its tables and services."""
    settings = load({"DATABASE_URL": url})
    schema.upgrade(settings.database_url)
    database = Database(settings.database_url, name="benchmark", pool_size=1)
    with database.transaction() as tx:
        for name in SERVICES:
            services.create(tx, name)
            services.change(tx, name, callback_url="https://shop.example/hook")
        services.create(tx, OPERATOR, operator=True)
    database.close()


def fill(url: str, jobs: int) -> None:
    """Store so many jobs, with all they left."""
    began = time.monotonic()
    with psycopg.connect(url, autocommit=True, options=_SESSION) as connection:
        ids = [
            row[0] for row in connection.execute("SELECT id FROM services WHERE name <> %s ORDER BY name", [OPERATOR])
        ]
        aside = connection.execute(_ASIDE, {"tables": list(_ROWS)}).fetchall()
        for _, drop, _ in aside:
            connection.execute(drop)
    began_ms = int((time.time() - DAYS * 86_400) * 1000)
    tables = _Tables(url, jobs, ids, began_ms, [(table, build) for table, _, build in aside])
    with ThreadPoolExecutor(2) as pool:
        for table, took_s in pool.map(tables.fill, [*_ROWS, "stats"]):
            print(f"{jobs:,} jobs: {table} {took_s:.0f} s", file=sys.stderr, flush=True)
    print(f"{jobs:,} jobs filled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def some(url: str, *, days: float = DAYS) -> list[UUID]:
    """Some hundreds of the jobs of the last *days*, from anywhere among them, and in order."""
    with psycopg.connect(url) as connection:
        wanted = id_from(time.time() - days * 86_400)
        rows = connection.execute(_SOME, {"least": wanted, "share": DAYS / days}).fetchall()
    return sorted(row[0] for row in rows)


_SOME = """
    SELECT id FROM pipeline.jobs
    TABLESAMPLE SYSTEM (least(100, %(share)s::float8 * 100000 / greatest(1000,
        (SELECT reltuples FROM pg_class WHERE oid = 'pipeline.jobs'::regclass))))
    WHERE id >= %(least)s AND due_at IS NULL
"""


_LEAVES = "SELECT relid::regclass::text FROM pg_partition_tree(%s::regclass) WHERE isleaf"
"""A table's partitions; or the table itself, which has none."""


@dataclass(frozen=True, slots=True)
class _Tables:
    """What is to be filled, and which indexes are to be built then."""

    url: str
    jobs: int
    services: Sequence[UUID]
    began_ms: int
    aside: Sequence[tuple[str, str]]

    def fill(self, table: str) -> tuple[str, float]:
        """Fill one, build its indexes, and leave it as autovacuum would."""
        began = time.monotonic()
        with psycopg.connect(self.url, autocommit=True, options=_SESSION) as connection:
            said = psycopg.ClientCursor(connection)
            leaves = [row[0] for row in connection.execute(_LEAVES, [table])]
            for leaf in leaves:
                connection.execute(f"ALTER TABLE {leaf} SET (autovacuum_enabled = off)")
            if table == "stats":
                values = {"days": RECENT_DAYS, "per_minute": self.jobs / DAYS / 1440, "services": self.services}
                said.execute(_COUNTS, values | {"measures": _MEASURES})
                for statement in _SUMS:
                    connection.execute(statement)
            for first in range(1, self.jobs + 1, _STEP) if table in _ROWS else ():
                said.execute(_ROWS[table], self._values(first))
            for statement in (build for whose, build in self.aside if whose == table):
                connection.execute(statement)
            for leaf in leaves:
                connection.execute(f"ALTER TABLE {leaf} RESET (autovacuum_enabled)")
            connection.execute(f"VACUUM (FREEZE, ANALYZE) {table}")
        return table, time.monotonic() - began

    def _values(self, first: int) -> dict[str, Any]:
        return {
            "services": self.services,
            "jobs": self.jobs,
            "first": first,
            "last": min(first + _STEP - 1, self.jobs),
            "began_ms": self.began_ms,
            "step_ms": (DAYS * 86_400 - 600) * 1000 / self.jobs,
            "recent": self.jobs * RECENT_DAYS // DAYS,
            "thin": THIN if self.jobs > THIN_FROM else 1,
        }
