"""
Who is measured: this product, or a worker of something else; all on one Postgres, one Valkey and one provider.

Each starts when it is made; once it is closed, nothing of it runs or waits any more.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import redis
from celery import Celery
from procrastinate import App, SyncPsycopgConnector

from benchmarks import stacks
from pipeline.embedded import procfile
from pipeline.embedded.logs import tail
from pipeline.embedded.processes import Process, Program, StackError, wait_until
from pipeline.embedded.stack import RunningStack

SERVERS = ("postgres", "valkey")
POOLS = ("prefork", "threads", "gevent")
FAILED = ("raised unexpected", "ended with status: Error")
"""What Celery and procrastinate write of each."""

TABLE = (
    "CREATE TABLE jobs (id uuid PRIMARY KEY, state text NOT NULL, outputs jsonb NOT NULL,"
    " ended_at timestamptz NOT NULL DEFAULT now())"
)
"""Where the others store what came of each job."""


class Contender(Protocol):
    """Somebody who does jobs."""

    reserve: int  # how many jobs should always be waiting

    @property
    def at_a_time(self) -> int | None:
        """How many it does at most; None: as many as it sees fit."""

    def hand_in(self, count: int) -> None:
        """Give it so many jobs more."""

    def waiting(self) -> int:
        """How many of them it has not begun."""

    def completed(self) -> int:
        """How many of them are generated and stored."""

    def worker(self) -> list[int]:
        """The processes of its worker, children included."""

    def helpers(self) -> list[int]:
        """The processes of whatever else does its work: the servers, and what of it is no worker."""

    def check(self) -> None:
        """Raise StackError when it has left, or when jobs fail again and again."""

    def close(self) -> None:
        """End it, with all that it was handed in."""


class Ours:
    """The product itself, as its Procfile runs it."""

    at_a_time = None

    def __init__(self, running: RunningStack, *, reserve: int) -> None:
        self.reserve = reserve
        self._running = running
        self._db = psycopg.connect(running.database_url, autocommit=True)
        self._first: str | None = None
        self._handed_in = 0

    def hand_in(self, count: int) -> None:
        ids = stacks.hand_in(self._running, stacks.prompts(count))
        self._handed_in += count
        self._first = self._first or ids[0]

    def waiting(self) -> int:
        return self._count("state = 'queued' AND due_at >= (SELECT queued_from FROM pipeline.account)")

    def completed(self) -> int:
        # Ids grow with time, and there is an index: earlier runs cost nothing.
        service = "service_id = (SELECT service_id FROM pipeline.jobs WHERE id = %(first)s)"
        return self._count(f"{service} AND state = 'completed' AND id >= %(first)s") if self._first else 0

    def worker(self) -> list[int]:
        return self._running.pids()["worker"]

    def helpers(self) -> list[int]:
        pids = self._running.pids()
        return [pid for name in (*SERVERS, "web", "beat") for pid in pids[name]]

    def check(self) -> None:
        """Its stack says so itself."""

    def close(self) -> None:
        """Wait until the last job has ended: what is left would work beside whoever comes next."""
        ended = wait_until(lambda: self.completed() >= self._handed_in, 240.0, every_s=0.2)
        self._db.close()
        if not ended:
            raise StackError("this product's jobs did not come to an end")

    def _count(self, condition: str) -> int:
        row = self._db.execute(
            f"SELECT count(*) FROM pipeline.jobs WHERE {condition}", {"first": self._first}
        ).fetchone()
        assert row
        return int(row[0])


class Other:
    """A worker of something else: a process of its own, with a database of its own on the stack's Postgres."""

    def __init__(self, place: "Place", name: str, argv: tuple[str, ...], at_a_time: int) -> None:
        self.at_a_time = at_a_time
        self.reserve = min(4 * at_a_time, 400)
        self._place = place
        self._log = place.room / "worker.log"
        self._db = psycopg.connect(place.database_url, autocommit=True)
        self._log.unlink(missing_ok=True)
        home = procfile.PROCFILE.parent
        self._process = Process(Program(name=name, argv=argv, log=self._log, cwd=home, env=place.env))

    def completed(self) -> int:
        return self._count("jobs")

    def worker(self) -> list[int]:
        return [one.pid for one in self._process.look()]

    def helpers(self) -> list[int]:
        pids = self._place.running.pids()
        return [pid for name in SERVERS for pid in pids[name]]

    def check(self) -> None:
        said = self._log.read_text(errors="replace")
        failed = sum(said.count(words) for words in FAILED)
        if self._process.poll() is not None or failed > 10:  # on a busy machine a connection may take too long
            name, what = self._process.program.name, f"{failed} jobs failed" if failed else "it left"
            raise StackError(f"{name}: {what}. Its log ends:\n{tail(self._log)}")

    def close(self) -> None:
        """Stop the worker in the midst of its jobs, and forget them."""
        self._process.end()
        self._db.close()
        self._place.clear()

    def _count(self, what: str) -> int:
        row = self._db.execute(f"SELECT count(*) FROM {what}").fetchone()
        assert row
        return int(row[0])


