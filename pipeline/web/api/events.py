"""What happens to a job, as it happens: server-sent events."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue

from pipeline import views
from pipeline.errors import Busy, FieldError, InvalidInput, Unavailable, UnknownJob
from pipeline.jobs import TOLD
from pipeline.runtime import Runtime
from pipeline.store import reading
from pipeline.store.services import Service
from pipeline.web.api import examples, shapes
from pipeline.web.api.jobs import id_of
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import EVENTS, Answer, Body, Call, Header, Parameter, described
from pipeline.web.watcher import Watch, Watcher, watcher

bp = Blueprint("events", __name__, url_prefix="/v1")

HEARTBEAT_S = 15.0
"""How often something is sent: Heroku's router gives up a stream that is silent for 55 s. A client's end is seen so."""

LONGEST_S = 600.0
"""How long one stream is held; the client comes back and goes on where it stopped."""

RECONNECT_MS = 1000

DATABASE_AWAY_S = 1.0
"""How long a stream waits before it looks again, when it could not."""

_SEQ = re.compile("[0-9]{1,9}")


_SEQ_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 999_999_999}


@bp.get("/jobs/<job:job_id>/events")
@described(
    Call(
        "Follow a job",
        "Server-sent events: what has happened to the job, and what happens, as it happens; the stream ends with the"
        " job. The last event carries the job. A browser's `EventSource` reconnects by itself, and misses nothing. With"
        " `Accept: application/json` the answer is what has happened so far.",
        place=5,
        parameters=[
            Parameter("Last-Event-ID", "header", "Go on after the event of this `id`.", _SEQ_SCHEMA),
            Parameter("after", "query", "The same, for clients that cannot send the header, which wins.", _SEQ_SCHEMA),
        ],
        answers=[
            Answer(
                200,
                "The events.",
                [
                    Body(
                        {"type": "string", "description": "Server-sent events; `data` of each is an event as JSON."},
                        {"two events": examples.STREAM},
                        EVENTS,
                        item=shapes.Event,
                    ),
                    Body(shapes.EventList, {"two events": examples.EVENTS}),
                ],
                [Header("Cache-Control", "Streams are never stored.", {"type": "string"})],
            ),
            Answer(204, "The job has ended, and all its events were sent before: a client need not come back."),
        ],
        errors=[UnknownJob, InvalidInput, Busy],
    )
)
def stream_events(job_id: str) -> ResponseReturnValue:
    """
    The events of a job, until it has ended, each once; those after `Last-Event-ID` only.

    204 when there will be none: it tells a client that reconnects by itself to stop. With `Accept: application/json`
    the events so far.
    """
    rt, service = caller()
    known = id_of(job_id)
    after = _after()
    wants_json = request.accept_mimetypes.best_match([EVENTS, "application/json"]) == "application/json"
    job, events = _read(rt, service, known, after)
    if wants_json:
        return jsonify(items=[_event(known, event) for event in events])
    if job.state in TOLD and not events:
        return Response(status=204)
    watches = watcher()
    if (watch := watches.watch(known, seen=job.last_seq)) is None:
        raise Busy("Too many wait at this server already: ask again, or ask for the job instead.")
    answer = Response(_stream(rt, service, watches, watch, after), content_type=EVENTS)
    answer.call_on_close(lambda: watches.leave(watch))
    answer.headers["Cache-Control"] = "no-cache"
    answer.headers["X-Accel-Buffering"] = "no"  # nginx would keep events back
    return answer


def _after() -> int:
    """The event after which to go on; a client that comes back sends the header, whatever its first address said."""
    said = {"after": request.args.get("after", "0")}
    if "Last-Event-ID" in request.headers:  # empty where it was no ASCII: to send all again would be no answer to that
        said["Last-Event-ID"] = request.headers["Last-Event-ID"]
    message = "Must be the id of an event of this job: a whole number."
    if wrong := [FieldError(name, message) for name, text in said.items() if not _SEQ.fullmatch(text)]:
        raise InvalidInput(errors=wrong)
    return int(said.get("Last-Event-ID", said["after"]))


def _stream(rt: Runtime, service: Service, watches: Watcher, watch: Watch, after: int) -> Iterator[str]:
    """Send what is new whenever there is news; nothing that is sent is held back."""
    yield f"retry: {RECONNECT_MS}\n\n"
    end = time.monotonic() + LONGEST_S
    while True:
        pause_s = HEARTBEAT_S
        try:
            job, events = _read(rt, service, watch.job_id, after)
        except UnknownJob:  # it was deleted
            return
        except Unavailable:  # the client need not know
            pause_s = DATABASE_AWAY_S
        else:
            ended = job.state in TOLD
            for event in events:
                after = event.seq
                shown = _event(watch.job_id, event)
                if ended and event.seq == job.last_seq:
                    shown["job"] = views.job(job, rt.settings.public_url)
                yield f"id: {event.seq}\nevent: {event.kind}\ndata: {json.dumps(shown)}\n\n"
            if ended:
                return
        if watches.stopping or time.monotonic() > end:
            return
        if not watch.wait(pause_s):
            yield ": nothing new\n\n"


def _read(rt: Runtime, service: Service, job_id: UUID, after: int) -> tuple[Any, Any]:
    """The job, and what happened to it after one event until it was as it is shown."""
    with rt.db.transaction() as tx:
        job = reading.job(tx, job_id, service_id=None if service.operator else service.id)
        if job is None:
            raise UnknownJob
        return job, reading.events(tx, job_id, after=after, upto=job.last_seq)


def _event(job_id: UUID, event: Any) -> dict[str, Any]:
    return {"job_id": str(job_id), **views.event(event)}
