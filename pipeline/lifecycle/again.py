"""Again, or not at all: a caller takes a waiting job back, or has one that has ended done once more."""

import hashlib
from dataclasses import replace
from typing import Any
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import NotAllowedNow, UnknownJob
from pipeline.jobs import FINAL, State, may_be_retried
from pipeline.lifecycle import accept, screen
from pipeline.runtime import Runtime
from pipeline.store import intake, moves, reading, services
from pipeline.store.database import Transaction
from pipeline.store.intake import Stored
from pipeline.store.moves import Move, advance
from pipeline.store.services import Service

log = telemetry.get(__name__)


def cancel(rt: Runtime, service: Service, job_id: UUID) -> bool:
    """
    Take a queued job back. It is never submitted, and what it was to cost is free for others.

    Returns:
        Whether this call cancelled it; False when an earlier one did.

    Raises:
        UnknownJob: There is no such job that *service* may see.
        NotAllowedNow: It is not queued any more: the provider cannot cancel what it was given.
    """
    with rt.db.transaction() as tx:
        _job(tx, service, job_id)
        moved = bool(advance(tx, [Move(job_id, State.CANCELLED, data={"by": service.name})]))
        state = State(_job(tx, service, job_id).state)
    if moved:
        log.info("job.cancelled", job_id=str(job_id), by=service.name)
        rt.nudge("notify")
    elif state in FINAL - {State.CANCELLED} or state == State.EXPIRED:
        raise NotAllowedNow(f"The job has ended: it is {state}. Only a queued job can be cancelled.")
    elif state != State.CANCELLED:
        why = "the provider has it, or is just being given it, and has no way to cancel"
        raise NotAllowedNow(f"The job is {state}: {why}. Only a queued job can be cancelled.")
    return moved


def retry(rt: Runtime, service: Service, job_id: UUID, *, key: str | None = None) -> tuple[UUID, bool]:
    """
    Accept a new job like one that has ended: the same in all, but with a deadline, an id and a price of its own.

    Returns:
        The new job's id, and whether this call made it: with an idempotency *key*, the same retry is the same job.

    Raises:
        UnknownJob: There is no such job that *service* may see.
        NotAllowedNow: It has not ended, or its task may still complete: both would be paid.
        InvalidInput, IdempotencyConflict, BudgetExceeded, Unavailable: As `accept` does.
        PromptRefused, NotScreened: As `screen.check` does, by what the job's own service is screened for now.
    """
    key = accept.known_key(key)
    meant = hashlib.sha256(f"retry {job_id}".encode()).digest()
    with rt.db.transaction() as tx:
        old = _job(tx, service, job_id)
        if key and (known := intake.named(tx, service.id, {key: meant})):  # be its model withdrawn since
            return known[key], False
        owner = services.by_id(tx, old.service_id) or service
    _check_ended(old)
    request = _request(rt, old)
    screen.check(rt, owner, request.model or rt.settings.default_model, request.input)
    job = accept.new_job(rt, owner, request)
    job = replace(job, retry_of=job_id, deadline_s=(old.deadline_at - old.run_at).total_seconds())

    def store(tx: Transaction, *, however_old: bool) -> tuple[UUID, Stored | None]:
        new_id, stored = accept.add_one(tx, job, key, meant, however_old=however_old, owner=service.id)
        if stored:
            moves.note(tx, job_id, "job.retried", retry=str(new_id), by=service.name)
            accept.reserve(tx, job.service_id, [stored])  # budgets are locked after jobs
        return new_id, stored

    new_id, stored = accept.priced(rt, [job], store)
    if stored:
        log.info("job.retried", job_id=str(new_id), retry_of=str(job_id), by=service.name)
        accept.wake(rt, [stored])
    return new_id, stored is not None


def _job(tx: Transaction, service: Service, job_id: UUID) -> Any:
    row = reading.job(tx, job_id, service_id=None if service.operator else service.id)
    if row is None:
        raise UnknownJob
    return row


def _check_ended(job: Any) -> None:
    if may_be_retried(job.state, looked_after=job.due_at is not None):
        return
    if job.state == State.EXPIRED:
        raise NotAllowedNow(
            "The job's deadline has passed, but its task may still complete at the provider, which is asked about it"
            " for a day: a retry now may be paid twice."
        )
    raise NotAllowedNow(f"The job has not ended: it is {job.state}. Only a job that has ended can be retried.")


def _request(rt: Runtime, old: Any) -> accept.JobRequest:
    """What was asked for then, checked by what holds now: its model may have been withdrawn."""
    checked = accept.check(
        ({"model": old.model} if old.model else {}) | {"input": {**old.input, **old.options}},
        default_model=rt.settings.default_model,
        catalogue=rt.catalogue(),
    )
    kept = {
        "metadata": old.caller_data,
        "priority": old.priority,
        "callback_url": old.callback_url,
        "callback_task": old.callback_task,
    }
    return checked.model_copy(update=kept)
