"""The callers: they hand in jobs all along, try again with the same key when they must, and remember every answer."""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.http import post

THREADS = 16
TIMEOUT_S = 12.0
IMPATIENT = 0.02
"""The share of callers that never ask again after a lost answer."""

NERVOUS = 0.05
"""The share of callers that hand in the same once more, though they were answered."""


@dataclass
class Order:
    """One job as its caller knows it."""

    number: int
    key: str
    prompt: str
    ids: set[str] = field(default_factory=set)  # every id an answer named: one, if promises are kept
    refusals: list[int] = field(default_factory=list)  # answers that no caller should get

    @property
    def accepted(self) -> bool:
        """Whether the caller was told so."""
        return bool(self.ids)


class Clients:
    """A crowd of callers that hands in *count* jobs, evenly over *seconds*."""

    def __init__(self, url: str, api_key: str, *, count: int, seconds: float, seed: str) -> None:
        self._url = f"{url}/v1/jobs"
        self._api_key = api_key
        self._seconds = seconds
        self._seed = seed
        self.orders = [Order(n, f"chaos-{seed}-{n}", f"a lighthouse, {seed}, number {n}") for n in range(count)]
        self.answers: Counter[int] = Counter()  # by HTTP status; 0 is none
        self._next = iter(self.orders)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, name="client", daemon=True) for _ in range(THREADS)]

    def start(self) -> None:
        """Begin."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def busy(self) -> bool:
        """Whether somebody still has something to hand in, or waits for an answer."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def accepted(self) -> int:
        """How many jobs were accepted so far."""
        return sum(order.accepted for order in self.orders)

    def stop(self) -> None:
        """Give up what is not handed in yet."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(2 * TIMEOUT_S)

    def _work(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                order = next(self._next, None)
            if order is None:
                return
            due = self._began + order.number * self._seconds / len(self.orders)
            if not self._stopping.wait(max(0.0, due - time.monotonic())):
                self._hand_in(order, random.Random(f"{self._seed} client {order.number}"))

    def _hand_in(self, order: Order, dice: random.Random) -> None:
        impatient, nervous = dice.random() < IMPATIENT, dice.random() < NERVOUS
        while not self._stopping.is_set():
            self._ask(order)
            if order.accepted or order.refusals or impatient:
                break
            self._stopping.wait(dice.uniform(0.2, 1.0))
        if order.accepted and nervous:
            self._ask(order)

    def _ask(self, order: Order) -> None:
        body = {"input": {"prompt": order.prompt}, "metadata": {"number": str(order.number)}}
        headers = {"Idempotency-Key": order.key}
        answer = post(self._url, body, headers, key=self._api_key, timeout_s=TIMEOUT_S)
        with self._lock:
            self.answers[answer.status] += 1
        if answer.status in {200, 201}:
            order.ids.add(answer.json["id"])
        elif answer.status not in {0, 503}:
            order.refusals.append(answer.status)
