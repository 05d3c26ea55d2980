"""
What a running stack uses: CPU by program, SQL statements, WAL, Celery messages, calls at the provider, memory.

Statements are counted by Postgres itself (pg_stat_statements), BEGIN and COMMIT among them; messages by
Valkey, as the pushes to its lists.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from pipeline.embedded.stack import RunningStack

OURS = ("web", "worker", "beat")
_BOOKENDS = ("begin", "commit", "rollback")


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at one moment; what lies between two of them was used."""

    cpu_s: Mapping[str, float]  # by program
    statements: int
    bookends: int  # BEGIN, COMMIT, ROLLBACK
    wal_bytes: int
    messages: int
    at: float = field(default_factory=time.monotonic)

    def until(self, after: "Reading") -> "Reading":
        """What was used between this and *after*; `at` is the seconds."""
        return Reading(
            {name: after.cpu_s[name] - self.cpu_s.get(name, 0.0) for name in after.cpu_s},
            after.statements - self.statements,
            after.bookends - self.bookends,
            after.wal_bytes - self.wal_bytes,
            after.messages - self.messages,
            after.at - self.at,
        )

    def each(self, jobs: int) -> dict[str, float]:
        """What a job cost, of what was used for so many."""
        ours = sum(self.cpu_s.get(name, 0.0) for name in OURS)
        return {
            "CPU ms/job, web + worker + beat": 1000 * ours / jobs,
            "CPU ms/job, Postgres": 1000 * self.cpu_s.get("postgres", 0.0) / jobs,
            "CPU ms/job, all": 1000 * sum(self.cpu_s.values()) / jobs,
            "SQL statements/job": (self.statements + self.bookends) / jobs,
            "of these BEGIN and COMMIT/job": self.bookends / jobs,
            "Celery messages/job": self.messages / jobs,
            "WAL KB/job": self.wal_bytes / 1000 / jobs,
        }


class Meter:
    """Reads a stack's counters."""

    def __init__(self, running: RunningStack) -> None:
        self._running = running
        self._db = psycopg.connect(running.database_url, autocommit=True)
        self._broker = redis.Redis.from_url(running.broker_url)
        self._gone: dict[tuple[str, int], float] = {}  # the most that each process was seen to have used

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._broker.close()

    def read(self) -> Reading:
        """Every counter, now."""
        statements, bookends = self._statements()
        return Reading(self._cpu(), statements, bookends, self._wal(), self._messages())

    def forget(self) -> None:
        """Begin to count statements anew: the longest run fits the extension's room then."""
        self._db.execute("SELECT public.pg_stat_statements_reset()")

    def statements(self, at_most: int = 30) -> Iterator[str]:
        """The statements that took longest, a line each: calls, ms in all, planning, 8 KB blocks read a call, words."""
        rows = self._db.execute(
            "SELECT calls, total_exec_time, total_plan_time, (shared_blks_hit + shared_blks_read) / greatest(calls, 1),"
            " left(regexp_replace(query, '\\s+', ' ', 'g'), 140)"
            " FROM public.pg_stat_statements ORDER BY total_exec_time + total_plan_time DESC LIMIT %s",
            [at_most],
        ).fetchall()
        for calls, ms, planning_ms, blocks, words in rows:
            yield f"{calls:7} × {ms:8.0f} ms + {planning_ms:6.0f} ms, {blocks:6} blocks  {words}"

    def _statements(self) -> tuple[int, int]:
        row = self._db.execute(
            "SELECT coalesce(sum(calls) FILTER (WHERE NOT lower(query) = ANY(%s)), 0)::bigint,"
            " coalesce(sum(calls) FILTER (WHERE lower(query) = ANY(%s)), 0)::bigint FROM public.pg_stat_statements",
            [list(_BOOKENDS), list(_BOOKENDS)],
        ).fetchone()
        assert row
        return int(row[0]), int(row[1])

    def _wal(self) -> int:
        row = self._db.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
        assert row
        return int(row[0])

    def _messages(self) -> int:
        stats: dict[str, Any] = self._broker.info("commandstats")
        return sum(int(stats[name]["calls"]) for name in ("cmdstat_lpush", "cmdstat_rpush") if name in stats)

    def _cpu(self) -> dict[str, float]:
        used: dict[str, float] = {}
        for name, pids in self._running.pids().items():
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = psutil.Process(pid).cpu_times()
                    self._gone[name, pid] = times.user + times.system
        for (name, _), seconds in self._gone.items():
            used[name] = used.get(name, 0.0) + seconds
        return used


def cpu_s(pid: int) -> float:
    """What a process and all that came of it have worked so far, in seconds; those that have ended, too."""
    found = 0.0
    root = psutil.Process(pid)
    for one in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += sum(one.cpu_times()[:4])  # its own, and that of its children which it has seen end
    return found


def count_statements(url: str) -> None:
    """Have a Postgres count its statements, and note each commit's time, from its next start on: costs a per cent."""
    with psycopg.connect(url, autocommit=True) as db:
        db.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        db.execute("ALTER SYSTEM SET pg_stat_statements.track_planning = on")
        db.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements SCHEMA public")


@contextlib.contextmanager
def most_memory(running: RunningStack, every_s: float = 0.2) -> Iterator[dict[str, dict[str, float]]]:
    """The most that each line of the Procfile takes meanwhile, all its processes together: {line: {RSS, PSS}} in MB."""
    most: dict[str, dict[str, float]] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(every_s):
            for name, sizes in memory(running).items():
                seen = most.setdefault(name, dict(sizes))
                seen.update({kind: max(seen[kind], size) for kind, size in sizes.items()})

    thread = threading.Thread(target=look, name="memory")
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def memory(running: RunningStack) -> dict[str, dict[str, float]]:
    """What each line of the Procfile takes now, in MB: RSS counts what processes share for each, PSS once."""
    found = {}
    for name, pids in running.pids().items():
        if name in OURS:
            each = [sizes for pid in pids if (sizes := sizes_of(pid))]
            found[name] = {"RSS": sum(rss for rss, _ in each), "PSS": sum(pss for _, pss in each)}
    return found


def sizes_of(pid: int) -> tuple[float, float] | None:
    """RSS and PSS of one process, in MB; None: it has left."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return kb["Rss"] * 1024 / 1e6, kb["Pss"] * 1024 / 1e6
