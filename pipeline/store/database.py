"""One process's way to Postgres: a pool, short transactions, and errors that say 'try again' when that helps."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.errors import UndefinedColumn, UndefinedTable, UniqueViolation
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.errors import Unavailable

Transaction = Connection
"""What every statement of ours is given: an open transaction, committed by who opened it."""

_TIMEOUTS = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "20s",  # a frozen process must not hold a row lock for good
    "jit": "off",  # compiling costs more than any statement of ours
    "search_path": "pipeline",
}


class Database:
    """
    A pool of connections to one Postgres.

    Raises:
        Unavailable: By every method, when the database cannot be reached, is restarting, or has no
            connection to give within 5 s. Nothing was committed, with one exception: the answer to a
            COMMIT may be lost, so whatever is repeated must be repeatable.
    """

    def __init__(self, url: str, *, name: str, pool_size: int = 8) -> None:
        self.engine: Engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=5,
            pool_use_lifo=True,  # idle connections at the far end may close
            hide_parameters=True,  # a prompt must not reach a log through an error
            connect_args={
                "application_name": f"pipeline-{name}",
                "connect_timeout": 5,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,  # ms; a half-open socket is noticed, not waited for
                "options": " ".join(f"-c {name}={value}" for name, value in _TIMEOUTS.items()),
            },
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except PoolTimeout:
            raise Unavailable("The database has no free connection.") from None
        except (OperationalError, InterfaceError, InternalError) as error:  # internal: read-only after a failover
            raise Unavailable(f"The database cannot be reached ({_name(error)}).") from None
        except IntegrityError as error:
            if isinstance(error.orig, UniqueViolation):  # two had the same news at once: the loser looks again
                raise Unavailable("Another transaction was first.") from None
            raise
        except DBAPIError as error:
            if error.connection_invalidated:
                raise Unavailable(f"The connection to the database was lost ({_name(error)}).") from None
            if isinstance(error.orig, UndefinedTable | UndefinedColumn):
                why = "The database's schema is older than this code: run `pipeline migrate`"
                raise Unavailable(f"{why} ({_name(error)}).") from None
            raise

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _name(error: DBAPIError) -> str:
    return type(error.orig).__name__
