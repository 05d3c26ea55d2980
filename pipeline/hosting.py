"""
Our worker inside Celery's processes: built in the right ones, stopped by SIGTERM, and gone in time.

The platform sends SIGTERM to all processes at once and SIGKILL 30 s later. What Celery 5.7 and billiard 4.3 make of
that, by their sources, and what is done about it here:

* The parent's handler only sets a flag, which its loop sees when it wakes; then it closes its connections, and waits
  for a broker that says nothing for as long as that takes. So our work stops in a thread of ours, at once, and the
  process leaves at LEAVE_S whatever Celery waits for.
* A pool child gets billiard's own handler after `worker_process_init`. It raises SystemExit wherever the child is, in
  the middle of a task too, and the next SIGTERM kills. So children are born with the signal blocked, and a thread of
  ours waits for it.
* A child that leaves before its parent has closed the pool is replaced; the substitute never hears the signal. So it
  waits for the parent's word, and a substitute begins nothing.
* Children are killed when their parent is gone. So they leave first.
* With REMAP_SIGTERM=SIGQUIT, as users of Celery on Heroku set it, SIGTERM means a cold shutdown to the parent: it
  cancels its tasks, exits with 1 and waits for nobody, us included. So the parent's handler is ours, the same either
  way. (What the variable is for, children that outlive the platform's SIGTERM, ours do anyhow.)
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.worker import state

from pipeline import telemetry

if TYPE_CHECKING:
    from pipeline.worker import Worker

log = telemetry.get(__name__)

LEAVE_S = 22.0
"""The latest end of a process after SIGTERM."""

CHILD_LEAVES_S = 20.5
"""A pool child's: before its parent's."""

WORD_S = 3.0
"""How long a child that has stopped waits for its parent's word, in case it was not asked alone."""


class Host:
    """The workers of this process and of those forked from it, each built on first use."""

    def __init__(self, build: "Callable[[], Worker]") -> None:
        self._build = build
        self._workers: dict[int, Worker] = {}  # by process id: a fork inherits the entry, but not the threads
        self._building = threading.Lock()
        self._leaving = False  # inherited by a fork, too
        signals.celeryd_after_setup.connect(self._begin, weak=False)
        signals.worker_process_init.connect(self._begin_in_a_child, weak=False)
        signals.worker_shutting_down.connect(self._leave, weak=False)  # SIGINT, SIGQUIT: Celery's own handlers say so
        signals.worker_shutdown.connect(self._stop, weak=False)
        signals.worker_process_shutdown.connect(self._stop, weak=False)

    def take_sigterm(self) -> type[Any]:
        """A step of Celery's worker, which it takes once its own handlers are there: SIGTERM is ours from then on."""
        leave = self._leave

        class TakeSigterm(bootsteps.StartStopStep):  # type: ignore[misc]  # it has no types
            def start(self, parent: Any) -> None:
                def stop(*_: Any) -> None:
                    state.should_stop = 0  # Celery's warm shutdown, and its exit status
                    leave()

                signal.signal(signal.SIGTERM, stop)

        return TakeSigterm

    def worker(self) -> "Worker":
        """Give this process's worker; it begins by itself, as soon as the database is there."""
        with self._building:
            if (mine := self._workers.get(os.getpid())) is None:
                mine = self._workers[os.getpid()] = self._build()
                if not self._leaving:
                    threading.Thread(target=mine.start, name="start", daemon=True).start()
            return mine

    def _begin(self, instance: Any, **_: Any) -> None:
        """Begin before the broker is reached: jobs are submitted even while it is away."""
        if "prefork" not in str(instance.pool_cls):
            self.worker()
        else:  # each child has its own; one that the signal kills at its birth would fail the parent's start
            os.register_at_fork(before=_block, after_in_parent=_unblock)

    def _begin_in_a_child(self, **_: Any) -> None:
        if self._leaving:
            return
        _block()  # where children are not forked; before any thread: they inherit it
        threading.Thread(target=self._wait_for_sigterm, name="sigterm", daemon=True).start()
        self.worker()

    def _wait_for_sigterm(self) -> None:
        signal.sigwait({signal.SIGTERM})
        end = time.monotonic() + CHILD_LEAVES_S
        stopping = self._stop_aside()
        stopping.join(CHILD_LEAVES_S)
        time.sleep(max(0.0, min(WORD_S, end - time.monotonic())))
        os._exit(0)  # a message it still has was not acknowledged: another process gets it

    def _leave(self, **_: Any) -> None:
        """A signal has come. Celery says so from its handler: return at once, and take a second one for the first."""
        if not self._leaving:
            self._leaving = True
            self._stop_aside()
            threading.Thread(target=self._leave_at_last, name="leave", daemon=True).start()

    def _leave_at_last(self) -> None:
        time.sleep(LEAVE_S)
        log.warning("worker.left_by_force", after_s=LEAVE_S)
        os._exit(0)

    def _stop_aside(self) -> threading.Thread:
        stopping = threading.Thread(target=self._stop, name="stop", daemon=True)
        stopping.start()
        return stopping

    def _stop(self, **_: Any) -> None:
        if mine := self._workers.get(os.getpid()):
            mine.stop()


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
