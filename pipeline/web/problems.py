"""Errors as RFC 9457 problems: one handler for all of them, so that no view has a `try`."""

import json
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from pipeline import telemetry
from pipeline.errors import PipelineError, Unauthorized

log = telemetry.get(__name__)


def register(app: Flask) -> None:
    """Answer every error of *app* with a problem."""
    app.register_error_handler(PipelineError, _ours)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)


def problem(status: int, code: str, title: str, detail: str, errors: list[dict[str, Any]] | None = None) -> Response:
    """An `application/problem+json` answer."""
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": errors or [],
    }
    return Response(json.dumps(body), status, content_type="application/problem+json")


def _ours(error: PipelineError) -> Response:
    fields = [
        {"field": found.field, "message": found.message} | ({} if found.line is None else {"line": found.line})
        for found in error.errors
    ]
    if error.status >= 500:
        log.warning("request.failed", code=error.code, why=error.detail, route=_route())
    answer = problem(error.status, error.code, error.title, error.detail, fields)
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(round(error.retry_after_s))
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    code = error.name.lower().replace(" ", "_")
    answer = problem(status, code, error.name, error.description or error.name)
    for name, value in error.get_headers():
        if name in {"Allow", "Location", "Retry-After"}:
            answer.headers[name] = value
    return answer


def _unexpected(error: Exception) -> Response:
    log.error("request.crashed", exc_info=error, route=_route())
    return _ours(PipelineError("This is a fault of ours; it is in the log."))


def _route() -> str | None:
    """Return the rule, not the path: that may hold a secret token."""
    return request.url_rule.rule if request.url_rule else None