class CelerySdk(Other):
    """A Celery worker whose task calls the SDK."""

    def __init__(self, place: "Place", pool: str, concurrency: int) -> None:
        options = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")  # as ours
        size = ("--pool", pool, "--concurrency", str(concurrency))
        argv = ("celery", "--quiet", "-A", "benchmarks.instead.celery_app", "worker", *size, *options)
        self._app = Celery("caller", broker=place.broker_url, set_as_current=False)
        self._broker = redis.Redis.from_url(place.broker_url)
        super().__init__(place, f"celery, {pool}", argv, concurrency)

    def hand_in(self, count: int) -> None:
        for keywords in arguments(count):
            self._app.send_task("generate", kwargs=keywords)

    def waiting(self) -> int:
        length = self._broker.llen("celery")
        assert isinstance(length, int)
        return length

    def close(self) -> None:
        super().close()
        self._broker.close()
        self._app.close()


class Procrastinate(Other):
    """A procrastinate worker whose task calls the SDK."""

    def __init__(self, place: "Place", concurrency: int) -> None:
        argv = (sys.executable, "-m", "benchmarks.instead.procrastinate_app", str(concurrency))
        self._app = App(connector=SyncPsycopgConnector(conninfo=place.database_url, min_size=1, max_size=1))
        self._app.open()
        self._app.schema_manager.apply_schema()
        super().__init__(place, "procrastinate", argv, concurrency)

    def hand_in(self, count: int) -> None:
        self._app.configure_task("generate").batch_defer(*arguments(count))

    def waiting(self) -> int:
        return self._count("procrastinate_jobs WHERE status = 'todo'")

    def close(self) -> None:
        self._app.close()
        super().close()


class Place:
    """Where the others work: a database and a Valkey of their own, on the servers of the stack."""

    def __init__(self, running: RunningStack, room: Path, env: Mapping[str, str]) -> None:
        self.running = running
        self._env = env
        self.room = room
        self.database_url = urlsplit(running.database_url)._replace(path="/instead").geturl()
        self.broker_url = urlsplit(running.broker_url)._replace(path="/1").geturl()
        self.clear()

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of their programs: no proxy, the programs beside our Python found first."""
        return {
            "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]),
            "DATABASE_URL": self.database_url,
            "BROKER_URL": self.broker_url,
            **self._env,
        }

    def clear(self) -> None:
        """Begin anew: an empty database, an empty broker."""
        with psycopg.connect(self.running.database_url, autocommit=True) as db:
            db.execute("DROP DATABASE IF EXISTS instead WITH (FORCE)")
            db.execute("CREATE DATABASE instead")
        with psycopg.connect(self.database_url, autocommit=True) as db:
            db.execute(TABLE)
        with contextlib.closing(redis.Redis.from_url(self.broker_url)) as broker:
            broker.flushdb()


def arguments(count: int) -> list[dict[str, Any]]:
    """Of so many tasks: the same jobs as ours."""
    return [{"job": str(uuid4()), **job} for job in stacks.prompts(count)]
