"""Receivers of notifications that fail: since when, and whether anything is sent to them at all."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, text

from pipeline.store.outbox import EndpointRow


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A receiver that has failed before; `waiting` notifications are for it."""

    name: str
    failing_since: datetime | None
    failures: int
    error: str | None
    off_at: datetime | None
    probe_at: datetime | None
    waiting: int = 0


_COLUMNS = (
    EndpointRow.name,
    EndpointRow.failing_since,
    EndpointRow.failures,
    EndpointRow.error,
    EndpointRow.off_at,
    EndpointRow.probe_at,
)

_FAILED = text("""
    INSERT INTO endpoints (name, failing_since, failures, error)
    SELECT w.name, clock_timestamp(), w.failures, w.error
    FROM unnest(CAST(:names AS text[]), CAST(:failures AS int[]), CAST(:errors AS text[])) AS w(name, failures, error)
    ORDER BY w.name  -- so that two groups never wait for one another in a circle
    ON CONFLICT (name) DO UPDATE SET
        failing_since = coalesce(endpoints.failing_since, excluded.failing_since),
        failures = endpoints.failures + excluded.failures,
        failed_at = clock_timestamp(),
        error = excluded.error
""")

_SWITCH_OFF = text("""
    UPDATE endpoints SET off_at = clock_timestamp(), probe_at = clock_timestamp() + make_interval(secs => :probe_s)
    WHERE name = ANY(:names) AND off_at IS NULL AND failures >= :at_least
      AND failing_since < clock_timestamp() - make_interval(secs => :days_s)
    RETURNING name, failing_since, failures, error, off_at, probe_at
""")


def failed(
    tx: Connection, failures: Mapping[str, Sequence[str]], *, days_s: float, at_least: int, probe_s: float
) -> list[Endpoint]:
    """
    Note for each endpoint why it failed just now, each time.

    Returns:
        Those switched off for it: nothing has succeeded for *days_s* seconds, in at least so many tries.
    """
    if not failures:
        return []
    names = sorted(failures)
    parameters = {
        "names": names,
        "failures": [len(failures[name]) for name in names],
        "errors": [failures[name][-1] for name in names],
    }
    tx.execute(_FAILED, parameters)
    rows = tx.execute(_SWITCH_OFF, {"names": names, "days_s": days_s, "at_least": at_least, "probe_s": probe_s})
    return [Endpoint(*row) for row in rows]


_SUCCEEDED = text("""
    WITH failing AS (
        SELECT name, off_at FROM endpoints WHERE name = ANY(:names) AND failing_since IS NOT NULL
        ORDER BY name FOR UPDATE
    ), mended AS (
        UPDATE endpoints e SET failing_since = NULL, failures = 0, error = NULL, off_at = NULL, probe_at = NULL
        FROM failing f WHERE e.name = f.name
    )
    SELECT name FROM failing WHERE off_at IS NOT NULL
""")


def succeeded(tx: Connection, names: Collection[str]) -> list[str]:
    """These endpoints work. Returns those that were switched off, and are on again by this."""
    return list(tx.execute(_SUCCEEDED, {"names": sorted(names)}).scalars()) if names else []


def switch_on(tx: Connection, name: str) -> bool:
    """Send to an endpoint again, by a person's word. False when it was not switched off."""
    found = text("SELECT FROM endpoints WHERE name = :name AND off_at IS NOT NULL FOR UPDATE")
    if tx.execute(found, {"name": name}).first() is None:
        return False
    succeeded(tx, [name])
    return True


def any_is_off(tx: Connection) -> bool:
    """Whether there is one that is switched off."""
    return bool(tx.execute(text("SELECT EXISTS (SELECT FROM endpoints WHERE off_at IS NOT NULL)")).scalar_one())


def troubled(tx: Connection) -> list[Endpoint]:
    """Those that fail now, switched off or not, by name; with how many notifications wait for each."""
    rows = tx.execute(select(*_COLUMNS).where(EndpointRow.failing_since.is_not(None)).order_by(EndpointRow.name)).all()
    count = text("""
        SELECT endpoint, count(*) FROM notifications WHERE due_at IS NOT NULL AND endpoint = ANY(:names) GROUP BY 1
    """)
    waiting = {row[0]: row[1] for row in tx.execute(count, {"names": [row.name for row in rows]})}
    return [Endpoint(*row, waiting=waiting.get(row.name, 0)) for row in rows]
