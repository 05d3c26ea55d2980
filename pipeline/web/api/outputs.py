"""The files a job made."""

import re
from uuid import UUID

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.errors import NotStoredYet, UnknownJob, UnknownOutput
from pipeline.jobs import FINAL, State
from pipeline.store import reading
from pipeline.web.api.jobs import id_of
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import Call, described

bp = Blueprint("outputs", __name__, url_prefix="/v1")

_INDEX = re.compile("[0-9]{1,4}")


@bp.get("/jobs/<job:job_id>/outputs/<index>")
@described(
    Call(
        "Download an output",
        "The file itself, from our own storage. Files are not archived by this release: the answer is 409, and the"
        " output's `source_url` leads to the file at the provider, for seven days.",
        place=9,
        answers=[],
        errors=[UnknownJob, UnknownOutput, NotStoredYet],
    )
)
def get_output(job_id: str, index: str) -> ResponseReturnValue:
    """One output's bytes from our own storage; 409 while it is not there."""
    rt, service = caller()
    found: UUID = id_of(job_id)
    with rt.db.transaction() as tx:
        row = reading.job(tx, found, service_id=None if service.operator else service.id)
    if row is None:
        raise UnknownJob
    may_come = row.state not in FINAL and not (row.state == State.EXPIRED and row.due_at is None)
    if not _INDEX.fullmatch(index) or not (may_come or int(index) < len(row.outputs or ())):
        raise UnknownOutput
    raise NotStoredYet(
        "The job has not ended." if may_come else "Its file is not in our storage; `source_url` still leads to it."
    )
