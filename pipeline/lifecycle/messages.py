"""
Messages: jobs that other apps hand in over the broker, where nobody waits for an answer.

So a message that cannot become a job is recorded, with what is wrong with it, for a person to see: nothing is lost.
What the screen for prompts would refuse is not kept with it.
"""

import json
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import FieldError, InvalidInput, NotAllowedNow, PipelineError, PromptRefused, Unavailable
from pipeline.lifecycle import accept, screen
from pipeline.runtime import Runtime
from pipeline.store import refusals, services
from pipeline.store.refusals import Refusal
from pipeline.store.services import Service

log = telemetry.get(__name__)

DOOR = "celery"

MAX_BYTES = 256 * 1024
"""What a request may have at most, as JSON, in bytes; the HTTP API's limit too. More is not kept either."""

_KEPT_OF_MORE = 1024
"""How large an argument may be that is kept of a request that is too large, as JSON, in bytes."""

_KEPT_DEPTH = 32
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class UnknownService(InvalidInput):
    """No service of that name hands in jobs."""

    code = "unknown_service"


def take(rt: Runtime, task_id: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """
    Accept a job that came as a call of the task `pipeline.enqueue`, or record why not.

    Raises:
        Unavailable: Nothing was done; the same message may be taken again.
    """
    try:
        _accept(rt, task_id, args, kwargs)
        return
    except Unavailable:
        raise
    except PipelineError as error:
        code, errors = error.code, _errors(error)
    except Exception as error:  # a fault of ours: the message is not to be lost with it
        at = traceback.extract_tb(error.__traceback__)[-1]  # its words may show a prompt
        log.error("enqueue.crashed", error=type(error).__name__, at=f"{at.filename}:{at.lineno}")
        code, errors = PipelineError.code, [{"field": "", "message": "This is a fault of ours."}]
    service = kwargs.get("service")
    refusal = Refusal(
        door=DOOR,
        code=code,
        errors=errors,
        task_id=_text(task_id),
        service=_text(service) if isinstance(service, str) else None,
        request=None if code == PromptRefused.code else _kept(rt, args, kwargs),
    )
    with rt.db.transaction() as tx:
        refusals.add(tx, refusal)
    fields = [error["field"] for error in errors]
    log.error("enqueue.refused", refusal_id=str(refusal.id), task_id=refusal.task_id, code=code, fields=fields)


def drop(rt: Runtime, task_id: object, code: str, problem: FieldError, body: bytes) -> None:
    """
    Record a message that no task could be given.

    Raises:
        Unavailable: It could not be recorded.
    """
    try:
        args, kwargs, *_ = json.loads(body)
        request = _kept(rt, args, kwargs) if isinstance(args, list) and isinstance(kwargs, dict) else None
    except (ValueError, TypeError, RecursionError):
        request = None
    error = {"field": problem.field, "message": _text(problem.message)}
    refusal = Refusal(door=DOOR, code=code, errors=[error], task_id=_text(task_id), request=request)
    with rt.db.transaction() as tx:
        refusals.add(tx, refusal)
    log.error("message.refused", refusal_id=str(refusal.id), task_id=refusal.task_id, code=code)


def try_again(rt: Runtime, refusal_id: UUID) -> UUID:
    """
    Hand in once more what was refused, after what was wrong was mended on our side. Its task's id is the key as before.

    Returns:
        The job's id; the refusal is gone.

    Raises:
        NotAllowedNow: There is no such refusal; or it was not kept whole, and only its sender can send it again.
        PipelineError: It is refused again, and stays.
    """
    with rt.db.transaction() as tx:
        found = refusals.one(tx, refusal_id)
    if found is None:
        raise NotAllowedNow(f"There is no refusal {refusal_id}.")
    request = found.request
    if request is None or not request["whole"]:
        raise NotAllowedNow("It could not be kept as it came: have it sent again.")
    try:
        job_id = _accept(rt, found.task_id, request["args"], request["kwargs"])
    except PromptRefused as error:  # by now
        with rt.db.transaction() as tx:
            refusals.blank(tx, refusal_id, code=error.code, errors=_errors(error))
        raise
    with rt.db.transaction() as tx:
        refusals.remove(tx, refusal_id)
    return job_id


def _accept(rt: Runtime, task_id: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> UUID:
    if args:
        raise InvalidInput(errors=[FieldError("args", "Send keyword arguments only: kwargs={…}.")])
    request = {name: _plain(value) for name, value in kwargs.items()}
    service, key = request.pop("service", None), request.pop("idempotency_key", None)
    if service is None:
        raise UnknownService(errors=[FieldError("service", "Is required.")])
    caller = _caller(rt, service)
    if caller is None:
        advice = "Is unknown, or revoked; `pipeline services create NAME` adds one."
        raise UnknownService(errors=[FieldError("service", advice)])
    try:
        size = _size(request)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(errors=[FieldError("", "Must be plain JSON, not nested deep.")]) from None
    if size > MAX_BYTES:
        raise InvalidInput(errors=[FieldError("", f"Must have at most {MAX_BYTES // 1024} KiB as JSON.")])
    key = task_id if key is None else key  # of whatever type: it is looked at there
    return accept.take(rt, caller, request, key=cast("str | None", key))[0]


def _caller(rt: Runtime, name: object) -> Service | None:
    if not isinstance(name, str) or not services.NAME.fullmatch(name):
        return None
    with rt.db.transaction() as tx:
        return services.by_name(tx, name)


def _errors(error: PipelineError) -> list[dict[str, str]]:
    """As they are kept: no value of the sender's stands in them, but a field may be of any name."""
    found = [
        {
            "field": _text("idempotency_key" if one.field == "Idempotency-Key" else one.field)[:200],
            "message": one.message,
        }
        for one in error.errors[:50]
    ]
    return found or [{"field": "", "message": error.detail}]


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON of what Celery's JSON may hold besides: times, UUIDs and decimals."""
    if depth > _KEPT_DEPTH:  # it is refused
        return value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    return value


def _size(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _kept(rt: Runtime, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """A request as it can be stored; `whole` says whether that is as it came. None: nothing of it is to be kept."""
    if not screen.may_be_kept(rt, _caller(rt, kwargs.get("service")), [*args, dict(kwargs)]):
        return None
    keeping = _Keeping()
    kept = {"args": keeping.of(list(args)), "kwargs": keeping.of(dict(kwargs))}
    if _size(kept) > MAX_BYTES:
        keeping.whole = False
        small = {name: item for name, item in kept["kwargs"].items() if _size(name) + _size(item) <= _KEPT_OF_MORE}
        kept = {"args": [], "kwargs": dict(list(small.items())[:50])}
    return {**kept, "whole": keeping.whole}


class _Keeping:
    """Makes storable what is not, and remembers whether anything had to be changed for it."""

    def __init__(self) -> None:
        self.whole = True

    def of(self, value: Any, depth: int = 0) -> Any:
        value = value if isinstance(value, dict | list) else _plain(value)
        if isinstance(value, str):
            return self._changed(_text(value)) if _UNSTORABLE.search(value) else value
        if isinstance(value, float) and not math.isfinite(value):
            return self._changed(str(value))
        if value is None or isinstance(value, bool | int | float):
            return value
        if depth > _KEPT_DEPTH or not isinstance(value, dict | list):
            return self._changed(f"({type(value).__name__})")
        if isinstance(value, list):
            return [self.of(item, depth + 1) for item in value]
        return {str(self.of(str(name))): self.of(item, depth + 1) for name, item in value.items()}

    def _changed(self, value: str) -> str:
        self.whole = False
        return value


def _text(value: object) -> str:
    """A text that can be stored, of a moderate length."""
    return _UNSTORABLE.sub("\ufffd", str(value))
