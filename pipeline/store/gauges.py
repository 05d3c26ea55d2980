"""
How things stand this moment, for `/metrics` and the dashboard: what lives, what is late, what the account may do.

A few statements off indexes of what lives; nothing is counted beyond AT_MOST, and history is not looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from pipeline.jobs import IN_FLIGHT
from pipeline.store.alarms import DEAD_AFTER_S
from pipeline.store.custody import AT_MOST
from pipeline.store.notifications import LANES
from pipeline.store.plans import READ_IN_ORDER
from pipeline.store.tables import one_of
from pipeline.store.workers import DEAD

LIVE = ("queued", "submitting", "processing", "unknown", "expired")
"""The states of jobs that somebody looks after; of the expired those that are still asked about."""

OVERDUE = (*LIVE, "notifications", "assets")
"""What has an alarm clock: jobs by state, what is to be told, what is to be archived."""


@dataclass(frozen=True, slots=True)
class Standing:
    """
    How things stand. Counts are counted up to AT_MOST; ages in seconds, None: never.

    `overdue_s` tells by kind for how long the alarm of the oldest row has been ringing. What cannot be looked after now
    is left out: jobs of a paused service, and what is to be told to a receiver that is switched off.
    """

    jobs: Mapping[str, int]
    overdue_s: Mapping[str, float]
    held: int  # jobs that need a decision
    halted: str | None
    backoff_s: float
    trial: bool  # one POST at a time until one is accepted
    in_flight_cap: int | None  # learnt from refusals; None: what the level allows
    in_flight: int  # places at the provider that are taken
    starts: int  # POSTs that count in the provider's present window
    swept_s: float | None
    counted_s: float | None  # since the last minute that was counted ended
    counted_upto: datetime | None  # when that was
    workers: int  # heard within the last seconds
    endpoints_off: int
    heard_s: float | None  # since the newest callback


def _late(first: str) -> str:
    return f"greatest(0, extract(epoch FROM statement_timestamp() - ({first})))::float8"


_MARK = {  # from where on there may be alarms, see `alarms.due`
    "queued": "'-infinity'",
    "expired": "'-infinity'",
    **dict.fromkeys(("submitting", "processing", "unknown"), "(SELECT in_flight_from FROM account)"),
}

_JOBS = " UNION ALL ".join(
    f"""
    SELECT '{state}' AS state,
           (SELECT count(*) FROM (
               SELECT FROM jobs WHERE state = '{state}' AND due_at >= {mark} LIMIT {AT_MOST}) x) AS n,
           (SELECT min(due_at) FROM jobs WHERE state = '{state}' AND due_at >= {mark}) AS first
    """
    for state, mark in _MARK.items()
    if state != "queued"
)

# The first of the queue, in the order of one index: rows that are compared whole fit no other.
_FIRST = """
    FROM jobs WHERE due_at IS NOT NULL
      AND (state, due_at) >= ('queued', '-infinity') AND (state, due_at) <= ('queued', 'infinity')
    ORDER BY state, due_at
"""

_QUEUED = f"""
    SELECT 'queued', (SELECT count(*) FROM (SELECT state {_FIRST} LIMIT {AT_MOST}) x),
           CASE WHEN EXISTS (SELECT FROM paused) THEN (
               SELECT min(x.due_at) FROM (SELECT due_at, service_id {_FIRST} LIMIT {AT_MOST}) x
               WHERE x.service_id NOT IN (SELECT id FROM paused)
           ) ELSE (SELECT due_at {_FIRST} LIMIT 1) END
"""

_STANDING = text(f"""
    WITH RECURSIVE paused AS MATERIALIZED (
        SELECT id FROM services WHERE paused_at IS NOT NULL
    ), live AS MATERIALIZED ({_JOBS} UNION ALL {_QUEUED}), {LANES}
    SELECT (SELECT jsonb_object_agg(state, n) FROM live) AS jobs,
           (SELECT jsonb_object_agg(state, coalesce({_late("first")}, 0)) FROM live) AS overdue_s,
           {
    _late('''
               SELECT min((SELECT min(n.due_at) FROM notifications n
                           WHERE n.endpoint = l.endpoint AND n.due_at IS NOT NULL))
               FROM lanes l LEFT JOIN endpoints e ON e.name = l.endpoint WHERE e.off_at IS NULL
           ''')
} AS notifications_s,
           {_late("SELECT min(due_at) FROM assets WHERE due_at IS NOT NULL")} AS assets_s,
           (SELECT count(held_at) FROM (
               SELECT held_at FROM jobs WHERE state = 'unknown' AND due_at IS NOT NULL LIMIT {AT_MOST}) x) AS held,
           a.halted_reason AS halted,
           coalesce(greatest(0, extract(epoch FROM a.backoff_until - statement_timestamp())), 0)::float8 AS backoff_s,
           a.trial, a.in_flight_cap,
           (SELECT sum(n) FROM live WHERE {one_of("state", IN_FLIGHT)})::int AS in_flight,
           (SELECT count(*) FROM attempts
            WHERE started_at > statement_timestamp() - make_interval(secs => :window_s)
              AND outcome IS DISTINCT FROM 'not_sent') AS starts,
           extract(epoch FROM statement_timestamp() - a.swept_at)::float8 AS swept_s,
           (SELECT extract(epoch FROM statement_timestamp() - upto)::float8 FROM rollup WHERE id = 1) AS counted_s,
           (SELECT upto FROM rollup WHERE id = 1) AS counted_upto,
           (SELECT count(*) FROM workers w WHERE NOT {DEAD}) AS workers,
           (SELECT count(*) FROM endpoints WHERE off_at IS NOT NULL) AS endpoints_off,
           (SELECT extract(epoch FROM statement_timestamp() - received_at)::float8
            FROM callbacks ORDER BY id DESC LIMIT 1) AS heard_s
    FROM account a WHERE a.id = 1
""")


def standing(tx: Connection, *, window_s: float) -> Standing:
    """How things stand now; *window_s* is the length of the provider's window, in seconds."""
    tx.execute(READ_IN_ORDER)
    row = tx.execute(_STANDING, {"window_s": window_s, "dead_after_s": DEAD_AFTER_S}).one()
    late = row.overdue_s | {"notifications": row.notifications_s or 0.0, "assets": row.assets_s or 0.0}
    return Standing(
        jobs={state: row.jobs[state] for state in LIVE},
        overdue_s={kind: late[kind] for kind in OVERDUE},
        held=row.held,
        halted=row.halted,
        backoff_s=row.backoff_s,
        trial=row.trial,
        in_flight_cap=row.in_flight_cap,
        in_flight=row.in_flight - row.held,
        starts=row.starts,
        swept_s=row.swept_s,
        counted_s=row.counted_s,
        counted_upto=row.counted_upto,
        workers=row.workers,
        endpoints_off=row.endpoints_off,
        heard_s=row.heard_s,
    )
