"""
Budgets: money is reserved before a job is accepted, spent when it completes, given back when nothing came of it.

All of a budget's changes are made under its row's lock, so racing callers never reserve more than there is. It is
taken after those of jobs and never together with `account`: nobody waits in a circle. And whoever reserves money, or
settles it, takes the table lock of `budgets` that row locks take (ROW SHARE, or more) with or before the statement that
does so: a new limit, which locks that table against it, misses nobody. Callers who queue jobs by SQL reserve nothing:
their transactions may stay open for as long as they like.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline import measures
from pipeline.store import stats

ACCOUNT = "account"
"""The scope of a budget that all services share."""

Period = Literal["day", "month"]

_SINCE = "date_trunc(b.period, clock_timestamp() AT TIME ZONE 'UTC')::date"
_SPENT = f"CASE WHEN b.since = {_SINCE} THEN b.spent ELSE 0 END"  # a new period begins with nothing spent

FREED = f"""
    freed AS (
        SELECT service_id::text AS scope, sum(freed) AS freed, sum(spent) AS spent
        FROM moved WHERE freed > 0 OR spent > 0 GROUP BY 1
    ), purses AS MATERIALIZED (
        SELECT b.scope, b.period, b.reserved, {_SPENT} AS spent, {_SINCE} AS since
        FROM budgets b
        WHERE EXISTS (SELECT FROM freed) AND (b.scope = '{ACCOUNT}' OR b.scope IN (SELECT scope FROM freed))
        ORDER BY b.scope, b.period FOR UPDATE
    ), settled AS (
        UPDATE budgets b SET reserved = p.reserved - f.freed, spent = p.spent + f.spent, since = p.since
        FROM purses p, LATERAL (
            SELECT sum(freed) AS freed, sum(spent) AS spent FROM freed WHERE p.scope IN ('{ACCOUNT}', freed.scope)
        ) f
        WHERE b.scope = p.scope AND b.period = p.period
    )
"""
"""
Common table expressions that settle what jobs had reserved, for a statement whose `moved` has the columns
service_id, freed (USD no longer reserved) and spent (USD that were paid).
"""

_PURSE = f"b.scope, b.period, b.limit_usd, b.reserved, {_SPENT} AS spent, {_SINCE} AS since"

_LOCK = text(f"""
    SELECT {_PURSE} FROM budgets b WHERE b.scope = ANY(:scopes) ORDER BY b.scope, b.period FOR UPDATE
""")

_SAVE = text("""
    UPDATE budgets SET reserved = :reserved, spent = :spent, since = :since WHERE scope = :scope AND period = :period
