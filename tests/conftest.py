"""
Real servers, started once for each test process, and what most tests start from.

`rt` is a runtime on a real Postgres, empty at the start of each test, with the sandbox as its provider.
`web` is the product's own web server on the same database. Nothing of ours is mocked.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline import sandbox as provider
from pipeline.embedded import postgres as embedded_postgres
from pipeline.embedded import procfile
from pipeline.embedded import valkey as embedded_valkey
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, Server, wait_until
from pipeline.errors import Unavailable
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.settings import Settings, load
from pipeline.store import schema, services
from pipeline.store.database import Database
from pipeline.store.services import Service
from pipeline.store.tables import Base
from pipeline.worker import Worker
from tests.factories import priced
from tests.http import get
from tests.visitors import OPERATORS_PASSWORD, VIEWERS_PASSWORD, Visitor

WEBHOOK_SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

LONGEST = ("test_stateful", "test_openapi_fuzz", "test_journeys", "test_worker", "test_evidence", "test_tasks")
"""Pages whose tests take tens of seconds each. They begin first, or the others would wait for them in the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest first, after the groups, which pytest-xdist begins with; and see that it still knows these."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if config.getoption("loadgroup", False):  # in a process of pytest-xdist's
        lost = [item.nodeid for item in items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if lost:
            raise pytest.UsageError(f"this pytest-xdist does not group the tests of this pytest: {lost[0]}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Give a Postgres server of this test process; `.url` is its superuser's."""
    with embedded_postgres.running() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """Give a Valkey server of this test process."""
    with embedded_valkey.running() as server:
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: Server) -> Callable[..., str]:
    """Make an empty database of that name, or a copy of one that nobody uses meanwhile, and give its URL."""

    def make(name: str, like: str = "template1") -> str:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
        return postgres.url.rsplit("/", 1)[0] + f"/{name}"

    return make


@pytest.fixture(scope="session")
def database_url(new_database: Callable[[str], str]) -> str:
    """Give a migrated database, shared by the tests of this process; each finds it empty."""
    url = new_database("tests")
    schema.upgrade(load({"DATABASE_URL": url}).database_url)
    return url


@pytest.fixture(scope="session")
def sandbox_process() -> Iterator[Sandbox]:
    """Run the provider's sandbox, once; a quick one."""
    with provider.running(
        webhook_secret=WEBHOOK_SECRET, faults={"generation_s": 0.05, "webhook_retry_s": 0.05}
    ) as running:
        yield running


@pytest.fixture
def sandbox(sandbox_process: Sandbox) -> Sandbox:
    """Give the provider's sandbox, without tasks, charges or faults."""
    sandbox_process.reset()
    return sandbox_process


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Choose the folder where outputs are kept."""
    return tmp_path_factory.mktemp("archive")


@pytest.fixture(scope="session")
def environ(database_url: str, sandbox_process: Sandbox, web_port: int, archive: Path) -> dict[str, str]:
    """Give the environment of the product in tests: production's names, development's limits."""
    return {
        "DATABASE_URL": database_url,
        "BROKER_URL": "redis://127.0.0.1:1/0",  # nobody listens: whoever needs a broker asks for `valkey`
        "PUBLIC_URL": f"http://127.0.0.1:{web_port}",
        "WAVESPEED_BASE_URL": sandbox_process.url,
        "WAVESPEED_API_KEY": "sandbox",
        "WAVESPEED_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "WAVESPEED_LEVEL": "gold",
        "UNKNOWN_PATIENCE_S": "2",
        "OUTBOUND_ALLOW": "127.0.0.1",
        "ARCHIVE_URL": archive.as_uri(),
        "LOG_LEVEL": "debug",
        "SECRET_KEY": "a-key-of-the-tests-alone",
        "DASHBOARD_PASSWORD": OPERATORS_PASSWORD,
        "DASHBOARD_VIEWER_PASSWORD": VIEWERS_PASSWORD,
    }


@pytest.fixture
def make_rt(environ: dict[str, str], db: Database) -> Callable[..., Runtime]:
    """Make a runtime whose settings differ: `make_rt(deadline_s=5)`, `make_rt(public_url=None)`."""

    def make(**changes: Any) -> Runtime:
        return Runtime(load(environ).model_copy(update=changes), db)

    return make


@pytest.fixture(scope="session")
def pool(database_url: str) -> Iterator[Database]:
    """Keep connections from test to test."""
    database = Database(load({"DATABASE_URL": database_url}).database_url, name="tests", pool_size=24)
    yield database
    database.close()


TABLES = sorted(f"pipeline.{table.name}" for table in Base.metadata.tables.values())
LOCK = f"LOCK TABLE {', '.join(TABLES)}"  # a late callback of the last test is waited for
GROWN = f"SELECT sum(pg_relation_size(name)) > 2000000 FROM unnest(ARRAY{TABLES}::regclass[]) name"
TRUNCATE = f"TRUNCATE {', '.join(TABLES)}"
DELETE = f"""
    SET LOCAL session_replication_role = replica;  -- in any order, and no triggers
    {"; ".join(f"DELETE FROM {table}" for table in TABLES)};
    SET LOCAL session_replication_role = origin
"""
"""A tenth of the work where rows are few: TRUNCATE makes every table and every index anew."""

COUNTED = "INSERT INTO pipeline.rollup (id, upto) VALUES (1, date_trunc('minute', clock_timestamp()))"
"""The minutes before are counted, or the first sweep of each test would spend a second on half an hour of nothing."""


@pytest.fixture
def db(pool: Database) -> Database:
    """Give the database, emptied."""

    def emptied() -> bool:
        with contextlib.suppress(Unavailable), pool.transaction() as tx:
            tx.exec_driver_sql(LOCK)
            tx.exec_driver_sql(TRUNCATE if tx.exec_driver_sql(GROWN).scalar() else DELETE)
            tx.exec_driver_sql("INSERT INTO pipeline.account (id, models_fetched_at) VALUES (1, clock_timestamp())")
            tx.exec_driver_sql(COUNTED)
            priced(tx)
            return True
        return False

    assert wait_until(emptied, 30.0)
    return pool


@pytest.fixture
def settings(rt: Runtime) -> Settings:
    """Give the settings of `rt`."""
    return rt.settings


@pytest.fixture
def rt(make_rt: Callable[..., Runtime], sandbox: Sandbox) -> Runtime:
    """Give a runtime on an empty database, with the sandbox as its provider."""
    return make_rt()


@dataclass(frozen=True)
class Caller:
    """A service and the key it sends."""

    service: Service
    key: str


@pytest.fixture
def make_caller(db: Database) -> Callable[..., Caller]:
    """Make a service: `make_caller("shop", operator=True)`."""

    def make(name: str = "shop", *, operator: bool = False) -> Caller:
        with db.transaction() as tx:
            key = services.create(tx, name, operator=operator)
            service = services.by_name(tx, name)
        assert key
        assert service
        return Caller(service, key)

    return make


@pytest.fixture
def caller(make_caller: Callable[..., Caller]) -> Caller:
    """Give a service named shop."""
    return make_caller()


@pytest.fixture
def start_worker(rt: Runtime) -> Iterator[Callable[..., Worker]]:
    """Start a worker in this process: `start_worker()`, `start_worker(other_rt)`. Stopped at the end."""
    started: list[Worker] = []

    def start(runtime: Runtime = rt) -> Worker:
        worker = Worker(runtime)
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in started:
        worker.stop(0.0)


@pytest.fixture(scope="session")
def web_port() -> Iterator[int]:
    """Choose the web server's port before it starts: PUBLIC_URL names it."""
    held = hold(None)
    yield held.number
    held.close()


@pytest.fixture(scope="session")
def web(environ: dict[str, str], web_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run the web server as the Procfile does, on the tests' database; give its address."""
    folder = tmp_path_factory.mktemp("web")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    line = procfile.read()["web"]
    program = Program(
        name="web",
        argv=("/bin/sh", "-c", f"exec {line}"),
        log=folder / "web.log",
        cwd=procfile.PROCFILE.parent,
        env={**os.environ, **environ, "PATH": path, "PORT": str(web_port)},
    )
    process = Process(program)
    url = f"http://127.0.0.1:{web_port}"
    try:
        assert wait_until(lambda: get(f"{url}/healthz").status == 200, 30.0), (folder / "web.log").read_text()
        yield url
    finally:
        process.stop(25.0)


@pytest.fixture
def visitor(web: str, rt: Runtime) -> Iterator[Callable[..., Visitor]]:
    """Open the dashboard in a browser without scripts: `visitor()` is signed in, `visitor(password=None)` is not."""
    opened: list[Visitor] = []

    def open_(*, name: str = "Ann", password: str | None = OPERATORS_PASSWORD) -> Visitor:
        one = Visitor(web)
        opened.append(one)
        if password is not None:
            assert one.sign_in(name, password).url.path == "/"
        return one

    yield open_
    for one in opened:
        one.close()
