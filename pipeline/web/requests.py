"""
Every request has an id, which is in each line that is logged meanwhile and in the answer; and one line of its own.

The id is the caller's own, or the platform's (Heroku sends one), where `X-Request-ID` is a sane one; else it is made.
It goes no further than the request: a job's line in a worker's log is found by `job_id`, which both have.
"""

import re
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import Flask, Response, g, request

from pipeline import telemetry, tracing

log = telemetry.get(__name__)

HEADER = "X-Request-ID"
_SANE = re.compile(r"[!-~]{1,128}")

QUIET = frozenset({"health.alive", "health.ready", "metrics.metrics"})
"""Asked every few seconds by machines: their lines are for debugging, unless they fail."""


def register(app: Flask) -> None:
    """Give each request of *app* its id, and log it once. To be registered first."""
    app.before_request(_begin)
    app.after_request(_end)


def _begin() -> None:
    telemetry.forget()  # the thread had another request before; a stream that was cut may have left its own
    given = request.headers.get(HEADER, "")
    g.request_id = given if _SANE.fullmatch(given) else uuid.uuid4().hex
    g.began = time.perf_counter()
    telemetry.bind(request_id=g.request_id)
    rule = request.url_rule
    g.span = tracing.span(
        f"{request.method} {rule.rule}" if rule else "unknown path",
        kind="server",
        method=request.method if rule else None,
        route=rule.rule if rule else None,
        request_id=g.request_id,
    )
    g.span.__enter__()


def _end(answer: Response) -> Response:
    answer.headers[HEADER] = g.request_id
    rule = request.url_rule
    facts = {
        "method": request.method if rule else None,  # of what we do not know the method may be anything
        "route": rule.rule if rule else None,  # never the path: it may hold a token
        "status": answer.status_code,
        **telemetry.bound(),
    }
    quiet = request.endpoint in QUIET and answer.status_code < 500
    g.span.set(status=answer.status_code, job_id=facts.get("job_id"), service=facts.get("service"))
    answer.call_on_close(partial(_served, facts, g.began, g.span, quiet=quiet))  # a stream: when it has ended
    return answer


def _served(facts: Mapping[str, Any], began: float, span: tracing.Span, *, quiet: bool) -> None:
    span.__exit__(None, None, None)
    say = log.debug if quiet else log.info
    say("request.served", took_ms=round((time.perf_counter() - began) * 1000, 1), **facts)
    telemetry.forget()
