"""
Jobs go by as they do in life, by the product's own statements: handed in, claimed, answered, heard of, stored, told of.

Nobody is asked or told over a network: what the provider and a receiver would have answered is made up here.
"""

import json
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import count
from uuid import UUID

import psycopg

from pipeline import sweep
from pipeline.jobs import Outcome, State
from pipeline.lifecycle.notify import BATCH as NOTICES
from pipeline.lifecycle.notify import JITTER, LEASE_S, PROBE_S, SCHEDULE_S
from pipeline.predictions import parse
from pipeline.runtime import Runtime
from pipeline.settings import Limits
from pipeline.store import answers, assets, claims, inbox, intake, notifications, prices, workers
from pipeline.store.claims import Start
from pipeline.store.database import Transaction
from pipeline.store.inbox import Delivery
from pipeline.store.moves import Move
from pipeline.store.tables import Verdict, new_id

MODEL = "openai/dall-e-2"
LIMITS = Limits(10_000_000, 10_000_000)
"""The account allows anything: what is measured is what claims cost, and not what they may not take."""

HEADERS = {
    "webhook-id": "msg_2b8f0a",
    "webhook-timestamp": "1767225600",
    "webhook-signature": f"v3,{'0' * 64}",
    "content-type": "application/json",
}


@contextmanager
def snapshot(url: str, *, held: bool = True) -> Iterator[None]:
    """Hold a snapshot, as an idle REPEATABLE READ transaction does that has read something; or none."""
    with psycopg.connect(url) as connection:
        if held:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT id FROM pipeline.jobs LIMIT 1")
        yield


@contextmanager
def timed(took_ms: list[float]) -> Iterator[None]:
    """Note how long it takes, in milliseconds."""
    began = time.perf_counter()
    yield
    took_ms.append((time.perf_counter() - began) * 1000)


class Life:
    """One worker's, one receiver's and some callers' part in it, step by step."""

    def __init__(self, rt: Runtime, service_ids: Sequence[UUID]) -> None:
        self._rt = rt
        self._services = service_ids
        self._numbers = count(1)
        self.worker_id = new_id()
        self._flying: deque[Start] = deque()  # at the provider, the oldest first
        with rt.db.transaction() as tx:
            prices.set_by_hand(tx, MODEL, Decimal("0.02"))  # so that jobs are admitted at once
            workers.beat(tx, self.worker_id)

    def hand_in(self, jobs: int) -> None:
        """Hand in so many jobs, of all services in turn."""
        new = []
        for number in (next(self._numbers) for _ in range(jobs)):
            service_id = self._services[0 if number % 10 < 6 else number // 10 % len(self._services)]
            metadata = {"env": "production", "order": secrets.token_hex(4), "customer": str(number % 5000)}
            prompt = {"prompt": f"a lighthouse {number}{' by the sea' * 10}"}
            new.append(intake.NewJob(service_id, MODEL, prompt, 86_400.0, metadata=metadata))
        with self._rt.db.transaction() as tx:
            intake.add(tx, new)

    def claim(self, at_most: int) -> Sequence[Start]:
        """Claim some."""
        with self._rt.db.transaction() as tx:
            return claims.claim(
                tx, worker_id=self.worker_id, limits=LIMITS, window_s=60.1, lease_s=90.0, at_most=at_most
            ).starts

    def answer(self, starts: Sequence[Start]) -> None:
        """The provider has taken these."""
        with self._rt.db.transaction() as tx:
            answers.record(tx, [_accepted(start) for start in starts])
        self._flying.extend(starts)

    def hear(self, jobs: int = 1) -> None:
        """The callbacks of so many come, of those that are longest at the provider, all in one transaction."""
        with self._rt.db.transaction() as tx:
            for _ in range(min(jobs, len(self._flying))):
                _hear(tx, self._flying.popleft())

    def store(self) -> None:
        """Store the outputs that are due."""
        with self._rt.db.transaction() as tx:
            while claimed := assets.claim(tx, worker_id=self.worker_id, at_most=100, lease_s=90.0):
                assets.settle(tx, [_stored(one) for one in claimed])

    def tell(self) -> None:
        """Tell the callers who are to be told."""
        with self._rt.db.transaction() as tx:
            told = notifications.claim(
                tx,
                worker_id=self.worker_id,
                at_most=NOTICES,
                room=NOTICES,
                rooms={},
                lease_s=LEASE_S,
                probe_s=PROBE_S,
                operator_url=None,
            )
            tried = [_told(one) for one in told.messages]
            notifications.record(tx, tried, worker_id=self.worker_id, schedule=SCHEDULE_S, jitter=JITTER)

    def go_by(self, jobs: int, *, at_once: int = 100) -> None:
        """So many jobs come and so many end, while as many as before are queued and at the provider."""
        for first in range(0, jobs, at_once):
            some = min(at_once, jobs - first)
            self.hand_in(some)
            self.answer(self.claim(some))
            self.hear(some)
            self.store()
            self.tell()
            if first // at_once % 4 == 0:  # at the provider's top speed, that is every 5 s
                with self._rt.db.transaction() as tx:
                    workers.beat(tx, self.worker_id)
                sweep.sweep(self._rt, lambda *_: None)


def _hear(tx: Transaction, start: Start) -> None:
    body = {
        "id": start.token,
        "model": start.model,
        "status": "completed",
        "outputs": [f"https://cdn.example/predictions/{start.token}/1.png"],
        "has_nsfw_contents": [False],
        "created_at": "2026-01-01T00:00:00Z",
        "error": "",
        "executionTime": 9876,
        "timings": {"inference": 9876},
    }
    heard = inbox.hear(tx, Delivery(start.token, HEADERS, json.dumps(body).encode()), parse(body), poll_s=30.0)
    assert heard.verdict == Verdict.APPLIED, heard


def _accepted(start: Start) -> answers.Answer:
    data = {"attempt": start.number, "prediction_id": start.token}
    move = Move(
        start.job_id,
        State.PROCESSING,
        attempt_id=start.attempt_id,
        due_s=30.0,
        prediction_id=start.token,
        data=data,
    )
    return answers.Answer(start.attempt_id, Outcome.ACCEPTED, move, prediction_id=start.token, http_status=200)


def _stored(one: assets.Claimed) -> assets.Stored:
    sha256 = secrets.token_hex(32)
    return assets.Stored(one.id, one.job_id, one.review, f"files/{sha256}", sha256, 123456, "image/png", 512, 512)


def _told(one: notifications.Message) -> notifications.Tried:
    request = {"headers": HEADERS, "body": json.dumps({"type": one.event, "data": {"id": str(one.job_id)}})}
    return notifications.Tried(one, str(one.url), request=request, status=204, answer="", duration_ms=12)
