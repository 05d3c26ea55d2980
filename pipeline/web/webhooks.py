"""The receiver: where the provider calls back. Nothing but the verdict happens in the request."""

import re
from dataclasses import asdict

from flask import Blueprint, Response, current_app, jsonify, request
from flask.typing import ResponseReturnValue

from pipeline import pings, tracing
from pipeline.errors import MalformedRequest
from pipeline.lifecycle.hear import HEADERS, hear
from pipeline.runtime import Runtime
from pipeline.signatures import well_formed
from pipeline.store import keys
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
    sent = request.headers
    headers = {name: value for name in HEADERS if (value := sent.get(name)) is not None}
    with tracing.span("callback") as span:
        heard = hear(rt, token, headers, body)
        span.set(job_id=str(heard.job_id) if heard.job_id else None, attempt=heard.number, verdict=heard.verdict)
    return Response(status=204)


@bp.post(pings.PATH)
def ping() -> ResponseReturnValue:
    """Echo what `pipeline doctor` sends through our public address; 401 to everybody else. Nothing is stored."""
    rt: Runtime = current_app.extensions["runtime"]
    sent = dict(request.headers)
    well_formed(sent)
    body = bodies.read(pings.MAX_BODY_BYTES)
    with rt.db.transaction() as tx:
        secrets = keys.of(tx, None)
    return jsonify(asdict(pings.answer(secrets, sent, body, now=rt.unix_time())))
