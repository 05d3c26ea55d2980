"""One process's way to Postgres: a pool, short transactions, and errors that say 'try again' when that helps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.errors import (
    ConnectionTimeout,
    DeadlockDetected,
    FeatureNotSupported,
    LockNotAvailable,
    UndefinedColumn,
    UndefinedTable,
    UniqueViolation,
)
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, NotSupportedError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipeline.errors import Contended, Unavailable

Transaction = Connection
"""What every statement of ours is given: an open transaction, committed by who opened it."""

CONNECT_WITHIN_S = 5
"""How long a new connection may take, and a place in a full pool, in seconds."""

PATIENCE_S = 15
"""How long one statement may take, in seconds. Where somebody waits for the answer, it is less."""

_OUTDATED = (NotSupportedError, psycopg.NotSupportedError)
"""What is prepared fits the schema no more, and the connection would not forget it."""

_SILENCE_S = 1.0
"""How much longer the server's own word is waited for, that a statement took too long."""

_OPTIONS = {
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "20s",  # a frozen process must not hold a row lock for good
    "default_transaction_isolation": r"read\ committed",  # guards read what was committed while they waited for a row
    "jit": "off",  # compiling costs more than any statement of ours
    "search_path": "pipeline",
}

T = TypeVar("T")


class Database:
    """
    A pool of connections to one Postgres.

    A statement takes at most *patience_s* seconds, by the server's clock; a server that says nothing for 1 s
    longer is given up.

    Raises:
        Unavailable: By every method, when the database cannot be reached, is silent, is restarting, or has no
            connection to give within 5 s (*patience_s*, when that is less). Nothing was committed, with one
            exception: the answer to a COMMIT may be lost, so whatever is repeated must be repeatable.
    """

    def __init__(self, url: str, *, name: str, pool_size: int = 8, patience_s: int = PATIENCE_S) -> None:
        options = {**_OPTIONS, "statement_timeout": f"{patience_s}s"}
        self.engine: Engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=min(CONNECT_WITHIN_S, patience_s),
            pool_use_lifo=True,  # idle connections at the far end may close
            hide_parameters=True,  # a prompt must not reach a log through an error
            connect_args={
                "application_name": f"pipeline-{name}",
                "connect_timeout": min(CONNECT_WITHIN_S, patience_s),
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": patience_s * 1000,  # ms; a half-open socket is noticed, not waited for
                "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
            },
        )

        @event.listens_for(self.engine, "do_connect")
        def connect(_dialect: Any, _record: Any, words: Any, names: Any) -> _Connection:
            connection = _Connection.connect(*words, **names)
            connection.patience_s = patience_s + _SILENCE_S
            return connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        with _translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """
        One statement, which is a transaction by itself: all of it is done, or nothing. A second one is refused.

        It is committed when its answer comes, whatever the block does then, and costs one journey to the server where
        a transaction costs three.
        """
        with _translated(), self.engine.connect() as connection:
            raw = _driver(connection)
            raw.begin_alone()
            try:
                yield connection
            except _OUTDATED:
                connection.invalidate()
                raise
            finally:
                if not raw.end_alone():
                    connection.invalidate()

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


Value = str | bytes | list[bytes] | None
"""What `send` sends."""


def send(tx: Connection, words: bytes, values: Sequence[Value]) -> psycopg.Cursor[Any]:
    """
    Send a statement past SQLAlchemy, in the same transaction: *words* with `$1`, `$2` … for the *values*.

    It is prepared. Who listens to statements hears of it as of any other.
    """
    raw = _driver(tx)
    cursor = raw.numbered_cursor()
    for listener in tx.engine.dispatch.before_cursor_execute:
        heard, values = listener(tx, cursor, words.decode(), values, None, False)
        words = heard.encode()
    try:
        return cursor.execute(words, values, prepare=True)
    except psycopg.Error:
        if raw.closed:
            tx.invalidate()
        raise


@contextmanager
def _translated() -> Iterator[None]:
    """Have what may pass be Unavailable; everything else stays as it is."""
    try:
        yield
    except PoolTimeout:
        raise Unavailable("The database has no free connection.") from None
    except DBAPIError as error:
        if (passing := _passing(error.orig, lost=error.connection_invalidated)) is not None:
            raise passing from None
        raise
    except psycopg.Error as error:  # of what was sent past SQLAlchemy
        if (passing := _passing(error)) is not None:
            raise passing from None
        raise


def _passing(error: BaseException | None, *, lost: bool = False) -> Unavailable | None:
    """That it is worth to try again, and why; None: it is not. *lost*: the connection was."""
    name = type(error).__name__
    match error:
        case DeadlockDetected() | LockNotAvailable():
            return Contended(f"Another transaction holds what it takes ({name}).")
        case psycopg.OperationalError() | psycopg.InterfaceError() | psycopg.InternalError():
            return Unavailable(f"The database cannot be reached ({name}).")  # internal: read-only after a failover
        case UniqueViolation():  # two had the same news at once: the loser looks again
            return Contended("Another transaction was first.")
        case _ if lost:
            return Unavailable(f"The connection to the database was lost ({name}).")
        case FeatureNotSupported():  # a prepared statement's; it is prepared anew
            return Contended(f"The database's schema was just changed ({name}).")
        case UndefinedTable() | UndefinedColumn():
            return Unavailable(f"The database's schema is older than this code: run `pipeline migrate` ({name}).")
        case _:
            return None


class _Connection(psycopg.Connection[Any]):
    """
    A connection that gives up a silent server, and can be given out for one statement.

    Neither the server's timeouts nor TCP's see a server that is frozen, or forgotten by a balancer that still answers
    for it: without this, whoever asks it waits for ever.
    """

    patience_s = PATIENCE_S + _SILENCE_S
    _left: int | None = None  # statements that may still be sent; None: any number

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for an answer, as every statement, COMMIT and ROLLBACK does."""
        try:
            return super().wait(gen, interval, self.patience_s if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()  # should the answer still come, nobody may take it for that of another question
            raise ConnectionTimeout("The server did not answer in time.") from error

    def begin_alone(self) -> None:
        """Take one statement, and commit it, from now on."""
        self.autocommit = True
        self._left = 1

    def end_alone(self) -> bool:
        """Be as before. False: it is closed, or in the midst of something."""
        self._left = None
        if self.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        self.autocommit = False
        return True

    def cursor(self, *words: Any, **names: Any) -> Any:
        """A cursor, as there is one for every statement."""
        self._count()
        return super().cursor(*words, **names)

    def numbered_cursor(self) -> psycopg.RawCursor[Any]:
        """Likewise, for a statement with `$1`, which the driver need not read."""
        self._count()
        return psycopg.RawCursor(self)

    def _count(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:  # it would be committed apart from the first
                raise psycopg.ProgrammingError("Only one statement may be sent here: this needs a transaction.")


def _driver(tx: Connection) -> _Connection:
    raw = tx.connection.driver_connection
    assert isinstance(raw, _Connection)
    return raw
