"""One job: its whole story, and what can be done with it."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.errors import UnknownJob
from pipeline.store import reading
from pipeline.web.dashboard import page

bp = Blueprint("job", __name__)


@bp.get("/jobs/<job_id>")
def show(job_id: str) -> ResponseReturnValue:
    """Show one job."""
    with page.runtime().db.transaction() as tx:
        row = reading.job(tx, page.id_of(job_id, UnknownJob))
    if row is None:
        raise UnknownJob
    return page.show("job.html", job=row)
