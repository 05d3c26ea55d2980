"""How a job reads, the same through every door."""

from datetime import datetime, timedelta
from typing import Any

from pipeline.jobs import State, may_be_retried

RETENTION = timedelta(days=7)
"""How long the provider keeps results and files. Source: https://wavespeed.ai/docs/what-are-predictions"""


def job(row: Any) -> dict[str, Any]:
    """A job as JSON, from its row (see `store.reading`). Times are ISO 8601 in UTC, durations in milliseconds."""
    expires = row.finished_at + RETENTION if row.finished_at and row.outputs else None
    return {
        "id": str(row.id),
        "state": row.state,
        "model": row.model,
        "input": {**row.input, **row.options},
        "outputs": [_output(index, item) for index, item in enumerate(row.outputs or ())],
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


def _output(index: int, item: dict[str, Any]) -> dict[str, Any]:
    shown = {
        "index": index,
        "url": item.get("url"),
        "source_url": item.get("url"),
        "content_type": None,
        "bytes": None,
        "sha256": None,
        "width": None,
        "height": None,
        "nsfw": item.get("nsfw"),
        "review": None,
        "stored": False,
    }
    return shown | ({"value": item["value"]} if "value" in item else {})


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
