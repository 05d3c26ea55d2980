"""The ages that were set: how long each kind of things is kept, by each service."""

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Connection, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.retention import DEFAULT_S, LEAST_S, OF_A_SERVICE, Kind
from pipeline.store.tables import NOW, Base, ServiceRow, one_of

ALL = "all"
"""The scope of an age that holds for every service without one of its own."""


class RetentionRow(Base):
    """How long one kind of things is kept, of one service or of all; where there is no row, see `retention`."""

    __tablename__ = "retention"
    __table_args__ = (
        CheckConstraint(one_of("kind", Kind), name="kind"),
        CheckConstraint(f"age_s >= {min(LEAST_S.values())}", name="age_s"),
    )

    scope: Mapped[str] = mapped_column(primary_key=True)  # a service's id, or 'all'
    kind: Mapped[str] = mapped_column(primary_key=True)
    age_s: Mapped[int | None] = mapped_column(BigInteger)  # NULL: for good
    files: Mapped[bool] = mapped_column(server_default=text("false"))  # the jobs' stored files go with them
    set_at: Mapped[datetime] = mapped_column(server_default=NOW)


class LeftoverRow(Base):
    """A stored file whose job was pruned, or that was stored for nothing: to be removed, unless an output has it."""

    __tablename__ = "leftovers"

    storage_key: Mapped[str] = mapped_column(primary_key=True)
    since: Mapped[datetime] = mapped_column(server_default=NOW)


class PrunedRow(Base):
    """
    What is left of the pruned jobs that one service had end on one day (of UTC).

    Budgets that are opened later count what was spent, and the comparison with the bill knows how far back it can go.
    """

    __tablename__ = "pruned"

    service_id: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    jobs: Mapped[int]
    spent: Mapped[Decimal]
    last_start: Mapped[datetime | None]  # of their POSTs; NULL: there were none


@dataclass(frozen=True, slots=True)
class Age:
    """One age that was set: of a service's id, or of ALL. None: for good. *files*: stored files go with the jobs."""

    scope: str
    kind: Kind
    age_s: int | None
    files: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be pruned now: one kind, of one service (None: it is no service's), older than so many seconds."""

    service_id: UUID | None
    kind: Kind
    age_s: int
    files: bool = False


def everything(tx: Connection) -> list[Age]:
    """All that were set."""
    query = select(RetentionRow.scope, RetentionRow.kind, RetentionRow.age_s, RetentionRow.files)
    found = tx.execute(query.order_by(RetentionRow.scope, RetentionRow.kind))
    return [Age(row.scope, Kind(row.kind), row.age_s, row.files) for row in found]


def keep(tx: Connection, age: Age) -> None:
    """Set one."""
    facts = {"age_s": age.age_s, "files": age.files}
    statement = insert(RetentionRow).values(scope=age.scope, kind=age.kind, **facts)
    tx.execute(statement.on_conflict_do_update(index_elements=["scope", "kind"], set_={**facts, "set_at": NOW}))


def forget(tx: Connection, scope: str, kind: Kind) -> bool:
    """Let the general age hold again, or the product's own. False when none was set."""
    statement = text("DELETE FROM retention WHERE scope = :scope AND kind = :kind")
    return tx.execute(statement, {"scope": scope, "kind": kind}).rowcount > 0


def rules(tx: Connection) -> list[Rule]:
    """Whatever ages: a service's own age comes before that of all, and that before the product's own."""
    ages = {(age.scope, age.kind): age for age in everything(tx)}
    services = tx.execute(select(ServiceRow.id).order_by(ServiceRow.id)).scalars().all()
    found = []
    for kind in Kind:
        general = ages.get((ALL, kind), Age(ALL, kind, DEFAULT_S[kind], files=False))
        for service_id in services if kind in OF_A_SERVICE else (None,):
            age = ages.get((str(service_id), kind), general)
            if age.age_s is not None:
                found.append(Rule(service_id, kind, age.age_s, age.files))
    return found
