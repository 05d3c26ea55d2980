"""Overview."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("overview", __name__)


@bp.get("/")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("overview.html")
