"""Worker processes and their heartbeats."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from uuid import UUID

from sqlalchemy import Connection, text

DEAD = """(w.gone_at IS NOT NULL OR w.beat_at < statement_timestamp() - make_interval(secs => :dead_after_s)
    AND pg_postmaster_start_time() < statement_timestamp() - make_interval(secs => :dead_after_s / 2))"""
"""
An SQL condition: worker `w` was seen to be gone, or is not heard any more. While the database was away nobody could be.

After its start the living are heard again within one heartbeat, so half the time is enough: were it the whole, a
database that restarts again and again would keep the dead alive.
"""


def beat(tx: Connection, worker_id: UUID, *, told_s: float | None = None) -> float | None:
    """
    Say that this process lives, and that Celery's beat told it to sweep *told_s* seconds ago, if it ever did.

    Returns the seconds since anybody swept, or None if nobody ever did.
    """
    statement = text("""
        WITH beat AS (
            INSERT INTO workers AS w (id, host, pid, place, told_at)
            VALUES (:id, :host, :pid, :place, clock_timestamp() - make_interval(secs => :told_s))
            ON CONFLICT (id) DO UPDATE SET beat_at = clock_timestamp(), gone_at = NULL,
                told_at = coalesce(excluded.told_at, w.told_at)
        )
        SELECT extract(epoch FROM clock_timestamp() - swept_at)::float8 FROM account WHERE id = 1
    """)
    who = {"id": worker_id, "host": socket.gethostname(), "pid": os.getpid(), "place": _place(), "told_s": told_s}
    swept: float | None = tx.execute(statement, who).scalar_one()
    return swept


def alive(tx: Connection, *, dead_after_s: float) -> int:
    """How many are heard."""
    statement = text(f"SELECT count(*) FROM workers w WHERE NOT {DEAD}")
    return int(tx.execute(statement, {"dead_after_s": dead_after_s}).scalar_one())


def untold_s(tx: Connection) -> float | None:
    """For how long Celery's beat has not been heard by any worker, in seconds; a new one counts from its start."""
    statement = text("""
        SELECT extract(epoch FROM clock_timestamp() - max(coalesce(told_at, started_at)))::float8 FROM workers
    """)
    found: float | None = tx.execute(statement).scalar_one()
    return found


def leave(tx: Connection, worker_id: UUID) -> None:
    """Stop being a worker: whatever this process still holds counts as abandoned from now on."""
    tx.execute(text("DELETE FROM workers WHERE id = :id"), {"id": worker_id})


def bury_neighbours(tx: Connection) -> None:
    """Note which processes of this machine are gone: nobody need wait until they are not heard any more."""
    neighbours = text("SELECT id, pid FROM workers WHERE place = :place AND gone_at IS NULL")
    rows = tx.execute(neighbours, {"place": _place()})
    gone = [str(row.id) for row in rows if not _is_running(row.pid)]
    if gone:
        bury = text("UPDATE workers SET gone_at = clock_timestamp() WHERE id = ANY(CAST(:ids AS uuid[]))")
        tx.execute(bury, {"ids": gone})


@dataclass(frozen=True, slots=True)
class Process:
    """One worker process that lives."""

    host: str
    pid: int
    started_at: datetime
    beat_at: datetime


def living(tx: Connection, *, dead_after_s: float, at_most: int = 100) -> Sequence[Process]:
    """Those that were heard a moment ago, by where they run."""
    statement = text(f"""
        SELECT w.host, w.pid, w.started_at, w.beat_at FROM workers w WHERE NOT {DEAD}
        ORDER BY w.host, w.started_at, w.pid LIMIT :at_most
    """)
    return [Process(*row) for row in tx.execute(statement, {"dead_after_s": dead_after_s, "at_most": at_most})]


@cache
def _place() -> str | None:
    """Where a process id means what it means here: this boot of this machine, this namespace. None: nobody can tell."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def forget_dead(tx: Connection) -> None:
    """Drop the rows of processes that died a day ago."""
    tx.execute(text("DELETE FROM workers WHERE beat_at < clock_timestamp() - interval '1 day'"))
