"""Enqueue in the caller's own transaction: by Python or SQL alone, with their rows or not at all, in nobody's way."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import RFC_4122, UUID

import psycopg
import pytest
from flask import Flask
from psycopg.rows import dict_row
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import pipeline
from pipeline.embedded import procfile
from pipeline.errors import IdempotencyConflict, InvalidInput, Unavailable
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.store import budgets, intake, lists, schema, services
from pipeline.store.budgets import ACCOUNT
from pipeline.store.database import Transaction
from pipeline.store.lists import Wanted
from pipeline.worker import Worker
from tests import shop
from tests.conftest import Caller
from tests.factories import MODEL, execute, kinds, queued, row, scalar, state, swept
from tests.test_budgets import limit, purse

INPUT = {"prompt": "a lighthouse"}


@pytest.fixture
def url(rt: Runtime) -> str:
    """Give the database as other services connect to it."""
    return rt.settings.database_url.replace("+psycopg", "")


@pytest.fixture
def engine(rt: Runtime) -> Engine:
    """Give an engine as another service has one."""
    return rt.db.engine


@pytest.fixture
def their_app(rt: Runtime, caller: Caller) -> Iterator[Flask]:
    """Give another team's app, whose orders are service shop's jobs."""
    execute(rt, "CREATE SCHEMA shop")
    app = shop.create_app(rt.settings.database_url)
    engine: Engine = app.extensions["engine"]
    shop.Base.metadata.create_all(engine)
    yield app
    engine.dispose()
    execute(rt, "DROP SCHEMA shop CASCADE")


def orders(rt: Runtime) -> dict[str, UUID]:
    with rt.db.transaction() as tx:
        return {row.prompt: row.job_id for row in tx.execute(text("SELECT prompt, job_id FROM shop.orders"))}


@pytest.mark.parametrize("kind", ["orm", "raw"])
def test_another_apps_job_exists_if_and_only_if_its_order_does(
    kind: str,
    their_app: Flask,
    rt: Runtime,
    web: str,
    sandbox: Sandbox,
    start_worker: Callable[..., Worker],
) -> None:
    """Rolled back: no job. Committed: it runs, also when nobody of theirs lives on for a moment to say so."""
    client = their_app.test_client()
    assert client.post(f"/orders/{kind}", json={"prompt": "a lighthouse, never mind"}).status_code == 500
    assert (orders(rt), scalar(rt, "SELECT count(*) FROM jobs")) == ({}, 0)

    job_id = UUID(client.post(f"/orders/{kind}", json={"prompt": "a lighthouse"}).get_json()["job_id"])
    died = subprocess.run(
        [sys.executable, "-m", "tests.shop", rt.settings.database_url, kind], check=False, cwd=procfile.PROCFILE.parent
    )
    assert died.returncode == -9
    placed = orders(rt)
    assert placed["a lighthouse"] == job_id

    worker = start_worker()
    swept(worker, lambda: {state(rt, found) for found in placed.values()} == {State.COMPLETED})

    assert scalar(rt, "SELECT count(*) FROM jobs") == len(sandbox.ledger()) == len(placed) == 2
    assert kinds(rt, job_id)[0] == "job.queued"


def test_sql_alone_and_two_grants_are_enough(rt: Runtime, url: str, caller: Caller) -> None:
    """Any language may enqueue: with `SELECT pipeline.enqueue(…)`, whatever its search_path, and no more rights."""
    execute(rt, "CREATE ROLE only_sql")
    try:
        with psycopg.connect(url, options="-c role=only_sql -c search_path=nowhere", autocommit=True) as theirs:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                theirs.execute("SELECT pipeline.enqueue('shop', '{}')")
            execute(rt, "GRANT USAGE ON SCHEMA pipeline TO only_sql")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                theirs.execute("SELECT pipeline.enqueue('shop', '{}')")
            execute(rt, "GRANT EXECUTE ON FUNCTION pipeline.enqueue TO only_sql")

            statement = "SELECT pipeline.enqueue(service => 'shop', input => %s, priority => 3)"
            ((job_id,),) = theirs.execute(statement, [json.dumps(INPUT)]).fetchall()

            for forbidden in ("SELECT * FROM pipeline.jobs", "SELECT pipeline.new_id()", "DELETE FROM pipeline.jobs"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    theirs.execute(forbidden)
    finally:
        execute(rt, "DROP OWNED BY only_sql")
        execute(rt, "DROP ROLE only_sql")
    assert (row(rt, job_id).input, row(rt, job_id).priority) == (INPUT, 3)


def test_every_kind_of_session_and_connection_will_do(engine: Engine, url: str, rt: Runtime, caller: Caller) -> None:
    """Callers keep their driver, their search_path and what their rows look like."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL search_path = nowhere"))
        found = [pipeline.enqueue(connection, service="shop", input=INPUT)]
    with Session(engine) as session, session.begin():
        found.append(pipeline.enqueue(session, service="shop", input=INPUT))
    registry = scoped_session(sessionmaker(engine))
    found.append(pipeline.enqueue(registry, service="shop", input=INPUT))
    registry.commit()
    registry.remove()
    with psycopg.connect(url, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as raw:
        found.append(pipeline.enqueue(raw, service="shop", input=INPUT))
        cursor = raw.execute("SELECT generate_series(1, 3) AS n")
        found.append(pipeline.enqueue(cursor, service="shop", input=INPUT))
        assert [one["n"] for one in cursor] == [1, 2, 3], "what the caller has yet to read is still there"

    assert scalar(rt, "SELECT count(*) FROM jobs") == len(set(found)) == 5
    assert all(isinstance(job_id, UUID) and row(rt, job_id).state == State.QUEUED for job_id in found)
    for stranger in (None, "postgresql://", object()):
        with pytest.raises(TypeError, match="session or connection"):
            pipeline.enqueue(stranger, service="shop", input=INPUT)  # type: ignore[arg-type]


def test_a_queued_row_says_all_that_was_asked_for(engine: Engine, rt: Runtime, caller: Caller) -> None:
    """What is not said is the default: the deadline of the settings, and the default model, put in at admission."""
    execute(rt, 'UPDATE services SET callback_tasks = \'[{"task": "shop.done", "queue": "shop"}]\'')
    execute(rt, "UPDATE account SET deadline_s = 1234")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    with engine.begin() as tx:
        plain = pipeline.enqueue(tx, service="shop", input=INPUT)
        whole = pipeline.enqueue(
            tx,
            service="shop",
            model="a/b",
            input={"prompt": "ä€𝄞", "n": [1, 2.5, None]},
            idempotency_key="k",
            priority=-10,
            run_at=tomorrow,
            deadline_s=60,
            callback_url="https://shop.example/done?a=1",
            callback_task="shop.done",
            metadata={"order": "7"},
        )
        past = pipeline.enqueue(tx, service="shop", input=INPUT, run_at=datetime(2001, 1, 1, tzinfo=UTC))

    stored = {one: row(rt, one) for one in (plain, whole, past)}
    told = scalar(rt, "SELECT callback_task || ' ' || callback_url FROM jobs WHERE NOT admitted AND id = :id", id=whole)
    assert told == "shop.done https://shop.example/done?a=1"
    assert scalar(rt, "SELECT model FROM jobs WHERE id = :id", id=plain) == ""
    assert (stored[plain].model, stored[plain].priority, stored[plain].caller_data) == (MODEL, 0, {})
    with rt.db.transaction() as tx:
        listed = lists.page(tx, Wanted([caller.service.id])).rows
    assert {one.id: one.model for one in listed} == {plain: MODEL, whole: "a/b", past: MODEL}
    assert stored[plain].deadline_at - stored[plain].run_at == timedelta(seconds=1234)
    assert (stored[whole].model, stored[whole].priority) == ("a/b", -10)
    assert stored[whole].input == {"prompt": "ä€𝄞", "n": [1, 2.5, None]}
    assert stored[whole].run_at == stored[whole].due_at == tomorrow
    assert stored[whole].deadline_at == tomorrow + timedelta(seconds=60)
    assert stored[past].due_at == stored[past].run_at >= stored[plain].created_at, "a time that has passed is now"
    assert scalar(rt, "SELECT value FROM labels WHERE job_id = :id", id=whole) == "7"
    assert kinds(rt, whole) == ["job.queued"]


def test_ids_made_by_postgres_are_uuids_of_version_7_in_order(engine: Engine, caller: Caller) -> None:
    """Lists go by id: what was queued later is newer, though both be of one millisecond."""
    with engine.begin() as tx:
        found = [pipeline.enqueue(tx, service="shop", input=INPUT) for _ in range(200)]
    assert sorted(found) == found
    assert {(one.version, one.variant) for one in found} == {(7, RFC_4122)}
    age_s = datetime.now(UTC).timestamp() - (found[0].int >> 80) / 1000
    assert 0 <= age_s < 60


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else "end"


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("service", {"service": "nobody"}),
    ("service", {"service": "gone"}),
    ("service", {"service": None}),
    ("service", {"service": "sh\x00op"}),
    ("input", {"input": []}),
    ("input", {"input": None}),
    ("input", {"input": {"prompt": float("nan")}}),
    ("input", {"input": {"prompt": object()}}),
    ("input", {"input": {"prompt": 10**400}}),
    ("input", {"input": nested(33)}),
    ("input", {"input": {"prompt": "x" * 262_144}}),
    ("", {"input": {"prompt": "\x00"}}),
    ("", {"input": {"prompt": "\ud800"}}),
    ("model", {"model": "a/" + "b" * 200}),
    ("idempotency_key", {"idempotency_key": ""}),
    ("idempotency_key", {"idempotency_key": "k" * 256}),
    ("idempotency_key", {"idempotency_key": "k\n"}),
    ("idempotency_key", {"idempotency_key": "\ud800"}),
    ("priority", {"priority": 11}),
    ("", {"priority": 10**10}),
    ("", {"priority": "high"}),
    ("run_at", {"run_at": datetime.now(UTC) + timedelta(days=367)}),
    ("run_at", {"run_at": datetime(2026, 1, 1)}),  # noqa: DTZ001 - that is what is wrong with it
    ("run_at", {"run_at": "tomorrow"}),
    ("deadline_s", {"deadline_s": 0.5}),
    ("deadline_s", {"deadline_s": 604_801}),
    ("deadline_s", {"deadline_s": float("nan")}),
    ("callback_url", {"callback_url": "ftp://shop.example/"}),
    ("callback_url", {"callback_url": "https://me:secret@shop.example/"}),
    ("callback_url", {"callback_url": "https://shop.example/a b"}),
    ("callback_url", {"callback_url": "https://shop.example/" + "a" * 2000}),
    ("callback_task", {"callback_task": "shop.other"}),
    ("metadata", {"metadata": {str(n): "" for n in range(51)}}),
    ("metadata", {"metadata": {"": "x"}}),
    ("metadata", {"metadata": {"n" * 65: "x"}}),
    ("metadata", {"metadata": {"n": "x" * 501}}),
    ("metadata", {"metadata": {"n": 5}}),
    ("metadata", {"metadata": "order 7"}),
]


