"""The migrations: they make exactly the tables the code describes, and the indexes that its statements live by."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from pipeline.jobs import Outcome, State
from pipeline.predictions import Prediction, Status
from pipeline.retention import ENDED, Kind
from pipeline.settings import Limits, load
from pipeline.store import (
    account,
    admission,
    alarms,
    answers,
    assets,
    attention,
    claims,
    custody,
    gauges,
    inbox,
    lists,
    missing,
    moves,
    notifications,
    pauses,
    pruning,
    reading,
    reviews,
    schema,
    stats,
    workers,
)
from pipeline.store.database import Database
from pipeline.store.retention import Rule
from pipeline.store.tables import SCHEMA, Base, new_id
from pipeline.web.dashboard import history
from tests.factories import until

MIGRATIONS = sorted(Path(schema.__file__).parents[2].joinpath("migrations").rglob("*.py"))

pytestmark = pytest.mark.xdist_group("schema")  # the crowded database is filled once

NewDatabase = Callable[..., str]

DEFINITIONS = """
    SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(c.oid)
    FROM pg_constraint c WHERE connamespace = 'pipeline'::regnamespace
      AND conrelid IS DISTINCT FROM to_regclass('pipeline.alembic_version')
    UNION ALL
    SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'pipeline' AND tablename <> 'alembic_version'
    UNION ALL
    SELECT table_name || '.' || column_name, concat_ws(' ', data_type, column_default, is_nullable)
    FROM information_schema.columns WHERE table_schema = 'pipeline' AND table_name <> 'alembic_version'
    UNION ALL
    SELECT relname, reloptions::text FROM pg_class
    WHERE relnamespace = 'pipeline'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
"""
"""Every constraint, index with its predicate, column and storage option, as Postgres itself words them."""


def url_of(url: str) -> str:
    """As the product spells it."""
    return load({"DATABASE_URL": url}).database_url


def connected(url: str) -> Any:
    """A connection that is committed and closed at the end of its `with`."""
    return create_engine(url_of(url), poolclass=NullPool).begin()


def definitions(tx: Connection) -> dict[str, str]:
    return {row[0]: row[1] for row in tx.execute(text(DEFINITIONS))}


def migrating(url: str) -> "subprocess.Popen[str]":
    """`pipeline migrate`, started."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "migrate"],
        env={**os.environ, "DATABASE_URL": url},
        cwd=schema.__file__.partition("/pipeline/store/")[0],
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def migrated(new_database: NewDatabase) -> str:
    """Give a database made by the migrations."""
    url = new_database("migrated")
    schema.upgrade(url_of(url))
    return url


@pytest.fixture(scope="module")
def described(new_database: NewDatabase) -> dict[str, str]:
    """Give the definitions in a database made from the tables that the code describes."""
    with connected(new_database("described")) as tx:
        tx.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        Base.metadata.create_all(tx)
        return definitions(tx)


def test_migrations_go_up_down_and_up_again(new_database: NewDatabase, described: dict[str, str]) -> None:
    """A release can be taken back, and the next one applied to what is left."""
    url = url_of(new_database("up_down_up"))
    schema.upgrade(url)
    schema.downgrade(url, "base")
    with connected(url) as tx:
        left = tx.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'pipeline'")).scalars().all()
        assert left == ["alembic_version"]
        assert schema.current(tx) is None
    schema.upgrade(url)
    with connected(url) as tx:
        assert definitions(tx) == described


def test_the_order_of_the_migrations_is_that_of_their_files() -> None:
    """Web servers go by the names, without Alembic; it goes by what stands in them."""
    walked = ScriptDirectory(str(Path(schema.__file__).parents[2] / "migrations")).walk_revisions()
    assert schema.known() == [revision.revision for revision in walked][::-1]


@pytest.mark.slow  # that all of them can be is asked each time, one test above
def test_each_migration_can_be_taken_back_by_itself(new_database: NewDatabase) -> None:
    """Each is a release of its own."""
    url = url_of(new_database("step_by_step"))
    for revision in schema.known():
        schema.upgrade(url, revision)
        schema.downgrade(url, "-1")
        schema.upgrade(url, revision)
        with connected(url) as tx:
            assert schema.current(tx) == revision


