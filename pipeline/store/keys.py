"""
The secrets that sign what callers and operators are told, newest first: `[{"secret", "until"}]`.

They are kept as they are, for whoever signs needs them. While one is rotated the former still signs beside it, until
its time is over, so that receivers can take the new one over when it suits them.
"""

import base64
import json
import secrets
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

OVERLAP_S = 86_400.0
"""How long the secret before the present one still signs, in seconds."""

MOST = 4
"""How many may sign at a time: who rotates again and again in a day ends the oldest."""

# Whose they are: a service's, or the operator's.
_SERVICE = ("services", "callback_secrets", "id = :id")
_ACCOUNT = ("account", "operator_secrets", "id = 1")


def new_secret() -> str:
    """As Standard Webhooks spells them."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def of(tx: Connection, service_id: UUID | None) -> list[str]:
    """The secrets that sign now for a service (None: for the operator), newest first. The first is made when asked."""
    kept, now = _read(tx, service_id)
    if not kept:
        kept, now = _read(tx, service_id, lock=True)
        if not kept:  # nobody was quicker
            kept = [{"secret": new_secret(), "until": None}]
            _write(tx, service_id, kept)
    return [one["secret"] for one in _valid(kept, now)]


def of_all(tx: Connection, service_ids: Collection[UUID | None]) -> dict[UUID | None, Sequence[str]]:
    """The secrets of several, see `of`."""
    return {one: of(tx, one) for one in sorted(set(service_ids), key=str)}


def rotate(tx: Connection, service_id: UUID | None) -> str:
    """Make a new secret, and give it; the former one signs beside it for a day."""
    kept, now = _read(tx, service_id, lock=True)
    made = new_secret()
    former = [{**one, "until": one["until"] or now + OVERLAP_S} for one in _valid(kept, now)]
    _write(tx, service_id, [{"secret": made, "until": None}, *former][:MOST])
    return made


def _valid(kept: Sequence[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    return [one for one in kept if one["until"] is None or one["until"] > now]


def _read(tx: Connection, service_id: UUID | None, *, lock: bool = False) -> tuple[list[dict[str, Any]], float]:
    table, column, where = _SERVICE if service_id else _ACCOUNT
    query = f"SELECT {column}, extract(epoch FROM clock_timestamp())::float8 FROM {table} WHERE {where}"
    kept, now = tx.execute(text(query + (" FOR UPDATE" if lock else "")), {"id": service_id}).one()
    return kept, now


def _write(tx: Connection, service_id: UUID | None, kept: Sequence[dict[str, Any]]) -> None:
    table, column, where = _SERVICE if service_id else _ACCOUNT
    statement = text(f"UPDATE {table} SET {column} = CAST(:kept AS jsonb) WHERE {where}")
    tx.execute(statement, {"id": service_id, "kept": json.dumps(kept)})
