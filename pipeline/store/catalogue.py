"""The provider's catalogue of models as it was last read, and which models a person paused."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from pipeline.catalogue import Offer
from pipeline.models import Listing

MODELS_AGE_S = 86_400.0
"""How old the catalogue may grow before it is read again unasked, in seconds."""

AGAIN_S = 300.0
"""When a reading that failed is tried again, in seconds."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one reading of the catalogue changed. `doubtful`: so much is missing that nothing was withdrawn."""

    listed: int
    added: int
    withdrawn: int
    doubtful: bool


# In the order of their ids, so that two readings at once never wait for one another in a circle.
_KEEP = text("""
    WITH named AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:offers AS jsonb))
            AS n(id text, kind text, description text, schema jsonb)
    ), before AS (
        SELECT count(*) AS n FROM models WHERE listed_at IS NOT NULL AND withdrawn_at IS NULL
    ), size AS (
        SELECT (SELECT count(*) FROM named) AS n, before.n AS before,
               NOT :believed AND 2 * (SELECT count(*) FROM named) < before.n AS doubtful FROM before
    ), added AS (
        SELECT count(*) AS n FROM named
        WHERE NOT EXISTS (SELECT FROM models m WHERE m.id = named.id AND m.listed_at IS NOT NULL
                          AND m.withdrawn_at IS NULL)
    ), kept AS (
        INSERT INTO models (id, kind, description, schema, listed_at)
        SELECT id, kind, description, schema, clock_timestamp() FROM named ORDER BY id
        ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, description = excluded.description,
            schema = excluded.schema, listed_at = excluded.listed_at, withdrawn_at = NULL
    ), gone AS (
        UPDATE models m SET withdrawn_at = clock_timestamp() FROM size
        WHERE NOT size.doubtful AND m.listed_at IS NOT NULL AND m.withdrawn_at IS NULL
          AND m.id NOT IN (SELECT id FROM named)
        RETURNING m.id
    ), noted AS (
        UPDATE account SET models_fetched_at = clock_timestamp() WHERE id = 1
    )
    SELECT size.n, added.n, (SELECT count(*) FROM gone), size.doubtful FROM size, added
""")


def keep(tx: Connection, offers: Sequence[Offer], *, believed: bool = False) -> Change:
    """
    Make *offers* the catalogue. What it no longer names is withdrawn.

    Unless it is *believed*, an answer with less than half of the models there were withdraws nothing.
    """
    rows = [{"id": one.id, "kind": one.kind, "description": one.description, "schema": one.schema} for one in offers]
    return Change(*tx.execute(_KEEP, {"offers": json.dumps(rows), "believed": believed}).one())


def claim_reading(tx: Connection) -> bool:
    """
    Take the right to read the catalogue; one process gets it, once in MODELS_AGE_S, none while the account is halted.

    Unless `keep` follows, somebody else may try in AGAIN_S.
    """
    statement = text("""
        UPDATE account SET models_fetched_at = clock_timestamp() - make_interval(secs => :age_s - :again_s)
        WHERE id = 1 AND halted_reason IS NULL AND (models_fetched_at IS NULL
                          OR models_fetched_at <= clock_timestamp() - make_interval(secs => :age_s))
        RETURNING id
    """)
    return tx.execute(statement, {"age_s": MODELS_AGE_S, "again_s": AGAIN_S}).first() is not None


def version(tx: Connection) -> datetime | None:
    """Differs whenever the catalogue may have been read again."""
    found: datetime | None = tx.execute(text("SELECT models_fetched_at FROM account WHERE id = 1")).scalar()
    return found


def listings(tx: Connection) -> list[Listing]:
    """Every model the provider ever named, as what may be asked of it is judged by."""
    statement = text("""
        SELECT id, CAST(schema AS text) AS schema, withdrawn_at IS NOT NULL AS withdrawn
        FROM models WHERE listed_at IS NOT NULL ORDER BY id
    """)
    return [Listing(*row) for row in tx.execute(statement)]


@dataclass(frozen=True, slots=True)
class Model:
    """One model, for people to read."""

    id: str
    kind: str | None = None
    description: str | None = None
    listed_at: datetime | None = None
    withdrawn_at: datetime | None = None
    paused_at: datetime | None = None


def everything(tx: Connection) -> list[Model]:
    """All models the provider ever named, or a person paused, by id."""
    columns = "id, kind, description, listed_at, withdrawn_at, paused_at"
    return [Model(*row) for row in tx.execute(text(f"SELECT {columns} FROM models ORDER BY id"))]


def schema_of(tx: Connection, model: str) -> dict[str, Any] | None:
    """The schema of a model's input in the provider's words; None when there is none."""
    found: dict[str, Any] | None = tx.execute(
        text("SELECT schema FROM models WHERE id = :id"), {"id": model}
    ).scalar_one_or_none()
    return found
