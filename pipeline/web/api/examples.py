"""Examples of what the API takes and answers. A test sends or checks each of them."""

import json
from typing import Any

from pipeline.errors import FieldError, InvalidInput, NotAllowedNow, PipelineError, PromptRefused, RateLimited

JOB_ID = "019a8f3e-5b1c-7d20-9c4e-3a7b5d1f2e60"
RETRY_ID = "019a8f40-7f11-7a3c-8d52-1be06c9a4d17"

REQUESTS: dict[str, Any] = {
    "a prompt is enough": {"input": {"prompt": "a lighthouse in a storm, oil on canvas"}},
    "with everything": {
        "model": "openai/dall-e-2",
        "input": {"prompt": "a lighthouse in a storm, oil on canvas", "enable_base64_output": False},
        "priority": 5,
        "run_at": "2026-01-31T12:00:00Z",
        "deadline_s": 900,
        "callback_url": "https://shop.example.com/hooks/pictures",
        "metadata": {"order": "4711"},
    },
}

QUEUED: dict[str, Any] = {
    "id": JOB_ID,
    "state": "queued",
    "model": "openai/dall-e-2",
    "input": {"prompt": "a lighthouse in a storm, oil on canvas"},
    "outputs": [],
    "error": None,
    "service": "shop",
    "metadata": {"order": "4711"},
    "priority": 5,
    "run_at": "2026-01-31T12:00:00Z",
    "deadline_at": "2026-01-31T13:00:00Z",
    "attempts": 0,
    "prediction_id": None,
    "needs_decision": None,
    "settled_by": None,
    "created_at": "2026-01-31T12:00:00Z",
    "submitted_at": None,
    "finished_at": None,
    "outputs_expire_at": None,
    "timings": {"queued_ms": None, "provider_ms": None, "inference_ms": None, "total_ms": None},
    "price": 0.02,
    "retry_of": None,
    "links": {name: f"/v1/jobs/{JOB_ID}/{name}" for name in ("events", "evidence", "cancel")}
    | {"self": f"/v1/jobs/{JOB_ID}"},
}

CANCELLED = QUEUED | {
    "state": "cancelled",
    "finished_at": "2026-01-31T12:00:03Z",
    "timings": {"queued_ms": None, "provider_ms": None, "inference_ms": None, "total_ms": 3000},
    "links": {name: f"/v1/jobs/{JOB_ID}/{name}" for name in ("events", "evidence", "retry")}
    | {"self": f"/v1/jobs/{JOB_ID}"},
}

AGAIN = QUEUED | {
    "id": RETRY_ID,
    "retry_of": JOB_ID,
    "links": {name: f"/v1/jobs/{RETRY_ID}/{name}" for name in ("events", "evidence", "cancel")}
    | {"self": f"/v1/jobs/{RETRY_ID}"},
}

_SUBMITTED = QUEUED | {
    "attempts": 1,
    "prediction_id": "d1a5f27c9b3e4860a1c2e3f405162738",
    "settled_by": "webhook",
    "submitted_at": "2026-01-31T12:00:00.250Z",
    "finished_at": "2026-01-31T12:00:09.100Z",
    "timings": {"queued_ms": 250, "provider_ms": 8850, "inference_ms": 8421, "total_ms": 9100},
    "links": CANCELLED["links"],
}

COMPLETED: dict[str, Any] = _SUBMITTED | {
    "state": "completed",
    "outputs": [
        {
            "index": 0,
            "url": f"https://pipeline.example.com/v1/jobs/{JOB_ID}/outputs/0",
            "source_url": "https://cdn.example.com/predictions/d1a5f27c9b3e4860a1c2e3f405162738/1.png",
            "content_type": "image/png",
            "bytes": 1204817,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "width": 1024,
            "height": 1024,
            "nsfw": False,
            "review": None,
            "stored": True,
            "lost": False,
        }
    ],
    "outputs_expire_at": None,
}

FAILED: dict[str, Any] = _SUBMITTED | {
    "state": "failed",
    "error": {
        "code": "content_moderation",
        "message": "The content contains sensitive information.",
        "provider_code": 1200,
    },
}

BATCH = """\
{"input": {"prompt": "a lighthouse at dawn"}, "idempotency_key": "order-4711-dawn"}
{"input": {"prompt": "a lighthouse at dusk"}, "priority": 5, "metadata": {"order": "4711"}}
"""

