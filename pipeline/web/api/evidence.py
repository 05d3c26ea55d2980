"""Everything that is known of one job, as a file."""

import json

from flask import Blueprint, Response

from pipeline.lifecycle import evidence
from pipeline.web.api.jobs import id_of
from pipeline.web.callers import caller

bp = Blueprint("evidence", __name__, url_prefix="/v1")


@bp.get("/jobs/<job_id>/evidence")
def get_evidence(job_id: str) -> Response:
    """All of it in one JSON file, to be saved."""
    rt, service = caller()
    found = evidence.of_job(rt, service, id_of(job_id))
    answer = Response(json.dumps(found, indent=2), content_type="application/json")
    answer.headers["Content-Disposition"] = f'attachment; filename="job-{id_of(job_id)}.json"'
    return answer
