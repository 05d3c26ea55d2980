"""Who did what: written before it is done, and again when it is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select, text

from pipeline.store.people import AuditRow
from pipeline.store.tables import new_id

DONE = "done"

_COLUMNS = (
    AuditRow.id,
    AuditRow.at,
    AuditRow.who,
    AuditRow.door,
    AuditRow.action,
    AuditRow.target,
    AuditRow.data,
    AuditRow.outcome,
)


def begin(tx: Connection, *, who: str, door: str, action: str, target: str | None, data: Mapping[str, Any]) -> UUID:
    """Write down what somebody is about to do. *data* holds no secret and no prompt."""
    entry_id = new_id()
    statement = text("""
        INSERT INTO audit (id, who, door, action, target, data)
        VALUES (:id, :who, :door, :action, :target, CAST(:data AS jsonb))
    """)
    facts = {"id": entry_id, "who": who, "door": door, "action": action, "target": target, "data": json.dumps(data)}
    tx.execute(statement, facts)
    return entry_id


def end(tx: Connection, entry_id: UUID, outcome: str = DONE, *, target: str | None = None) -> None:
    """Write down what came of it, and to what it was done if that is known only now."""
    statement = text("UPDATE audit SET outcome = :outcome, target = coalesce(:target, target) WHERE id = :id")
    tx.execute(statement, {"id": entry_id, "outcome": outcome, "target": target})


def newest(
    tx: Connection, *, target: str | None = None, before: UUID | None = None, at_most: int = 50
) -> Sequence[Any]:
    """What was done last, newest first: to one *target*, or to anything; older than *before*."""
    query = select(*_COLUMNS)
    if target is not None:
        query = query.where(AuditRow.target == target)
    if before is not None:
        query = query.where(AuditRow.id < before)
    return tx.execute(query.order_by(AuditRow.id.desc()).limit(at_most)).all()
