"""The lists of terms that prompts are screened for, and who is exempt. Every process sees changes within seconds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class Listed:
    """One term of one list; `service` is None where it holds for all."""

    service: str | None
    category: str
    term: str
    created_at: datetime


_ADD = text("""
    INSERT INTO screens (scope, category, term)
    SELECT :scope, :category, term FROM unnest(CAST(:terms AS text[])) AS term ORDER BY term
    ON CONFLICT DO NOTHING
""")

_EVERYTHING = text("""
    SELECT s.name, x.category, x.term, x.created_at
    FROM screens x LEFT JOIN services s ON s.id::text = x.scope
    WHERE (CAST(:scope AS text) IS NULL OR x.scope = :scope)
      AND (CAST(:category AS text) IS NULL OR x.category = :category)
    ORDER BY s.name NULLS FIRST, x.category, x.term
""")


def add(tx: Connection, scope: str, category: str, terms: Collection[str]) -> int:
    """
    Add *terms*, in their normal spelling, to a list; *scope* is a service's id or 'all'.

    Returns:
        How many are new.
    """
    return _changed(tx, tx.execute(_ADD, {"scope": scope, "category": category, "terms": list(terms)}).rowcount)


def remove(tx: Connection, scope: str, category: str, terms: Collection[str]) -> int:
    """Take *terms* off a list. Returns how many were on it."""
    statement = text("DELETE FROM screens WHERE scope = :scope AND category = :category AND term = ANY(:terms)")
    return _changed(tx, tx.execute(statement, {"scope": scope, "category": category, "terms": list(terms)}).rowcount)


def clear(tx: Connection, scope: str, category: str) -> int:
    """Empty a list. Returns how many terms were on it."""
    statement = text("DELETE FROM screens WHERE scope = :scope AND category = :category")
    return _changed(tx, tx.execute(statement, {"scope": scope, "category": category}).rowcount)


def exempt(tx: Connection, scope: str, category: str) -> int:
    """Let the list of all not hold for a service. Returns how many exemptions are new: 1, or 0."""
    statement = text(
        "INSERT INTO screen_exemptions (scope, category) VALUES (:scope, :category) ON CONFLICT DO NOTHING"
    )
    return _changed(tx, tx.execute(statement, {"scope": scope, "category": category}).rowcount)


def end_exemption(tx: Connection, scope: str, category: str) -> int:
    """Let it hold again. Returns how many exemptions have ended: 1, or 0."""
    statement = text("DELETE FROM screen_exemptions WHERE scope = :scope AND category = :category")
    return _changed(tx, tx.execute(statement, {"scope": scope, "category": category}).rowcount)


def exempted(tx: Connection) -> Sequence[tuple[str, str]]:
    """The services, by id, that are exempt, each with a category."""
    statement = text("SELECT scope, category FROM screen_exemptions ORDER BY 1, 2")
    return [(row.scope, row.category) for row in tx.execute(statement)]


def _changed(tx: Connection, count: int) -> int:
    if count:  # the row's lock lets one change after the other be seen, in that order
        tx.execute(text("UPDATE account SET screens_changed_at = clock_timestamp() WHERE id = 1"))
    return count


def listed(tx: Connection, *, scope: str | None = None, category: str | None = None) -> list[Listed]:
    """The terms of all lists, or of those named; first what holds for all services."""
    return [Listed(*row) for row in tx.execute(_EVERYTHING, {"scope": scope, "category": category})]


def version(tx: Connection) -> datetime | None:
    """Differs whenever a list may have been changed; None: there never was any."""
    found: datetime | None = tx.execute(text("SELECT screens_changed_at FROM account WHERE id = 1")).scalar()
    return found


def rows(tx: Connection) -> Sequence[tuple[str, str, str]]:
    """Scope, category and term of all there are."""
    return [
        (row.scope, row.category, row.term) for row in tx.execute(text("SELECT scope, category, term FROM screens"))
    ]
