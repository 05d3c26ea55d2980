"""Errors as RFC 9457 problems: one handler for all of them, so that no view has a `try`."""

import json
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from pipeline import telemetry
from pipeline.errors import (
    MalformedRequest,
    NotInRange,
    PipelineError,
    TooLarge,
    Unauthorized,
    UnknownPath,
    WrongMethod,
)

log = telemetry.get(__name__)


def register(app: Flask) -> None:
    """Answer every error of *app* with a problem."""
    app.register_error_handler(PipelineError, _ours)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)


def content(error: PipelineError) -> dict[str, Any]:
    """An error as a problem's JSON."""
    return {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "errors": [
            {"field": found.field, "message": found.message} | ({} if found.line is None else {"line": found.line})
            for found in error.errors
        ],
    }


def _ours(error: PipelineError) -> Response:
    if error.status >= 500:
        log.warning("request.failed", code=error.code, why=error.detail, route=_route())
    answer = Response(json.dumps(content(error)), error.status, content_type="application/problem+json")
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(round(error.retry_after_s))
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


_OF_FLASK: Mapping[int, type[PipelineError]] = {
    404: UnknownPath,
    405: WrongMethod,
    413: TooLarge,
    416: NotInRange,
    500: PipelineError,
}


def _http(error: HTTPException) -> Response:
    """Answer what Flask refuses by itself in our own words, so that every code is one of ours."""
    answer = _ours(_OF_FLASK.get(error.code or 500, MalformedRequest)())
    for name, value in error.get_headers():
        if name in {"Allow", "Content-Range"}:
            answer.headers[name] = value
    return answer


def _unexpected(error: Exception) -> Response:
    log.error("request.crashed", exc_info=error, route=_route())
    return _ours(PipelineError("This is a fault of ours; it is in the log."))


def _route() -> str | None:
    """Return the rule, not the path: that may hold a secret token."""
    return request.url_rule.rule if request.url_rule else None
