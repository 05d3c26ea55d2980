"""What the database does on a bad day is 'try again' to callers: each fault a real one, of a real server or network."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from pipeline.embedded.processes import Server
from pipeline.errors import Unavailable
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store.database import Database, Transaction
from tests.factories import at_once, scalar, until
from tests.postgres_proxy import Proxy, proxy
from tests.test_wavespeed import closed_port


@contextlib.contextmanager
def opened(url: str, **options: Any) -> Iterator[Database]:
    """A database of a test's own, with one connection unless told otherwise, and little patience."""
    options = {"pool_size": 1, "patience_s": 1, **options}
    database = Database(load({"DATABASE_URL": url}).database_url, name="tests", **options)
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def database(rt: Runtime) -> Iterator[Database]:
    with opened(rt.settings.database_url) as database:
        yield database


Way = Callable[[Database], contextlib.AbstractContextManager[Transaction]]

both_ways = pytest.mark.parametrize("way", [Database.transaction, Database.statement], ids=["transaction", "statement"])


def works(database: Database) -> bool:
    """Whether both ways are open, and a transaction is one: rolled back, it leaves nothing."""
    with database.statement() as tx:
        alone = tx.scalar(text("SELECT 1"))
    with contextlib.suppress(LookupError), database.transaction() as tx:
        tx.exec_driver_sql("SET application_name = 'rolled back'")
        raise LookupError
    with database.transaction() as tx:
        return bool(alone == tx.scalar(text("SELECT 1")) and tx.scalar(text("SHOW application_name")) != "rolled back")


def is_unavailable_once(database: Database, *statements: str, way: Way = Database.transaction) -> None:
    """Send *statements*, of which one fails; what follows finds nothing wrong."""
    fails_once(database, lambda tx: [tx.exec_driver_sql(statement) for statement in statements], way=way)


def fails_once(database: Database, work: Callable[[Transaction], object], *, way: Way = Database.transaction) -> None:
    with pytest.raises(Unavailable), way(database) as tx:
        work(tx)
    assert works(database)


# What the server says


