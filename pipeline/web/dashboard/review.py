"""Review."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("review", __name__)


@bp.get("/review")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("review.html")