STORED = {"count": 2, "ids": [JOB_ID, RETRY_ID]}

_EVENTS: list[dict[str, Any]] = [
    {"job_id": JOB_ID, "seq": 1, "at": "2026-01-31T12:00:00Z", "kind": "job.queued", "data": {}},
    {
        "job_id": JOB_ID,
        "seq": 2,
        "at": "2026-01-31T12:00:00.200Z",
        "kind": "job.submitting",
        "data": {"from": "queued", "attempt": 1},
    },
]

EVENTS = {"items": _EVENTS}

_PREDICTION = COMPLETED["prediction_id"]
_CALL_AT, _ENDED_AT = "2026-01-31T12:00:00.210Z", "2026-01-31T12:00:00.250Z"

EVIDENCE: dict[str, Any] = {
    "job": COMPLETED,
    "callback_url": "https://shop.example.com/hooks/pictures",
    "callback_task": None,
    "attempts": [
        {
            "number": 1,
            "started_at": _CALL_AT,
            "ended_at": _ENDED_AT,
            "outcome": "accepted",
            "prediction_id": _PREDICTION,
            "http_status": 200,
            "error": None,
        }
    ],
    "events": [{name: value for name, value in event.items() if name != "job_id"} for event in _EVENTS],
    "callbacks": [
        {
            "received_at": "2026-01-31T12:00:09.090Z",
            "verdict": "applied",
            "prediction_id": _PREDICTION,
            "headers": {
                "webhook-id": "evt_1",
                "webhook-timestamp": "1769860809",
                "webhook-signature": "v3,6c1e0f0a5d7b4c3e9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f0a9b8c7d6e",
            },
            "body": f'{{"id":"{_PREDICTION}","status":"completed"}}',
            "body_encoding": "utf-8",
        }
    ],
    "notifications": [
        {
            "id": "019c1412-6a4c-7a2b-9d1e-5b7c3a9f2e10",
            "event": "job.completed",
            "seq": 4,
            "audience": "service",
            "state": "delivered",
            "endpoint": "https://shop.example.com",
            "attempts": 1,
            "error": None,
            "due_at": None,
            "created_at": "2026-01-31T12:00:09.100Z",
            "ended_at": "2026-01-31T12:00:09.240Z",
            "deliveries": [
                {
                    "number": 1,
                    "at": "2026-01-31T12:00:09.240Z",
                    "target": "https://shop.example.com/hooks/pictures",
                    "request": {
                        "headers": {
                            "content-type": "application/json",
                            "webhook-id": "019c1412-6a4c-7a2b-9d1e-5b7c3a9f2e10",
                            "webhook-timestamp": "1769860809",
                            "webhook-signature": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
                        },
                        "body": '{"type":"job.completed","timestamp":"2026-01-31T12:00:09.100Z","data":{}}',
                        "truncated": False,
                    },
                    "status": 204,
                    "answer": "",
                    "duration_ms": 38,
                    "error": None,
                }
            ],
        }
    ],
    "charges": [
        {
            "prediction_id": _PREDICTION,
            "certain": True,
            "counts": True,
            "price": 0.02,
            "started_at": _CALL_AT,
            "ended_at": _ENDED_AT,
        }
    ],
    "retries": [],
}

STREAM = "retry: 1000\n\n" + "".join(
    f"id: {event['seq']}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n" for event in _EVENTS
)

DEGRADED = {
    "status": "ok",
    "degraded": [
        {"what": "sweep", "why": "last run 40 s ago; is a worker with its beat running?"},
        {"what": "outputs", "why": "the provider deletes the first that nobody has copied in 96 h"},
    ],
}

PROBLEMS: dict[type[PipelineError], PipelineError] = {
    NotAllowedNow: NotAllowedNow("The job has ended: it is completed. Only a queued job can be cancelled."),
    RateLimited: RateLimited("shop may make 600 requests a minute; see Retry-After.", retry_after_s=2.0),
    InvalidInput: InvalidInput(errors=[FieldError("input.prompt", "Is required.")]),
    PromptRefused: PromptRefused(errors=[FieldError("input.prompt", "Is refused: violence.")], categories=["violence"]),
}
"""What a problem looks like, where there is more to see than its title."""