def test_the_migrated_database_has_no_difference_for_alembic(migrated: str) -> None:
    """Tables, columns, types, defaults, foreign keys: what `alembic check` sees."""
    schema.check(url_of(migrated))


def test_the_migrated_database_is_the_described_one_to_the_letter(migrated: str, described: dict[str, str]) -> None:
    """`alembic check` sees neither CHECKs nor predicates: a state added to the table must not miss its migration."""
    with connected(migrated) as tx:
        assert definitions(tx) == described
    assert all(f"'{state}'" in described["pipeline.jobs jobs_state_check"] for state in State)


@pytest.mark.parametrize(
    "drift",
    [
        "ALTER TABLE pipeline.jobs DROP CONSTRAINT jobs_live_has_alarm_check",
        "ALTER TABLE pipeline.jobs DROP CONSTRAINT jobs_state_check,"
        " ADD CONSTRAINT jobs_state_check CHECK (state IN ('queued', 'completed'))",
        "ALTER TABLE pipeline.attempts DROP CONSTRAINT attempts_outcome_check,"
        " ADD CONSTRAINT attempts_outcome_check CHECK (outcome IS NULL OR outcome IN ('accepted', 'lost'))",
        "ALTER TABLE pipeline.jobs ADD CONSTRAINT jobs_extra_check CHECK (attempts < 9)",
        "DROP INDEX pipeline.jobs_due_idx; CREATE INDEX jobs_due_idx ON pipeline.jobs (state, due_at)",
        "DROP INDEX pipeline.jobs_ready_idx; CREATE INDEX jobs_ready_idx ON pipeline.jobs"
        " (service_id, priority, due_at) WHERE state = 'queued'",
        "ALTER TABLE pipeline.jobs ALTER priority SET DEFAULT 1",
        "ALTER TABLE pipeline.jobs RESET (fillfactor)",
    ],
)
def test_a_database_that_drifted_from_the_table_of_states_is_noticed(
    migrated: str, described: dict[str, str], drift: str
) -> None:
    """The comparison above is worth something only if it fails when it should."""
    with connected(migrated) as tx:
        tx.exec_driver_sql(drift)
        assert definitions(tx) != described
        tx.rollback()


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.name)
def test_migrations_import_nothing_of_ours(path: Path) -> None:
    """The code moves on; what a migration did to a database three releases ago must not."""
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] in {"pipeline", "", "tests"}]


def test_two_releases_may_migrate_at_once(new_database: NewDatabase, described: dict[str, str]) -> None:
    """Two dynos, or a deploy and a person at a console: one does it, the other finds it done."""
    url = new_database("two_at_once")
    both = [migrating(url) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    with connected(url) as tx:
        assert definitions(tx) == described


def test_a_migration_waits_for_another_release_but_not_for_a_lock(new_database: NewDatabase) -> None:
    """
    Behind a table lock it would queue every writer of that table, so it gives up; behind another
    release's migration it waits, for that one may have more to do than a few seconds.
    """
    locked, busy = new_database("locked"), new_database("busy")
    schema.upgrade(url_of(locked), schema.known()[0])
    with (
        psycopg.connect(locked) as holder,
        psycopg.connect(busy, autocommit=True) as other,
        psycopg.connect(busy, autocommit=True) as watcher,
    ):
        holder.execute("LOCK TABLE pipeline.alembic_version")
        other.execute("SELECT pg_advisory_lock(%s)", [0x70697065])
        blocked, queued = migrating(locked), migrating(busy)
        assert "lock timeout" in blocked.communicate(timeout=60)[1]
        assert blocked.returncode == 1
        # The other has been waiting for as long by now; a little longer than any timeout of its own for locks.
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = 'busy'"
            " AND pid NOT IN (%s, %s) AND clock_timestamp() - backend_start > interval '5.2 seconds'"
        )
        ours = [other.info.backend_pid, watcher.info.backend_pid]
        until(lambda: watcher.execute(waiting, ours).fetchone() or queued.poll() is not None)
        other.execute("SELECT pg_advisory_unlock_all()")
        said = queued.communicate(timeout=60)[1]
    assert queued.returncode == 0, said
    with connected(busy) as tx:
        assert schema.current(tx) == schema.known()[-1]


