"""Prices as they were last heard of: from the provider, or set by a person."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, delete, select, text
from sqlalchemy.dialects.postgresql import insert

from pipeline import prices
from pipeline.store.gates import PriceRow
from pipeline.store.tables import NOW

FRESH_S = 86_400.0
"""How long the provider's price is believed, in seconds; an older one only while the provider cannot be asked."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs. `usd` is None where the provider names no price; not `fresh`: worth asking again."""

    usd: Decimal | None
    fresh: bool


Question = tuple[str, bytes]
"""A model, and the key of the inputs that matter (see `pipeline.prices`)."""


_KNOWN = text("""
    SELECT DISTINCT ON (q.model, q.key) q.model, q.key, p.usd,
           p.key = '' OR p.fetched_at > clock_timestamp() - make_interval(secs => :fresh_s) AS fresh
    FROM unnest(CAST(:models AS text[]), CAST(:keys AS bytea[])) AS q(model, key)
    JOIN prices p ON p.model = q.model AND p.key IN (q.key, '')
    ORDER BY q.model, q.key, p.key  -- one set by a person, whose key is empty, comes first
""")


def known(tx: Connection, questions: Sequence[Question]) -> dict[Question, Price]:
    """The prices that are known of these."""
    asked = {
        "models": [model for model, _ in questions],
        "keys": [key for _, key in questions],
        "fresh_s": FRESH_S,
    }
    rows = tx.execute(_KNOWN, asked)
    return {(row.model, bytes(row.key)): Price(row.usd, row.fresh) for row in rows}


def keep(tx: Connection, found: Mapping[Question, Decimal | None]) -> None:
    """Remember what the provider said just now; None: it names no price."""
    for (model, key), usd in sorted(found.items()):
        statement = insert(PriceRow).values(model=model, key=key, usd=usd)
        newer = {"usd": statement.excluded.usd, "fetched_at": NOW}
        tx.execute(statement.on_conflict_do_update(index_elements=["model", "key"], set_=newer))


def set_by_hand(tx: Connection, model: str, usd: Decimal) -> None:
    """From now on a job of *model* costs *usd*, whatever its inputs and whatever the provider says."""
    keep(tx, {(model, prices.BY_HAND): usd})


def forget(tx: Connection, model: str) -> bool:
    """Ask the provider for *model* again. True when anything was known of it."""
    return tx.execute(delete(PriceRow).where(PriceRow.model == model)).rowcount > 0


def everything(tx: Connection) -> list[tuple[str, bool, Decimal | None, datetime]]:
    """All that is known: model, whether a person set it, USD, and when."""
    query = select(PriceRow.model, PriceRow.key, PriceRow.usd, PriceRow.fetched_at)
    rows = tx.execute(query.order_by(PriceRow.model, PriceRow.key))
    return [(row.model, row.key == prices.BY_HAND, row.usd, row.fetched_at) for row in rows]
