"""What the database does on a bad day is 'try again' to callers, and never a lost message."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from pipeline.errors import Unavailable
from pipeline.runtime import Runtime
from pipeline.store.database import Database


def test_a_read_only_database_is_unavailable(rt: Runtime, new_database: Callable[[str], str]) -> None:
    """After a failover the old primary answers, and takes nothing: what was sent must be sent again."""
    url = new_database("read_only").replace("postgresql://", "postgresql+psycopg://")
    database = Database(url, name="tests", pool_size=1)
    with database.transaction() as tx:
        tx.execute(text("ALTER DATABASE read_only SET default_transaction_read_only = on"))
    database.close()
    with pytest.raises(Unavailable), database.transaction() as tx:
        tx.execute(text("CREATE TABLE anything ()"))
    database.close()


def test_a_connection_that_was_ended_is_unavailable_once_and_then_replaced(rt: Runtime) -> None:
    """A restart of Postgres costs a request, not a process."""
    database = Database(rt.settings.database_url, name="tests", pool_size=1)
    with pytest.raises(Unavailable), database.transaction() as tx:
        tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with database.transaction() as tx:
        assert tx.scalar(text("SELECT 1")) == 1
    database.close()
