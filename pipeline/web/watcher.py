"""
Waiting for news of jobs: whoever waits holds a thread and no connection, and one thread asks for all of them.

A wait ends early, and none begins, when the process is to stop.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from flask import current_app

from pipeline.jobs import TOLD
from pipeline.store import reading
from pipeline.store.database import Database
from pipeline.threads import Duty

LOOK_EVERY_S = 0.05


def places(threads: int) -> int:
    """
    How many may wait at a time, streams included, in a web server of so many threads.

    A fifth is left to all other requests: whoever waits must never keep a callback from being heard.
    """
    return threads - threads // 5


class Watch:
    """One who waits for news of one job: for events after *seen*, or for its end only."""

    def __init__(self, job_id: UUID, seen: int, *, only_its_end: bool) -> None:
        self.job_id = job_id
        self.seen = seen  # the newest event that is no news
        self._only_its_end = only_its_end
        self._news = threading.Event()

    def wait(self, seconds: float) -> bool:
        """Wait for news, at most so long. True when there may be some: look at once, as when a stop is asked for."""
        there_is = self._news.wait(seconds)
        self._news.clear()
        return there_is

    def wake(self) -> None:
        """End the wait."""
        self._news.set()

    def hear(self, state: str, last_seq: int) -> None:
        """Take what the job is at now."""
        if last_seq > self.seen:
            self.seen = last_seq
            if state in TOLD or not self._only_its_end:
                self.wake()


class Watcher:
    """The watches of one process. The thread starts with the first, and asks nothing while there are none."""

    def __init__(self, db: Database, at_most: int) -> None:
        self.stopping = False
        self._db = db
        self._at_most = at_most
        self._watches: set[Watch] = set()
        self._changing = threading.Lock()
        self._duty = Duty("watcher", self.look)
        self._started = False

    @contextmanager
    def watching(self, job_id: UUID, *, seen: int = 0, only_its_end: bool = False) -> Iterator[Watch | None]:
        """Watch a job within the block: None when all places are taken, or the process is about to stop."""
        watch = self.watch(job_id, seen=seen, only_its_end=only_its_end)
        try:
            yield watch
        finally:
            if watch:
                self.leave(watch)

    def watch(self, job_id: UUID, *, seen: int = 0, only_its_end: bool = False) -> Watch | None:
        """As `watching`, until `leave` is called."""
        watch = Watch(job_id, seen, only_its_end=only_its_end)
        with self._changing:
            if self.stopping or len(self._watches) >= self._at_most:
                return None
            self._watches.add(watch)
            if not self._started:
                self._started = True
                self._duty.start()
            elif len(self._watches) == 1:
                self._duty.wake()
        return watch

    def leave(self, watch: Watch) -> None:
        """Give the place back. Again: nothing happens."""
        with self._changing:
            self._watches.discard(watch)

    def stop(self) -> None:
        """End all waits, and begin none from now on."""
        with self._changing:
            self.stopping = True
            for watch in self._watches:
                watch.wake()

    @property
    def waiting(self) -> int:
        """How many places are taken."""
        return len(self._watches)

    def look(self) -> float | None:
        """Ask once for all jobs that somebody waits for, and wake those who wait for what is new."""
        jobs: dict[UUID, list[Watch]] = defaultdict(list)
        with self._changing:
            for watch in self._watches:
                jobs[watch.job_id].append(watch)
        if not jobs or self.stopping:
            return None
        seen = {job_id: min(watch.seen for watch in watches) for job_id, watches in jobs.items()}
        with self._db.transaction() as tx:
            changed = reading.changed(tx, seen)
        for row in changed:
            for watch in jobs[row.id]:
                watch.hear(row.state, row.last_seq)
        return LOOK_EVERY_S


def watcher() -> Watcher:
    """The watcher of this process."""
    found: Watcher = current_app.extensions["watcher"]
    return found
