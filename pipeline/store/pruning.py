"""
Pruning: what is older than its age goes, in small transactions that wait for nobody.

Of a job goes everything: its attempts, events, callbacks, notifications, outputs, labels and idempotency keys. What
stays is a line a day (`pruned`): how many, what they cost, and when the last of their POSTs began. With it budgets and
the comparison with the bill stay right. Stored files stay too, unless its rule says otherwise: then their keys are
written down (`leftovers`) in the same transaction, and the bytes removed after it, those that no other output shares.

A job stays while somebody may still need it, however old: one that is looked after, or has money reserved; one of
which somebody is yet to be told; one with an output that is being fetched, or that waits for a person; one that ended
in the month of a budget whose past is yet to be counted; and one that was at the provider at the time of another of the
same model whose answer was lost: the list shows the tasks of both, and what no row held any more would be taken for the
other's.

Nobody is waited for and nobody waits in a circle: attempts are locked before their job, as whoever hears a callback
does, and what somebody holds is passed over. Budgets are read without a lock.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from pipeline.retention import ENDED, Kind
from pipeline.store.plans import READ_BY_INDEX, unseen
from pipeline.store.retention import Rule

BATCH = 250
"""So many jobs are removed in one transaction, or so many rows of another kind."""

BATCHES = 5
"""So many idempotency keys of batches: each may name 10,000 jobs, all of which are asked whether they have ended."""

AT_MOST_COUNTED = 100_000
"""No more are counted of a kind and a service: a count reads them all."""

EVERY_S = 60.0
"""How often somebody begins to look for what is old, in seconds."""

DOUBTED_FOR = "8 days"  # the provider's list goes back for 7
NEARBY = "30 minutes"  # more than clocks differ, and a POST takes


@dataclass(frozen=True, slots=True)
class Old:
    """So many of a kind and a service (None: of no service) have had their time; *more* may be, than were counted."""

    service_id: UUID | None
    kind: Kind
    count: int
    more: bool


_RULES = """
    rules AS MATERIALIZED (
        SELECT (r ->> 'service_id')::uuid AS service_id, r ->> 'kind' AS kind, (r ->> 'files')::boolean AS files,
               statement_timestamp() - make_interval(secs => (r ->> 'age_s')::float8) AS before
        FROM jsonb_array_elements(CAST(:rules AS jsonb)) r
    )
"""

_GUARDS = f"""
    doubts AS MATERIALIZED (  -- in an hour of trouble there may be thousands, and each old job is held against each
        SELECT j.model, min(a.started_at) - interval '{NEARBY}' AS since,
               max(coalesce(a.ended_at, a.started_at)) + interval '{NEARBY}' AS until
        FROM jobs j JOIN attempts a ON a.id = j.current_attempt
        WHERE j.state = 'unknown' AND j.due_at IS NOT NULL
          AND a.started_at > statement_timestamp() - interval '{DOUBTED_FOR}'
        GROUP BY j.model, date_trunc('hour', a.started_at)
    ), needed AS MATERIALIZED (
        SELECT CASE WHEN EXISTS (SELECT FROM budgets WHERE uncounted_before IS NOT NULL)
                    THEN date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
                    ELSE 'infinity' END AS since
    )
"""

# By the job's own rows, be there ever so few that somebody is yet to be told of.
_NOBODY_WAITS = f"""
          NOT EXISTS (SELECT FROM notifications n WHERE n.job_id = j.id AND {unseen("n.due_at IS NOT NULL")})
      AND NOT EXISTS (SELECT FROM assets a WHERE a.job_id = j.id
                      AND {unseen("a.due_at IS NOT NULL OR a.review = 'quarantined'")})
"""

# One range of the index for each service and state, oldest first; only what must stay is stepped over.
_OLD_JOBS = f"""
    SELECT j.id, coalesce(j.finished_at, j.deadline_at) AS ended_at, r.files
    FROM jobs j
    WHERE j.service_id = r.service_id AND j.state = r.kind AND j.due_at IS NULL
      AND coalesce(j.finished_at, j.deadline_at) < least(r.before, (SELECT since FROM needed))
      AND j.reserved = 0
      AND {_NOBODY_WAITS}
      AND NOT EXISTS (
          SELECT FROM doubts d WHERE d.model = j.model AND j.submitted_at >= d.since AND j.created_at <= d.until)
    ORDER BY coalesce(j.finished_at, j.deadline_at)
    LIMIT :at_most
