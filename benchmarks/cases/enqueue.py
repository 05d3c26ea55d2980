"""
How fast jobs come in by each door, and what it costs, against a floor: NDJSON copied by raw psycopg into a plain table.

One web process and one Postgres, durable, with a Valkey for the nudges; nobody works meanwhile, but where a worker is
the door. The service is paused, so that one begins no job. Every job has a prompt of some words and two labels, and
its price is known. `--set terms=10000` has prompts screened for so many terms.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import psycopg
from celery import Celery
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import pipeline
from benchmarks.costs import cpu_s
from benchmarks.harness import Case, Figures, Plan, Side
from pipeline.broker import QUEUE
from pipeline.embedded import procfile, scratch, stack
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, wait_until
from pipeline.embedded.stack import RunningStack
from pipeline.screening import EVERYONE, normal
from pipeline.settings import load
from pipeline.store import screens, services
from pipeline.store.database import Database
from pipeline.store.tables import new_id

SERVICE = "shop"
CALLERS = 8
AT_ONCE = 100
"""Jobs a transaction, where several share one."""

WITHIN_S = 120.0

PRICE = "INSERT INTO pipeline.prices (model, key, usd) VALUES ('openai/dall-e-2', '', 0.02)"

FLOOR = """
    CREATE TABLE public.floor (
        id uuid PRIMARY KEY, input jsonb NOT NULL, metadata jsonb NOT NULL,
        state text NOT NULL DEFAULT 'queued', created_at timestamptz NOT NULL DEFAULT clock_timestamp())
"""

COPY = "COPY public.floor (id, input, metadata) FROM STDIN"

BY_SQL = """
    SELECT pipeline.enqueue(service => %(service)s, input => CAST(%(input)s AS jsonb),
                            metadata => CAST(%(metadata)s AS jsonb))
"""

ARRIVED = """
    SELECT count(*) FROM pipeline.labels
    WHERE service_id = (SELECT id FROM pipeline.services WHERE name = %(service)s)
      AND name = 'campaign' AND value = %(campaign)s
"""

Spans = Sequence[float]
"""How long each request, or transaction, took, in seconds."""


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """The ways in, into one database, which grows: every run finds what the earlier ones left."""
    few, some = plan.pick(1000, 16), plan.pick(2000, 200)
    small, large = plan.pick([1000] * 10, [24] * 2), plan.pick([10_000] * 2, [48])
    with (
        scratch.directory("bench") as room,
        stack.running(data=room / "stack", without=("beat",)) as running,
        Doors(running, terms=int(plan.options.get("terms", 0))) as doors,
        a_floor(running, room) as floor,
    ):
        yield {
            "single, over HTTP": lambda: doors.singles(few, CALLERS),
            "single, over HTTP, one caller": lambda: doors.singles(few // 4, 1),
            "batch of 1,000 over HTTP": lambda: doors.batches(small),
            "batch of 10,000 over HTTP": lambda: doors.batches(large),
            "batch of 10,000, a key each line": lambda: doors.batches(large, keys=True),
            "transactional, Python": lambda: doors.by_python(few),
            "transactional, Python, 100 a transaction": lambda: doors.by_python(some, AT_ONCE),
            "transactional, SQL": lambda: doors.by_sql(few),
            "transactional, SQL, 100 a transaction": lambda: doors.by_sql(some, AT_ONCE),
            "Celery message": lambda: doors.by_message(few),
            "raw floor": lambda: doors.batches(large, to=floor),
        }


@dataclass(frozen=True, slots=True)
class Floor:
    """The floor's address, and its process."""

    url: str
    pid: int


