"""Webhooks: signed, tried up to four times, logged, and sent wrongly when the faults say so."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from pipeline.sandbox.faults import Faults
from pipeline.sandbox.tasks import Task
from pipeline.sandbox.wire import Refusal, encode
from pipeline.signatures import TOLERANCE_S, sign

BACKOFF = (1, 2, 4)  # times the base delay: the three retries after the first try
LOG_LENGTH = 100_000
FORGERS_SECRET = "whsec_Zm9yZ2VkIGZvcmdlZCBmb3JnZWQgZm9yZ2VkIGZvcmc="  # noqa: S105 - wrong on purpose


@dataclass(slots=True)
class Delivery:
    """
    One message to one receiver, with every try of it.

    The body is written anew from the task whenever it is wanted: an ended task does not change, and
    a hundred thousand bodies would be a lot to keep.
    """

    id: str
    task: Task
    kind: str  # true, duplicate, stale, forged or resent
    timestamp: int
    after_s: float = 0.0  # a copy that comes later than the first
    state: str = "pending"  # then delivered, failed or dropped
    signature: str = ""
    tries: list[dict[str, object]] = field(default_factory=list)

    def body(self, *, with_input: bool) -> bytes:
        """The bare prediction. A forgery claims the contrary of what is true."""
        prediction = self.task.prediction(with_input=with_input)
        if self.kind == "forged" and self.task.status == "completed":
            prediction |= {"status": "failed", "outputs": [], "has_nsfw_contents": [], "error": "forged"}
        elif self.kind == "forged":
            prediction |= {"status": "completed", "outputs": ["https://forged.invalid/1.png"], "error": ""}
        return encode(prediction)

    def row(self) -> dict[str, object]:
        """Its line in the log."""
        return {
            "id": self.id,
            "prediction_id": self.task.id,
            "url": self.task.webhook,
            "kind": self.kind,
            "state": self.state,
            "webhook_id": self.task.id,
            "timestamp": self.timestamp,
            "signature": self.signature,
            "tries": self.tries,
        }


class Courier:
    """Sends webhooks concurrently and keeps the log of the last LOG_LENGTH deliveries."""

    def __init__(self, *, faults_of: Callable[[Task], Faults], secret: Callable[[], str]) -> None:
        """Both are asked anew for every try. The first try opens the session, within the running loop."""
        self._faults_of = faults_of
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._log: deque[Delivery] = deque(maxlen=LOG_LENGTH)
        self._number = 0

    def announce(self, task: Task) -> None:
        """Tell the task's receiver how it ended, in the background."""
        job = asyncio.create_task(self._announce(task))
        self._under_way.add(job)
        job.add_done_callback(self._under_way.discard)

    async def _announce(self, task: Task) -> None:
        fate = task.fate
        event_time = int(time.time())  # before any delay: it is the event that is stamped
        if fate.webhook_delay_s:
            await asyncio.sleep(fate.webhook_delay_s)
        if fate.webhook_drop:
            self._open(task, "true", event_time).state = "dropped"
            task.wake()
            return
        if fate.webhook_stale:
            first = self._open(task, "stale", event_time - TOLERANCE_S - 60)
        else:
            first = self._open(task, "true", event_time)
        deliveries = [first]
        if fate.webhook_duplicate:
            copies = fate.spread_s[: fate.copies - 1]
            deliveries += [self._open(task, "duplicate", first.timestamp, after_s=after_s) for after_s in copies]
        if fate.webhook_forge:
            deliveries.insert(0, self._open(task, "forged", event_time))  # first, so that a gullible receiver falls
        await asyncio.gather(*(self._try(delivery) for delivery in deliveries if not delivery.after_s))
        task.wake()
        await asyncio.gather(*(self._retry(delivery) for delivery in deliveries))

    async def resend(self, delivery_id: str) -> Delivery:
        """
        One more try of a delivery, dropped or delivered, as a delivery of its own with a timestamp of now.

        Raises:
            Refusal: 404, the log has no such delivery.
        """
        delivery = self._open(self.find(delivery_id).task, "resent", int(time.time()))
        await self._try(delivery)
        if delivery.state == "pending":
            delivery.state = "failed"
        return delivery

    def find(self, delivery_id: str) -> Delivery:
        """A delivery by its id. Raises Refusal (404)."""
        for delivery in self._log:
            if delivery.id == delivery_id:
                return delivery
        raise Refusal(404, "Delivery not found")

    def log(self, prediction_id: str | None = None) -> list[dict[str, object]]:
        """The deliveries, oldest first: all, or those of one task."""
        return [entry.row() for entry in self._log if prediction_id in (None, entry.task.id)]

    async def forget(self) -> None:
        """Stop what is under way and empty the log."""
        self._log.clear()
        self._number = 0
        stopped = list(self._under_way)
        for job in stopped:
            job.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)

    async def close(self) -> None:
        """Let the connections go."""
        if self._session is not None:
            await self._session.close()

    def _open(self, task: Task, kind: str, timestamp: int, *, after_s: float = 0.0) -> Delivery:
        self._number += 1
        delivery = Delivery(str(self._number), task, kind, timestamp, after_s)
        self._log.append(delivery)
        return delivery

    async def _retry(self, delivery: Delivery) -> None:
        faults = self._faults_of(delivery.task)
        if delivery.after_s:
            await asyncio.sleep(delivery.after_s)
            await self._try(delivery)
        for factor in () if delivery.kind == "forged" else BACKOFF:  # a forger knocks once
            if delivery.state == "delivered":
                return
            await asyncio.sleep(factor * faults.webhook_retry_s)
            if faults.webhook_renew_timestamp:
                delivery.timestamp = int(time.time())
            await self._try(delivery)
        if delivery.state == "pending":
            delivery.state = "failed"

    async def _try(self, delivery: Delivery) -> None:
        faults = self._faults_of(delivery.task)
        body = delivery.body(with_input=faults.webhook_input)
        secret = FORGERS_SECRET if delivery.kind == "forged" else self._secret()
        delivery.signature = sign(secret, delivery.task.id, delivery.timestamp, body)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.task.id,
            "webhook-timestamp": str(delivery.timestamp),
            "webhook-signature": delivery.signature,
        }
        outcome: dict[str, object] = {"at": time.time(), "status": None, "answer": "", "error": None}
        delivery.tries.append(outcome)
        try:
            async with (
                asyncio.timeout(faults.webhook_timeout_s),
                self._open_session().post(
                    URL(delivery.task.webhook or "", encoded=True),  # as it was given: a token must not be re-quoted
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                ) as answer,
            ):
                outcome["status"] = answer.status
                outcome["answer"] = (await answer.content.read(500)).decode("utf-8", "replace")
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            outcome["error"] = type(error).__name__
        else:
            if 200 <= answer.status < 300:
                delivery.state = "delivered"

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=256, keepalive_timeout=30),
                timeout=aiohttp.ClientTimeout(total=None),  # each try brings its own
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session
