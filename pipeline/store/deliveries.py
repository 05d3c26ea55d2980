"""Notifications as operators see them: listed, each with its tries, and sent again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, func, or_, select, update

from pipeline.store.outbox import DeliveryRow, NotificationRow, Told
from pipeline.store.tables import NOW, JobRow, ServiceRow

REPLAYED_AT_A_TIME = 1000

_SERVICE = (
    select(ServiceRow.name)
    .join(JobRow, JobRow.service_id == ServiceRow.id)
    .where(JobRow.id == NotificationRow.job_id)
    .scalar_subquery()
)

_COLUMNS = (
    NotificationRow.id,
    NotificationRow.event,
    NotificationRow.job_id,
    NotificationRow.seq,
    NotificationRow.audience,
    NotificationRow.data,
    NotificationRow.state,
    NotificationRow.endpoint,
    NotificationRow.attempts,
    NotificationRow.error,
    NotificationRow.due_at,
    NotificationRow.created_at,
    NotificationRow.replayed_at,
    NotificationRow.ended_at,
    _SERVICE.label("service"),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which notifications: those that fit all that is said. The times are of their planning."""

    ids: Collection[UUID] | None = None
    state: str | None = None
    event: str | None = None
    service: str | None = None
    audience: str | None = None
    endpoint: str | None = None  # its whole name, or how that begins
    job_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """In SQL."""
        row = NotificationRow
        found: list[ColumnElement[bool]] = []
        for column, value in (
            (row.state, self.state),
            (row.event, self.event),
            (row.audience, self.audience),
            (row.job_id, self.job_id),
        ):
            if value is not None:
                found.append(column == value)
        if self.ids is not None:
            found.append(row.id.in_(self.ids))
        if self.service is not None:
            found.append(_SERVICE.in_([self.service]))
        if self.endpoint is not None:
            found.append(row.endpoint.startswith(self.endpoint, autoescape=True))
        if self.since is not None:
            found.append(row.created_at >= self.since)
        if self.until is not None:
            found.append(row.created_at < self.until)
        return found


def newest(tx: Connection, wanted: Wanted, *, at_most: int) -> Sequence[Any]:
    """The newest of them, newest first."""
    query = select(*_COLUMNS).where(*wanted.conditions())
    return tx.execute(query.order_by(NotificationRow.id.desc()).limit(at_most)).all()


def of(tx: Connection, notification_ids: Collection[UUID]) -> dict[UUID, list[Any]]:
    """The tries to tell of each of these, in order."""
    query = select(DeliveryRow).where(DeliveryRow.notification_id.in_(notification_ids))
    found: dict[UUID, list[Any]] = {one: [] for one in notification_ids}
    columns = DeliveryRow.__table__.columns
    for row in tx.execute(query.with_only_columns(*columns).order_by(DeliveryRow.notification_id, DeliveryRow.number)):
        found[row.notification_id].append(row)
    return found


def count(tx: Connection, wanted: Wanted) -> int:
    """How many of them `replay` would send again."""
    query = select(func.count()).select_from(NotificationRow).where(*wanted.conditions(), _replayable())
    return int(tx.execute(query).scalar_one())


def replay(tx: Connection, wanted: Wanted) -> list[str]:
    """
    Send them again from the beginning of the schedule, REPLAYED_AT_A_TIME at most: those whose time it is are none.

    What waits for its next try is sent at once instead; what is being sent at this moment is left alone. Each keeps
    its id, so a receiver that had it after all knows it again.

    Returns:
        The endpoint of each, as it last was.
    """
    chosen = (
        select(NotificationRow.id, NotificationRow.endpoint)
        .where(*wanted.conditions(), _replayable())
        .order_by(NotificationRow.id)
        .limit(REPLAYED_AT_A_TIME)
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    statement = (
        update(NotificationRow)
        .where(NotificationRow.id == chosen.c.id)
        .values(state=Told.PENDING, due_at=NOW, tries=0, replayed_at=NOW, ended_at=None, worker_id=None, endpoint=None)
        .returning(chosen.c.endpoint)
    )
    return [endpoint or "" for endpoint in tx.execute(statement).scalars()]


def _replayable() -> ColumnElement[bool]:
    waits = (NotificationRow.due_at > func.statement_timestamp()) & NotificationRow.worker_id.is_(None)
    return or_(NotificationRow.due_at.is_(None), waits)
