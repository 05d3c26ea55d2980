"""Everything that is known of one job, as a file."""

import json

from flask import Blueprint, Response

from pipeline.errors import UnknownJob
from pipeline.lifecycle import evidence
from pipeline.web.api import examples, shapes
from pipeline.web.api.jobs import id_of
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import Answer, Body, Call, Header, described

bp = Blueprint("evidence", __name__, url_prefix="/v1")


@bp.get("/jobs/<job:job_id>/evidence")
@described(
    Call(
        "Everything that is known of a job",
        "One file with the job, its attempts, its history, every callback as it came with its signature, the"
        " notifications, and what was paid: to settle a dispute, or to understand what happened.",
        place=8,
        answers=[
            Answer(
                200,
                "The file.",
                [Body(shapes.Evidence, {"a completed job": examples.EVIDENCE})],
                [Header("Content-Disposition", "A name to save it under.", {"type": "string"})],
            )
        ],
        errors=[UnknownJob],
    )
)
def get_evidence(job_id: str) -> Response:
    """All of it in one JSON file, to be saved."""
    rt, service = caller()
    found = evidence.of_job(rt, service, id_of(job_id))
    answer = Response(json.dumps(found, indent=2), content_type="application/json")
    answer.headers["Content-Disposition"] = f'attachment; filename="job-{id_of(job_id)}.json"'
    return answer
