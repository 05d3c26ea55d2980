"""Services."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("services", __name__)


@bp.get("/services")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("services.html")