def test_a_database_without_the_last_migration_is_older_than_the_code(new_database: NewDatabase) -> None:
    """Then the web server says 503 instead of failing request by request."""
    url = url_of(new_database("older"))
    with connected(url) as tx:
        assert schema.is_older_than_the_code(tx)
    for revision in schema.known():
        with connected(url) as tx:
            assert schema.is_older_than_the_code(tx)
        schema.upgrade(url, revision)
    with connected(url) as tx:
        assert not schema.is_older_than_the_code(tx)


def test_a_database_newer_than_the_code_is_fine(new_database: NewDatabase) -> None:
    """
    During a release the former code runs on the new schema; and a release that is rolled back runs
    `migrate` with the former code, which finds nothing to do.
    """
    url = url_of(new_database("newer"))
    schema.upgrade(url)
    with connected(url) as tx:
        tx.execute(text("UPDATE pipeline.alembic_version SET version_num = '9999_future'"))
        assert not schema.is_older_than_the_code(tx)
    schema.upgrade(url)
    with connected(url) as tx:
        assert schema.current(tx) == "9999_future"


@pytest.mark.parametrize(
    "change",
    [
        "state = 'sleeping'",
        "due_at = NULL",
        "state = 'completed', due_at = NULL, finished_at = now()",
        "state = 'failed', due_at = NULL, finished_at = now()",
        "state = 'cancelled', due_at = NULL",
        "state = 'cancelled', finished_at = now()",
        "finished_at = now()",
        "state = 'processing'",
        "settled_by = 'magic'",
        "priority = 11",
    ],
)
def test_the_schema_refuses_what_no_state_allows(crowded: Database, change: str) -> None:
    """Whatever door it came through, even a person at a console: a live row has its alarm, an end its reason."""
    with pytest.raises(DBAPIError, match="violates check constraint"), crowded.transaction() as tx:
        tx.exec_driver_sql(f"UPDATE jobs SET {change} WHERE id = (SELECT id FROM jobs WHERE state = 'queued' LIMIT 1)")


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(new_database: NewDatabase) -> Iterator[Database]:
    """Give a database with 200,000 queued jobs, some hundreds in every other live state, and a day of attempts."""
    url = new_database("crowded")
    schema.upgrade(url_of(url))
    database = Database(url_of(url), name="plans", pool_size=1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("""
            SET search_path = pipeline; SET session_replication_role = replica;  -- spares 400,000 foreign key checks
            INSERT INTO services (id, name, key_hash) SELECT gen_random_uuid(), 'service-' || n, sha256(n::text::bytea)
            FROM generate_series(1, 5) n;
            UPDATE services SET max_in_flight = 1000, weight = 3 WHERE name = 'service-1';
            INSERT INTO models (id, listed_at, paused_at)
            SELECT 'maker/model-' || n, now(), CASE n WHEN 7 THEN now() END FROM generate_series(1, 1000) n;
            CREATE TEMP TABLE kinds AS SELECT * FROM (VALUES ('queued', 200000), ('submitting', 100),
                ('processing', 500), ('unknown', 200), ('expired', 300), ('completed', 40000)) k(state, many);
            INSERT INTO jobs (id, service_id, model, input, metadata, state, priority, due_at, deadline_at,
                              current_attempt, attempts, outputs, finished_at, submitted_at, admitted)
            SELECT gen_random_uuid(), s.ids[1 + n % 5],
                   CASE n % 50 WHEN 49 THEN 'maker/model-7' WHEN 48 THEN 'maker/model-8' ELSE 'openai/dall-e-2' END,
                   '{"prompt": "a lighthouse"}', '{"shop": "red"}', state, n % 3,
                   CASE WHEN state <> 'completed' THEN now() + (n % 7200 - 3600) * interval '1 second' END,
                   now() + (n % 40000) * interval '1 second' - interval '1 second' * (n % 400),
                   CASE WHEN state <> 'queued' THEN gen_random_uuid() END, 1,
                   CASE WHEN state = 'completed' THEN '[]'::jsonb END,
                   CASE WHEN state = 'completed' THEN now() - n % 50 * interval '1 day' END,
                   now() - CASE WHEN state = 'completed' THEN n % 50 ELSE 0 END * interval '1 day',
                   state <> 'queued' OR n % 100 > 0
            FROM kinds, generate_series(1, many) n, (SELECT array_agg(id) AS ids FROM services) s;
            INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, started_at, ended_at, outcome,
                                  prediction_id)
            SELECT current_attempt, id, service_id, 1, id::text, id,
                   now() - row_number() OVER () * interval '4 seconds',
                   CASE WHEN state <> 'submitting' THEN now() END,
                   CASE WHEN state = 'unknown' THEN 'lost' WHEN state <> 'submitting' THEN 'accepted' END, NULL
            FROM jobs WHERE current_attempt IS NOT NULL;
            UPDATE attempts SET prediction_id = id::text WHERE outcome = 'accepted';
            INSERT INTO assets (id, job_id, index, service_id, state, source_url, storage_key, sha256, bytes,
                                content_type, stored_at, review, due_at)
            SELECT gen_random_uuid(), id, 0, service_id, CASE WHEN n > 500 THEN 'stored' ELSE 'pending' END, 'https://x/1.png',
                   kept, kept, CASE WHEN n > 500 THEN 1 END, CASE WHEN n > 500 THEN 'image/png' END,
                   CASE WHEN n > 500 THEN now() END, CASE WHEN n BETWEEN 501 AND 520 THEN 'quarantined' END,
                   CASE WHEN n <= 300 THEN now() + (n - 100) * interval '1 second' END
            FROM (SELECT id, service_id, n, CASE WHEN n > 500 THEN md5(n::text) END AS kept
                  FROM (SELECT *, row_number() OVER () AS n FROM jobs WHERE state = 'completed') j) k;
            INSERT INTO labels (service_id, name, value, job_id) SELECT service_id, 'shop', 'red', id FROM jobs;
            INSERT INTO notifications (id, event, job_id, seq, state, endpoint, due_at, worker_id)
            SELECT gen_random_uuid(), 'job.completed', id, 4, CASE WHEN n > 2000 THEN 'delivered' ELSE 'pending' END,
                   'service-' || n % 5 || ' https://' || n % 40 || '.example',
                   CASE WHEN n <= 2000 THEN now() + (n - 1000) * interval '1 second' END,
                   CASE WHEN n <= 100 THEN gen_random_uuid() END
            FROM (SELECT id, row_number() OVER () AS n FROM jobs WHERE state = 'completed') j;
            INSERT INTO deliveries (notification_id, number, target)
            SELECT id, 1, 'https://x' FROM notifications WHERE due_at IS NULL;
            INSERT INTO callbacks (id, token, verdict, headers, body)
            SELECT gen_random_uuid(), n::text, 'applied', '{}', '' FROM generate_series(1, 5000) n;
            INSERT INTO stats (minute, service_id, measure, value)
            SELECT date_trunc('minute', now()) - n * interval '1 minute', id, m, 1
            FROM services, generate_series(1, 1500) n, unnest(ARRAY['accepted', 'ended.completed', 'x', 'y', 'z']) m;
            INSERT INTO stats_hours (hour, service_id, measure, value)
            SELECT date_trunc('hour', now()) - n * interval '1 hour', id, m, 1
            FROM services, generate_series(1, 1500) n, unnest(ARRAY['accepted', 'ended.completed', 'x', 'y', 'z']) m;
        """)
        connection.execute("ANALYZE services, jobs, attempts, labels, models, assets, notifications, deliveries, stats")
        connection.execute("ANALYZE stats_hours, callbacks")
    yield database
    database.close()


LIVE = {
    "jobs": "due_at IS NOT NULL",
    "attempts": "outcome IS DISTINCT FROM 'accepted' OR started_at > now() - interval '1 hour'",
    "assets": "due_at IS NOT NULL OR state = 'pending'",
    "notifications": "due_at IS NOT NULL",
}


@pytest.fixture(scope="module")
def surprised(crowded: Database, new_database: NewDatabase) -> Iterator[Database]:
    """Give a copy whose statistics are of a quiet night before all that lives came: they say that there is no such."""
    crowded.close()  # until the next statement: a copy is made of what nobody uses
    url = new_database("surprised", like="crowded")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET search_path = pipeline; SET session_replication_role = replica")
        for table, live in LIVE.items():
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            connection.execute(f"CREATE TABLE {table}_aside AS SELECT * FROM {table} WHERE {live}")
            connection.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table}_aside)")
            connection.execute(f"VACUUM (FULL, ANALYZE) {table}")
            connection.execute(f"INSERT INTO {table} SELECT * FROM {table}_aside")
    database = Database(url_of(url), name="plans", pool_size=1)
    yield database
    database.close()


