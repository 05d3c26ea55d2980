"""Reading jobs: what doors and operators see. Nothing here writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Connection, Uuid, any_, bindparam, func, literal_column, select, text
from sqlalchemy.dialects.postgresql import JSONB

from pipeline.standing import Around
from pipeline.store import assets
from pipeline.store.outbox import NotificationRow
from pipeline.store.tables import AccountRow, AttemptRow, CallbackRow, EventRow, IdempotencyKeyRow, JobRow, ServiceRow

# Until it is admitted, a job that was queued by SQL may not say.
_MODEL = func.coalesce(func.nullif(JobRow.model, ""), select(AccountRow.default_model).scalar_subquery())

_JOB = (
    JobRow.id,
    JobRow.service_id,
    JobRow.state,
    _MODEL.label("model"),
    JobRow.input,
    JobRow.options,
    JobRow.caller_data.label("caller_data"),
    JobRow.outputs,
    JobRow.error,
    ServiceRow.name.label("service"),
    JobRow.priority,
    JobRow.run_at,
    JobRow.due_at,
    JobRow.deadline_at,
    JobRow.attempts,
    JobRow.prediction_id,
    JobRow.settled_by,
    JobRow.inference_ms,
    JobRow.price,
    JobRow.retry_of,
    JobRow.callback_url,
    JobRow.callback_task,
    JobRow.admitted,
    JobRow.held_at,
    JobRow.held_reason,
    JobRow.last_seq,
    JobRow.created_at,
    JobRow.submitted_at,
    JobRow.finished_at,
    literal_column(assets.SHOWN.format(job_id="jobs.id"), JSONB).label("assets"),
)


def job(tx: Connection, job_id: UUID, *, service_id: UUID | None = None) -> Any | None:
    """One job with its service's name; None when there is none, or it is not that service's."""
    query = select(*_JOB).join(ServiceRow, ServiceRow.id == JobRow.service_id).where(JobRow.id == job_id)
    if service_id:
        query = query.where(JobRow.service_id == service_id)
    return tx.execute(query).first()


def job_of_task(tx: Connection, prediction_id: str) -> UUID | None:
    """The job that a task of the provider's is of; None when no attempt holds it."""
    return tx.execute(select(AttemptRow.job_id).where(AttemptRow.prediction_id == prediction_id)).scalar()


def those(tx: Connection, job_ids: Sequence[UUID]) -> list[Any]:
    """These jobs, in this order."""
    wanted = any_(bindparam("ids", list(job_ids), ARRAY(Uuid)))  # one statement, however many: it is prepared once
    query = select(*_JOB).join(ServiceRow, ServiceRow.id == JobRow.service_id).where(JobRow.id == wanted)
    found = {row.id: row for row in tx.execute(query)}
    return [found[job_id] for job_id in job_ids if job_id in found]


def states(tx: Connection, job_ids: Sequence[UUID]) -> dict[UUID, str]:
    """The state each of these jobs is in."""
    return {row.id: row.state for row in tx.execute(select(JobRow.id, JobRow.state).where(JobRow.id.in_(job_ids)))}


def attempts(tx: Connection, job_id: UUID) -> Sequence[Any]:
    """A job's attempts, first to last, without their secret tokens."""
    query = select(
        AttemptRow.number,
        AttemptRow.started_at,
        AttemptRow.ended_at,
        AttemptRow.outcome,
        AttemptRow.prediction_id,
        AttemptRow.http_status,
        AttemptRow.error,
        AttemptRow.missing_polls,
        AttemptRow.missing_at,
    )
    return tx.execute(query.where(AttemptRow.job_id == job_id).order_by(AttemptRow.number)).all()


def events(tx: Connection, job_id: UUID, *, after: int = 0, upto: int | None = None) -> Sequence[Any]:
    """What happened to a job, in order: after one event, and up to another."""
    query = select(EventRow.seq, EventRow.at, EventRow.kind, EventRow.data)
    query = query.where(EventRow.job_id == job_id, EventRow.seq > after)
    if upto is not None:
        query = query.where(EventRow.seq <= upto)
    return tx.execute(query.order_by(EventRow.seq)).all()


_CHANGED = text("""
    SELECT j.id, j.state, j.last_seq
    FROM unnest(CAST(:ids AS uuid[]), CAST(:seen AS int[])) AS w (id, seen) JOIN jobs j ON j.id = w.id
    WHERE j.last_seq > w.seen
""")


def changed(tx: Connection, seen: Mapping[UUID, int]) -> Sequence[Any]:
    """Of these jobs, those with an event after the one named: the state and newest event of each."""
    return tx.execute(_CHANGED, {"ids": [str(job_id) for job_id in seen], "seen": list(seen.values())}).all()


_AROUND = text("""
    SELECT clock_timestamp(), halted_reason IS NOT NULL, backoff_until,
        EXISTS (SELECT FROM services WHERE id = :service_id AND paused_at IS NOT NULL)
    FROM account WHERE account.id = 1
""")


def around(tx: Connection, service_id: UUID) -> Around:
    """What holds the jobs of a service back now, beside themselves."""
    return Around(*tx.execute(_AROUND, {"service_id": service_id}).one())


def key(tx: Connection, job_id: UUID) -> str | None:
    """The idempotency key that names a job by itself; None: there is none, or none any more."""
    row = IdempotencyKeyRow
    return tx.execute(select(row.key).where(row.job_id == job_id).limit(1)).scalar()


@dataclass(frozen=True, slots=True)
class Letter:
    """One callback as it came, or how it began: `size` is that of the whole body, in bytes."""

    id: UUID
    received_at: datetime
    verdict: str
    prediction_id: str | None
    headers: Mapping[str, str]
    body: bytes
    size: int


def letters(tx: Connection, job_id: UUID, *, at_most: int, body_bytes: int) -> list[Letter]:
    """The first callbacks for a job, the body of each up to so many bytes: for who looks again and again."""
    row = CallbackRow
    body = func.substr(row.body, 1, body_bytes)
    query = select(
        row.id, row.received_at, row.verdict, row.prediction_id, row.headers, body, func.octet_length(row.body)
    )
    return [Letter(*one) for one in tx.execute(query.where(row.job_id == job_id).order_by(row.id).limit(at_most))]


def callbacks(tx: Connection, job_id: UUID) -> Sequence[Any]:
    """The callbacks for a job, as they came, without the secret token of their address."""
    query = select(
        CallbackRow.received_at,
        CallbackRow.verdict,
        CallbackRow.prediction_id,
        CallbackRow.headers,
        CallbackRow.body,
    )
    return tx.execute(query.where(CallbackRow.job_id == job_id).order_by(CallbackRow.id)).all()


def notifications(tx: Connection, job_id: UUID) -> Sequence[Any]:
    """Who was to be told what of a job, in order."""
    query = select(
        NotificationRow.id,
        NotificationRow.event,
        NotificationRow.seq,
        NotificationRow.audience,
        NotificationRow.state,
        NotificationRow.endpoint,
        NotificationRow.attempts,
        NotificationRow.error,
        NotificationRow.due_at,
        NotificationRow.created_at,
        NotificationRow.ended_at,
    )
    return tx.execute(query.where(NotificationRow.job_id == job_id).order_by(NotificationRow.seq)).all()
