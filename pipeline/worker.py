"""
What runs in each worker process: the duties, their threads, the heartbeat, and an orderly end.

Celery tasks, beat and `pipeline sweep` only wake it. All it knows it reads from Postgres.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline import telemetry
from pipeline.broker import SWEEP_S
from pipeline.deployment import HEARTBEAT_POOL
from pipeline.errors import Unavailable
from pipeline.lifecycle import messages
from pipeline.lifecycle.account import Prober, SecretKeeper
from pipeline.lifecycle.admit import Admitter
from pipeline.lifecycle.archive import Archiver
from pipeline.lifecycle.catalogue import CatalogueKeeper
from pipeline.lifecycle.notify import Notifier
from pipeline.lifecycle.poll import Poller
from pipeline.lifecycle.prune import Pruner
from pipeline.lifecycle.reconcile import Reconciler
from pipeline.lifecycle.submit import Submitter
from pipeline.runtime import Runtime
from pipeline.store import workers
from pipeline.store.database import Database
from pipeline.store.tables import new_id
from pipeline.sweep import sweep, tell_settings
from pipeline.threads import Duty, Loop

log = telemetry.get(__name__)

HEARTBEAT_S = 3.0
HEARTBEAT_PATIENCE_S = 3
"""A silent connection must be noticed, and replaced, before others take this process for dead."""

UNSWEPT_S = 1.2 * SWEEP_S
"""When nobody swept for so long, beat or the broker is away, and workers sweep by themselves."""

RESTS_S = {"archive": 0.02, "notify": 0.02}
"""How long these rest between two looks: each file stored, and each job ended, wakes them."""

STOP_S = 18.0
"""How long answers are waited for at the end; the platform kills after 30 s."""

CLAIM_S = 5.0
"""How long a claim that is being made may take then; it is given back."""


class Worker:
    """One process's duties. `wake` is what a nudge comes down to."""

    def __init__(self, rt: Runtime) -> None:
        self.id = new_id()
        self.rt = replace(rt, nudge=self.wake)  # in here, who has news wakes the neighbour thread: no message
        self._loop = Loop()
        self._provider = self.rt.provider()
        self._submitter = Submitter(self.rt, self.id, self._loop, self._provider, wake=lambda: self.wake("submit"))
        self._poller = Poller(self.rt, self._loop, self._provider, wake=lambda: self.wake("poll"))
        self._outbound = self.rt.outbound()
        self._archiver = Archiver(self.rt, self.id, self._loop, self._outbound, wake=lambda: self.wake("archive"))
        self._notifier = Notifier(self.rt, self.id, self._loop, self._outbound, wake=lambda: self.wake("notify"))
        looks: dict[str, Callable[[], float | None]] = {
            "sweep": self.sweep,
            "admit": Admitter(self.rt, self._loop, self._provider).look,
            "submit": self._submitter.look,
            "poll": self._poller.look,
            "notify": self._notifier.look,
            "reconcile": Reconciler(self.rt, self.id, self._loop, self._provider).look,
            "archive": self._archiver.look,
            "probe": Prober(self.rt, self._loop, self._provider).look,
            "secrets": SecretKeeper(self.rt, self._loop, self._provider).look,
            "models": CatalogueKeeper(self.rt, self._loop, self._provider).look,
            "prune": Pruner(self.rt).look,
        }
        self._duties = {name: Duty(name, look, rest_s=RESTS_S.get(name, 0.0)) for name, look in looks.items()}
        self._heart = Duty("heartbeat", self._beat)
        url = self.rt.settings.database_url
        self._heart_db = Database(url, name="heartbeat", pool_size=HEARTBEAT_POOL, patience_s=HEARTBEAT_PATIENCE_S)
        self._told_at: float | None = None  # when beat last told this process to sweep
        self._stop = threading.Lock()
        self._stopped = False

    def start(self, pause: Callable[[float], bool | None] = time.sleep) -> None:
        """
        Say that this process lives, then begin.

        Waits for the database as long as it takes; True from *pause* (which waits so many seconds) gives up.
        """
        if not self._say_alive(pause):
            return
        for name, duty in self._duties.items():  # those of a worker stopped meanwhile end at once
            duty.start(look=name != "sweep")  # that is beat's, or the heartbeat's when there is none
        log.info("worker.started", worker_id=str(self.id))

    def hear_beat(self) -> None:
        """Sweep, as beat says; that it does is told with the next heartbeat."""
        self._told_at = time.monotonic()
        self.wake("sweep")

    def take(self, task_id: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """
        Accept a job that came as a message, or record why not, see `messages`.

        Raises:
            Unavailable: Nothing was done; the same message may be taken again.
        """
        messages.take(self.rt, task_id, args, kwargs)

    def look_once(self) -> None:
        """Sweep and do what is due, once, instead of `start`; `stop` then waits for the answers."""
        self._say_alive(time.sleep)
        for duty in self._duties.values():
            duty.look_once()
        self._submitter.finish(STOP_S)
        self._archiver.finish(STOP_S)
        self._notifier.finish(STOP_S)

    def _say_alive(self, pause: Callable[[float], bool | None]) -> bool:
        while not self._stopped:
            try:
                self._beat()
                with self.rt.db.transaction() as tx:
                    tell_settings(self.rt, tx)  # before anything completes, which may be long before the first sweep
            except Unavailable as error:
                log.warning("worker.waiting", why=error.detail)
                if pause(1.0):
                    break
            else:
                self._heart.start()
                return True
        return False

    def wake(self, *names: str) -> None:
        """Have these duties look soon."""
        for name in names:
            if name in self._duties:
                self._duties[name].wake()

    def sweep(self) -> None:
        """
        Run one sweep and wake the duties it finds work for. Never raises: the next one is near.

        Not while this process stops, for it could not do what it finds.
        """
        if self._stopped:
            return
        try:
            sweep(self.rt, self.wake)
        except Unavailable as error:
            log.warning("sweep.postponed", why=error.detail)

    def stop(self, wait_s: float = STOP_S) -> None:
        """
        End in order: no new POST, unsent claims back to the queue, wait for answers, the rest `unknown`.

        Safe to call twice, and from any thread; the second call waits for the first.
        """
        with self._stop:
            if self._stopped:
                return
            self._stopped = True
            end = time.monotonic() + wait_s
            for duty in self._duties.values():
                duty.stop()
            self._submitter.close()
            self._duties["submit"].join(min(CLAIM_S, wait_s))
            try:
                self._archiver.stop()
                self._submitter.stop(end - time.monotonic())
                self._poller.stop(end - time.monotonic())
                self._notifier.stop(end - time.monotonic())
                self._heart.stop()
                with self._heart_db.transaction() as tx:
                    workers.leave(tx, self.id)
            except Unavailable as error:
                log.warning("worker.left_silently", why=error.detail)  # the sweep will find what it held
            self._heart.stop()
            self._loop.run(self._provider.close())
            self._loop.run(self._outbound.close())
            self._loop.stop()
            self._heart_db.close()
            log.info("worker.stopped", worker_id=str(self.id))

    def _beat(self) -> float:
        with self._heart_db.transaction() as tx:
            told_s = None if self._told_at is None else time.monotonic() - self._told_at
            swept_s = workers.beat(tx, self.id, told_s=told_s)
        if swept_s is None or swept_s > UNSWEPT_S:
            self.sweep()
        return HEARTBEAT_S
