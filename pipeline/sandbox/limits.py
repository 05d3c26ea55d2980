"""The account's limits: tasks a window, counted exactly, and tasks at once."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """None means as many as you like."""

    per_window: int | None = None
    concurrent: int | None = None


LEVELS: Mapping[str, Limits] = {
    "bronze": Limits(2, 2),
    "silver": Limits(500, 300),
    "gold": Limits(3000, 3000),
    "ultra": Limits(5000, 10_000),
}
"""The newer version of the account-levels page; its numbers for images and videos are the same."""


class SlidingWindow:
    """
    The moments at which tasks were accepted, images and videos apart, as the documentation counts them.

    Sliding is the strictest reading of "limits reset every minute": who passes here passes any other.
    """

    def __init__(self) -> None:
        """Empty."""
        self._starts: defaultdict[str, deque[float]] = defaultdict(deque)

    def has_room(self, kind: str, limit: int, *, now: float, length_s: float) -> bool:
        """Whether one more task fits into the last *length_s* seconds."""
        starts = self._starts[kind]
        while starts and starts[0] <= now - length_s:
            starts.popleft()
        return len(starts) < limit

    def add(self, kind: str, *, now: float) -> None:
        """Count a task that was accepted."""
        self._starts[kind].append(now)
