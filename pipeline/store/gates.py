"""The tables that doors ask before they let a job in: models, prices, budgets, terms, paces; and what was refused."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.screening import CATEGORIES, MAX_TERM
from pipeline.store.tables import NOW, Base, Json, new_id, one_of


class ModelRow(Base):
    """One model of the provider's catalogue, or one that a person paused."""

    __tablename__ = "models"
    __table_args__ = (Index("models_paused_idx", "id", postgresql_where=text("paused_at IS NOT NULL")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str | None]  # as the provider calls it, such as text-to-image
    description: Mapped[str | None]
    schema: Mapped[Json | None]  # the JSON Schema of its input; NULL: the provider gives none
    listed_at: Mapped[datetime | None]  # when the catalogue last named it
    withdrawn_at: Mapped[datetime | None]  # when it named it no more
    paused_at: Mapped[datetime | None]  # since when its jobs stand still


class ScreenRow(Base):
    """One term that prompts are screened for. Who changes any sets `account.screens_changed_at`."""

    __tablename__ = "screens"
    __table_args__ = (
        CheckConstraint(one_of("category", CATEGORIES), name="category"),
        CheckConstraint(f"length(term) BETWEEN 1 AND {MAX_TERM}", name="term"),
    )

    scope: Mapped[str] = mapped_column(primary_key=True)  # a service's id, or 'all'
    category: Mapped[str] = mapped_column(primary_key=True)
    term: Mapped[str] = mapped_column(primary_key=True)  # in its normal spelling, see `screening`
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class ScreenExemptionRow(Base):
    """A service that the list of all services does not hold for, in one category. Changed as `ScreenRow` is."""

    __tablename__ = "screen_exemptions"
    __table_args__ = (CheckConstraint(one_of("category", CATEGORIES), name="category"),)

    scope: Mapped[str] = mapped_column(primary_key=True)  # a service's id
    category: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=NOW)


class RefusalRow(Base):
    """What came by a door without an answer, and could not become a job: kept, for a person to see and mend."""

    __tablename__ = "refusals"
    __table_args__ = (Index("refusals_at_idx", "at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(server_default=NOW)
    door: Mapped[str]
    task_id: Mapped[str | None]
    service: Mapped[str | None]  # as it was named
    code: Mapped[str]
    errors: Mapped[list[Any]] = mapped_column(server_default=text("'[]'"))  # [{"field", "message"}]
    request: Mapped[Json | None]  # as it came; NULL when it was too large to keep


class PaceRow(Base):
    """How fast one service asks of our API, as the time up to which its requests are spent (GCRA)."""

    __tablename__ = "paces"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    service_id: Mapped[UUID] = mapped_column(primary_key=True)
    spent_until: Mapped[datetime]


class PriceRow(Base):
    """What a model costs for inputs of one kind: as the provider says, or, with an empty key, as a person does."""

    __tablename__ = "prices"
    __table_args__ = (CheckConstraint("usd >= 0", name="usd"),)

    model: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[bytes] = mapped_column(primary_key=True)  # of the inputs that matter, see `prices`
    usd: Mapped[Decimal | None]  # NULL: the provider names none
    fetched_at: Mapped[datetime] = mapped_column(server_default=NOW)


class BudgetRow(Base):
    """
    What may be spent in a period (by the calendar of UTC), by one service or by all together.

    Never locked together with `account`, and always after jobs.
    """

    __tablename__ = "budgets"
    __table_args__ = (
        CheckConstraint(one_of("period", ("day", "month")), name="period"),
        CheckConstraint("limit_usd >= 0", name="limit_usd"),
    )

    scope: Mapped[str] = mapped_column(primary_key=True)  # a service's id, or 'account'
    period: Mapped[str] = mapped_column(primary_key=True)
    limit_usd: Mapped[Decimal]
    reserved: Mapped[Decimal] = mapped_column(server_default=text("0"))  # of jobs that have not ended
    spent: Mapped[Decimal] = mapped_column(server_default=text("0"))  # since the period's first day
    since: Mapped[date]
    uncounted_before: Mapped[datetime | None]  # what was spent until then has yet to be counted
