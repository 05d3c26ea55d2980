"""What needs a person now: asked for each page of the dashboard, so all of it is read off small indexes."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

AT_MOST = 1000
"""So many of a kind are counted."""


@dataclass(frozen=True, slots=True)
class Attention:
    """How things stand; counts stop at AT_MOST."""

    halted_reason: str | None
    halted_at: datetime | None
    halted_balance: float | None
    swept_s: float | None  # how long ago the last sweep was
    held: int  # jobs that wait for a decision
    dead: int  # notifications that were given up
    quarantined: int  # outputs that wait to be looked at
    off: int  # receivers that are switched off


_NEEDED = text(f"""
    SELECT halted_reason, halted_at, halted_balance,
        extract(epoch FROM clock_timestamp() - swept_at)::float8 AS swept_s,
        (SELECT count(*) FROM (SELECT FROM jobs
            WHERE state = 'unknown' AND due_at IS NOT NULL AND held_at IS NOT NULL LIMIT {AT_MOST}) x) AS held,
        (SELECT count(*) FROM (SELECT FROM notifications WHERE state = 'dead' LIMIT {AT_MOST}) x) AS dead,
        (SELECT count(*) FROM (SELECT FROM assets WHERE review = 'quarantined' LIMIT {AT_MOST}) x) AS quarantined,
        (SELECT count(*) FROM endpoints WHERE off_at IS NOT NULL) AS off
    FROM account WHERE id = 1
""")


def needed(tx: Connection) -> Attention:
    """What needs a person."""
    return Attention(*tx.execute(_NEEDED).one())