"""

_OLD_KEYS = f"""
    SELECT k.service_id, k.key
    FROM idempotency_keys k
    WHERE k.service_id = r.service_id AND k.created_at < r.before AND (k.job_ids IS NOT NULL) = :of_batches
      AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = k.job_id AND {unseen("j.due_at IS NOT NULL")})
      AND NOT EXISTS (
          SELECT FROM unnest(k.job_ids) AS u(id) JOIN jobs j ON j.id = u.id WHERE {unseen("j.due_at IS NOT NULL")})
    ORDER BY k.created_at
    LIMIT :at_most
"""

_OLD_ROWS = {
    Kind.REFUSALS: "SELECT x.id FROM refusals x WHERE x.at < r.before ORDER BY x.at LIMIT :at_most",
    Kind.ORPHANS: """
        SELECT x.id FROM callbacks x WHERE x.job_id IS NULL AND x.received_at < r.before
        ORDER BY x.received_at LIMIT :at_most
    """,
    Kind.STATS: """
        SELECT x.minute, x.service_id, x.measure FROM stats x WHERE x.minute < r.before ORDER BY x.minute LIMIT :at_most
    """,
    Kind.NOTICES: """
        SELECT x.id FROM notifications x WHERE x.job_id IS NULL AND x.due_at IS NULL AND x.created_at < r.before
        ORDER BY x.created_at LIMIT :at_most
    """,
    # The ids of notifications begin with the time they were made at, in milliseconds: so the oldest come first.
    Kind.DELIVERIES: """
        SELECT x.notification_id, x.number FROM deliveries x JOIN notifications n ON n.id = x.notification_id
        WHERE x.notification_id < rpad(
                  lpad(to_hex((extract(epoch FROM r.before) * 1000)::bigint), 12, '0'), 32, '0')::uuid
          AND x.at < r.before AND n.due_at IS NULL
        ORDER BY x.notification_id, x.number LIMIT :at_most
    """,
    Kind.ENDPOINTS: """
        SELECT x.name FROM endpoints x WHERE x.failed_at < r.before ORDER BY x.failed_at LIMIT :at_most
    """,
}

_TABLES = {
    Kind.REFUSALS: ("refusals", "id"),
    Kind.ORPHANS: ("callbacks", "id"),
    Kind.NOTICES: ("notifications", "id"),
    Kind.DELIVERIES: ("deliveries", "notification_id, number"),
    Kind.ENDPOINTS: ("endpoints", "name"),
    Kind.STATS: ("stats", "minute, service_id, measure"),
}
"""Of what is no job: its table, and the columns of its key."""


def _each_rule(old: str, guards: str = "") -> str:
    """An SQL statement that gives what is old by any of the rules."""
    return f"""
        WITH {_RULES} {guards and ","} {guards}
        SELECT o.* FROM rules r CROSS JOIN LATERAL ({old}) o LIMIT :at_most
    """


def _counted(old: str, guards: str = "") -> str:
    return f"""
        WITH {_RULES} {guards and ","} {guards}
        SELECT r.service_id, r.kind, o.n FROM rules r CROSS JOIN LATERAL (SELECT count(*) AS n FROM ({old}) x) o
        WHERE o.n > 0
    """


def claim(tx: Connection) -> bool:
    """Take the right to look for what is old; one process gets it, once in EVERY_S seconds."""
    statement = text("""
        UPDATE account SET pruned_at = clock_timestamp()
        WHERE id = 1 AND pruned_at <= clock_timestamp() - make_interval(secs => :every_s) RETURNING id
    """)
    return tx.execute(statement, {"every_s": EVERY_S}).first() is not None


_CANDIDATES = text(_each_rule(_OLD_JOBS, _GUARDS))

_LOCK_ATTEMPTS = text("""
    SELECT id FROM attempts WHERE job_id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE SKIP LOCKED
