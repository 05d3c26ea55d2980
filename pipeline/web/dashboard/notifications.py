"""Notifications."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("notifications", __name__)


@bp.get("/notifications")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("notifications.html")
