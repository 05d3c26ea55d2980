"""Callbacks."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("callbacks", __name__)


@bp.get("/callbacks")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("callbacks.html")
