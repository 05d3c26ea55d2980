"""What is known in the end, from three sides that do not know one another: callers, database, provider."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pipeline.sandbox import Sandbox
from tests.chaos.clients import Order

Row = Mapping[str, Any]

_QUERIES = {
    "jobs": """
        SELECT id::text, state, input->>'prompt' AS prompt, prediction_id, outputs, error, held_reason, last_seq,
               settled_by, extract(epoch FROM finished_at - created_at)::float8 AS took_s
        FROM pipeline.jobs""",
    "keys": "SELECT key, job_id::text FROM pipeline.idempotency_keys",
    "attempts": """
        SELECT job_id::text, worker_id::text, outcome, prediction_id, extract(epoch FROM started_at)::float8 AS started,
               extract(epoch FROM ended_at)::float8 AS ended
        FROM pipeline.attempts""",
    "events": """
        SELECT job_id::text, seq, kind, data, extract(epoch FROM at)::float8 AS at
        FROM pipeline.events ORDER BY job_id, seq""",
    "callbacks": "SELECT verdict, headers->>'webhook-signature' AS signature FROM pipeline.callbacks",
    "notifications": "SELECT job_id::text, seq, event FROM pipeline.notifications",
    "workers": "SELECT id::text, pid, extract(epoch FROM started_at)::float8 AS started FROM pipeline.workers",
}


@dataclass(frozen=True)
class Evidence:
    """Plain rows of all three. Times are Unix times, in seconds."""

    orders: Sequence[Order]  # the callers'
    jobs: Sequence[Row]  # the database's, as the next six
    keys: Sequence[Row]
    attempts: Sequence[Row]
    events: Sequence[Row]
    callbacks: Sequence[Row]
    notifications: Sequence[Row]
    workers: Sequence[Row]
    charges: Sequence[Row]  # the provider's, as the last
    deliveries: Sequence[Row]


def gather(database_url: str, provider: Sandbox, orders: Sequence[Order]) -> Evidence:
    """Read everything: from Postgres and from the provider directly, by none of the product's code."""
    with psycopg.connect(database_url, row_factory=dict_row, connect_timeout=10) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = {name: connection.execute(query).fetchall() for name, query in _QUERIES.items()}
    return Evidence(orders=orders, charges=provider.ledger(), deliveries=provider.deliveries(), **rows)


def living(database_url: str) -> dict[str, int]:
    """
    How many jobs are in which state that is not final, `held` apart.

    Raises:
        psycopg.OperationalError: The database is away.
    """
    query = """
        SELECT CASE WHEN held_at IS NULL THEN state ELSE 'held' END, count(*) FROM pipeline.jobs
        WHERE state NOT IN ('completed', 'failed', 'cancelled') GROUP BY 1"""
    with psycopg.connect(database_url, connect_timeout=2) as connection:
        return dict(connection.execute(query).fetchall())


def as_json(evidence: Evidence, **more: object) -> str:
    """All of it, and whatever else is known, for whoever wants to find out what happened."""
    known = {"evidence": evidence, **more}
    return json.dumps(known, default=lambda one: sorted(one) if isinstance(one, set | frozenset) else vars(one))
