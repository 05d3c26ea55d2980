"""Jobs."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("jobs", __name__)


@bp.get("/jobs")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("jobs.html")