""")

# A verdict may have come meanwhile, after all: what expired then is completed, and was seen to be neither.
_LOCK_JOBS = text(f"""
    SELECT j.id, j.service_id, j.state
    FROM jobs j
    WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.due_at IS NULL
      AND coalesce(j.finished_at, j.deadline_at) <= CAST(:before AS timestamptz)
      AND NOT EXISTS (SELECT FROM attempts a WHERE a.job_id = j.id AND a.id <> ALL(CAST(:locked AS uuid[])))
      AND {_NOBODY_WAITS}
    ORDER BY j.id FOR UPDATE SKIP LOCKED
""")

# What is noted once more, while somebody looks whether the file is shared, has to be looked at once more.
_AGAIN = "ON CONFLICT (storage_key) DO UPDATE SET since = clock_timestamp()"

# What a person purged is to be removed in any case, if that has not been done yet.
_NOTE_FILES = text(f"""
    INSERT INTO leftovers (storage_key)
    SELECT DISTINCT storage_key FROM assets
    WHERE job_id = ANY(CAST(:ids AS uuid[])) AND storage_key IS NOT NULL
      AND (review = 'purged' OR job_id = ANY(CAST(:with_files AS uuid[])))
    ORDER BY 1 {_AGAIN}
""")

# What `budgets.catch_up` would count of them, and what `ledger` would find. In the order of the key, for two at once.
_SUM_UP = text("""
    INSERT INTO pruned AS p (service_id, day, jobs, spent, last_start)
    SELECT j.service_id, (coalesce(j.finished_at, j.deadline_at) AT TIME ZONE 'UTC')::date AS day, count(*),
           coalesce(sum(j.price) FILTER (WHERE j.state = 'completed'), 0), max(j.submitted_at)
    FROM jobs j WHERE j.id = ANY(CAST(:ids AS uuid[])) GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (service_id, day) DO UPDATE SET jobs = p.jobs + excluded.jobs, spent = p.spent + excluded.spent,
        last_start = greatest(p.last_start, excluded.last_start)
""")

_REMOVE = [
    text(f"DELETE FROM {table} WHERE {column} = ANY(CAST(:ids AS uuid[]))")
    for table, column in (
        ("notifications", "job_id"),
        ("assets", "job_id"),
        ("callbacks", "job_id"),
        ("events", "job_id"),
        ("jobs", "id"),  # and with them, by the schema: attempts, idempotency keys, labels
    )
]


def jobs(tx: Connection, rules: Sequence[Rule], *, at_most: int = BATCH) -> list[Row[Any]]:
    """Remove up to *at_most* jobs that are older than their age, with all that hangs on them: `id`, `service_id`, …"""
    mine = [rule for rule in rules if rule.kind in ENDED]
    tx.execute(READ_BY_INDEX)
    found = tx.execute(_CANDIDATES, {"rules": _json(mine), "at_most": at_most}).all() if mine else []
    if not found:
        return []
    ids = [str(row.id) for row in found]
    locked = [str(attempt_id) for attempt_id in tx.execute(_LOCK_ATTEMPTS, {"ids": ids}).scalars()]
    before = max(row.ended_at for row in found)
    gone = list(tx.execute(_LOCK_JOBS, {"ids": ids, "locked": locked, "before": before}))
    ids = [str(row.id) for row in gone]
    if ids:
        tx.execute(_NOTE_FILES, {"ids": ids, "with_files": [str(row.id) for row in found if row.files]})
        tx.execute(_SUM_UP, {"ids": ids})
        for statement in _REMOVE:
            tx.execute(statement, {"ids": ids})
    return gone


def note_leftovers(tx: Connection, keys: Collection[str]) -> None:
    """Have these files removed, unless an output needs them: they were stored for nothing."""
    statement = text(f"""
        INSERT INTO leftovers (storage_key) SELECT DISTINCT unnest(CAST(:keys AS text[])) ORDER BY 1 {_AGAIN}
    """)
    if keys:
        tx.execute(statement, {"keys": list(keys)})


def leftovers(tx: Connection, *, after: str = "", at_most: int = BATCH) -> Sequence[Row[Any]]:
    """Files that may have no output any more, `storage_key` and `since`, in order; those that come after *after*."""
    statement = text("SELECT storage_key, since FROM leftovers WHERE storage_key > :after ORDER BY 1 LIMIT :at_most")
    return tx.execute(statement, {"after": after, "at_most": at_most}).all()


def forget_leftover(tx: Connection, key: str, *, since: datetime) -> None:
    """The file was gone, or another output's; unless that was pruned meanwhile and the key noted again."""
    statement = text("DELETE FROM leftovers WHERE storage_key = :key AND since = :since")
    tx.execute(statement, {"key": key, "since": since})