@dataclass(frozen=True)
class One:
    """A job, its attempt, and what a callback for it carries."""

    job_id: UUID
    id: UUID
    token: str


def claim(tx: Connection, one: One) -> None:
    limits = Limits(3000, 3000)
    assert claims.claim(tx, worker_id=new_id(), limits=limits, window_s=61.0, lease_s=90.0, at_most=100).starts


def record(tx: Connection, one: One) -> None:
    move = moves.Move(one.job_id, State.PROCESSING, attempt_id=one.id, due_s=30.0, prediction_id="p")
    assert answers.record(tx, [answers.Answer(one.id, Outcome.ACCEPTED, move, prediction_id="p")])


def hear(tx: Connection, one: One) -> None:
    done = Prediction(id="q", status=Status.COMPLETED, said="completed", model="openai/dall-e-2")
    assert inbox.hear(tx, inbox.Delivery(one.token, {}, b"{}"), done, poll_s=30.0).verdict == "applied"


def settle(tx: Connection, one: One) -> None:
    row = tx.execute(text("SELECT id, job_id FROM assets WHERE due_at IS NOT NULL LIMIT 1")).one()
    assert assets.settle(tx, [assets.Lost(row.id, row.job_id, "It is gone.")])


def notify(tx: Connection, one: One) -> None:
    claimed = notifications.claim(
        tx, worker_id=one.id, at_most=200, room=20, rooms={}, lease_s=60.0, probe_s=900.0, operator_url=None
    )
    messages = claimed.messages
    assert len(messages) == 200
    tried = [notifications.Tried(message, "https://x") for message in messages]
    assert not notifications.record(tx, tried, worker_id=one.id, schedule=[5.0], jitter=0.0)


