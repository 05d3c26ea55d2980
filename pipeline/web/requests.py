"""
Every request has an id, which is in each line that is logged meanwhile and in the answer; and one line of its own.

The id is the caller's own, or the platform's (Heroku sends one), where `X-Request-ID` is a sane one; else it is made.
It goes no further than the request: a job's line in a worker's log is found by `job_id`, which both have.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from flask import Flask, Request, Response, g
from flask.globals import request_ctx

from pipeline import telemetry, tracing
from pipeline.store.tables import new_id

log = telemetry.get(__name__)

HEADER = "X-Request-ID"
_SANE = re.compile(r"[!-~]{1,128}")

QUIET = frozenset({"health.alive", "health.ready", "metrics.metrics"})
"""Asked every few seconds by machines: their lines are for debugging, unless they fail."""


def register(app: Flask) -> None:
    """Give each request of *app* its id, and log it once. To be registered first."""
    app.before_request(_begin)
    app.after_request(_end)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of the request that is under way: `g.asked`."""

    id: str
    began: float
    span: tracing.Span


def _begin() -> None:
    telemetry.forget()  # the thread had another request before; a stream that was cut may have left its own
    this = request_ctx.request  # as the proxy finds it anew for each look
    given = this.headers.get(HEADER, "")
    request_id = given if _SANE.fullmatch(given) else new_id().hex
    telemetry.bind(request_id=request_id)
    rule = this.url_rule
    span = tracing.span(
        f"{this.method} {rule.rule}" if rule else "unknown path",
        kind="server",
        method=this.method if rule else None,
        route=rule.rule if rule else None,
        request_id=request_id,
    )
    g.asked = Asked(request_id, time.perf_counter(), span)
    span.__enter__()


def _end(answer: Response) -> Response:
    this: Request = request_ctx.request
    asked: Asked = g.asked
    answer.headers[HEADER] = asked.id
    rule = this.url_rule
    facts = {
        "method": this.method if rule else None,  # of what we do not know the method may be anything
        "route": rule.rule if rule else None,  # never the path: it may hold a token
        "status": answer.status_code,
        **telemetry.bound(),
    }
    quiet = this.endpoint in QUIET and answer.status_code < 500
    asked.span.set(status=answer.status_code, job_id=facts.get("job_id"), service=facts.get("service"))
    answer.call_on_close(partial(_served, facts, asked, quiet=quiet))  # a stream: when it has ended
    return answer


def _served(facts: Mapping[str, Any], asked: Asked, *, quiet: bool) -> None:
    asked.span.__exit__(None, None, None)
    say = log.debug if quiet else log.info
    say("request.served", took_ms=round((time.perf_counter() - asked.began) * 1000, 1), **facts)
    telemetry.forget()
