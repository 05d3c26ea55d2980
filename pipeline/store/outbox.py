"""The outbox's tables: what must be told, each try to tell it, and the endpoints that fail."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, SmallInteger, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.store.tables import NOW, Base, Json, new_id, one_of


class Audience:
    """Who is told: the job's caller, or the operator of this installation."""

    SERVICE = "service"
    OPERATOR = "operator"
    ALL = (SERVICE, OPERATOR)


class Told(StrEnum):
    """What became of a notification; `unaddressed`: nobody had said where to send it."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    UNADDRESSED = "unaddressed"


class NotificationRow(Base):
    """The outbox: what must be told of an event of a job, or of the account. Planned in the commit of what happened."""

    __tablename__ = "notifications"
    __table_args__ = (
        CheckConstraint(one_of("state", Told), name="state"),
        CheckConstraint("(due_at IS NOT NULL) = (state = 'pending')", name="pending_has_alarm"),
        CheckConstraint(one_of("audience", Audience.ALL), name="audience"),
        UniqueConstraint("job_id", "seq"),  # an event is told once
        # The claim's: each endpoint's own queue, in order.
        Index("notifications_endpoint_idx", "endpoint", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        # The sweep's: what dead workers hold.
        Index("notifications_worker_id_idx", "worker_id", postgresql_where=text("worker_id IS NOT NULL")),
        Index("notifications_dead_idx", "created_at", postgresql_where=text("state = 'dead'")),
        # What operators were told, by age: it is pruned by itself.
        Index("notifications_notices_idx", "created_at", postgresql_where=text("job_id IS NULL AND due_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    event: Mapped[str]
    job_id: Mapped[UUID | None]
    seq: Mapped[int | None]  # of the job's event
    audience: Mapped[str] = mapped_column(server_default=Audience.SERVICE)
    data: Mapped[Json] = mapped_column(server_default=text("'{}'"))  # what is said of the account
    state: Mapped[str] = mapped_column(server_default=Told.PENDING)
    due_at: Mapped[datetime | None]  # its next try; while it is being sent, the end of the claim's lease
    endpoint: Mapped[str | None]  # whose queue it waits in, see `notifications`; NULL: not decided yet
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # the number of its last delivery
    tries: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # since it was planned, or replayed
    worker_id: Mapped[UUID | None]  # who is sending it just now
    error: Mapped[str | None]  # why its last try failed
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)
    replayed_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class DeliveryRow(Base):
    """The log of deliveries: one try to tell, what was sent, what was answered."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("deliveries_at_idx", "at"),)  # so many in a minute

    notification_id: Mapped[UUID] = mapped_column(ForeignKey("notifications.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=NOW)  # when it had ended
    target: Mapped[str]  # the address without its query, or task@queue
    request: Mapped[Json | None]  # {"headers", "body", "truncated"} as sent; NULL: nothing left this machine
    status: Mapped[int | None] = mapped_column(SmallInteger)
    answer: Mapped[str | None]  # its first bytes
    duration_ms: Mapped[int | None]
    error: Mapped[str | None]


class EndpointRow(Base):
    """A receiver of notifications that has failed before. One that always answered has no row."""

    __tablename__ = "endpoints"
    __table_args__ = (
        CheckConstraint("(off_at IS NULL) = (probe_at IS NULL)", name="off_is_probed"),
        Index("endpoints_off_idx", "name", postgresql_where=text("off_at IS NOT NULL")),
        Index("endpoints_failed_at_idx", "failed_at"),
    )

    name: Mapped[str] = mapped_column(primary_key=True)
    failing_since: Mapped[datetime | None]  # since when nothing succeeded; NULL: the last try did
    failures: Mapped[int] = mapped_column(server_default="0")  # since then
    failed_at: Mapped[datetime] = mapped_column(server_default=NOW)  # when it last did
    error: Mapped[str | None]
    off_at: Mapped[datetime | None]  # since when nothing is sent to it but probes
    probe_at: Mapped[datetime | None]  # when one notification may be tried next