def read(run: Callable[[Connection, One], object]) -> Callable[[Connection, One], object]:
    """Postgres tells the plan of a query when the next one begins."""

    def both(tx: Connection, one: One) -> None:
        run(tx, one)
        tx.execute(text("SELECT 1"))

    return both


def listed(**wanted: Any) -> Callable[[Connection, One], object]:
    """Read a page of the first service's jobs, or of all services', by these filters."""

    def run(tx: Connection, _: One) -> None:
        some = tx.execute(text("SELECT array_agg(id) FROM services")).scalar_one()
        after = UUID("f0000000-0000-4000-8000-000000000000")
        own = lists.Wanted(some[:1], **wanted)
        for one in (own, replace(own, service_ids=None)):
            assert len(lists.page(tx, one, after=after).rows) == 20

    return run


def prune(tx: Connection, one: One) -> None:
    services = tx.execute(text("SELECT id FROM services")).scalars()
    rules = [Rule(service_id, kind, 86_400) for service_id in services for kind in (*ENDED, Kind.KEYS)]
    assert len(pruning.jobs(tx, rules)) == pruning.BATCH
    pruning.keys(tx, rules)


def charted(name: str) -> Callable[[Connection, One], object]:
    """Read what the overview's charts of a period show."""
    return read(lambda tx, _: history.read(tx, history.PERIODS[name], datetime.now(UTC)))


DALL_E = "openai/dall-e-2"
RED = {"shop": "red"}