def test_what_is_wrong_is_named_and_nothing_stays_of_it(
    engine: Engine, url: str, rt: Runtime, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    """Whoever reads the rows later, admission or a list, must be able to: deep, huge and odd values stay outside."""
    make_caller("gone")
    execute(rt, "UPDATE services SET revoked_at = now() WHERE name = 'gone'")
    with Session(engine) as session, psycopg.connect(url) as raw:
        for field, changes in WRONG:
            for via, savepoint in ((session, session.begin_nested), (raw, raw.transaction)):
                with pytest.raises(InvalidInput) as refused, savepoint():
                    pipeline.enqueue(via, **{"service": "shop", "input": INPUT} | changes)
                ((named, message),) = [(one.field, one.message) for one in refused.value.errors]
                assert named == field, (changes, message)
                hidden = refused.value.__suppress_context__ or refused.value.__context__ is None
                assert hidden, "the driver's own words may show the prompt"
        assert pipeline.enqueue(session, service="shop", input=nested(31)), "the transaction goes on after a savepoint"
    assert scalar(rt, "SELECT count(*) FROM jobs") == scalar(rt, "SELECT count(*) FROM idempotency_keys") == 0


def test_a_key_names_one_request_of_its_service_whatever_the_door(
    engine: Engine, rt: Runtime, caller: Caller, make_caller: Callable[..., Caller]
) -> None:
    """A caller that repeats its transaction gets the same job; one that means another is told."""
    make_caller("other")
    queued(rt, caller.service)
    with engine.begin() as tx:
        again = {"service": "shop", "input": {"a": 1, "b": 2}, "idempotency_key": "k", "deadline_s": 60}
        first = pipeline.enqueue(tx, **again)  # type: ignore[arg-type]
        assert pipeline.enqueue(tx, **again | {"input": {"b": 2, "a": 1}}) == first  # type: ignore[arg-type]
    with engine.begin() as tx:
        tx.execute(text("SET LOCAL timezone = 'Asia/Tokyo'"))
        assert pipeline.enqueue(tx, **again) == first  # type: ignore[arg-type]
        assert pipeline.enqueue(tx, **again | {"service": "other"}) != first  # type: ignore[arg-type]
        for other in (
            {"input": {"a": 1}},
            {"priority": 1},
            {"model": "a/b"},
            {"deadline_s": 61},
            {"metadata": {"a": "b"}},
        ):
            with pytest.raises(IdempotencyConflict), tx.begin_nested():
                pipeline.enqueue(tx, **again | other)  # type: ignore[arg-type]
    assert scalar(rt, "SELECT count(*) FROM jobs") == 3


def test_an_open_transaction_that_enqueued_holds_up_nobody(
    engine: Engine, rt: Runtime, caller: Caller, web: str, sandbox: Sandbox, start_worker: Callable[..., Worker]
) -> None:
    """Callers keep theirs open for an hour; everything else goes on, and its job is run when it commits at last."""
    with engine.begin() as theirs:
        late = pipeline.enqueue(theirs, service="shop", model=MODEL, input=INPUT, idempotency_key="k")
        theirs.execute(
            text("UPDATE pipeline.jobs SET due_at = due_at - interval '1 hour' WHERE id = :id"), {"id": late}
        )

        with engine.begin() as tx:
            other = pipeline.enqueue(tx, service="shop", model=MODEL, input=INPUT)
        worker = start_worker()
        swept(worker, lambda: state(rt, other) == State.COMPLETED)
        with rt.db.transaction() as tx:
            assert services.rotate(tx, "shop")
            assert services.revoke(tx, "shop")
        limit(rt, "5")
        limit(rt, "5", caller.service, "month")
        schema.upgrade(rt.settings.database_url)
        assert len(sandbox.ledger()) == 1

    swept(worker, lambda: state(rt, late) == State.COMPLETED)
    assert purse(rt, str(caller.service.id)) == (0.0, 0.24), (
        "what its service may spend holds for it, though it came later"
    )


def test_a_new_budget_waits_for_those_who_reserve_and_misses_none(rt: Runtime, caller: Caller) -> None:
    """Whoever asked whether there are budgets, and heard no, has committed before the first one counts."""
    for _ in range(9):  # a statement that is prepared by now takes the same locks
        with rt.db.transaction() as tx:
            add_one(tx, caller)
    with rt.db.transaction() as tx:
        add_one(tx, caller)
        with pytest.raises(Unavailable, match="LockNotAvailable"), rt.db.transaction() as other:
            open_at_once(other)
    limit(rt, "5")
    assert purse(rt) == (1.2, 0.0)


def open_at_once(tx: Transaction) -> None:
    tx.execute(text("SET LOCAL lock_timeout = '100ms'"))
    budgets.open_(tx, ACCOUNT, "day", Decimal(5))


def add_one(tx: Transaction, caller: Caller) -> None:
    (stored,) = intake.add(tx, [intake.NewJob(caller.service.id, MODEL, INPUT, deadline_s=60)])
    assert (float(stored.usd or 0), stored.budgeted) == (0.12, False)


def test_nothing_is_imported_that_a_caller_does_not_use() -> None:
    """Another service has its own libraries: ours must not come with the word `import`."""
    code = (
        "import sys, pipeline\n"
        "ours = {'sqlalchemy', 'celery', 'flask', 'psycopg', 'pydantic'} & sys.modules.keys()\n"
        "pipeline.enqueue\n"
        "assert not ours | ({'sqlalchemy', 'celery', 'flask', 'psycopg'} & sys.modules.keys())\n"
        "assert not hasattr(pipeline, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=procfile.PROCFILE.parent)
