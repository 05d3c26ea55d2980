"""New jobs in: a job is accepted when its row is committed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert

from pipeline import prices
from pipeline.errors import IdempotencyConflict, Unavailable
from pipeline.store.prices import FRESH_S
from pipeline.store.tables import IdempotencyKeyRow, new_id


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that was checked and may be stored. `deadline_s` counts from `run_at`, or from now when that has passed."""

    service_id: UUID
    model: str
    input: Mapping[str, Any]
    deadline_s: float
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    run_at: datetime | None = None
    retry_of: UUID | None = None
    callback_url: str | None = None
    callback_task: str | None = None
    id: UUID = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class Stored:
    """A job as it was stored: `usd` is what it costs, if that is known, and was reserved."""

    job_id: UUID
    priced: bool  # the price is known, be it that the provider names none
    usd: Decimal | None
    budgeted: bool  # there are budgets: whether they cover it must be asked in the same transaction


_INSERT = text("""
    WITH nobody_limits_meanwhile AS (  -- see `budgets`
        SELECT FROM budgets WHERE false FOR KEY SHARE
    ), made AS (
        INSERT INTO jobs (id, service_id, model, input, options, metadata, state, priority,
                          run_at, due_at, deadline_at, retry_of, callback_url, callback_task,
                          admitted, price, reserved, last_seq, created_at)
        SELECT n.id, n.service_id, n.model, coalesce(n.input, '{}'), coalesce(n.options, '{}'),
               coalesce(n.metadata, '{}'), 'queued', coalesce(n.priority, 0),
               starts, starts, starts + make_interval(secs => n.deadline_s), n.retry_of,
               n.callback_url, n.callback_task,
               p.priced IS TRUE, p.usd, coalesce(p.usd, 0), 1, clock_timestamp()
        FROM jsonb_to_recordset(CAST(:jobs AS jsonb)) AS n(
            id uuid, service_id uuid, model text, input jsonb, options jsonb, metadata jsonb, priority int,
            run_at timestamptz, deadline_s float8, retry_of uuid, callback_url text, callback_task text,
            price_key text)
        CROSS JOIN LATERAL (
            SELECT greatest(n.run_at, clock_timestamp()) AS starts  -- a time that has passed is now
        ) s
        LEFT JOIN LATERAL (  -- one set by a person, whose key is empty, comes first
            SELECT usd, true AS priced FROM prices
            WHERE model = n.model AND key IN ('', decode(n.price_key, 'hex'))
              AND (key = '' OR :however_old
                   OR fetched_at > clock_timestamp() - make_interval(secs => :fresh_s))
            ORDER BY key LIMIT 1
        ) p ON true
        RETURNING id, created_at, admitted, price
    ), told AS (
        INSERT INTO events (job_id, seq, at, kind) SELECT id, 1, created_at, 'job.queued' FROM made
    )
    SELECT id, admitted, price, EXISTS (SELECT FROM budgets) AS budgeted FROM made
""")


def add(tx: Connection, jobs: Sequence[NewJob], *, however_old: bool = False) -> list[Stored]:
    """
    Store *jobs*, queued, with the first line of their history, and with their price when it is known.

    A job whose price is not known has yet to be admitted. *however_old*: an old price will do.
    """
    rows = []
    for job in jobs:
        row = {
            "id": job.id.hex,
            "service_id": job.service_id.hex,
            "model": job.model,
            "input": job.input,
            "options": job.options,
            "metadata": job.metadata,
            "priority": job.priority,
            "run_at": job.run_at and job.run_at.isoformat(),
            "deadline_s": job.deadline_s,
            "retry_of": job.retry_of and job.retry_of.hex,
            "callback_url": job.callback_url,
            "callback_task": job.callback_task,
            "price_key": prices.key(job.input).hex(),
        }
        rows.append({name: value for name, value in row.items() if value})  # the statement knows what is left out
    parameters = {"jobs": json.dumps(rows), "however_old": however_old, "fresh_s": FRESH_S}
    return [Stored(*row) for row in tx.execute(_INSERT, parameters).all()]


def add_once(
    tx: Connection,
    job: NewJob,
    key: str,
    fingerprint: bytes,
    *,
    however_old: bool = False,
    owner: UUID | None = None,
) -> tuple[UUID, Stored | None]:
    """
    Store *job* unless its service used *key* before. Of any number of equal calls at once, one stores it.

    Where another one asks than the job's service, *owner*, the key is one of theirs.

    Returns:
        The id of the one job this key names, and how it was stored, if by this call.

    Raises:
        IdempotencyConflict: The key was used for another request.
    """
    owner = owner or job.service_id
    claim = insert(IdempotencyKeyRow).values(service_id=owner, key=key, fingerprint=fingerprint, job_id=job.id)
    mine = tx.execute(claim.on_conflict_do_nothing().returning(IdempotencyKeyRow.job_id)).first()
    if mine:
        (stored,) = add(tx, [job], however_old=however_old)
        return job.id, stored
    # ON CONFLICT waited for the other transaction, so its row is there for this statement to see.
    query = select(IdempotencyKeyRow.job_id, IdempotencyKeyRow.fingerprint).where(
        IdempotencyKeyRow.service_id == owner, IdempotencyKeyRow.key == key
    )
    found = tx.execute(query).first()
    if found is None:  # pruned between the two statements
        raise Unavailable("The job of this Idempotency-Key was just being removed.")
    job_id, earlier = found
    if earlier != fingerprint or job_id is None:  # None: it named a batch
        raise IdempotencyConflict("Use a new Idempotency-Key for a new request, or repeat the first one unchanged.")
    return job_id, None


def named(tx: Connection, service_id: UUID, fingerprints: Mapping[str, bytes]) -> dict[str, UUID]:
    """The jobs that keys of a service name, of those keys that stand for just these requests."""
    query = select(IdempotencyKeyRow.key, IdempotencyKeyRow.fingerprint, IdempotencyKeyRow.job_id).where(
        IdempotencyKeyRow.service_id == service_id, IdempotencyKeyRow.key.in_(fingerprints)
    )
    found = tx.execute(query)
    return {row.key: row.job_id for row in found if row.job_id and bytes(row.fingerprint) == fingerprints[row.key]}
