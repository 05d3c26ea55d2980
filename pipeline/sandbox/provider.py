"""The provider behind its routes: tasks that run and end, the ledger, the balance, the limits, the secret."""

import asyncio
import base64
import random
import secrets
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.sandbox.catalogue import Model
from pipeline.sandbox.faults import Fate, Faults
from pipeline.sandbox.limits import SlidingWindow
from pipeline.sandbox.tasks import FINAL, MODERATION, NO_PROMPT, Task
from pipeline.sandbox.webhooks import Courier
from pipeline.sandbox.wire import NANOSECONDS, Refusal


def new_secret() -> str:
    """A webhook secret in the documented form: `whsec_` and the base64 of 32 bytes."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


class Provider:
    """All state of one sandbox. It lives in one event loop, so that nothing here needs a lock."""

    def __init__(self, *, faults: Faults, secret: str | None, balance: float) -> None:
        """The values that `reset` returns to."""
        self._initial = (faults, secret or new_secret(), balance)
        self._pending: set[asyncio.TimerHandle] = set()
        self.courier = Courier(faults_of=self.faults_of, secret=lambda: self.secret)
        self._begin()

    def _begin(self) -> None:
        self.faults, self.secret, self._credit = self._initial
        self._tasks: dict[str, Task] = {}
        self.ledger: list[Task] = []
        self._waiting: deque[Task] = deque()
        self._running = 0
        self.max_running = 0
        self._window = SlidingWindow()
        self.arrivals = array("d")
        self.calls: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._reseed()

    async def reset(self) -> None:
        """Forget everything that happened since the start."""
        for timer in self._pending:
            timer.cancel()
        self._pending.clear()
        for task in self.ledger:
            task.wake()
        self._begin()
        await self.courier.forget()  # last: whatever arrives during this wait belongs to the new start

    async def close(self) -> None:
        """Forget everything, and let the connections go."""
        await self.reset()
        await self.courier.close()

    # Faults

    def change_faults(self, changes: Mapping[str, object]) -> None:
        """Turn the dial; a seed among the changes starts the throws anew. Raises BadFault."""
        self.faults = self.faults.merged(changes)
        if "seed" in changes:
            self._reseed()
        self._start_waiting()

    def _reseed(self) -> None:
        self._seed = secrets.randbits(32) if self.faults.seed is None else self.faults.seed
        self._seen: Counter[int] = Counter()
        self._dice = random.Random(self._seed)  # noqa: S311 - faults, not secrets

    def fate(self, faults: Faults, prompt: object) -> Fate:
        """
        What befalls a task with this *prompt*.

        Drawn from the seed, the prompt and how often it was seen: concurrent submits arrive in any order.
        """
        self._seen[hash(str(prompt))] += 1
        nth = self._seen[hash(str(prompt))]
        return faults.roll(random.Random(f"{self._seed} {nth} {prompt}".encode("utf-8", "replace")))  # noqa: S311

    def hit(self, share: float) -> bool:
        """Whether a fault that befalls no task, but a call or a download, does so now."""
        return self._dice.random() < share

    def draw(self, span: tuple[float, float]) -> float:
        """Seconds, for whatever belongs to no task."""
        return self._dice.uniform(*span)

    def faults_of(self, task: Task) -> Faults:
        """The dial as it is now, with what the task's own prompt says."""
        return self.faults.merged(task.own_faults) if task.own_faults else self.faults

    # Tasks

    def create(
        self,
        model: Model,
        given: Mapping[str, Any],
        *,
        base: str,
        webhook: str | None,
        own_faults: Mapping[str, object],
        faults: Faults,
        fate: Fate,
        key_id: str,
    ) -> Task:
        """
        Accept, charge and start a task.

        Raises:
            Refusal: No credit, or a limit is reached.
        """
        price = model.price(given)
        if self.balance(faults) < price:
            status = 402 if faults.credit_402 else 400
            raise Refusal(status, "Insufficient credits. Please top up your account to continue.")
        now = asyncio.get_running_loop().time()
        may_start = self._admit(model, faults, now)
        task = Task(
            id=random.randbytes(16).hex(),  # noqa: S311 - need not be hard to guess
            model=model,
            input=given,
            base=base,
            webhook=webhook,
            price=price,
            created_ns=time.time_ns(),
            fate=fate,
            own_faults=own_faults,
            first_status=faults.first_status,
            key_id=key_id,
        )
        task.finished = asyncio.Event() if task.is_sync else None
        task.announced = asyncio.Event() if fate.webhook_early else None
        self._window.add(model.kind, now=now)
        self._tasks[task.id] = task
        self.ledger.append(task)
        self._credit -= price
        if may_start:
            self._start(task)
        else:
            self._waiting.append(task)
        return task

    def _admit(self, model: Model, faults: Faults, now: float) -> bool:
        limits = faults.allowance()
        refusal = Refusal(429, "You have reached your concurrency limit", headers=retry_after(faults))
        if limits.per_window is not None and not self._window.has_room(
            model.kind, limits.per_window, now=now, length_s=faults.level_window_s
        ):
            raise refusal
        if limits.concurrent is None or self._running < limits.concurrent:
            return True
        if faults.queue_instead_of_429:
            return False
        raise refusal

    def _start(self, task: Task) -> None:
        task.status = "processing"
        loop = asyncio.get_running_loop()
        task.started = loop.time()
        self._running += 1
        self.max_running = max(self.max_running, self._running)
        self._later(task.fate.generation_s, task)

    def _later(self, delay_s: float, task: Task) -> None:
        def end() -> None:
            self._pending.discard(timer)
            self._finish(task)

        timer = asyncio.get_running_loop().call_later(delay_s, end)
        self._pending.add(timer)

    def _finish(self, task: Task) -> None:
        faults = self.faults_of(task)
        task.status = faults.ends_as
        if not task.prompt:
            task.status, (task.code, task.error) = "failed", NO_PROMPT
        elif task.fate.fail or task.status == "failed":
            task.status, (task.code, task.error) = "failed", MODERATION
        elif task.status != "completed":
            task.error = f"The task was {task.status}." if task.status != "timeout" else "The task timed out."
        if task.status != "completed":
            self._credit += task.price
        task.took_ms = round((asyncio.get_running_loop().time() - task.started) * 1000)
        if task.finished is not None:
            task.finished.set()
        self._running -= 1
        self._start_waiting()
        told = task.status in {"completed", "failed"} or faults.webhook_cancelled
        if task.webhook and told:
            self.courier.announce(task)
        else:
            task.wake()

    def _start_waiting(self) -> None:
        limit = self.faults.allowance().concurrent
        while self._waiting and (limit is None or self._running < limit):
            self._start(self._waiting.popleft())

    def find(self, task_id: str) -> Task:
        """
        A task by its id.

        Raises:
            Refusal: 404, it never was, was deleted, or is past its retention.
        """
        task = self._tasks.get(task_id)
        if task is None or (self._purged(task) and not self.faults.purged_as_deleted):
            raise Refusal(404, "Task not found")
        if self._purged(task):
            task.status = "deleted"
        return task

    def _purged(self, task: Task) -> bool:
        return task.status in FINAL and time.time_ns() - task.created_ns >= self.faults.retention_s * NANOSECONDS

    def listed(self, after_ns: int | None = None) -> Iterator[Task]:
        """The tasks that a list shows by now, newest first, back to *after_ns*."""
        now = time.time_ns()
        for task in reversed(self._tasks.values()):
            if after_ns is not None and task.created_ns < after_ns:
                return
            if now - task.created_ns >= task.fate.list_lag_s * NANOSECONDS and not self._purged(task):
                yield task

    def delete(self, task_id: str) -> bool:
        """Whether there was anything to delete. A running task runs on, and is told of: there is no cancel."""
        return self._tasks.pop(task_id, None) is not None

    # Money

    def balance(self, faults: Faults | None = None) -> float:
        """Dollars left; none while the fault `no_credit` is set."""
        return 0.0 if (faults or self.faults).no_credit else round(self._credit, 6)

    def set_balance(self, dollars: float) -> None:
        """As after a top-up."""
        self._credit = dollars

    def rotate_secret(self) -> str:
        """A new webhook secret; deliveries from now on, retries included, are signed with it."""
        self.secret = new_secret()
        return self.secret

    def activity(self) -> dict[str, object]:
        """What arrived: every submit whatever its answer, and the calls by kind, refused ones apart."""
        return {
            "count": len(self.arrivals),
            "at": self.arrivals.tolist(),
            "running": self._running,
            "max_running": self.max_running,
            "calls": dict(self.calls),
            "refused": dict(self.refused),
        }


def retry_after(faults: Faults) -> dict[str, str] | None:
    """The header of a 429: none by default, since the provider documents none."""
    return None if faults.retry_after_s is None else {"Retry-After": f"{faults.retry_after_s:g}"}
