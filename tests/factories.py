"""Jobs in every state, made by the product's own statements; callbacks as the provider would send them."""

import asyncio
import hashlib
import hmac
import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, text

from pipeline.jobs import ALARMED, FINAL, IN_FLIGHT, Outcome, State
from pipeline.lifecycle.accept import accept, check
from pipeline.models import UNREAD
from pipeline.outputs import Review
from pipeline.runtime import Runtime
from pipeline.store import assets, claims, reading, reviews, workers
from pipeline.store import prices as price_list
from pipeline.store.answers import Answer, record
from pipeline.store.assets import Stored
from pipeline.store.claims import Start
from pipeline.store.moves import Move, advance
from pipeline.store.services import Service
from pipeline.store.tables import new_id
from pipeline.worker import Worker

T = TypeVar("T")

MODEL = "openai/dall-e-2"


@dataclass(frozen=True)
class Attempted:
    """A job with an attempt: what a callback for it must carry."""

    job_id: UUID
    attempt_id: UUID
    token: str
    prediction_id: str


def prediction_id() -> str:
    """An id as the provider makes them."""
    return secrets.token_hex(16)


def priced(tx: Connection, usd: str = "0.12") -> None:
    """A price that nobody has to ask for, so that jobs are admitted at once."""
    price_list.set_by_hand(tx, MODEL, Decimal(usd))


def queued(rt: Runtime, service: Service, prompt: str = "a lighthouse", **fields: Any) -> UUID:
    """A job just accepted."""
    request = check({"input": {"prompt": prompt}, **fields}, default_model=MODEL, catalogue=UNREAD)
    return accept(rt, service, request)[0]


def claimed(rt: Runtime, count: int = 1, *, worker_id: UUID | None = None) -> list[Start]:
    """Claim up to *count* due jobs for a worker that lives (a new one unless given)."""
    worker_id = worker_id or new_id()
    with rt.db.transaction() as tx:
        workers.beat(tx, worker_id)
        claim = claims.claim(
            tx, worker_id=worker_id, limits=rt.settings.limits, window_s=61.0, lease_s=90.0, at_most=count
        )
    return list(claim.starts)


def submitting(rt: Runtime, service: Service, prompt: str = "a lighthouse") -> Attempted:
    """A job whose POST is under way; the prediction id is not known yet."""
    queued(rt, service, prompt)
    (start,) = claimed(rt)
    return Attempted(start.job_id, start.attempt_id, start.token, prediction_id())


def processing(rt: Runtime, service: Service, prompt: str = "a lighthouse") -> Attempted:
    """A job the provider has accepted."""
    job = submitting(rt, service, prompt)
    answer = Answer(
        job.attempt_id,
        Outcome.ACCEPTED,
        Move(job.job_id, State.PROCESSING, attempt_id=job.attempt_id, due_s=30.0, prediction_id=job.prediction_id),
        prediction_id=job.prediction_id,
        http_status=200,
    )
    with rt.db.transaction() as tx:
        assert record(tx, [answer]) == {job.job_id}
    return job


def kept(rt: Runtime, service: Service, content: bytes = b"a picture", *, nsfw: bool = False) -> UUID:
    """A completed job with one output, of which there is a copy in our storage."""
    job = processing(rt, service)
    url = f"https://cdn.example.com/predictions/{job.prediction_id}/1.png"
    sha256 = hashlib.sha256(content).hexdigest()
    execute(rt, "UPDATE account SET archiving = true")
    with rt.db.transaction() as tx:
        advance(tx, [Move(job.job_id, State.COMPLETED, outputs=[{"url": url, "nsfw": nsfw}])])
        asset = reviews.output(tx, job.job_id, 0)
    assert asset
    key = f"{'quarantine' if asset.review == Review.QUARANTINED else 'files'}/{sha256[:2]}/{sha256}"
    assert rt.storage
    asyncio.run(rt.storage.keep(key, io.BytesIO(content), "image/png"))
    with rt.db.transaction() as tx:
        assets.settle(tx, [Stored(asset.id, job.job_id, asset.review, key, sha256, len(content), "image/png")])
    return job.job_id


def unknown(rt: Runtime, service: Service, prompt: str = "a lighthouse") -> Attempted:
    """A job whose POST was sent and whose answer was lost."""
    job = submitting(rt, service, prompt)
    move = Move(job.job_id, State.UNKNOWN, attempt_id=job.attempt_id, due_s=2.0)
    with rt.db.transaction() as tx:
        assert record(tx, [Answer(job.attempt_id, Outcome.LOST, move)]) == {job.job_id}
    return job


