"""Gallery."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("gallery", __name__)


@bp.get("/gallery")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("gallery.html")