_REMOVE_KEYS = text(f"""
    WITH old AS MATERIALIZED ({_each_rule(_OLD_KEYS)}), free AS MATERIALIZED (
        SELECT k.service_id, k.key FROM old o JOIN idempotency_keys k ON (k.service_id, k.key) = (o.service_id, o.key)
        ORDER BY k.service_id, k.key FOR UPDATE OF k SKIP LOCKED
    )
    DELETE FROM idempotency_keys k USING free f WHERE (k.service_id, k.key) = (f.service_id, f.key)
""")


def keys(tx: Connection, rules: Sequence[Rule], *, at_most: int = BATCH) -> int:
    """Remove up to *at_most* idempotency keys whose age is over and whose jobs have all ended, and give how many."""
    mine = [rule for rule in rules if rule.kind is Kind.KEYS]
    if not mine:
        return 0
    tx.execute(READ_BY_INDEX)
    of_one = {"rules": _json(mine), "at_most": at_most, "of_batches": False}
    of_many = {"rules": _json(mine), "at_most": min(BATCHES, at_most), "of_batches": True}
    return sum(tx.execute(_REMOVE_KEYS, parameters).rowcount for parameters in (of_one, of_many))


_REMOVE_ROWS = {
    kind: text(f"""
        WITH old AS MATERIALIZED ({_each_rule(old)}), free AS MATERIALIZED (
            SELECT {key} FROM {table} WHERE ({key}) IN (SELECT {key} FROM old) ORDER BY {key} FOR UPDATE SKIP LOCKED
        )
        DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM free)
    """)
    for kind, old in _OLD_ROWS.items()
    for table, key in (_TABLES[kind],)
}


# Hours go after the last of their minutes: there are few of them.
_REMOVE_HOURS = text("DELETE FROM stats_hours WHERE hour < (SELECT min(minute) - interval '1 hour' FROM stats)")


def rows(tx: Connection, rules: Sequence[Rule], kind: Kind, *, at_most: int = BATCH) -> int:
    """Remove up to *at_most* of what is no job nor key, those whose age is over, and give how many."""
    mine = [rule for rule in rules if rule.kind is kind]
    if not mine:
        return 0
    tx.execute(READ_BY_INDEX)
    removed = tx.execute(_REMOVE_ROWS[kind], {"rules": _json(mine), "at_most": at_most}).rowcount
    if kind is Kind.STATS and removed:
        tx.execute(_REMOVE_HOURS)
    return removed


_COUNTS = [
    (ENDED, text(_counted(_OLD_JOBS, _GUARDS)), {}),
    ((Kind.KEYS,), text(_counted(_OLD_KEYS)), {"of_batches": False}),
    ((Kind.KEYS,), text(_counted(_OLD_KEYS)), {"of_batches": True}),
    *(((kind,), text(_counted(old)), {}) for kind, old in _OLD_ROWS.items()),
]


def count(tx: Connection, rules: Sequence[Rule]) -> list[Old]:
    """How many would go now, by kind and service."""
    found: dict[tuple[UUID | None, Kind], int] = {}
    for kinds, statement, parameters in _COUNTS:
        mine = [rule for rule in rules if rule.kind in kinds]
        limits = {"rules": _json(mine), "at_most": AT_MOST_COUNTED, **parameters}
        for row in tx.execute(statement, limits) if mine else ():
            whose = row.service_id, Kind(row.kind)
            found[whose] = found.get(whose, 0) + row.n
    return [Old(*whose, min(n, AT_MOST_COUNTED), more=n >= AT_MOST_COUNTED) for whose, n in found.items()]


def _json(rules: Collection[Rule]) -> str:
    plain = [asdict(rule) | {"service_id": rule.service_id and str(rule.service_id)} for rule in rules]
    return json.dumps(plain)
