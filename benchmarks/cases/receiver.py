"""
The receiver: how many callbacks a second one web process takes, what each costs, and how long each takes.

Beside it run the two floors of `benchmarks.floors`, on the same server, database and sender. Each request is the first
callback of a job that waits for it, made by our own statements; that all of them moved is looked at after each run.

    --set servers=all     gunicorn as well, with threads and with gevent
    --set connections=32  so many at a time, at saturation
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Protocol

import psycopg

from benchmarks import floors, load, servers
from benchmarks.costs import cpu_s
from benchmarks.harness import Case, Figures, Plan, Side
from benchmarks.load import Told
from benchmarks.servers import Web
from pipeline.embedded import postgres, scratch, valkey
from pipeline.embedded.processes import Server
from pipeline.jobs import Outcome, State
from pipeline.lifecycle.batch import MAX_LINES, accept_lines
from pipeline.runtime import Runtime
from pipeline.settings import load as settings_of
from pipeline.signatures import sign
from pipeline.store import claims, prices, schema, services, workers
from pipeline.store.answers import Answer, record
from pipeline.store.database import Database
from pipeline.store.moves import Move
from pipeline.store.tables import new_id
from pipeline.sweep import tell_settings

MODEL = "openai/dall-e-2"
PROMPT = "A lighthouse on a cliff at dusk, in the manner of an old postcard"
SECRET = f"whsec_{secrets.token_urlsafe(24)}"
RATES = (50, 200)
"""Callbacks a second, on schedule; the provider's top tier allows 83 jobs a second."""

Callback = tuple[str, str]
"""The token of its address, and the id of its prediction."""


class Store(Protocol):
    """Where the jobs of a side are."""

    def fill(self, count: int) -> list[Callback]:
        """Have so many jobs wait for callbacks."""

    def moved(self) -> int:
        """How many have been moved by one, ever."""


@contextmanager
def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
    """Ours, and the two floors; each on a web server of its own, which is idle while another is measured."""
    with ExitStack() as stack:
        room = stack.enter_context(scratch.directory("receiver"))
        database = stack.enter_context(postgres.running(room / "postgres"))
        broker = stack.enter_context(valkey.running())
        ours = stack.enter_context(_ours(database, broker, room))
        floor = stack.enter_context(_floor(database))

        def served(line: str, environ: Mapping[str, str], store: Store | None) -> Side:
            web = stack.enter_context(servers.web(line, environ, room))
            return lambda: _measured(plan, web, database, store)

        apps: dict[str, tuple[str, Mapping[str, str], Store | None]] = {
            "ours": (servers.OURS, ours.environ, ours),
            "minimal": ("benchmarks.floors:minimal", floor.environ, floor),
            "bare Flask": ("benchmarks.floors:bare", {}, None),
        }
        found = {name: served(servers.granian(app), environ, store) for name, (app, environ, store) in apps.items()}
        if plan.options.get("servers") == "all":
            apps["ours"] = ("pipeline.web:create_app", *apps["ours"][1:])  # `server` is made for granian
            for server, line in servers.GUNICORN.items():
                for name, (app, environ, store) in apps.items():
                    found[f"{name}, {server}"] = served(line.format(app), environ, store)
        yield found


def _measured(plan: Plan, web: Web, database: Server, store: Store | None) -> Figures:
    """One run: saturation, then each rate on schedule, every time on fresh jobs."""
    connections = int(plan.options.get("connections", plan.pick(32, 4)))
    burst = plan.pick(6000, 40)

    def run(count: int, send: Callable[[Sequence[bytes]], Told]) -> tuple[Told, float, float]:
        before = store.moved() if store else 0
        callbacks = store.fill(count) if store else [(secrets.token_urlsafe(24), new_id().hex) for _ in range(count)]
        requests = [_request(*callback) for callback in callbacks]
        used, served = cpu_s(database.pid), web.cpu_s
        told = send(requests)
        used, served = cpu_s(database.pid) - used, web.cpu_s - served
        assert told.statuses == {204: count}, (told.statuses, told.odd)
        assert store is None or store.moved() - before == count
        return told, served, used

    saturate = partial(load.closed_loop, web.url, connections=connections)
    run(plan.pick(400, 10), saturate)  # warm: plans are made, statements prepared
    told, served, used = run(burst, saturate)
    figures = {
        "requests/s": told.per_s,
        "CPU ms/request, web": 1000 * served / burst,
        "CPU ms/request, Postgres": 1000 * used / burst,
        "CPU ms/request, sender": 1000 * told.cpu_s / burst,
    }
    for rate in RATES:
        told, _, _ = run(plan.pick(8 * rate, 20), partial(load.open_loop, web.url, per_s=rate))
        figures |= {f"p{name} ms at {rate}/s": told.ms(int(name) / 100) for name in ("50", "95", "99")}
    return figures


def _request(token: str, prediction_id: str) -> bytes:
    """A callback as the provider sends it, signed now: it is stale in five minutes."""
    said = {
        "id": prediction_id,
        "model": MODEL,
        "outputs": [f"https://cdn.example.com/predictions/{prediction_id}/1.png"],
        "urls": {"get": f"https://api.wavespeed.ai/api/v3/predictions/{prediction_id}/result"},
        "has_nsfw_contents": [False],
        "status": "completed",
        "created_at": "2026-01-15T10:00:00.123456789Z",
        "error": "",
        "executionTime": 8421,
        "timings": {"inference": 8421},
    }
    body = json.dumps(said, separators=(",", ":")).encode()
    webhook_id, at = f"evt_{prediction_id}", int(time.time())
    headers = {
        "User-Agent": "Go-http-client/1.1",
        "Content-Type": "application/json",
        "Accept-Encoding": "gzip",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at),
        "webhook-signature": sign(SECRET, webhook_id, at, body),
    }
    return load.request("POST", f"/webhooks/wavespeed/{token}", body, headers)


