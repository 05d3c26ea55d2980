"""
Statements of the busiest paths, which are read once and prepared on each connection.

A `text()` is read by SQLAlchemy and by the driver each time it is sent. For a long one that is most of what it costs
this process, and of those that are sent a thousand times a second it is what limits them.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from pipeline.store.database import Transaction, Value, send

_NUMBERED = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]


class Prepared:
    """
    A statement, written as for `text()`.

    Its values are texts or bytes, of whatever type the statement takes them to be: were they typed by the driver, an
    integer of another size would be another statement to prepare.
    """

    def __init__(self, statement: str) -> None:
        compiled = _NUMBERED.statement_compiler(_NUMBERED, text(statement))
        self._words = compiled.string.encode()
        self._names = tuple(compiled.positiontup or ())

    def all(self, tx: Transaction, values: Mapping[str, Value]) -> list[tuple[Any, ...]]:
        """Send it, and give its rows."""
        return send(tx, self._words, [values[name] for name in self._names]).fetchall()
