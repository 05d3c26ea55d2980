"""
How often each service asks: its key and its limit are looked at in one statement, over all web processes together.

The limit is kept as a bucket that holds a minute's worth of requests and fills evenly, written down as the time at
which it will be full again (the generic cell rate algorithm). A refused request takes nothing out of it.
"""

import math
from dataclasses import dataclass, fields

from sqlalchemy import Connection, text

from pipeline.store.services import Service, hashed

WINDOW_S = 60

_ROUNDED_S = 1e-6
"""What a minute's share of one request may be off by: Postgres counts microseconds."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Where a service with a limit stands, after its request."""

    per_minute: int
    owed_s: float  # until the bucket is full again
    passed: bool  # the request is one too many

    @property
    def remaining(self) -> int:
        """How many requests it may make at once."""
        spare_s = WINDOW_S + self.per_minute * _ROUNDED_S - self.owed_s
        return 0 if self.passed else max(0, min(self.per_minute, math.floor(spare_s / self._each_s)))

    @property
    def next_s(self) -> float:
        """How long until it may make one more than that."""
        return max(0.0, self.owed_s + (self.remaining + 1) * self._each_s - WINDOW_S)

    @property
    def _each_s(self) -> float:
        return WINDOW_S / self.per_minute


_COLUMNS = ", ".join(f"s.{field.name}" for field in fields(Service))

_ADMIT = text(f"""
    WITH caller AS (
        SELECT {_COLUMNS}, statement_timestamp() AS now,
               make_interval(secs => {WINDOW_S} + {_ROUNDED_S}::float8 * s.requests_per_minute) AS whole,
               make_interval(secs => {WINDOW_S}::float8 / s.requests_per_minute) AS "each"
        FROM services s WHERE s.key_hash = :key_hash AND s.revoked_at IS NULL
    ), paid AS (  -- not even tried without a limit
        INSERT INTO paces AS p (service_id, spent_until) SELECT id, now + "each" FROM caller WHERE "each" IS NOT NULL
        ON CONFLICT (service_id) DO UPDATE
        SET spent_until = greatest(p.spent_until, statement_timestamp()) + (SELECT "each" FROM caller)
        WHERE greatest(p.spent_until, statement_timestamp()) + (SELECT "each" FROM caller)
              <= statement_timestamp() + (SELECT whole FROM caller)
        RETURNING spent_until
    )
    SELECT {_COLUMNS}, extract(epoch FROM p.spent_until - s.now)::float8 AS paid_s,
           extract(epoch FROM (SELECT spent_until FROM paces WHERE service_id = s.id) - s.now)::float8 AS owed_s
    FROM caller s LEFT JOIN paid p ON true
""")


def admit(tx: Connection, key: str) -> tuple[Service, Pace | None] | None:
    """
    Take one request of the service whose key this is, and say where it stands: None where there is no limit.

    Returns:
        None when the key is nobody's, or was revoked.
    """
    row = tx.execute(_ADMIT, {"key_hash": hashed(key)}).first()
    if row is None:
        return None
    *facts, paid_s, owed_s = row
    service = Service(*facts)
    if service.requests_per_minute is None:
        return service, None
    if paid_s is None:  # what it owes may be news of the same moment, and not seen yet: then the bucket is empty
        return service, Pace(service.requests_per_minute, WINDOW_S if owed_s is None else owed_s, passed=True)
    return service, Pace(service.requests_per_minute, paid_s, passed=False)