# Ours


@dataclass(frozen=True)
class _Ours:
    """Our own schema, with jobs of one service that is told of their ends and whose files are kept."""

    rt: Runtime
    environ: Mapping[str, str]

    def fill(self, count: int) -> list[Callback]:
        """Accepted, claimed and answered by our own statements, as if by a worker."""
        with self.rt.db.transaction() as tx:
            service = services.by_name(tx, "shop")
        assert service
        lines = [json.dumps({"input": {"prompt": f"{PROMPT}, number {number}"}}) for number in range(count)]
        for start in range(0, count, MAX_LINES):
            accept_lines(self.rt, service, "\n".join(lines[start : start + MAX_LINES]).encode())
        found: list[Callback] = []
        worker_id = new_id()
        while len(found) < count:
            with self.rt.db.transaction() as tx:
                workers.beat(tx, worker_id)
                starts = claims.claim(
                    tx,
                    worker_id=worker_id,
                    limits=self.rt.settings.limits,
                    window_s=61.0,
                    lease_s=90.0,
                    at_most=claims.BATCH,
                ).starts
            assert starts
            named = [(start, secrets.token_hex(16)) for start in starts]
            with self.rt.db.transaction() as tx:
                record(
                    tx,
                    [
                        Answer(
                            start.attempt_id,
                            Outcome.ACCEPTED,
                            Move(start.job_id, State.PROCESSING, start.attempt_id, 30.0, prediction_id=prediction_id),
                            prediction_id=prediction_id,
                            http_status=200,
                        )
                        for start, prediction_id in named
                    ],
                )
            found += [(start.token, prediction_id) for start, prediction_id in named]
        with psycopg.connect(self.environ["DATABASE_URL"], autocommit=True) as db:
            db.execute("VACUUM ANALYZE")
            db.execute("CHECKPOINT")
        return found

    def moved(self) -> int:
        """Completed by its callback, with all that follows from it."""
        with psycopg.connect(self.environ["DATABASE_URL"]) as db:
            row = db.execute("""
                SELECT count(*) FROM pipeline.jobs j
                JOIN pipeline.callbacks c ON c.job_id = j.id AND c.verdict = 'applied'
                JOIN pipeline.notifications n ON n.job_id = j.id AND n.state = 'pending'
                JOIN pipeline.assets a ON a.job_id = j.id AND a.due_at IS NOT NULL
                JOIN pipeline.events e ON e.job_id = j.id AND e.kind = 'job.completed'
                WHERE j.state = 'completed' AND j.settled_by = 'webhook'
            """).fetchone()
        assert row
        return int(row[0])


@contextmanager
def _ours(server: Server, broker: Server, room: Path) -> Iterator[_Ours]:
    environ = {
        "DATABASE_URL": _database(server, "ours"),
        "BROKER_URL": broker.url,
        "WAVESPEED_WEBHOOK_SECRET": SECRET,
        "WAVESPEED_API_KEY": "sandbox",
        "WAVESPEED_BASE_URL": "http://127.0.0.1:1",
        "PUBLIC_URL": "http://127.0.0.1:1",
        "ARCHIVE_URL": (room / "files").as_uri(),
        "SUBMITS_PER_MINUTE": "1000000",
        "MAX_IN_FLIGHT": "1000000",
    }
    settings = settings_of(environ)
    schema.upgrade(settings.database_url)
    database = Database(settings.database_url, name="benchmark", pool_size=2)
    rt = Runtime(settings, database)
    with database.transaction() as tx:
        prices.set_by_hand(tx, MODEL, Decimal("0.12"))
        services.create(tx, "shop")
        services.change(tx, "shop", callback_url="https://shop.example.com/told")
        tell_settings(rt, tx)
    try:
        yield _Ours(rt, environ)
    finally:
        database.close()


# The floor


@dataclass(frozen=True)
class _Floor:
    """The tables of the minimal receiver."""

    environ: Mapping[str, str]

    def fill(self, count: int) -> list[Callback]:
        """Rows that wait for a callback."""
        callbacks = [(secrets.token_urlsafe(24), secrets.token_hex(16)) for _ in range(count)]
        with psycopg.connect(self.environ["DATABASE_URL"]) as db:
            floors.fill(db, callbacks, PROMPT)
        with psycopg.connect(self.environ["DATABASE_URL"], autocommit=True) as db:
            db.execute("VACUUM ANALYZE")
            db.execute("CHECKPOINT")
        return callbacks

    def moved(self) -> int:
        """Completed, with a callback kept."""
        with psycopg.connect(self.environ["DATABASE_URL"]) as db:
            return floors.moved(db)


@contextmanager
def _floor(server: Server) -> Iterator[_Floor]:
    url = _database(server, "floor")
    with psycopg.connect(url) as db:
        db.execute(floors.SCHEMA)
    yield _Floor({"DATABASE_URL": url, "WAVESPEED_WEBHOOK_SECRET": SECRET})


def _database(server: Server, name: str) -> str:
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}")
    return server.url.rsplit("/", 1)[0] + f"/{name}"


CASE = Case(
    "receiver",
    "Callbacks taken by one web process, against what one writes in forty lines.",
    sides,
    baseline="minimal",
    options=("connections", "servers"),
)
