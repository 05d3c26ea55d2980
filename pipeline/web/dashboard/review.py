"""Review: outputs that were flagged as unsafe wait here for a person, who releases or purges them."""

from uuid import UUID

from flask import Blueprint, request, url_for
from flask.typing import ResponseReturnValue

from pipeline.errors import UnknownOutput
from pipeline.lifecycle import review
from pipeline.store import reviews
from pipeline.web.dashboard import access, page

bp = Blueprint("review", __name__)

LIMIT = 24


@bp.get("/review")
def show() -> ResponseReturnValue:
    """Show what waits, the longest first, and what was decided last."""
    after = request.args.get("after")
    with page.runtime().db.transaction() as tx:
        rows = reviews.waiting(tx, after=page.id_of(after) if after else None, limit=LIMIT + 1)
        decided = reviews.reviewed(tx)
    return page.show(
        "review.html",
        rows=rows[:LIMIT],
        decided=decided,
        more=url_for(".show", after=rows[LIMIT - 1].id) if len(rows) > LIMIT else None,
        first=url_for(".show") if after else None,
    )


@bp.post("/review/<job_id>/<int:index>/release")
def release(job_id: str, index: int) -> ResponseReturnValue:
    """Let its caller have it."""
    which = _which(job_id, index)
    with page.act("output.release", which, output=index):
        review.release(page.runtime(), which, index, by=access.person().name)
    return page.done(f"Output {index} is released: its caller is told, and gets it.")


@bp.post("/review/<job_id>/<int:index>/purge")
def purge(job_id: str, index: int) -> ResponseReturnValue:
    """Remove it for good."""
    which = _which(job_id, index)
    with page.act("output.purge", which, output=index):
        done = review.purge(page.runtime(), which, index, by=access.person().name)
    return page.done(f"Output {index} is purged." if done else f"Output {index} was purged before.")


def _which(job_id: str, index: int) -> UUID:
    if index >= 2**15:
        raise UnknownOutput
    return page.id_of(job_id, UnknownOutput)
