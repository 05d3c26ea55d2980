"""The callers and their keys."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from pipeline.store import notifications
from pipeline.store.tables import NOW, ServiceRow, new_id

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""What a service may be called; the table's constraint says the same."""


OPERATOR = "operator"
"""What the service of those who run this is called."""


@dataclass(frozen=True, slots=True)
class Service:
    """A caller, as the doors know it."""

    id: UUID
    name: str
    operator: bool
    created_at: datetime | None = None
    revoked_at: datetime | None = None
    weight: int = 1
    max_in_flight: int | None = None
    requests_per_minute: int | None = None
    paused_at: datetime | None = None
    callback_url: str | None = None
    callback_tasks: Sequence[Mapping[str, str]] = ()  # [{"task", "queue"}]
    nsfw_policy: str | None = None


_COLUMNS = tuple(getattr(ServiceRow, field.name) for field in fields(Service))


def create(tx: Connection, name: str, *, operator: bool = False) -> str | None:
    """
    Add a service and return its new key, which is kept nowhere; None when the name is taken.

    The key is 256 random bits, so a plain hash of it is as good as a slow one.
    """
    key = f"pk_{secrets.token_urlsafe(32)}"
    statement = upsert(ServiceRow).values(id=new_id(), name=name, key_hash=hashed(key), operator=operator)
    made = tx.execute(statement.on_conflict_do_nothing(index_elements=["name"]).returning(ServiceRow.id)).first()
    return key if made else None


def by_name(tx: Connection, name: str, *, revoked: bool = False) -> Service | None:
    """The service of that name, unless it was revoked; *revoked*: even then."""
    return _first(tx, ServiceRow.name == name, *(() if revoked else (ServiceRow.revoked_at.is_(None),)))


def by_id(tx: Connection, service_id: UUID) -> Service | None:
    """One service, be it revoked."""
    return _first(tx, ServiceRow.id == service_id)


def operators_own(tx: Connection) -> Service:
    """
    The service in whose name people act, at the dashboard or on the command line: made when first needed.

    Its key is shown to nobody; should somebody have made one, and revoked it, that ends the key alone.
    """
    found = by_name(tx, OPERATOR, revoked=True)
    if found is None:
        create(tx, OPERATOR, operator=True)
        found = by_name(tx, OPERATOR, revoked=True)
    assert found
    return replace(found, operator=True)


def everyone(tx: Connection) -> list[Service]:
    """All services, by name, revoked ones too."""
    return [Service(*row) for row in tx.execute(select(*_COLUMNS).order_by(ServiceRow.name))]


def rotate(tx: Connection, name: str) -> str | None:
    """Give a service a new key, which ends the old one (and a revocation); None when there is no such service."""
    key = f"pk_{secrets.token_urlsafe(32)}"
    statement = update(ServiceRow).where(ServiceRow.name == name).values(key_hash=hashed(key), revoked_at=None)
    return key if tx.execute(statement).rowcount else None


def revoke(tx: Connection, name: str) -> bool:
    """Refuse a service's key from now on. Its jobs go on."""
    statement = update(ServiceRow).where(ServiceRow.name == name).values(revoked_at=NOW)
    return tx.execute(statement).rowcount > 0


def change(tx: Connection, name: str, *, paused: bool | None = None, **facts: Any) -> bool:
    """
    Change what a service may do: its *facts* by their columns' names. False when there is no such service.

    *paused*: begin none of its jobs from now on, or let them go on. Since when it is paused is kept.
    """
    values: dict[str, Any] = dict(facts)
    if paused is not None:
        values["paused_at"] = func.coalesce(ServiceRow.paused_at, NOW) if paused else None
    statement = update(ServiceRow).where(ServiceRow.name == name).values(values)
    found = tx.execute(statement).rowcount > 0
    if found and "callback_url" in facts:
        notifications.readdress(tx, name)
    return found


def _first(tx: Connection, *conditions: object) -> Service | None:
    row = tx.execute(select(*_COLUMNS).where(*conditions)).first()  # type: ignore[arg-type]
    return Service(*row) if row else None


def hashed(key: str) -> bytes:
    """A key as it is kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