STATEMENTS: dict[str, tuple[Callable[[Connection, One], object], set[str]]] = {
    "due": (lambda tx, _: alarms.due(tx), {"jobs_due_idx"}),
    "give_up_claims": (lambda tx, _: alarms.give_up_claims(tx), {"jobs_due_idx", "attempts_pk", "jobs_pk"}),
    "expire_queued": (lambda tx, _: alarms.expire_queued(tx), {"jobs_deadline_idx", "jobs_pk"}),
    "claim_questions": (lambda tx, _: alarms.claim_questions(tx, at_most=50, lease_s=60.0), {"jobs_due_idx"}),
    "claim_missing": (lambda tx, _: missing.claim_missing(tx, at_most=500, lease_s=120.0), {"jobs_due_idx"}),
    "lateness": (read(lambda tx, _: missing.lateness_s(tx)), {"attempts_late_idx"}),
    "newest_known": (
        read(lambda tx, _: missing.newest_known_at(tx, older_than_s=900.0)),
        {"attempts_started_at_idx"},
    ),
    "grant_polls": (lambda tx, _: account.grant_polls(tx, 50, per_minute=1200), {"jobs_due_idx"}),
    "admit": (read(lambda tx, _: admission.waiting(tx, at_most=200)), {"jobs_unadmitted_idx", "jobs_pk"}),
    "claim": (claim, {"jobs_due_idx", "jobs_ready_idx", "attempts_started_at_idx"}),
    "park": (lambda tx, _: pauses.park(tx), {"jobs_model_idx", "jobs_pk"}),
    "free": (lambda tx, _: pauses.free(tx, "maker/model-8"), {"jobs_model_idx", "jobs_pk"}),
    "weigh": (lambda tx, _: account.weigh(tx, account.Answers("+"), max_in_flight=9), {"jobs_due_idx"}),
    "record": (record, {"attempts_pk", "attempts_prediction_id_key", "jobs_pk"}),
    "hear": (hear, {"attempts_token_key", "attempts_prediction_id_key", "jobs_pk"}),
    "claim_outputs": (
        lambda tx, _: assets.claim(tx, worker_id=new_id(), at_most=8, lease_s=60.0),
        {"assets_due_at_idx", "assets_pk", "jobs_pk"},
    ),
    "settle_outputs": (settle, {"jobs_pk"}),
    "give_up_outputs": (lambda tx, _: assets.give_up_claims(tx, dead_after_s=12.0), {"assets_worker_id_idx"}),
    "wake_idle": (lambda tx, _: assets.wake_idle(tx), {"assets_pending_idx"}),
    "lose_old": (read(lambda tx, _: assets.lose_old(tx)), {"assets_pending_idx"}),
    "review": (read(lambda tx, _: reviews.waiting(tx)), {"assets_quarantined_idx", "jobs_pk"}),
    "reviewed": (read(lambda tx, _: reviews.reviewed(tx)), {"assets_reviewed_at_idx"}),
    "purge": (read(lambda tx, _: reviews.unfinished(tx)), {"assets_purged_idx"}),
    "shares": (read(lambda tx, one: reviews.shares(tx, "x", but_for=[one.id])), {"assets_storage_key_idx"}),
    "show": (read(lambda tx, one: reading.job(tx, one.job_id)), {"jobs_pk", "assets_job_id_index_key"}),
    "ask_again": (lambda tx, one: alarms.ask_again(tx, {one.job_id: 5.0}), {"jobs_pk"}),
    "told_due": (read(lambda tx, _: notifications.are_due(tx)), {"notifications_endpoint_idx"}),
    "notify": (notify, {"notifications_endpoint_idx", "notifications_pk", "jobs_pk"}),
    "take_back_told": (
        lambda tx, _: notifications.take_back(tx, dead_after_s=12.0),
        {"notifications_worker_id_idx", "notifications_pk"},
    ),
    "prune_deliveries": (
        lambda tx, _: pruning.rows(tx, [Rule(None, Kind.DELIVERIES, 86_400)], Kind.DELIVERIES),
        {"deliveries_pk", "notifications_pk"},
    ),
    "prune": (prune, {"jobs_ended_idx", "attempts_job_id_number_key", "jobs_pk"}),
    "count_minute": (
        # not this minute: all that the set-up has made may be of it
        lambda tx, _: stats.count(tx, datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=1)),
        {
            "jobs_pk",
            "jobs_ended_idx",
            "attempts_started_at_idx",
            "assets_stored_at_idx",
            "callbacks_pk",
            "notifications_pk",
            "deliveries_at_idx",
        },
    ),
    "standing": (
        read(lambda tx, _: gauges.standing(tx, window_s=60.0)),
        {"jobs_due_idx", "attempts_started_at_idx", "assets_due_at_idx", "notifications_endpoint_idx", "callbacks_pk"},
    ),
    "custody": (
        read(lambda tx, _: custody.custody(tx)),
        {"assets_pending_idx", "assets_lost_idx", "assets_quarantined_idx"},
    ),
    "needed": (read(lambda tx, _: attention.needed(tx)), {"jobs_due_idx", "assets_quarantined_idx"}),
    "living": (read(lambda tx, _: workers.living(tx, dead_after_s=12.0)), set()),
    "sums": (
        read(lambda tx, _: stats.sums(tx, ["accepted"], datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC))),
        {"stats_measure_idx"},
    ),
    "chart_hour": (charted("1h"), {"stats_measure_idx"}),
    "chart_day": (charted("24h"), {"stats_hours_measure_idx"}),
    "list": (listed(), {"jobs_state_idx", "jobs_pk"}),
    "list_state": (listed(state=State.QUEUED), {"jobs_state_idx", "jobs_pk"}),
    "list_model": (listed(model=DALL_E), {"jobs_model_idx", "jobs_pk"}),
    "list_model_state": (listed(model=DALL_E, state=State.COMPLETED), {"jobs_model_idx", "jobs_pk"}),
    "list_label": (listed(metadata=RED), {"labels_pk", "jobs_pk"}),
    "list_all": (listed(model=DALL_E, state=State.QUEUED, metadata=RED), {"jobs_model_idx", "jobs_pk"}),
}


