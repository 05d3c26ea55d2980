"""
The threads a worker process is made of: an event loop for HTTP, duties that look when woken, groups for writing.

Celery's pool threads only wake these and return, so that a hung provider can never hold up a task.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from pipeline import telemetry
from pipeline.errors import Unavailable

log = telemetry.get(__name__)
T = TypeVar("T")


class Loop:
    """One event loop in a thread of its own, for the life of the process: connections stay warm."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start *work* and do not wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* and wait for its result. Not from the loop's own thread."""
        return self.spawn(work).result()

    def stop(self) -> None:
        """Cancel what still runs and end the thread."""
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Duty:
    """
    Something to be done whenever there may be work: woken by nudges, or by its own wish.

    `look` does what is due and returns in how many seconds it wants to look again; None: when woken. It is
    never run twice at a time; a wake during a look means one more look, for the flag is cleared before it.
    Between two looks lie *rest_s* seconds: under load each finds more. The first after a quiet time comes at once.
    """

    def __init__(self, name: str, look: Callable[[], float | None], *, rest_s: float = 0.0) -> None:
        self.name = name
        self._look = look
        self._rest_s = rest_s
        self._woken = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, *, look: bool = True) -> None:
        """Begin, with a first look unless told otherwise."""
        if look:
            self._woken.set()
        self._thread.start()

    def wake(self) -> None:
        """Have it look soon. Cheap, and callable from any thread, any number of times."""
        self._woken.set()

    def stop(self) -> None:
        """No look begins from now on."""
        self._stopped = True
        self._woken.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the last look to end."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def look_once(self) -> None:
        """Look in the caller's thread, until there is nothing more to do at once; for a duty not started."""
        while self._look() == 0.0:
            pass

    def _run(self) -> None:
        wait_s: float | None = None
        rests_until = float("-inf")
        while not self._stopped:
            self._woken.wait(wait_s)
            if (rest_s := rests_until - time.monotonic()) > 0:
                time.sleep(rest_s)
            self._woken.clear()
            if self._stopped:
                return
            rests_until = time.monotonic() + self._rest_s
            try:
                wait_s = self._look()
            except Unavailable as error:
                log.warning("duty.postponed", duty=self.name, why=error.detail)
                wait_s = 1.0
            except Exception:
                log.exception("duty.failed", duty=self.name)
                wait_s = 5.0


class Groups(Generic[T]):
    """
    Writes what arrives one by one in small groups: whatever came while the last group was being written.

    Alone, an item waits for nothing; under load the groups grow and the cost of each item falls: once several came
    together, the next group is gathered for LINGER_S. While the database is away the items wait in memory; should
    the process die, the sweep finds their rows.
    """

    LARGEST = 200
    LINGER_S = 0.025

    def __init__(self, name: str, write: Callable[[Sequence[T]], None]) -> None:
        self._name = name
        self._write = write
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._waiting = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Have *item* written soon. Never blocks."""
        with self._changed:
            self._waiting += 1
        self._items.put(item)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is written. False when the time was too short."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting == 0, timeout_s)

    def _run(self) -> None:
        crowded = False
        while True:
            group = [self._items.get()]
            if crowded:
                time.sleep(self.LINGER_S)
            while len(group) < self.LARGEST and not self._items.empty():
                group.append(self._items.get())
            self._write_until_done(group)
            crowded = len(group) > 1
            with self._changed:
                self._waiting -= len(group)
                self._changed.notify_all()

    def _write_until_done(self, group: Sequence[T]) -> None:
        while True:
            try:
                return self._write(group)
            except Unavailable as error:
                log.warning("write.postponed", what=self._name, waiting=len(group), why=error.detail)
                time.sleep(0.5)
            except Exception:
                if len(group) == 1:
                    log.exception("write.failed", what=self._name)
                    return None
                for item in group:  # one odd item must not take the others with it
                    self._write_until_done([item])
                return None
