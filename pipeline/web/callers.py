"""Who asks: the service whose key stands in the Authorization header; and whether it asks too often."""

import math

from flask import Flask, Response, current_app, g, request

from pipeline import telemetry
from pipeline.errors import RateLimited, Unauthorized
from pipeline.runtime import Runtime
from pipeline.store import paces
from pipeline.store.paces import WINDOW_S, Pace
from pipeline.store.services import Service


def register(app: Flask) -> None:
    """Tell callers of *app* that have a limit where they stand."""
    app.after_request(_show_pace)


def caller() -> tuple[Runtime, Service]:
    """
    The runtime of this process, and the service that asks. Once in each request: it counts.

    Raises:
        Unauthorized: No key, or none of ours.
        RateLimited: It asks more often than it may.
    """
    rt: Runtime = current_app.extensions["runtime"]
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("Send the header 'Authorization: Bearer <service key>'.")
    with rt.db.statement() as tx:
        admitted = paces.admit(tx, key.strip())
    if admitted is None:
        raise Unauthorized("This key is not one of ours, or it was revoked.")
    service, pace = admitted
    telemetry.bind(service=service.name)
    g.pace = pace
    if pace and pace.passed:
        raise RateLimited(
            f"{service.name} may make {pace.per_minute:,} requests a minute; see Retry-After.",
            retry_after_s=_window_s(pace),
        )
    return rt, service


def _window_s(pace: Pace) -> int:
    """For how long it should be content with what remains: until the next, or as the limit would spread them."""
    if pace.remaining == 0:
        return max(1, math.ceil(pace.next_s))
    return max(1, math.ceil(pace.remaining * WINDOW_S / pace.per_minute))


def _show_pace(answer: Response) -> Response:
    """
    Add the headers of a caller that has a limit.

    Source: https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/
    """
    pace: Pace | None = g.get("pace")
    if pace:
        answer.headers["RateLimit-Policy"] = f'"service";q={pace.per_minute};w={WINDOW_S}'
        answer.headers["RateLimit"] = f'"service";r={pace.remaining};t={_window_s(pace)}'
    return answer
