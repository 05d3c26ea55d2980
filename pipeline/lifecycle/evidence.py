"""Evidence: everything that is known of one job, in one value: to settle a dispute, or to understand what happened."""

import base64
from typing import Any
from uuid import UUID

from pipeline import views
from pipeline.errors import UnknownJob
from pipeline.outputs import HIDDEN
from pipeline.runtime import Runtime
from pipeline.store import deliveries, ledger, reading
from pipeline.store.ledger import Paid
from pipeline.store.outbox import Audience
from pipeline.store.services import Service


def of_job(rt: Runtime, service: Service, job_id: UUID) -> dict[str, Any]:
    """
    A job with its attempts, history, callbacks, notifications, charges and retries, as JSON.

    A callback's body is as it came, byte for byte, beside the headers that its signature needs: whoever knows the
    provider's secret can check it. Callers do not see those of a job with an output under quarantine: they name its
    address. The secret tokens of attempts are no part of it. Each notification has every try to deliver
    it, with what was sent and what was answered.

    Raises:
        UnknownJob: There is no such job that *service* may see.
    """
    with rt.db.transaction() as tx:
        row = reading.job(tx, job_id, service_id=None if service.operator else service.id)
        if row is None:
            raise UnknownJob
        withheld = not service.operator and any(one["review"] in HIDDEN for one in row.assets or ())
        attempts = [views.attempt(one) for one in reading.attempts(tx, job_id)]
        events = [views.event(one) for one in reading.events(tx, job_id)]
        callbacks = [_callback(one, withheld=withheld) for one in reading.callbacks(tx, job_id)]
        planned = [  # where operators are told is no business of a caller's
            one for one in reading.notifications(tx, job_id) if service.operator or one.audience == Audience.SERVICE
        ]
        tries = deliveries.of(tx, [one.id for one in planned])
        charges = [_charge(one) for one in ledger.of_job(tx, job_id)]
    return {
        "job": views.job(row, rt.settings.public_url),
        "callback_url": row.callback_url,
        "callback_task": row.callback_task,
        "attempts": attempts,
        "events": events,
        "callbacks": callbacks,
        "notifications": [views.notification(one, tries[one.id], withheld=withheld) for one in planned],
        "charges": charges,
        "retries": [event["data"]["retry"] for event in events if event["kind"] == "job.retried"],
    }


def _callback(row: Any, *, withheld: bool) -> dict[str, Any]:
    body: bytes = row.body
    try:
        said = {"body": body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        said = {"body": base64.b64encode(body).decode(), "body_encoding": "base64"}
    if withheld:
        said = {"body": "", "body_encoding": "withheld"}
    return {
        "received_at": views.time(row.received_at),
        "verdict": row.verdict,
        "prediction_id": row.prediction_id,
        "headers": row.headers,
        **said,
    }


def _charge(paid: Paid) -> dict[str, Any]:
    """One POST that was paid, or may have been: then its task's id is not known."""
    return {
        "prediction_id": paid.prediction_id,
        "certain": paid.prediction_id is not None,
        "counts": paid.counts,
        "price": None if paid.price is None else float(paid.price),
        "started_at": views.time(paid.started_at),
        "ended_at": views.time(paid.ended_at),
    }