@both_ways
@pytest.mark.parametrize(
    "code",
    [
        *("08000", "08003", "08006", "0A000"),  # the connection; a prepared plan that fits no more
        *("25006", "25P02", "25P03"),  # read-only, after a failed statement, idle for too long
        *("40001", "40003", "40P01"),  # serialization, completion unknown, deadlock
        *("53000", "53100", "53200", "53300", "53400"),  # resources: disk full, memory, connections, a limit
        *("55006", "55P03", "57014", "57P01", "57P02", "57P03", "57P04", "57P05"),  # locks, timeouts, shutdowns
        *("58000", "58030", "XX000"),  # the system below, its files, the server itself
    ],
)
def test_what_may_pass_is_unavailable(database: Database, code: str, way: Way) -> None:
    """Nothing was committed, and the same may be sent again."""
    is_unavailable_once(database, f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$", way=way)


@both_ways
@pytest.mark.parametrize("code", ["42501", "42601", "42883"])
def test_a_mistake_of_ours_is_no_passing_fault(database: Database, code: str, way: Way) -> None:
    """Told to try again, callers would do so for ever, and nobody would hear of it."""
    with pytest.raises(ProgrammingError), way(database) as tx:
        tx.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$")
    assert works(database)


def test_a_read_only_database_is_unavailable(rt: Runtime, new_database: Callable[[str], str]) -> None:
    """After a failover the old primary answers, and takes nothing: what was sent must be sent again."""
    with opened(new_database("read_only")) as database:
        with database.transaction() as tx:
            tx.execute(text("ALTER DATABASE read_only SET default_transaction_read_only = on"))
        database.close()
        with pytest.raises(Unavailable), database.transaction() as tx:
            tx.execute(text("CREATE TABLE anything ()"))


@both_ways
def test_a_connection_that_was_ended_is_unavailable_once_and_then_replaced(database: Database, way: Way) -> None:
    """A restart of Postgres costs a request, not a process."""
    is_unavailable_once(database, "SELECT pg_terminate_backend(pg_backend_pid())", way=way)


def test_a_disk_that_takes_no_more_is_unavailable(database: Database) -> None:
    """Temporary files are the first to fail; the server has a limit for them that can be reached at will."""
    sort = "SELECT count(*) FROM (SELECT generate_series(1, 200000) AS n ORDER BY n DESC) numbers"
    is_unavailable_once(database, "SET LOCAL temp_file_limit = 0", "SET LOCAL work_mem = '64kB'", sort)


@both_ways
def test_a_statement_that_takes_too_long_is_unavailable(database: Database, way: Way) -> None:
    """The server ends it: what waits for it would wait in vain."""
    is_unavailable_once(database, "SELECT pg_sleep(30)", way=way)


def test_a_lock_that_is_not_given_up_is_unavailable(rt: Runtime, database: Database) -> None:
    """Whoever holds it may be frozen."""
    with rt.db.transaction() as tx:
        tx.exec_driver_sql("SELECT FROM account FOR UPDATE")
        is_unavailable_once(database, "SET LOCAL lock_timeout = '20ms'", "SELECT FROM account FOR UPDATE")


def test_a_transaction_that_idles_is_ended_and_unavailable(rt: Runtime, database: Database) -> None:
    """A process that was frozen in the middle of one must not hold its locks for good."""

    def idle(tx: Transaction) -> None:
        tx.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
        pid = tx.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        until(lambda: not is_running(rt, pid))
        tx.exec_driver_sql("SELECT 1")

    fails_once(database, idle)


def is_running(rt: Runtime, pid: int) -> bool:
    with rt.db.transaction() as tx:
        return bool(tx.execute(text("SELECT 1 FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}).first())


def test_a_transaction_that_cannot_be_serialized_is_unavailable(rt: Runtime, database: Database) -> None:
    """Ours read what is committed; a database may be set to more."""

    def overtaken(tx: Transaction) -> None:
        tx.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tx.exec_driver_sql("SELECT recent FROM account")
        with rt.db.transaction() as other:
            other.exec_driver_sql("UPDATE account SET recent = '+'")
        tx.exec_driver_sql("UPDATE account SET recent = '-'")

    fails_once(database, overtaken)


def test_of_two_transactions_in_a_deadlock_one_is_unavailable(rt: Runtime) -> None:
    """The server sacrifices one, and the other goes on."""
    with rt.db.transaction() as tx:
        tx.exec_driver_sql(
            "INSERT INTO workers (id, host, pid) SELECT gen_random_uuid(), 'x', n FROM (VALUES (1), (2)) v(n)"
        )
    both = threading.Barrier(2)

    def lock(number: int) -> bool:
        try:
            with rt.db.transaction() as tx:
                tx.exec_driver_sql("SET LOCAL deadlock_timeout = '20ms'")
                for pid in (number + 1, 2 - number):
                    tx.execute(text("SELECT FROM workers WHERE pid = :pid FOR UPDATE"), {"pid": pid})
                    if pid == number + 1:
                        both.wait(30)
        except Unavailable:
            return False
        return True

    assert sorted(at_once(lock, 2)) == [False, True]


@both_ways
def test_a_database_set_to_another_isolation_is_read_as_ours(
    rt: Runtime, new_database: Callable[[str], str], way: Way
) -> None:
    """A limiter that locks and then counts must see what was committed while it waited for the lock."""
    with opened(new_database("isolated")) as database:
        with database.transaction() as tx:
            tx.execute(text("ALTER DATABASE isolated SET default_transaction_isolation = 'serializable'"))
        database.close()
        with way(database) as tx:
            assert tx.scalar(text("SHOW transaction_isolation")) == "read committed"


@both_ways
def test_a_migration_under_a_prepared_statement_costs_one_request(
    rt: Runtime, new_database: Callable[[str], str], way: Way
) -> None:
    """A release migrates while the former one runs."""

    def read(tx: Transaction) -> None:
        tx.exec_driver_sql("SELECT * FROM public.anything").all()

    url = new_database("migrated")
    with opened(url) as database, opened(url) as release:
        with database.transaction() as tx:
            tx.exec_driver_sql("CREATE TABLE public.anything (one int)")
        for _ in range(10):
            with way(database) as tx:
                read(tx)
        with release.transaction() as tx:
            tx.exec_driver_sql("ALTER TABLE public.anything ADD two int")
        with pytest.raises(Unavailable), way(database) as tx:
            read(tx)
        with way(database) as tx:
            read(tx)


# One statement alone


def word(rt: Runtime) -> str:
    return str(scalar(rt, "SELECT recent FROM account"))


def test_a_statement_alone_is_committed_when_it_is_answered(rt: Runtime, database: Database) -> None:
    """Whatever becomes of the block after it."""
    with contextlib.suppress(LookupError), database.statement() as tx:
        tx.exec_driver_sql("UPDATE account SET recent = '+'")
        assert word(rt) == "+"
        raise LookupError
    assert word(rt) == "+"
    assert works(database)


def test_a_second_statement_is_refused(rt: Runtime, database: Database) -> None:
    """It would be committed by itself, though whoever wrote it means both or none."""
    with database.statement() as tx:
        tx.exec_driver_sql("UPDATE account SET recent = '+'")
        with pytest.raises(ProgrammingError):
            tx.exec_driver_sql("UPDATE account SET recent = '-'")
    assert word(rt) == "+"
    assert works(database)


def test_a_statement_that_fails_in_the_middle_leaves_nothing(rt: Runtime, database: Database) -> None:
    """All its parts are one transaction."""
    with pytest.raises(DataError), database.statement() as tx:
        tx.exec_driver_sql("WITH one AS (UPDATE account SET recent = '-' RETURNING 0 AS zero) SELECT 1 / zero FROM one")
    assert word(rt) == ""
    assert works(database)


def test_a_statement_that_cannot_be_committed_is_not_answered(rt: Runtime, database: Database) -> None:
    """What is checked at the commit is heard of, too."""
    with pytest.raises(IntegrityError), database.statement() as tx:
        tx.exec_driver_sql(
            "WITH one AS (UPDATE account SET recent = '-')"
            " INSERT INTO idempotency_keys (service_id, key, fingerprint, job_id)"
            " VALUES (gen_random_uuid(), 'order-42', '', gen_random_uuid())"
        )
    assert word(rt) == ""
    assert works(database)


def test_of_two_with_the_same_news_one_is_unavailable(database: Database) -> None:
    """The loser looks again, and finds what the winner wrote."""
    with database.statement() as tx:
        tx.exec_driver_sql("INSERT INTO workers (id, host, pid) VALUES ('00000000-0000-0000-0000-000000000001', '', 1)")
    is_unavailable_once(database, "INSERT INTO workers SELECT * FROM workers", way=Database.statement)


def test_what_a_block_leaves_open_is_not_given_to_the_next(database: Database) -> None:
    """Nobody would commit what the next one does."""
    with database.statement() as tx:
        tx.exec_driver_sql("BEGIN")
    assert works(database)


# No way in


def test_a_server_with_no_connection_to_give_is_unavailable(
    postgres: Server, new_database: Callable[[str], str]
) -> None:
    """Another tenant's burst, or a deploy that starts before the former release has gone."""
    url = new_database("full")
    with opened(url) as owner:
        with owner.transaction() as tx:
            tx.exec_driver_sql("DROP ROLE IF EXISTS guest")
            tx.exec_driver_sql("CREATE ROLE guest LOGIN PASSWORD 'guest' CONNECTION LIMIT 0")
        with opened("postgresql://guest:guest@" + url.partition("@")[2]) as guest:
            with pytest.raises(Unavailable), guest.transaction():
                pass
            with owner.transaction() as tx:
                tx.exec_driver_sql("ALTER ROLE guest CONNECTION LIMIT 1")
            assert works(guest)


@both_ways
def test_a_pool_with_no_connection_to_give_is_unavailable(database: Database, way: Way) -> None:
    """Who waits for one waits a few seconds, and is told to come again."""
    with database.transaction(), pytest.raises(Unavailable), way(database):
        pass
    assert works(database)


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with closed_port() as port, opened(f"postgresql://u@127.0.0.1:{port}/d") as database, pytest.raises(Unavailable):
        works(database)


def test_a_name_that_is_none_is_unavailable() -> None:
    """The names of a managed database change with a failover, and are missing for a while."""
    with opened("postgresql://u@database.invalid/d") as database, pytest.raises(Unavailable):
        works(database)


# The network between


@pytest.fixture
def between(rt: Runtime) -> Iterator[Proxy]:
    with proxy(rt.settings.database_url) as between:
        yield between


@pytest.fixture
def beyond(rt: Runtime, between: Proxy) -> Iterator[Database]:
    """Give the database by way of the proxy."""
    with opened(between.url(rt.settings.database_url)) as database:
        assert works(database)
        yield database


@both_ways
def test_a_connection_that_was_cut_is_unavailable_once_and_then_replaced(
    between: Proxy, beyond: Database, way: Way
) -> None:
    between.cut()
    is_unavailable_once(beyond, "SELECT 1", way=way)


@both_ways
def test_a_silent_server_is_given_up(between: Proxy, beyond: Database, way: Way) -> None:
    """It answers keepalives, so that TCP sees no fault, and runs no timeouts: nobody else would end the wait."""
    between.vanish()
    for _ in range(2):  # the second is on a new connection, which finds nobody either
        with pytest.raises(Unavailable), way(beyond) as tx:
            tx.exec_driver_sql("SELECT 1")

    between.come_back()
    assert works(beyond)


@both_ways
def test_a_commit_whose_answer_is_lost_is_unavailable_and_may_be_done(
    rt: Runtime, between: Proxy, beyond: Database, way: Way
) -> None:
    """The one case in which 'unavailable' may have changed something: whatever is repeated must be repeatable."""
    for arrives in (True, False):
        between.lose_commit(of=b"UPDATE account", arrives=arrives)
        with pytest.raises(Unavailable), way(beyond) as tx:
            tx.exec_driver_sql(f"UPDATE account SET in_flight_cap = {1 if arrives else 2}")
        with rt.db.transaction() as tx:
            assert tx.exec_driver_sql("SELECT in_flight_cap FROM account").scalar_one() == 1
    assert between.commits_lost == 2
