"""
What comes at the same time is done together: by one of those who brought it, for all of them.

Alone, nobody waits, and no thread is woken; under load the groups grow, and the cost of each item falls. Another group
begins beside one that is under way only when it would be full, so that they do not share out what there is.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pipeline.errors import Contended, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """
    Does items that threads bring, in groups of *at_most*, of which *at_once* may be under way.

    `work` does a group and gives what came of each, in its order.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Result]], *, at_most: int = 32, at_once: int = 2
    ) -> None:
        self._work = work
        self._at_most = at_most
        self._at_once = at_once
        self._under_way = 0
        self._lock = threading.Lock()
        self._waiting: deque[_Place[Item, Result]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for the next group."""
        return len(self._waiting)

    def do(self, item: Item) -> Result:
        """
        Have *item* done, by this thread or by another, and give what came of it.

        One odd item must not take the others with it: when a group fails, each of it is done by itself.

        Raises:
            Unavailable: What it takes is away: for all of a group, and for those who waited for the next. Or somebody
                else was first, at this item alone.
        """
        place = _Place[Item, Result](item)
        with self._lock:
            self._waiting.append(place)
            place.group = self._next()
        if not place.group:
            place.wait()
        if place.group:
            self._lead(place.group)
        if place.error:
            raise Unavailable(place.error.detail)
        if place.result is None:
            return self._work([item])[0]
        return place.result[0]

    def _lead(self, group: "Sequence[_Place[Item, Result]]") -> None:
        """Do a group; one of those who came meanwhile does the next."""
        away: Unavailable | None = None
        try:
            for place, result in zip(group, self._work([place.item for place in group]), strict=True):
                place.result = (result,)
        except Unavailable as error:
            if not isinstance(error, Contended):
                away = error
            elif len(group) == 1:
                raise
        except Exception:
            if len(group) == 1:
                raise
        finally:
            self._end(group, away)

    def _next(self) -> "Sequence[_Place[Item, Result]]":
        """Who is to be done now, if anybody is: all of them, or, while others are under way, as many as may be."""
        ready = (self._waiting and not self._under_way) or len(self._waiting) >= self._at_most
        if not ready or self._under_way == self._at_once:
            return ()
        self._under_way += 1
        return [self._waiting.popleft() for _ in range(min(self._at_most, len(self._waiting)))]

    def _end(self, group: "Sequence[_Place[Item, Result]]", away: Unavailable | None) -> None:
        """Wake all who need not wait any more."""
        with self._lock:
            self._under_way -= 1
            if away:
                group = [*group, *self._waiting]
                self._waiting.clear()
            following = self._next()
        if following:
            following[0].group = following
            following[0].wake()
        for place in group:
            place.error = away
            place.wake()


class _Place(Generic[Item, Result]):
    """One who waits, or leads."""

    __slots__ = ("_woken", "error", "group", "item", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.group: Sequence[_Place[Item, Result]] = ()  # that this one is to do
        self.result: tuple[Result] | None = None
        self.error: Unavailable | None = None
        self._woken = threading.Lock()
        self._woken.acquire()

    def wait(self) -> None:
        """Wait until the work is done, or is this one's to do."""
        self._woken.acquire()

    def wake(self) -> None:
        """End the wait."""
        self._woken.release()
