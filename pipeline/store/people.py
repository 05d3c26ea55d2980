"""The tables of the people at the dashboard: who is signed in, who failed to sign in, and who did what."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.store.tables import NOW, Base, Json, new_id, one_of


class Role(StrEnum):
    """What a person may do: everything, or look."""

    OPERATOR = "operator"
    VIEWER = "viewer"


class SessionRow(Base):
    """One person signed in at one browser. Who signs out is out, whatever cookies there are."""

    __tablename__ = "sessions"
    __table_args__ = (
        CheckConstraint(one_of("role", Role), name="role"),
        Index("sessions_expires_at_idx", "expires_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]  # as they called themselves: for the audit, it is not proven
    role: Mapped[str]
    password_print: Mapped[bytes]  # of the password they gave: with another one set, they are out
    started_at: Mapped[datetime] = mapped_column(server_default=NOW)
    expires_at: Mapped[datetime]


class SignInRow(Base):
    """From where passwords were tried that were wrong."""

    __tablename__ = "sign_ins"

    address: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int]
    since: Mapped[datetime] = mapped_column(server_default=NOW)  # the first of them


class AuditRow(Base):
    """One thing that a person did, or tried to. Written before it is done, so that nothing is done unseen."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_target_idx", "target", "id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    who: Mapped[str]
    door: Mapped[str]  # dashboard or command line
    action: Mapped[str]  # such as job.cancel
    target: Mapped[str | None]  # such as the job's id
    data: Mapped[Json] = mapped_column(server_default=text("'{}'"))  # never a secret
    outcome: Mapped[str | None]  # done, or the code of the error; NULL: it broke off