def placed(rt: Runtime, service: Service, at: State) -> UUID:
    """A job put straight into a state, with no more history than the schema demands."""
    job_id = new_id()
    execute(
        rt,
        """
        INSERT INTO jobs (id, service_id, model, input, state, due_at, deadline_at, current_attempt, finished_at,
                          outputs, error, last_seq, admitted)
        VALUES (:id, :service_id, :model, '{"prompt": "a lighthouse"}', :state,
                CASE WHEN :alarmed THEN clock_timestamp() + interval '1 minute' END,
                clock_timestamp() + interval '1 hour', CAST(:attempt AS uuid),
                CASE WHEN :final THEN clock_timestamp() END, '[]', '{}', 7, true)
        """,
        id=job_id,
        service_id=service.id,
        model=MODEL,
        state=at,
        alarmed=at in ALARMED,
        final=at in FINAL,
        attempt=str(new_id()) if at in IN_FLIGHT else None,
    )
    return job_id


def prediction(job: Attempted, status: str = "completed", **fields: Any) -> dict[str, Any]:
    """The body of a callback, decoded."""
    done = status == "completed"
    return {
        "id": job.prediction_id,
        "model": MODEL,
        "outputs": [f"https://cdn.example.com/predictions/{job.prediction_id}/1.png"] if done else [],
        "urls": {"get": f"https://api.wavespeed.ai/api/v3/predictions/{job.prediction_id}/result"},
        "has_nsfw_contents": [False] if done else [],
        "status": status,
        "created_at": "2026-01-15T10:00:00.123456789Z",
        "error": "" if done else "The content contains sensitive information.",
        **({} if done else {"code": 1200}),
        "executionTime": 8421,
        "timings": {"inference": 8421},
        **fields,
    }


def encoded(body: Mapping[str, Any]) -> bytes:
    """Compact JSON, as the provider sends it."""
    return json.dumps(body, separators=(",", ":")).encode()


def signed(secret: str, body: bytes, *, at: int | None = None, webhook_id: str = "evt_1") -> dict[str, str]:
    """The signature headers of a delivery, written from the provider's documentation and not with our code."""
    at = int(time.time()) if at is None else at
    key = secret.removeprefix("whsec_").encode()
    digest = hmac.new(key, f"{webhook_id}.{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {"webhook-id": webhook_id, "webhook-timestamp": str(at), "webhook-signature": f"v3,{digest}"}


def row(rt: Runtime, job_id: UUID) -> Any:
    """A job as it is now."""
    with rt.db.transaction() as tx:
        return reading.job(tx, job_id)


def state(rt: Runtime, job_id: UUID) -> str:
    """The state a job is in now; no more of it, since this is asked until it is another."""
    return str(scalar(rt, "SELECT state FROM jobs WHERE id = :id", id=job_id))


def kinds(rt: Runtime, job_id: UUID) -> list[str]:
    """What happened to a job, in order."""
    with rt.db.transaction() as tx:
        return [event.kind for event in reading.events(tx, job_id)]


def turns(rt: Runtime, job_id: UUID) -> list[str]:
    """What happened to a job itself, in order; its outputs left out, which are archived at their own time."""
    return [kind for kind in kinds(rt, job_id) if kind.startswith("job.")]


def attempts(rt: Runtime, job_id: UUID) -> list[Any]:
    """A job's attempts, first to last."""
    with rt.db.transaction() as tx:
        return list(reading.attempts(tx, job_id))


def scalar(rt: Runtime, sql: str, **parameters: Any) -> Any:
    """One value from the database."""
    with rt.db.transaction() as tx:
        return tx.execute(text(sql), parameters).scalar()


def execute(rt: Runtime, sql: str, **parameters: Any) -> None:
    """Change the database behind the product's back: to move rows in time, not clocks."""
    with rt.db.transaction() as tx:
        tx.execute(text(sql), parameters)


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """
    Wait for a condition and give its value; fail when it does not come true in time.

    What takes longer is asked for less often: asking takes from what is waited for.
    """
    end = time.monotonic() + timeout_s
    pause_s = 0.01
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.25, 0.1)


def swept(worker: Worker, condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for a condition while somebody sweeps, as beat does, only more often."""

    def look() -> Any:
        value = condition()
        if not value:
            worker.sweep()
        return value

    return until(look, timeout_s)


def account(rt: Runtime) -> Any:
    """The account's row as it is now."""
    with rt.db.transaction() as tx:
        return tx.execute(text("SELECT * FROM account")).one()


def happened(rt: Runtime, job_id: UUID, kind: str) -> list[Any]:
    """The data of a job's events of one kind, in order."""
    with rt.db.transaction() as tx:
        return [event.data for event in reading.events(tx, job_id) if event.kind == kind]


def at_once(work: Callable[[int], T], count: int) -> list[T]:
    """Do *work(0)*, *work(1)*, … in threads that begin in the same moment; give what each returned, or raise."""
    gate = threading.Barrier(count)

    def one(number: int) -> T:
        gate.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))


def expired_at(rt: Runtime, job_id: UUID, when: str) -> None:
    """Move a job's deadline to *when*, as Postgres reads it ('now', '1 hour ago'), and let its alarm go off."""
    execute(
        rt,
        "UPDATE jobs SET deadline_at = clock_timestamp() - CAST(:ago AS interval), due_at = clock_timestamp()"
        " WHERE id = :id",
        id=job_id,
        ago="0 s" if when == "now" else when.removesuffix(" ago"),
    )