class Doors:
    """A stack whose worker is away, and every way to hand in jobs there."""

    def __init__(self, running: RunningStack, *, terms: int = 0) -> None:
        self._running = running
        self._numbers = count(1)  # of requests: no two have the same key
        self._database = Database(load({"DATABASE_URL": running.database_url}).database_url, name="benchmark")
        self._engine = create_engine(self._database.engine.url)
        self._sql = psycopg.connect(running.database_url)
        self._celery = Celery("elsewhere", broker=running.broker_url, set_as_current=False)
        for statement in (FLOOR, PRICE):
            self._sql.execute(statement)
        self._sql.commit()
        with self._database.transaction() as tx:
            self._key = services.create(tx, SERVICE)
            services.change(tx, SERVICE, paused=True)
            screens.add(tx, EVERYONE, "violence", list(_terms(terms)))
        running.stop("worker")

    def __enter__(self) -> "Doors":
        return self

    def __exit__(self, *_: object) -> None:
        self._celery.close()
        self._sql.close()
        self._engine.dispose()
        self._database.close()

    def singles(self, jobs: int, callers: int) -> Figures:
        """One job a request, over connections that are kept."""
        bodies = [json.dumps(_job(number)).encode() for number in range(jobs // callers)]

        def one(_: int) -> Spans:
            with self._connection(self._running.url) as connection:
                return [self._posted(connection, "/v1/jobs", body) for body in bodies]

        with ThreadPoolExecutor(callers) as threads:
            work = lambda: [span for spans in threads.map(one, range(callers)) for span in spans]  # noqa: E731
            return self._measured(len(bodies) * callers, work, {"web": self._pid("web")})

    def batches(self, sizes: Sequence[int], *, keys: bool = False, to: Floor | None = None) -> Figures:
        """Batches one after the other, each with a key for the whole; the floor makes nothing of it."""
        bodies = [_lines(size, f"line-{next(self._numbers)}" if keys else None) for size in sizes]
        pid = to.pid if to else self._pid("web")
        with self._connection(to.url if to else self._running.url) as connection:
            work = lambda: [self._posted(connection, "/v1/jobs/batch", body) for body in bodies]  # noqa: E731
            return self._measured(sum(sizes), work, {"web": pid})

    def by_python(self, jobs: int, at_once: int = 1) -> Figures:
        """`pipeline.enqueue` in transactions of SQLAlchemy's."""

        def transaction(first: int) -> None:
            with Session(self._engine) as session, session.begin():
                for number in range(first, first + at_once):
                    pipeline.enqueue(session, service=SERVICE, **_job(number))

        return self._transactions(transaction, range(0, jobs, at_once))

    def by_sql(self, jobs: int, at_once: int = 1) -> Figures:
        """The function itself, as any language calls it."""

        def transaction(first: int) -> None:
            with self._sql.transaction():
                for number in range(first, first + at_once):
                    job = {name: json.dumps(value) for name, value in _job(number).items()}
                    self._sql.execute(BY_SQL, {"service": SERVICE, **job})

        return self._transactions(transaction, range(0, jobs, at_once))

    def by_message(self, jobs: int) -> Figures:
        """Messages of another app's; the worker is there, and has taken one, when the time begins."""
        self._running.start("worker")
        try:
            self._sent(1)
            return self._measured(jobs, lambda: self._sent(jobs), {"worker": self._pid("worker")})
        finally:
            self._running.stop("worker")

    def _sent(self, jobs: int) -> Spans:
        campaign = f"by message {next(self._numbers)}"
        for number in range(jobs):
            words = {"service": SERVICE, **_job(number, campaign)}
            self._celery.send_task("pipeline.enqueue", queue=QUEUE, kwargs=words)

        def there() -> bool:
            with self._sql.transaction():
                row = self._sql.execute(ARRIVED, {"service": SERVICE, "campaign": campaign}).fetchone()
            return bool(row and row[0] == jobs)

        assert wait_until(there, WITHIN_S), "messages are missing"
        return ()

    def _transactions(self, transaction: Callable[[int], None], firsts: range) -> Figures:
        jobs = len(firsts) * firsts.step
        return self._measured(jobs, lambda: [_timed(lambda: transaction(first)) for first in firsts], {})  # noqa: B023

    def _measured(self, jobs: int, work: Callable[[], Spans], working: Mapping[str, int]) -> Figures:
        """What *work* takes for so many jobs: of Postgres, and of *working*, a process by its name; or of this one."""

        def used() -> dict[str, float]:
            ours = {name: cpu_s(pid) for name, pid in working.items()} or {"caller": time.process_time()}
            return {**ours, "Postgres": cpu_s(self._pid("postgres"))}

        before, began = used(), time.perf_counter()
        spans = work()
        seconds = time.perf_counter() - began
        costs = {f"CPU ms/1,000 jobs, {name}": 1e6 * (cpu - before[name]) / jobs for name, cpu in used().items()}
        return {"jobs/s": jobs / seconds} | costs | _percentiles(spans)

    def _pid(self, name: str) -> int:
        return self._running.pids()[name][0]

    @contextmanager
    def _connection(self, url: str) -> Iterator[HTTPConnection]:
        connection = HTTPConnection(urlsplit(url).netloc, timeout=WITHIN_S)
        try:
            yield connection
        finally:
            connection.close()

    def _posted(self, connection: HTTPConnection, path: str, body: bytes) -> float:
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json" if path == "/v1/jobs" else "application/x-ndjson",
            "Idempotency-Key": f"request-{next(self._numbers)}",
        }

        def ask() -> None:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 201, said[:1000]

        return _timed(ask)


@contextmanager
def a_floor(running: RunningStack, room: Path) -> Iterator[Floor]:
    """Run the floor on the same server as the product: the Procfile's web line."""
    held = hold(None)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    program = Program(
        name="floor",
        argv=procfile.shell(procfile.read()["web"].replace("pipeline.web.server:app", f"{__name__}:floor")),
        log=room / "floor.log",
        cwd=procfile.PROCFILE.parent,
        env={"PATH": path, "PORT": str(held.number), "DATABASE_URL": running.database_url},
    )
    process = Process(program)
    try:
        url = f"http://127.0.0.1:{held.number}"
        assert wait_until(lambda: _answers(held.number), 30.0), program.log.read_text()
        yield Floor(url, process.pid)
    finally:
        process.stop()
        held.close()


def floor() -> Flask:
    """The app: what is decoded is copied in, and nothing is looked at."""
    app = Flask("floor")
    db = psycopg.connect(os.environ["DATABASE_URL"])
    turn = threading.Lock()

    @app.post("/v1/jobs/batch")
    def store() -> ResponseReturnValue:
        ids = []
        with turn, db.transaction(), db.cursor() as cursor, cursor.copy(COPY) as copy:
            for line in request.get_data().splitlines():
                job = json.loads(line)
                ids.append(new_id())
                copy.write_row((ids[-1], json.dumps(job["input"]), json.dumps(job["metadata"])))
        return jsonify(ids), 201

    return app


def _job(number: int, campaign: str = "spring") -> dict[str, Any]:
    """A job as callers send it: a prompt of some words, two labels."""
    prompt = f"A lighthouse on a cliff at dusk, number {number}, in the manner of an old postcard"
    return {"input": {"prompt": prompt}, "metadata": {"order": str(number), "campaign": campaign}}


def _lines(size: int, keys: str | None) -> bytes:
    jobs = (_job(n) | ({"idempotency_key": f"{keys}-{n}"} if keys else {}) for n in range(size))
    return "\n".join(map(json.dumps, jobs)).encode()


def _terms(count: int) -> Iterator[str]:
    """Words, some with an open end, and phrases. None is asked for, but `a` and `number` are in the prompts."""
    forms = ("word{}", "stem{}*", "a phrase {}", "number {} of")
    return (normal(forms[number % 4].format(f"x{number}")) for number in range(count))


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _percentiles(spans: Spans) -> dict[str, float]:
    if len(spans) < 20:
        return {}
    cuts = quantiles(spans, n=20, method="inclusive")
    return {"p50 ms": 1000 * cuts[9], "p95 ms": 1000 * cuts[18]}


def _answers(port: int) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().status == 404
    except OSError:
        return False


CASE = Case(
    "enqueue",
    "Jobs handed in by each door, until they are committed.",
    sides,
    baseline="raw floor",
    needs=("psutil",),
    options=("terms",),
)
