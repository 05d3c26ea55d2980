"""
Nudges: wake-up calls over the broker. One may be lost, doubled, late or forged, and nothing changes but latency.

They leave from one daemon thread, so that a dead or silent broker never delays a request.
"""

import contextlib
import threading
import time
from typing import Any

from celery import Celery

from pipeline import telemetry
from pipeline.broker import QUEUE, impatient

log = telemetry.get(__name__)

COALESCE_S = 0.01
"""How long the calls after a message are gathered for the next one, while there are few."""

CROWDED_S = 0.1
"""The same while there are many: a message costs both sides more than a job's own row does."""

FEW, MANY = 60.0, 120.0
"""Calls a second, on average over RECENT_S: up to the one they wait for COALESCE_S, from the other on for CROWDED_S."""

RECENT_S = 0.5

FAILING_FOR_S = 30.0
"""How long one failure says something of the broker: on a quiet night no later nudge tells that it is back."""

SOCKET_TIMEOUT_S = 1.0


class Nudger:
    """
    Sends the first call's message at once, then at most one per kind in COALESCE_S, under load in CROWDED_S.

    Whatever cannot be sent within *timeout_s* is dropped.
    """

    def __init__(self, celery: Celery, broker_url: str, *, timeout_s: float = SOCKET_TIMEOUT_S) -> None:
        self._celery = celery
        self._url = broker_url
        self._timeout_s = timeout_s
        self._pending: set[str] = set()
        self._calls = 0
        self._woken = threading.Event()
        self._lock = threading.Condition()
        self._sending = False
        self._thread: threading.Thread | None = None
        self._producer: Any = None
        self._failed_at: float | None = None

    def __call__(self, *kinds: str) -> None:
        """Ask some worker to look: `nudge("submit")`. Returns at once, and never raises."""
        with self._lock:
            self._pending.update(kinds)
            self._calls += 1
            if self._thread is None:  # started by the first nudge, so after any fork
                self._thread = threading.Thread(target=self._run, name="nudges", daemon=True)
                self._thread.start()
        self._woken.set()

    def flush(self, wait_s: float) -> None:
        """Wait up to *wait_s* seconds until all have left, or are lost: for a process that is about to end."""
        with self._lock:
            self._lock.wait_for(lambda: not self._pending and not self._sending, wait_s)

    @property
    def failing(self) -> bool:
        """Whether a nudge could not be sent just now: the broker is away, and jobs wait for the next sweep."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < FAILING_FOR_S

    def _run(self) -> None:
        crowd = Crowd()
        while True:
            self._woken.wait()
            self._woken.clear()  # before looking: what comes from now on gets a message of its own
            with self._lock:
                kinds, self._pending = self._pending, set()
                calls, self._calls = self._calls, 0
                self._sending = True
            try:
                for kind in sorted(kinds):
                    self._send(kind)
                if kinds:  # none: the call whose message left was still waking us
                    self._failed_at = None
            except Exception as error:  # whatever a broker library raises, a lost nudge is no fault
                if not self.failing:
                    log.warning("nudge.dropped", kinds=sorted(kinds), why=type(error).__name__)
                self._failed_at = time.monotonic()
                self._drop_connection()
            with self._lock:
                self._sending = False
                self._lock.notify_all()
            time.sleep(crowd.pause_s(calls, now=time.monotonic()))

    def _send(self, kind: str) -> None:
        if self._producer is None:
            self._producer = self._celery.amqp.Producer(impatient(self._url, self._timeout_s), auto_declare=False)
        self._celery.send_task(
            f"pipeline.{kind}", queue=QUEUE, producer=self._producer, retry=False, ignore_result=True, expires=60
        )

    def _drop_connection(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(Exception):
                producer.connection.release()


class Crowd:
    """How many calls there are of late, and so how long they are gathered. *now* is a clock that never goes back."""

    def __init__(self) -> None:
        self._a_second = 0.0
        self._at = float("-inf")

    def pause_s(self, calls: int, *, now: float) -> float:
        """Count *calls* that have come since the last time, and say how long to gather the next ones."""
        passed_s = min(now - self._at, RECENT_S)
        self._at = now
        if passed_s > 0:
            self._a_second += (calls / passed_s - self._a_second) * passed_s / RECENT_S
        share = min(max((self._a_second - FEW) / (MANY - FEW), 0.0), 1.0)
        return COALESCE_S + share * (CROWDED_S - COALESCE_S)