""")


@dataclass(slots=True)
class Purse:
    """One budget as it is now, in USD. Its row is locked."""

    scope: str
    period: Period
    limit_usd: Decimal
    reserved: Decimal
    spent: Decimal
    since: date

    @property
    def left(self) -> Decimal:
        """What may still be reserved."""
        return max(self.limit_usd - self.spent - self.reserved, Decimal())

    def covers(self, usd: Decimal) -> bool:
        """Whether so much more may be reserved."""
        return self.spent + self.reserved + usd <= self.limit_usd


class Purses:
    """The budgets that jobs of some services count against, locked until the transaction ends."""

    def __init__(self, tx: Connection, service_ids: Collection[UUID]) -> None:
        scopes = [ACCOUNT, *map(str, service_ids)]
        self._tx = tx
        self._purses = [Purse(*row) for row in tx.execute(_LOCK, {"scopes": scopes})]
        self._changed = False

    def limit(self, service_id: UUID) -> bool:
        """Whether any budget limits this service."""
        return bool(self._of(service_id))

    def reserve(self, service_id: UUID, usd: Decimal) -> Purse | None:
        """Reserve *usd* in every budget of the service's; or in none, and return the one that does not cover it."""
        purses = self._of(service_id)
        if short := next((purse for purse in purses if not purse.covers(usd)), None):
            return short
        for purse in purses:
            purse.reserved += usd
            self._changed = True
        return None

    def spend(self, service_id: UUID, usd: Decimal) -> None:
        """Count a charge that nothing was reserved for, even above the limit: it was made."""
        for purse in self._of(service_id):
            purse.spent += usd
            self._changed = True

    def save(self) -> None:
        """Write down what changed."""
        if self._changed:
            columns = ("scope", "period", "reserved", "spent", "since")
            self._tx.execute(_SAVE, [{name: getattr(one, name) for name in columns} for one in self._purses])

    def _of(self, service_id: UUID) -> list[Purse]:
        return [purse for purse in self._purses if purse.scope in (ACCOUNT, str(service_id))]


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge beside another one of the same job (or *in vain*, for none), and its price in USD, if known."""

    service_id: UUID
    usd: Decimal | None
    in_vain: bool = False


def spend(tx: Connection, charges: Collection[Charge]) -> None:
    """Count charges that nothing was reserved for."""
    if charges:
        purses = Purses(tx, {charge.service_id for charge in charges})
        for charge in charges:
            purses.spend(charge.service_id, charge.usd or Decimal())
        purses.save()
        stats.add(tx, [row for charge in charges for row in _counted(charge)])


def _counted(charge: Charge) -> Iterator[tuple[UUID, str, float]]:
    yield charge.service_id, measures.CHARGED_IN_VAIN if charge.in_vain else measures.CHARGED_TWICE, 1
    yield charge.service_id, measures.SPENT_BESIDE, float(charge.usd or 0)


def everything(tx: Connection) -> list[Purse]:
    """All budgets as they are now, without a lock."""
    return [Purse(*row) for row in tx.execute(text(f"SELECT {_PURSE} FROM budgets b ORDER BY b.scope, b.period"))]


def named(tx: Connection) -> list[tuple[str | None, Purse]]:
    """Likewise, each with its service's name; the account's first, which has none."""
    statement = text(f"""
        SELECT s.name, {_PURSE} FROM budgets b LEFT JOIN services s ON s.id::text = b.scope
        ORDER BY s.name NULLS FIRST, b.period
    """)
    return [(row[0], Purse(*row[1:])) for row in tx.execute(statement)]


def close(tx: Connection, scope: str, period: Period) -> bool:
    """End a limit. True when there was one."""
    statement = text("DELETE FROM budgets WHERE scope = :scope AND period = :period")
    return tx.execute(statement, {"scope": scope, "period": period}).rowcount > 0


# Whoever reserved before the lock was granted has committed, and others wait: what is reserved is counted exactly. And
# soon, for only what has an alarm can have money reserved: not by reading every job there ever was.
_OPEN = text(f"""
    INSERT INTO budgets AS b (scope, period, limit_usd, reserved, since, uncounted_before)
    SELECT :scope, n.period, :limit_usd,
           coalesce((SELECT sum(j.reserved) FROM jobs j WHERE j.reserved > 0 AND j.due_at IS NOT NULL
                     AND :scope IN ('{ACCOUNT}', j.service_id::text)), 0),
           {_SINCE.replace("b.", "n.")}, clock_timestamp()
    FROM (SELECT CAST(:period AS text) AS period) n
    ON CONFLICT (scope, period) DO UPDATE SET limit_usd = excluded.limit_usd
""")

# What completed before that moment does not change any more, and is counted at leisure; of what was pruned since, the
# sum of each day is left. While there is something to count, nothing of the present month is pruned.
_CATCH_UP = text(f"""
    UPDATE budgets b SET spent = {_SPENT} + s.usd, since = {_SINCE}, uncounted_before = NULL
    FROM (
        SELECT u.scope, u.period, coalesce(sum(c.usd), 0) AS usd
        FROM budgets u LEFT JOIN (
            SELECT service_id, finished_at, price AS usd FROM jobs WHERE state = 'completed'
            UNION ALL SELECT service_id, day::timestamp AT TIME ZONE 'UTC', spent FROM pruned
        ) c ON c.finished_at < u.uncounted_before
          AND c.finished_at >= date_trunc(u.period, clock_timestamp() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
          AND u.scope IN ('{ACCOUNT}', c.service_id::text)
        WHERE u.uncounted_before IS NOT NULL GROUP BY 1, 2
    ) s
    WHERE b.scope = s.scope AND b.period = s.period AND b.uncounted_before IS NOT NULL
""")


# What has no price was admitted while nothing hung on it. A row that somebody has locked is about to leave the queue;
# to wait for it, while its owner waits for the budgets, would be a deadlock.
_UNPRICED = text(f"""
    UPDATE jobs SET admitted = false WHERE id IN (
        SELECT id FROM jobs
        WHERE state = 'queued' AND admitted AND price IS NULL AND :scope IN ('{ACCOUNT}', service_id::text)
        FOR UPDATE SKIP LOCKED)
""")


def open_(tx: Connection, scope: str, period: Period, limit_usd: Decimal) -> None:
    """
    Limit what may be spent in a period from now on, money already reserved included.

    Waiting jobs without a price have to be admitted anew. What was spent before a new limit is counted by `catch_up`,
    in a transaction after this.
    """
    tx.execute(text("LOCK TABLE budgets IN EXCLUSIVE MODE"))  # readers, a backup among them, are not in its way
    tx.execute(_UNPRICED, {"scope": scope})
    tx.execute(_OPEN, {"scope": scope, "period": period, "limit_usd": limit_usd})


def catch_up(tx: Connection) -> None:
    """Count what was spent in their periods before limits were set; those counted already stay as they are."""
    tx.execute(_CATCH_UP)
