"""
Enqueue in the caller's own transaction: the job exists if, and only if, the caller's own rows do.

For services that share our Postgres. Needs SQLAlchemy or psycopg, whichever the caller uses, and nothing else of ours.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pipeline.errors import FieldError, IdempotencyConflict, InvalidInput

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

_ARGUMENTS = {
    "service": "text",
    "input": "jsonb",
    "model": "text",
    "idempotency_key": "text",
    "priority": "int",
    "run_at": "timestamptz",
    "deadline_s": "float8",
    "callback_url": "text",
    "callback_task": "text",
    "metadata": "jsonb",
}

_DATA_EXCEPTION = "22"  # the class of SQLSTATEs
_UNIQUE_VIOLATION = "23505"
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def enqueue(
    via: "Session | scoped_session[Any] | Connection | psycopg.Connection[Any] | psycopg.Cursor[Any]",
    *,
    service: str,
    input: Mapping[str, Any],
    model: str | None = None,
    idempotency_key: str | None = None,
    priority: int = 0,
    run_at: datetime | None = None,
    deadline_s: float | None = None,
    callback_url: str | None = None,
    callback_task: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> UUID:
    """
    Queue a job in the transaction that *via* has open, or begins: it is run once that has committed, never otherwise.

    Only rows are inserted. Whether *model* takes *input*, and whether the budgets cover it, is asked before the first
    claim: a refusal is a failed job, and its owner is told.

    Args:
        via: A session or connection of SQLAlchemy's, on any driver, or a psycopg connection or cursor. Of an
            `AsyncSession`: `await session.run_sync(pipeline.enqueue, service=…, input=…)`.
        service: Its name; the connection's role needs EXECUTE on the function `pipeline.enqueue`.
        input: What the model takes, such as `{"prompt": "a lighthouse"}`.
        model: The default model unless given.
        idempotency_key: 1 to 255 printable ASCII characters: the same key and request again are the same job.
        priority: From -10 to 10; the highest of a service's own jobs go first.
        run_at: With a time zone, at most 366 days from now. Not before.
        deadline_s: Seconds from *run_at*, or from this call, from 1 to 604,800.
        callback_url: Who is told of its end, instead of the service's address.
        callback_task: Likewise a Celery task, of those that the service may name.
        metadata: Up to 50 texts of up to 500 characters, to find the job by.

    Returns:
        The job's id. Until the commit nobody else sees the job.

    Raises:
        InvalidInput: Its `errors` name the field. As after any error of Postgres' the transaction can only be rolled
            back, to a savepoint if there is one.
        IdempotencyConflict: The key was used for another request. Likewise.
        sqlalchemy.exc.DBAPIError, psycopg.Error: Whatever else Postgres says, such as that the role may not do this.
    """
    if iscoroutinefunction(getattr(via, "execute", None)):
        raise TypeError("Of an asynchronous session: await session.run_sync(pipeline.enqueue, service=…, input=…)")
    if run_at is not None and (not isinstance(run_at, datetime) or run_at.tzinfo is None):
        raise InvalidInput(errors=[FieldError("run_at", "Must be a datetime with a time zone.")])
    given = {
        "service": service,
        "input": _json("input", input),
        "model": model,
        "idempotency_key": idempotency_key,
        "priority": priority,
        "run_at": run_at,
        "deadline_s": deadline_s,
        "callback_url": callback_url,
        "callback_task": callback_task,
        "metadata": _json("metadata", metadata or {}),
    }
    for name, value in given.items():
        if isinstance(value, str) and _UNSTORABLE.search(value):
            raise InvalidInput(errors=[FieldError(name, "Must not contain NUL characters or lone surrogates.")])
    try:
        return UUID(_sqlalchemy(via, given) if _is_of("sqlalchemy", via) else _psycopg(via, given))
    except Exception as error:
        refusal = _refusal(getattr(error, "orig", None) or error)  # SQLAlchemy wraps the driver's
        if refusal is None:
            raise
        raise refusal from None  # SQLAlchemy's would show the prompt


def _sqlalchemy(via: Any, given: Mapping[str, Any]) -> str:
    from sqlalchemy import text  # noqa: PLC0415 - whoever has psycopg only needs none

    return str(via.execute(text(_call(":{}")), given).scalar_one())


def _psycopg(via: Any, given: Mapping[str, Any]) -> str:
    if not _is_of("psycopg", via):
        raise TypeError("pipeline.enqueue() takes a session or connection of SQLAlchemy's or psycopg's.")
    from psycopg.rows import tuple_row  # noqa: PLC0415 - whoever has SQLAlchemy may have another driver

    connection = getattr(via, "connection", via)  # a cursor keeps what the caller has read with it
    with connection.cursor(row_factory=tuple_row) as cursor:
        return str(cursor.execute(_call("%({})s"), given).fetchone()[0])


def _call(placeholder: str) -> str:
    """One statement for every driver: named, typed, and an answer that all of them read the same."""
    arguments = ", ".join(f"{name} => CAST({placeholder.format(name)} AS {kind})" for name, kind in _ARGUMENTS.items())
    return f"SELECT CAST(pipeline.enqueue({arguments}) AS text)"


def _is_of(package: str, value: object) -> bool:
    """Whether *value* is an instance of a class of *package*, or of a subclass, without importing that."""
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(errors=[FieldError(name, "Must be a JSON object.")]) from None


def _refusal(error: BaseException) -> InvalidInput | IdempotencyConflict | None:
    """What the function said, in our words; None when it was not the function that spoke."""
    state = str(getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or "")
    said = getattr(error, "diag", error)
    message = str(getattr(said, "message_primary", None) or error).partition("\n")[0]
    field = getattr(said, "column_name", None) or ""
    if state == _UNIQUE_VIOLATION and field == "idempotency_key":
        return IdempotencyConflict("Use a new key for a new request, or repeat the first one unchanged.")
    if state.startswith(_DATA_EXCEPTION):
        told = message.removeprefix("pipeline.enqueue: ").removeprefix(f"{field} ")
        return InvalidInput(errors=[FieldError(field, told[:1].upper() + told[1:])])
    return None