MOST_ROWS = 12_000
"""No step of a plan looks at more, of 240,000 jobs: a page of a list by two filters looks at 5,000 entries."""


@pytest.mark.parametrize("plans", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("statistics", ["crowded", "surprised"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_of_the_hot_path_reads_a_whole_table(
    request: pytest.FixtureRequest, name: str, statistics: str, plans: str
) -> None:
    """
    With 200,000 jobs waiting a sweep must cost what it does with ten. The driver prepares what it runs often, and
    Postgres may then plan without knowing the values: so both kinds of plans, of the statements as they really run.
    And of a large table it learns late what lives in it: so also by the statistics of a time when nothing did.
    """
    run, indexes = STATEMENTS[name]
    seen: list[str] = []
    database: Database = request.getfixturevalue(statistics)
    with database.transaction() as tx:
        one = One(*tx.execute(text("SELECT job_id, id, token FROM attempts WHERE outcome IS NULL LIMIT 1")).one())
        driver = tx.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        tx.exec_driver_sql("LOAD 'auto_explain'")
        tx.exec_driver_sql(
            f"SET LOCAL plan_cache_mode = {plans}; SET LOCAL auto_explain.log_min_duration = 0;"
            " SET LOCAL auto_explain.log_level = notice; SET LOCAL auto_explain.log_format = json;"
            " SET LOCAL auto_explain.log_analyze = on; SET LOCAL auto_explain.log_timing = off"
        )

        def keep(diagnostic: psycopg.errors.Diagnostic) -> None:
            seen.append(diagnostic.message_primary or "")

        driver.add_notice_handler(keep)
        threshold, driver.prepare_threshold = driver.prepare_threshold, 0
        try:
            run(tx, one)
        finally:
            driver.prepare_threshold = threshold
            driver.remove_notice_handler(keep)
            tx.rollback()
    plans_made = [json.loads(message.partition("plan:")[2]) for message in seen if "plan:" in message]
    steps = [step for made in plans_made for step in steps_of(made["Plan"])]
    shown = "\n".join(
        f"{step['Node Type']} {step.get('Relation Name', '')} {step.get('Index Name', '')}: {looked_at(step):.0f}"
        f" {step.get('Index Cond', '')} {step.get('Filter', '')}"
        for step in steps
        if "Relation Name" in step or looked_at(step) > MOST_ROWS
    )
    tables = {"jobs", "attempts", "labels", "assets", "notifications", "deliveries", "callbacks", "stats"}
    assert not [step for step in steps if step["Node Type"] == "Seq Scan" and step["Relation Name"] in tables], shown
    assert not [step for step in steps if looked_at(step) > MOST_ROWS], shown
    assert not indexes - {step.get("Index Name") for step in steps}, shown


def steps_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every step of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from steps_of(part)


def looked_at(step: dict[str, Any]) -> float:
    """How many rows a step gave or passed over, all its rounds together."""
    removed = sum(count for name, count in step.items() if name.startswith("Rows Removed by"))
    return float((step["Actual Rows"] + removed) * step["Actual Loops"])
