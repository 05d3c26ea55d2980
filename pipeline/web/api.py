"""The API for other services, version 1."""

from uuid import UUID

from flask import Blueprint, current_app, jsonify, request
from flask.typing import ResponseReturnValue

from pipeline import views
from pipeline.errors import Unauthorized, UnknownJob
from pipeline.lifecycle.accept import accept, check, decode
from pipeline.runtime import Runtime
from pipeline.store import reading, services
from pipeline.store.services import Service
from pipeline.web import bodies

bp = Blueprint("api", __name__, url_prefix="/v1")

MAX_BODY_BYTES = 256 * 1024


@bp.post("/jobs")
def create_job() -> ResponseReturnValue:
    """Accept a job: 201 and the job; 200 when its Idempotency-Key was seen before."""
    rt, service = _caller()
    checked = check(decode(bodies.read(MAX_BODY_BYTES)), default_model=rt.settings.default_model)
    job_id, made = accept(rt, service, checked, key=request.headers.get("Idempotency-Key"))
    answer = jsonify(_job(rt, service, job_id))
    answer.headers["Location"] = f"/v1/jobs/{job_id}"
    return answer, 201 if made else 200


@bp.get("/jobs/<job_id>")
def get_job(job_id: str) -> ResponseReturnValue:
    """One job."""
    rt, service = _caller()
    try:
        return jsonify(_job(rt, service, UUID(job_id)))
    except ValueError:
        raise UnknownJob from None


def _caller() -> tuple[Runtime, Service]:
    """Who asks, by the key in the Authorization header."""
    rt: Runtime = current_app.extensions["runtime"]
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("Send the header 'Authorization: Bearer <service key>'.")
    with rt.db.transaction() as tx:
        service = services.by_key(tx, key.strip())
    if service is None:
        raise Unauthorized("This key is not one of ours, or it was revoked.")
    return rt, service


def _job(rt: Runtime, service: Service, job_id: UUID) -> dict[str, object]:
    with rt.db.transaction() as tx:
        row = reading.job(tx, job_id, service_id=None if service.operator else service.id)
    if row is None:
        raise UnknownJob
    return views.job(row)
