"""The receiver: where the provider calls back. Nothing but the verdict happens in the request."""

import re

from flask import Blueprint, current_app, request
from flask.typing import ResponseReturnValue

from pipeline.errors import MalformedRequest
from pipeline.lifecycle.hear import hear
from pipeline.runtime import Runtime
from pipeline.web import bodies

bp = Blueprint("webhooks", __name__)

MAX_BODY_BYTES = 1024 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


@bp.post("/webhooks/wavespeed/<token>")
def receive(token: str) -> ResponseReturnValue:
    """Take a signed callback: 204, whatever it changes; 401 unsigned; 400 unreadable; 503 try again."""
    rt: Runtime = current_app.extensions["runtime"]
    if not _TOKEN.fullmatch(token):
        raise MalformedRequest("The path is none that we gave out.")
    body = bodies.read(MAX_BODY_BYTES)  # the signature covers these bytes, not the JSON they spell
    hear(rt, token, dict(request.headers), body)
    return "", 204
