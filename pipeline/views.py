"""How a job reads, the same through every door."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pipeline.jobs import State, may_be_retried
from pipeline.outputs import HIDDEN, JSON, SOURCE_DAYS, TEXT, Kept, Review

RETENTION = timedelta(days=SOURCE_DAYS)


def job(row: Any, base: str | None = None) -> dict[str, Any]:
    """
    A job as JSON, from its row (see `store.reading`). Times are ISO 8601 in UTC, durations in milliseconds.

    Files of ours have addresses under *base*, our own address (`PUBLIC_URL`); without it, paths like those of links.
    """
    outputs = [_output(row, index, item, base or "") for index, item in enumerate(row.outputs or ())]
    whole = all(one["stored"] or one["review"] == Review.PURGED for one in outputs)
    expires = row.finished_at + RETENTION if row.finished_at and not whole else None
    return {
        "id": str(row.id),
        "state": row.state,
        "model": row.model,
        "input": {**row.input, **row.options},
        "outputs": outputs,
        "error": row.error,
        "service": row.service,
        "metadata": row.caller_data,
        "priority": row.priority,
        "run_at": time(row.run_at),
        "deadline_at": time(row.deadline_at),
        "attempts": row.attempts,
        "prediction_id": row.prediction_id,
        "needs_decision": {"since": time(row.held_at), "reason": row.held_reason} if row.held_at else None,
        "settled_by": row.settled_by,
        "created_at": time(row.created_at),
        "submitted_at": time(row.submitted_at),
        "finished_at": time(row.finished_at),
        "outputs_expire_at": time(expires),
        "timings": {
            "queued_ms": _ms(row.run_at, row.submitted_at),
            "provider_ms": _ms(row.submitted_at, row.finished_at),
            "inference_ms": row.inference_ms,
            "total_ms": _ms(row.created_at, row.finished_at),
        },
        "price": None if row.price is None else float(row.price),  # USD
        "retry_of": row.retry_of and str(row.retry_of),
        "links": _links(row),
    }


def attempt(row: Any) -> dict[str, Any]:
    """One attempt as JSON; its token is a secret and not part of it."""
    return {
        "number": row.number,
        "started_at": time(row.started_at),
        "ended_at": time(row.ended_at),
        "outcome": row.outcome,
        "prediction_id": row.prediction_id,
        "http_status": row.http_status,
        "error": row.error,
    }


def event(row: Any) -> dict[str, Any]:
    """One event of a job's history as JSON."""
    return {"seq": row.seq, "at": time(row.at), "kind": row.kind, "data": row.data}


def notification(row: Any, deliveries: Sequence[Any], *, withheld: bool = False) -> dict[str, Any]:
    """One notification as JSON, with every try to deliver it; what was sent may be *withheld*: it names addresses."""
    return {
        "id": str(row.id),
        "event": row.event,
        "seq": row.seq,
        "audience": row.audience,
        "state": row.state,
        "endpoint": row.endpoint and row.endpoint.partition(" ")[2],
        "attempts": row.attempts,
        "error": row.error,
        "due_at": time(row.due_at),
        "created_at": time(row.created_at),
        "ended_at": time(row.ended_at),
        "deliveries": [delivery(one) | ({"request": None} if withheld else {}) for one in deliveries],
    }


def delivery(row: Any) -> dict[str, Any]:
    """One try to deliver as JSON; `duration_ms` until the answer, or until there was none."""
    return {
        "number": row.number,
        "at": time(row.at),
        "target": row.target,
        "request": row.request,
        "status": row.status,
        "answer": row.answer,
        "duration_ms": row.duration_ms,
        "error": row.error,
    }


_FACTS = ("content_type", "bytes", "sha256", "width", "height", "review")


def _output(row: Any, index: int, item: Mapping[str, Any], base: str) -> dict[str, Any]:
    kept: Mapping[str, Any] = next((one for one in row.assets or () if one["index"] == index), {})
    review, source_url = kept.get("review"), item.get("url")
    hidden = review in HIDDEN
    stored = kept.get("state") == Kept.STORED and review != Review.PURGED
    ours = f"{base}/v1/jobs/{row.id}/outputs/{index}"
    if row.options.get("enable_base64_output"):
        ours += "?format=base64"
    shown = {
        "index": index,
        "url": None if hidden else ours if stored else source_url,
        "source_url": None if hidden else source_url,
        **{name: kept.get(name) for name in _FACTS},
        "nsfw": item.get("nsfw"),
        "stored": stored,
        "lost": kept.get("state") == Kept.LOST,
    }
    if "value" in item and not hidden and kept.get("content_type") in {None, TEXT, JSON}:  # else it is a file by now
        shown["value"] = item["value"]
    return shown


def _links(row: Any) -> dict[str, str]:
    """Where to go from a job; only what its state allows."""
    path = f"/v1/jobs/{row.id}"
    links = {"self": path, "events": f"{path}/events", "evidence": f"{path}/evidence"}
    if row.state == State.QUEUED:
        links["cancel"] = f"{path}/cancel"
    if may_be_retried(row.state, looked_after=row.due_at is not None):
        links["retry"] = f"{path}/retry"
    return links


def time(at: datetime | None) -> str | None:
    """ISO 8601 in UTC."""
    return at.isoformat().replace("+00:00", "Z") if at else None


def _ms(start: datetime | None, end: datetime | None) -> int | None:
    return max(0, round((end - start).total_seconds() * 1000)) if start and end else None
