"""Worker processes and their heartbeats."""

import os
import socket
from uuid import UUID

from sqlalchemy import Connection, text


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
