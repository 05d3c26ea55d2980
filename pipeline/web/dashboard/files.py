"""Files for who is signed in: the same bytes that callers get by their keys, from our own copy."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.errors import StorageFailed, UnknownOutput
from pipeline.outputs import Kept, Review
from pipeline.store import reviews
from pipeline.web.api.outputs import served
from pipeline.web.dashboard import access, page

bp = Blueprint("files", __name__)


@bp.get("/files/<job_id>/<int:index>")
def get(job_id: str, index: int) -> ResponseReturnValue:
    """One output's bytes; one under quarantine for those alone who may release it."""
    rt = page.runtime()
    with rt.db.transaction() as tx:
        found = reviews.output(tx, page.id_of(job_id, UnknownOutput), index) if index < 2**15 else None
    if found is None or found.state != Kept.STORED or found.review == Review.PURGED:
        raise UnknownOutput("We have no copy of it, or not yet.")
    if found.review == Review.QUARANTINED and not access.person().may_act:
        raise UnknownOutput("It was flagged as unsafe: a person has to release it.")
    if rt.storage is None:
        raise StorageFailed(f"The file is stored, but not where this server looks: {rt.storage_problem}.")
    answer = served(rt.storage, found)
    answer.headers["Cache-Control"] = "private, no-cache"  # asked again each time: it may be purged meanwhile
    return answer
