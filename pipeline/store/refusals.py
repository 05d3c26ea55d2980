"""What came by a door without an answer and could not become a job: kept until a person has seen to it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, delete, insert, null, select, update

from pipeline.store.gates import RefusalRow
from pipeline.store.tables import new_id


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    One message that was refused.

    `request` is {"args", "kwargs", "whole"}: what was said, and whether all of it could be kept.
    """

    door: str
    code: str
    errors: Sequence[Mapping[str, str]]  # [{"field", "message"}]
    task_id: str | None = None
    service: str | None = None  # as it was named
    request: Mapping[str, Any] | None = None
    id: UUID = field(default_factory=new_id)
    at: datetime | None = None  # None: now


_COLUMNS = (
    RefusalRow.door,
    RefusalRow.code,
    RefusalRow.errors,
    RefusalRow.task_id,
    RefusalRow.service,
    RefusalRow.request,
    RefusalRow.id,
    RefusalRow.at,
)


def add(tx: Connection, refusal: Refusal) -> None:
    """Keep one."""
    values = {name: value for name, value in asdict(refusal).items() if value is not None}
    tx.execute(insert(RefusalRow).values(values))


def newest(tx: Connection, *, at_most: int) -> list[Refusal]:
    """The newest, newest first."""
    query = select(*_COLUMNS).order_by(RefusalRow.id.desc()).limit(at_most)
    return [Refusal(*row) for row in tx.execute(query)]


def one(tx: Connection, refusal_id: UUID) -> Refusal | None:
    """The refusal of that id."""
    row = tx.execute(select(*_COLUMNS).where(RefusalRow.id == refusal_id)).first()
    return Refusal(*row) if row else None


def blank(tx: Connection, refusal_id: UUID, *, code: str, errors: Sequence[Mapping[str, str]]) -> None:
    """Keep nothing of what was said: it is refused for *code* by now."""
    values = {"code": code, "errors": list(errors), "request": null()}
    tx.execute(update(RefusalRow).where(RefusalRow.id == refusal_id).values(values))


def remove(tx: Connection, refusal_id: UUID) -> bool:
    """Forget one. True when there was such a one."""
    return tx.execute(delete(RefusalRow).where(RefusalRow.id == refusal_id)).rowcount > 0
