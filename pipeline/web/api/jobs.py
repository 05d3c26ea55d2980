"""One job: hand it in, read it, cancel it, try it again."""

from contextlib import suppress
from dataclasses import replace
from uuid import UUID

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.routing import BaseConverter

from pipeline import telemetry, views
from pipeline.errors import (
    BudgetExceeded,
    IdempotencyConflict,
    InvalidInput,
    MalformedRequest,
    NotAllowedNow,
    NotScreened,
    PromptRefused,
    TooLarge,
    Unavailable,
    UnknownJob,
)
from pipeline.jobs import TOLD
from pipeline.lifecycle import again
from pipeline.lifecycle.accept import JobRequest, decode, take
from pipeline.runtime import Runtime
from pipeline.store import reading
from pipeline.store.services import Service
from pipeline.web import bodies, waits
from pipeline.web.api import examples, shapes
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import (
    IDEMPOTENCY_KEY,
    LOCATION,
    PREFER,
    PREFERENCE_APPLIED,
    Answer,
    Body,
    Call,
    described,
)
from pipeline.web.watcher import watcher

bp = Blueprint("jobs", __name__, url_prefix="/v1")

MAX_BODY_BYTES = 256 * 1024


@bp.post("/jobs")
@described(
    Call(
        "Hand in a job",
        "The job is accepted when this answers: it will be generated once, and paid once. What can be known to be wrong"
        " is refused here, before anything is paid, with every wrong field by its name.",
        place=1,
        parameters=[IDEMPOTENCY_KEY, PREFER],
        body=Body(JobRequest, examples.REQUESTS),
        answers=[
            Answer(
                201,
                "The new job; with `Prefer: wait`, as it has become.",
                [Body(shapes.Job, {"queued": examples.QUEUED, "waited for": examples.COMPLETED})],
                [LOCATION, PREFERENCE_APPLIED],
            ),
            Answer(
                200,
                "The job that this key made before, as it is now.",
                [Body(shapes.Job, {"completed": examples.COMPLETED})],
                [LOCATION, PREFERENCE_APPLIED],
            ),
        ],
        errors=[
            MalformedRequest,
            BudgetExceeded,
            IdempotencyConflict,
            TooLarge,
            InvalidInput,
            PromptRefused,
            NotScreened,
        ],
    )
)
def create_job() -> ResponseReturnValue:
    """Accept a job: 201, or 200 when its Idempotency-Key was seen before. `Prefer: wait=N` waits for its end."""
    rt, service = caller()
    value = decode(bodies.read(MAX_BODY_BYTES))
    job_id, made = take(rt, service, value, key=request.headers.get("Idempotency-Key"))
    telemetry.bind(job_id=str(job_id))
    answer = show_job(rt, service, job_id)
    answer.headers["Location"] = f"/v1/jobs/{job_id}"
    return answer, 201 if made else 200


@bp.get("/jobs/<job:job_id>")
@described(
    Call(
        "Read a job",
        "The job as it is now. To learn of its end, have it tell you or wait, rather than reading it again and again.",
        place=4,
        parameters=[PREFER],
        answers=[
            Answer(
                200,
                "The job.",
                [
                    Body(
                        shapes.Job,
                        {"completed": examples.COMPLETED, "failed": examples.FAILED, "queued": examples.QUEUED},
                    )
                ],
                [PREFERENCE_APPLIED],
            )
        ],
        errors=[UnknownJob],
    )
)
def get_job(job_id: str) -> ResponseReturnValue:
    """One job. `Prefer: wait=N` waits for its end."""
    rt, service = caller()
    return show_job(rt, service, id_of(job_id))


@bp.post("/jobs/<job:job_id>/cancel")
@described(
    Call(
        "Cancel a job",
        "Takes a queued job back: it is never paid. Once it was submitted it cannot be cancelled, since the provider"
        " has no way to do so. To cancel a cancelled job is fine.",
        place=6,
        answers=[Answer(200, "The job, cancelled.", [Body(shapes.Job, {"cancelled": examples.CANCELLED})])],
        errors=[UnknownJob, NotAllowedNow],
    )
)
def cancel_job(job_id: str) -> ResponseReturnValue:
    """Cancel a queued job: 200 and the job, cancelled by this call or by an earlier one."""
    rt, service = caller()
    again.cancel(rt, service, id_of(job_id))
    return jsonify(read_job(rt, service, id_of(job_id)))


@bp.post("/jobs/<job:job_id>/retry")
@described(
    Call(
        "Retry a job",
        "Hands in a new job like one that has ended; it is paid anew. The new one names the old one in `retry_of`.",
        place=7,
        parameters=[replace(IDEMPOTENCY_KEY, example="order-4711-again"), PREFER],
        answers=[
            Answer(
                201,
                "The new job; with `Prefer: wait`, as it has become.",
                [Body(shapes.Job, {"queued": examples.AGAIN})],
                [LOCATION, PREFERENCE_APPLIED],
            ),
            Answer(
                200,
                "The retry that this key made before, as it is now.",
                [Body(shapes.Job, {"queued": examples.AGAIN})],
                [LOCATION, PREFERENCE_APPLIED],
            ),
        ],
        errors=[
            UnknownJob,
            NotAllowedNow,
            InvalidInput,
            PromptRefused,
            IdempotencyConflict,
            BudgetExceeded,
            NotScreened,
        ],
    )
)
def retry_job(job_id: str) -> ResponseReturnValue:
    """
    Accept a new job like one that has ended: 201 and the new one; 200 when its Idempotency-Key was seen before.

    `Prefer: wait=N` waits for its end.
    """
    rt, service = caller()
    new_id, made = again.retry(rt, service, id_of(job_id), key=request.headers.get("Idempotency-Key"))
    answer = show_job(rt, service, new_id)
    answer.headers["Location"] = f"/v1/jobs/{new_id}"
    return answer, 201 if made else 200


class JobPart(BaseConverter):
    """What stands for a job's id in a path: anything but the name of a neighbour, which has methods of its own."""

    regex = "(?!batch(?:/|$))[^/]+"


def id_of(text: str) -> UUID:
    """The job's id in a path; else UnknownJob."""
    try:
        found = UUID(text)
    except ValueError:
        raise UnknownJob from None
    telemetry.bind(job_id=str(found))
    return found


def show_job(rt: Runtime, service: Service, job_id: UUID) -> Response:
    """A job as it is now; or, if the caller prefers to wait, as it is when it has ended, or the time is over."""
    job = read_job(rt, service, job_id)
    seconds = waits.preferred()
    if seconds is None:
        return jsonify(job)
    if job["state"] not in TOLD:
        with watcher().watching(job_id, only_its_end=True) as watch:
            if watch is None:
                return jsonify(job)
            watch.wait(seconds)
        with suppress(Unavailable):  # it was accepted: better old news than a refusal
            job = read_job(rt, service, job_id)
    answer = jsonify(job)
    waits.applied(answer, seconds)
    return answer


def read_job(rt: Runtime, service: Service, job_id: UUID) -> dict[str, object]:
    """A job as JSON, if the service may see it; else UnknownJob."""
    with rt.db.statement() as tx:
        row = reading.job(tx, job_id, service_id=None if service.operator else service.id)
    if row is None:
        raise UnknownJob
    return views.job(row, rt.settings.public_url)
