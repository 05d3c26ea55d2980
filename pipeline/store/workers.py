"""Worker processes and their heartbeats."""

import os
import socket
from uuid import UUID

from sqlalchemy import Connection, text

DEAD = """(w.beat_at < statement_timestamp() - make_interval(secs => :dead_after_s)
    AND pg_postmaster_start_time() < statement_timestamp() - make_interval(secs => :dead_after_s / 2))"""
"""
An SQL condition: worker `w` is not heard any more. While the database was away nobody could be.

After its start the living are heard again within one heartbeat, so half the time is enough: were it the whole, a
database that restarts again and again would keep the dead alive.
"""


def beat(tx: Connection, worker_id: UUID) -> float | None:
    """Say that this process lives. Returns the seconds since anybody swept, or None if nobody ever did."""
    statement = text("""
        WITH beat AS (
            INSERT INTO workers (id, host, pid) VALUES (:id, :host, :pid)
            ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp()
        )
        SELECT extract(epoch FROM clock_timestamp() - swept_at)::float8 FROM account WHERE id = 1
    """)
    swept: float | None = tx.execute(
        statement, {"id": worker_id, "host": socket.gethostname(), "pid": os.getpid()}
    ).scalar_one()
    return swept


def leave(tx: Connection, worker_id: UUID) -> None:
    """Stop being a worker: whatever this process still holds counts as abandoned from now on."""
    tx.execute(text("DELETE FROM workers WHERE id = :id"), {"id": worker_id})


def forget_dead(tx: Connection) -> None:
    """Drop the rows of processes that died a day ago."""
    tx.execute(text("DELETE FROM workers WHERE beat_at < clock_timestamp() - interval '1 day'"))
