"""The inbox as operators see it: listed, looked at, and chosen to be replayed. Of its address no token leaves here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, case, func, literal_column, select

from pipeline.store.tables import AttemptRow, CallbackRow, JobRow, Verdict, id_from

SHORT_BYTES = 64 * 1024
"""Longer bodies are not read for a list."""

SECRET_LENGTH = 16
"""A shorter token is none of ours: a stranger made the address up."""

_COLUMNS = (
    CallbackRow.id,
    CallbackRow.received_at,
    CallbackRow.verdict,
    CallbackRow.job_id,
    CallbackRow.attempt_id,
    CallbackRow.prediction_id,
    CallbackRow.replayed_at,
    CallbackRow.replayed_verdict,
    func.octet_length(CallbackRow.body).label("bytes"),
)

_LISTED = (*_COLUMNS, case((func.octet_length(CallbackRow.body) <= SHORT_BYTES, CallbackRow.body)).label("body"))
_WHOLE = (*_COLUMNS, CallbackRow.headers, CallbackRow.body, CallbackRow.token)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which callbacks: those that fit all that is said. The times are when they came, by the clock that made ids."""

    ids: Sequence[UUID] | None = None
    verdict: str | None = None  # that it got when it came
    job_id: UUID | None = None
    prediction_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    unapplied: bool = False  # but for those that a replay has applied

    def conditions(self) -> list[ColumnElement[bool]]:
        """In SQL. What an index needs is said literally: a prepared statement is planned without its values."""
        row = CallbackRow
        found: list[ColumnElement[bool]] = []
        if self.ids is not None:
            found.append(row.id.in_(self.ids))
        if self.verdict is not None:
            found.append(row.verdict == self.verdict)
            if self.verdict != Verdict.APPLIED:
                found.append(row.verdict != literal_column(f"'{Verdict.APPLIED}'"))
        if self.job_id is not None:
            found.append(row.job_id == self.job_id)
        if self.prediction_id is not None:
            found.append(row.prediction_id == self.prediction_id)
        if self.since is not None:
            found.append(row.id >= id_from(max(self.since.timestamp(), 0)))
        if self.until is not None:
            found.append(row.id < id_from(max(self.until.timestamp(), 0)))
        if self.unapplied:
            found.append(row.replayed_verdict.is_distinct_from(Verdict.APPLIED))
        return found


def newest(tx: Connection, wanted: Wanted, *, before: UUID | None = None, at_most: int) -> Sequence[Any]:
    """The newest of them, newest first, each with its body if that is short."""
    query = select(*_LISTED).where(*wanted.conditions())
    if before is not None:
        query = query.where(CallbackRow.id < before)
    return tx.execute(query.order_by(CallbackRow.id.desc()).limit(at_most)).all()


@dataclass(frozen=True, slots=True)
class Kept:
    """A callback as it is kept. `token`, of its address, is a secret."""

    id: UUID
    received_at: datetime
    verdict: str
    replayed_verdict: str | None
    token: str
    headers: dict[str, str]
    body: bytes


_KEPT = (
    CallbackRow.id,
    CallbackRow.received_at,
    CallbackRow.verdict,
    CallbackRow.replayed_verdict,
    CallbackRow.token,
    CallbackRow.headers,
    CallbackRow.body,
)


def oldest(tx: Connection, wanted: Wanted, *, after: UUID | None = None, at_most: int) -> list[Kept]:
    """The oldest of them, oldest first, as they came: to be judged in the order in which they were."""
    query = select(*_KEPT).where(*wanted.conditions())
    if after is not None:
        query = query.where(CallbackRow.id > after)
    return [Kept(*row) for row in tx.execute(query.order_by(CallbackRow.id).limit(at_most))]


def known(tx: Connection, callback_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the ids that are a callback's."""
    return set(tx.execute(select(CallbackRow.id).where(CallbackRow.id.in_(callback_ids))).scalars())


def locked(tx: Connection, callback_id: UUID) -> Kept | None:
    """One as it is kept, which nobody else replays or prunes until this transaction ends."""
    row = tx.execute(select(*_KEPT).where(CallbackRow.id == callback_id).with_for_update()).first()
    return Kept(*row) if row else None


def one(tx: Connection, callback_id: UUID) -> Any | None:
    """
    One callback with all it brought, and what its attempt and job are now; None when there is none.

    Should its body name the token, that stands there as so many `*`.
    """
    query = (
        select(
            *_WHOLE,
            AttemptRow.number,
            AttemptRow.prediction_id.label("attempts_prediction_id"),
            JobRow.state,
            JobRow.model,
            JobRow.settled_by,
        )
        .outerjoin(AttemptRow, AttemptRow.id == CallbackRow.attempt_id)
        .outerjoin(JobRow, JobRow.id == CallbackRow.job_id)
        .where(CallbackRow.id == callback_id)
    )
    row = tx.execute(query).first()
    if row is None:
        return None
    facts = dict(row._mapping)
    token = facts.pop("token").encode()
    if len(token) >= SECRET_LENGTH:
        facts["body"] = facts["body"].replace(token, b"*" * len(token))
    return SimpleNamespace(**facts)
