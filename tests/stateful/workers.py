"""Worker processes whose every pause the test decides: the product's own duties, looked with one at a time."""

import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from pipeline.lifecycle.poll import Poller
from pipeline.lifecycle.submit import Submitter
from pipeline.runtime import Runtime
from pipeline.store import workers
from pipeline.store.claims import Start
from pipeline.store.tables import new_id
from pipeline.threads import Loop
from pipeline.wavespeed import WaveSpeed

T = TypeVar("T")

ENDS_WITHIN_S = 20.0


class StoppableLoop(Loop):
    """An event loop that can be frozen, as SIGSTOP does, and that knows what it was given to do."""

    def __init__(self) -> None:
        super().__init__()
        self._given: list[Future[Any]] = []
        self._thawed = threading.Event()

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        future = super().spawn(work)
        self._given.append(future)
        return future

    def freeze(self) -> None:
        """Nothing goes on from here, until `thaw`."""
        self._thawed = threading.Event()
        super().spawn(_stand_still(self._thawed))

    def thaw(self) -> None:
        self._thawed.set()

    def end_all(self) -> None:
        """Wait until everything that was begun has ended."""
        assert not wait(self._given, ENDS_WITHIN_S).not_done
        del self._given[:]


async def _stand_still(thawed: threading.Event) -> None:
    thawed.wait(ENDS_WITHIN_S)  # holds up the whole loop: that is the point


class Submits(Submitter):
    """A worker's submits. Its POSTs end when the provider answers; `settled` waits until the answers are written."""

    def __init__(self, rt: Runtime, loop: StoppableLoop, url: str) -> None:
        self.id = new_id()
        self.loop = loop
        self.client = WaveSpeed("key", url)
        super().__init__(rt, self.id, loop, self.client, wake=lambda: None)

    def under_way(self) -> list[Start]:
        """The POSTs that were claimed and have not ended."""
        return list(self._under_way.values())

    def beat(self) -> None:
        """Say that this process lives."""
        with self._rt.db.transaction() as tx:
            workers.beat(tx, self.id)

    def settled(self) -> None:
        """Wait until every answer is in the database."""
        self.loop.end_all()
        assert self._answers.flush(ENDS_WITHIN_S)

    def begins_no_more(self) -> None:
        """Wait until a stop that was begun elsewhere forbids further POSTs."""
        while not self._stopping:
            time.sleep(0.0005)

    def revive(self) -> None:
        """After a stop: the platform starts the process again."""
        self._stopping = False


class Polls(Poller):
    """A worker's polls, likewise."""

    def __init__(self, rt: Runtime, loop: StoppableLoop, url: str, name: str) -> None:
        self.name = name
        self.loop = loop
        self.client = WaveSpeed("key", f"{url}/{name}")
        super().__init__(rt, loop, self.client, wake=lambda: None)

    def settled(self) -> None:
        """Wait until every answer is in the database."""
        self.loop.end_all()
        assert self._answers.flush(ENDS_WITHIN_S)


class Fleet:
    """Some processes that submit, one whose network is cut, some that poll, one that looks for what was lost."""

    def __init__(self, rt: Runtime, url: str, nowhere: str) -> None:
        self.submits = [Submits(rt, StoppableLoop(), f"{url}/submit-{number}") for number in range(4)]
        self.cut_off = Submits(rt, StoppableLoop(), nowhere)
        self.polls = [Polls(rt, StoppableLoop(), url, f"poll-{number}") for number in range(2)]
        self.searchers = [WaveSpeed("key", f"{url}/search-{number}") for number in range(2)]
        self.prober = WaveSpeed("key", f"{url}/probe")
        self.loop = StoppableLoop()

    def close(self) -> None:
        processes: list[Submits | Polls] = [*self.submits, self.cut_off, *self.polls]
        clients = [(process.loop, process.client) for process in processes]
        for loop, client in [*clients, (self.loop, self.prober), *((self.loop, one) for one in self.searchers)]:
            loop.run(client.close())
        for loop in [self.loop, *(process.loop for process in processes)]:
            loop.stop()


@contextmanager
def fleet(rt: Runtime, url: str, nowhere: str) -> Iterator[Fleet]:
    """Such processes, for as long as many examples take."""
    started = Fleet(rt, url, nowhere)
    try:
        yield started
    finally:
        started.close()
