"""The audit: who did what, when, and what came of it."""

from flask import Blueprint, request, url_for
from flask.typing import ResponseReturnValue

from pipeline.store import audit
from pipeline.web.dashboard import page

bp = Blueprint("trail", __name__)

LIMIT = 50


@bp.get("/audit")
def show() -> ResponseReturnValue:
    """What was done last; of one `target`, or of all."""
    target = page.words("target")
    before = request.args.get("before")
    with page.runtime().db.transaction() as tx:
        rows = audit.newest(tx, target=target, before=page.id_of(before) if before else None, at_most=LIMIT + 1)
    more = url_for(".show", target=target, before=rows[LIMIT - 1].id) if len(rows) > LIMIT else None
    first = url_for(".show", target=target) if before else None
    return page.show("trail.html", rows=rows[:LIMIT], target=target, more=more, first=first)
