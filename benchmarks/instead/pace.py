"""How fast somebody does jobs while there is always more to do than is being done."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.costs import sizes_of
from benchmarks.instead.contenders import Contender
from pipeline.embedded.processes import StackError

LOOK_S = 0.1
WEIGH_S = 1.0
START_S = 90.0
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What was done in a window, and with what."""

    jobs: int
    seconds: float
    worker_cpu_s: float
    all_cpu_s: float
    pss_mb: float  # the most that the worker's processes took together

    @property
    def rate(self) -> float:
        """Jobs completed a second."""
        return self.jobs / self.seconds


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    completed: int
    worker_cpu_s: float
    all_cpu_s: float


def measure(who: Contender, *, generation_s: float, window_s: float) -> Pace:
    """
    Have jobs done, and count those that are completed in a window of *window_s* seconds or a little more.

    The window opens with the first completion: before, nothing can have ended. Somebody who does N at a time does them
    in waves at first; so the window closes only when a multiple of N have been completed since it opened: whole waves.

    Raises:
        StackError: It does no jobs, or left.
    """
    who.hand_in(who.reserve + (who.at_a_time or 0))
    opened: _Reading | None = None
    wanted: int | None = None
    most_mb, weighed, began = 0.0, 0.0, time.monotonic()
    while True:
        completed, now = who.completed(), time.monotonic()
        if opened is None and completed:
            opened = _read(who, completed)
        if opened is None and now - began > START_S + generation_s:
            raise StackError(f"none of the jobs came to an end within {now - began:.0f} s")
        if opened and now - weighed > WEIGH_S:
            most_mb, weighed = max(most_mb, _pss_mb(who.worker())), now
        if opened and now - opened.at >= window_s:
            wanted = wanted or _whole_waves(completed - opened.completed, who.at_a_time)
            # Whoever does not complete a wave in so long is not going to.
            if completed - opened.completed >= wanted or now - opened.at >= PATIENCE_S + 2 * (window_s + generation_s):
                break
        if (missing := who.reserve - who.waiting()) > who.reserve // 4:
            who.hand_in(missing)
        who.check()
        time.sleep(LOOK_S)
    closed = _read(who, completed)
    if closed.completed == opened.completed:
        raise StackError(f"only {completed} jobs came to an end")
    return Pace(
        closed.completed - opened.completed,
        closed.at - opened.at,
        closed.worker_cpu_s - opened.worker_cpu_s,
        closed.all_cpu_s - opened.all_cpu_s,
        most_mb,
    )


def _whole_waves(completed: int, at_a_time: int | None) -> int:
    return (completed // at_a_time + 1) * at_a_time if at_a_time else completed


def _read(who: Contender, completed: int) -> _Reading:
    worker_s = _cpu_s(who.worker())
    return _Reading(time.monotonic(), completed, worker_s, worker_s + _cpu_s(who.helpers()))


def _cpu_s(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            total += sum(psutil.Process(pid).cpu_times()[:4])  # those of children that have ended among them
    return total


def _pss_mb(pids: Sequence[int]) -> float:
    return sum(sizes[1] for pid in pids if (sizes := sizes_of(pid)))
