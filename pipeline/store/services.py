"""The callers and their keys."""

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert

from pipeline.jobs import IN_FLIGHT, State
from pipeline.store import notifications
from pipeline.store.tables import NOW, ServiceRow, new_id

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""What a service may be called; the table's constraint says the same."""

NAME_RULE = "A service's name has up to 63 lower-case letters, digits, '_', '.' or '-'."

AT_MOST = 1000
"""So many jobs of a service are counted, of each kind."""


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


@dataclass(frozen=True, slots=True)
class Load:
    """How many jobs a service has in its queue and at the provider."""

    queued: int = 0
    in_flight: int = 0


# Bounds of a whole row of the index of each service's jobs by state, and its order: no other can serve, whatever the
# planner expects (see `lists`).
_LOADS = text("""
    SELECT s.id, least(sum(n) FILTER (WHERE w.state = 'queued'), :at_most)::int AS queued,
           least(sum(n) FILTER (WHERE w.state <> 'queued'), :at_most)::int AS in_flight
    FROM services s CROSS JOIN unnest(CAST(:states AS text[])) AS w(state) CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT FROM jobs
            WHERE (service_id, state, id) >= (s.id, w.state, CAST(:least AS uuid))
              AND (service_id, state, id) <= (s.id, w.state, CAST(:most AS uuid))
            ORDER BY service_id, state, id LIMIT :at_most
        ) few
    ) counted
    WHERE CAST(:service_id AS uuid) IS NULL OR s.id = :service_id
    GROUP BY s.id
""")


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


def loads(tx: Connection, service_id: UUID | None = None, *, at_most: int = AT_MOST) -> dict[UUID, Load]:
    """What each service has waiting and running now; or only one of them. Counts stop at *at_most*."""
    asked = {
        "states": [State.QUEUED, *sorted(IN_FLIGHT)],
        "least": UUID(int=0),
        "most": UUID(int=2**128 - 1),
        "service_id": service_id,
        "at_most": at_most,
    }
    return {row.id: Load(row.queued, row.in_flight) for row in tx.execute(_LOADS, asked)}


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
