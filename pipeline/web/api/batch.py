"""Many jobs in one request."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from pipeline.errors import (
    BudgetExceeded,
    IdempotencyConflict,
    InvalidInput,
    MalformedRequest,
    NotScreened,
    PromptRefused,
    TooLarge,
    Unavailable,
)
from pipeline.lifecycle.batch import MAX_LINES, accept_lines
from pipeline.web import bodies
from pipeline.web.api import examples, shapes
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import IDEMPOTENCY_KEY, NDJSON, Answer, Body, Call, described

bp = Blueprint("batch", __name__, url_prefix="/v1")

MAX_BODY_BYTES = 32 * 1024 * 1024

ROOM_BYTES = 3 * MAX_BODY_BYTES
"""How much of batches one process holds at a time: each takes several times its length while it is stored."""

STORE_WITHIN_S = 10.0
"""How long a batch that was read waits for its turn, in seconds."""


class Room:
    """What one process has left for batches, in bytes; and whose turn it is to be stored."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._guard = threading.Lock()
        self._turn = threading.Lock()  # two at once would not be faster, and hold twice as much

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Take so much while the block runs; else Unavailable."""
        with self._guard:
            if size > self._left:
                raise Unavailable("Too many large batches are being sent at this moment.")
            self._left -= size
        try:
            yield
        finally:
            with self._guard:
                self._left += size

    @contextmanager
    def turn(self) -> Iterator[None]:
        """
        Wait for one's turn; else Unavailable. Meanwhile nobody looks for garbage.

        All that a batch makes is needed to its end; to look through it again and again takes a fifth of the time.
        """
        if not self._turn.acquire(timeout=STORE_WITHIN_S):
            raise Unavailable("Too many batches are being stored at this moment.")
        gc.collect(1)  # what a batch may have left that was refused
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            self._turn.release()


room = Room(ROOM_BYTES)


@bp.post("/jobs/batch")
@described(
    Call(
        "Hand in many jobs",
        f"One job a line, at most {MAX_LINES:,} lines and 32 MiB; all are accepted, or none. `errors` names line and"
        " field of whatever is wrong.",
        place=2,
        parameters=[replace(IDEMPOTENCY_KEY, example="orders-of-today")],
        body=Body(
            {"type": "string", "description": "Newline-delimited JSON: one object a line."},
            {"two jobs": examples.BATCH},
            NDJSON,
            item=shapes.BatchLine,
        ),
        answers=[
            Answer(
                201,
                "The new jobs. A line whose key made a job before stands for that job.",
                [Body(shapes.Batch, {"two jobs": examples.STORED})],
            ),
            Answer(
                200,
                "The jobs that this key made before.",
                [Body(shapes.Batch, {"two jobs": examples.STORED})],
            ),
        ],
        errors=[
            MalformedRequest,
            BudgetExceeded,
            IdempotencyConflict,
            TooLarge,
            InvalidInput,
            PromptRefused,
            NotScreened,
        ],
    )
)
def create_jobs() -> ResponseReturnValue:
    """Accept all the jobs of an NDJSON body, or none: 201 and their ids; 200 when its Idempotency-Key was seen."""
    rt, service = caller()
    announced = request.content_length
    with room.taken(MAX_BODY_BYTES if announced is None else min(announced, MAX_BODY_BYTES)):
        body = bodies.read(MAX_BODY_BYTES)
        with room.turn():
            ids, made = accept_lines(rt, service, body, key=request.headers.get("Idempotency-Key"))
    return jsonify(count=len(ids), ids=list(map(str, ids))), 201 if made else 200
