"""Playground."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from pipeline.web.dashboard import page

bp = Blueprint("playground", __name__)


@bp.get("/playground")
def show() -> ResponseReturnValue:
    """Show it."""
    return page.show("playground.html")
