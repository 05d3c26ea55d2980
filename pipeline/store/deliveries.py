"""Notifications as operators see them: listed, each with its tries, and sent again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ColumnElement, Connection, func, literal_column, or_, select, tuple_, update

from pipeline.store.outbox import DeliveryRow, NotificationRow, Told
from pipeline.store.tables import NOW, JobRow, ServiceRow, id_from

REPLAYED_AT_A_TIME = 1000

AT_MOST = 2500
"""How many entries of the leading index one page looks at."""

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
        """In SQL. What a partial index needs is said literally: a prepared statement is planned without its values."""
        row = NotificationRow
        found: list[ColumnElement[bool]] = []
        if self.state in set(Told):
            found.append(row.state == literal_column(f"'{self.state}'"))
        elif self.state is not None:
            found.append(literal_column("false"))
        if self.state == Told.PENDING:
            found.append(row.due_at.is_not(None))
        for column, value in (
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


@dataclass(frozen=True, slots=True)
class Page:
    """Notifications, newest first, and the id that the next page begins after; None: there is no more."""

    rows: Sequence[Any]
    next: UUID | None


def page(tx: Connection, wanted: Wanted, *, before: UUID | None = None, limit: int) -> Page:
    """
    The newest of them, older than *before*.

    What leads is one index, and AT_MOST of its entries are looked at, whatever the filter: so a page may end before it
    is full, with a place to go on from.
    """
    answered = wanted in (Wanted(job_id=wanted.job_id), Wanted(state=Told.DEAD), Wanted(state=Told.PENDING))
    lead = _lead(tx, wanted, before, at_most=limit + 1 if answered else AT_MOST)
    query = select(*_COLUMNS).join(lead, lead.c.id == NotificationRow.id).where(*wanted.conditions())
    order = (lead.c.at.desc(), lead.c.id.desc())
    rows = tx.execute(query.order_by(*order).limit(limit + 1)).all()
    if len(rows) > limit:
        return Page(rows[:limit], rows[limit - 1].id)
    if answered:
        return Page(rows, None)
    return Page(rows, tx.execute(select(lead.c.id).order_by(*order).offset(AT_MOST - 1).limit(1)).scalar())


def _lead(tx: Connection, wanted: Wanted, before: UUID | None, *, at_most: int) -> CTE:
    """Entries of the index that leads, in order: `id`, and `at` where that is not the order by itself."""
    row = NotificationRow
    if wanted.state == Told.DEAD and wanted.job_id is None:
        query = select(row.id, row.created_at.label("at")).where(row.state == literal_column("'dead'"))
        if wanted.since is not None:
            query = query.where(row.created_at >= wanted.since)
        if wanted.until is not None:
            query = query.where(row.created_at < wanted.until)
        at = before and tx.execute(select(row.created_at).where(row.id == before)).scalar()
        if at:
            query = query.where(tuple_(row.created_at, row.id) < tuple_(at, before))
        return query.order_by(row.created_at.desc(), row.id.desc()).limit(at_most).cte("lead")
    source: Any = row.__table__
    if wanted.state == Told.PENDING:  # few, most likely, and anywhere: all of them first, then in order
        pending = select(row.id, row.job_id).where(row.due_at.is_not(None)).cte("pending")
        source = pending.prefix_with("MATERIALIZED")
    listed = select(source.c.id, literal_column("0").label("at"))
    if wanted.job_id is not None:
        listed = listed.where(source.c.job_id == wanted.job_id)
    if wanted.since is not None:
        listed = listed.where(source.c.id >= id_from(max(wanted.since.timestamp(), 0)))
    if wanted.until is not None:
        listed = listed.where(source.c.id < id_from(max(wanted.until.timestamp(), 0)))
    if before is not None:
        listed = listed.where(source.c.id < before)
    return listed.order_by(source.c.id.desc()).limit(at_most).cte("lead")


def of(tx: Connection, notification_ids: Collection[UUID]) -> dict[UUID, list[Any]]:
    """The tries to tell of each of these, in order."""
    query = select(DeliveryRow).where(DeliveryRow.notification_id.in_(notification_ids))
    found: dict[UUID, list[Any]] = {one: [] for one in notification_ids}
    columns = DeliveryRow.__table__.columns
    for row in tx.execute(query.with_only_columns(*columns).order_by(DeliveryRow.notification_id, DeliveryRow.number)):
        found[row.notification_id].append(row)
    return found


def count(tx: Connection, wanted: Wanted, *, at_most: int | None = None) -> int:
    """How many of them `replay` would send again; counting may stop at a number."""
    chosen = select(NotificationRow.id).where(*wanted.conditions(), _replayable()).limit(at_most).subquery()
    return int(tx.execute(select(func.count()).select_from(chosen)).scalar_one())


def replay(
    tx: Connection, wanted: Wanted, *, after: UUID | None = None, at_most: int = REPLAYED_AT_A_TIME
) -> Sequence[Any]:
    """
    Send them again from the beginning of the schedule, *at_most* of them: those whose time it is are none.

    What waits for its next try is sent at once instead; what is being sent at this moment is left alone. Each keeps
    its id, so a receiver that had it after all knows it again.

    Returns:
        The `id` of each, in order, and the `endpoint` as it last was. Whoever goes on does so *after* the last of them:
        some have ended again by then.
    """
    chosen = (
        select(NotificationRow.id, NotificationRow.endpoint)
        .where(*wanted.conditions(), _replayable(), NotificationRow.id > (after or UUID(int=0)))
        .order_by(NotificationRow.id)
        .limit(at_most)
        .with_for_update(skip_locked=True)
        .cte("chosen")
    )
    statement = (
        update(NotificationRow)
        .where(NotificationRow.id == chosen.c.id)
        .values(state=Told.PENDING, due_at=NOW, tries=0, replayed_at=NOW, ended_at=None, worker_id=None, endpoint=None)
        .returning(chosen.c.id, chosen.c.endpoint)
    )
    return sorted(tx.execute(statement), key=lambda one: one.id)


def _replayable() -> ColumnElement[bool]:
    waits = (NotificationRow.due_at > func.statement_timestamp()) & NotificationRow.worker_id.is_(None)
    return or_(NotificationRow.due_at.is_(None), waits)
