"""How fast somebody does jobs while there is always more to do than is being done."""

import time
from collections.abc import Iterator, Sequence
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


def measure(who: Contender, *, generation_s: float, window_s: float) -> Pace:
    """
    Have jobs done, and count those that are completed in a window of *window_s* seconds or a little more.

    Somebody who does N at a time does them in waves, at least at first: the window opens with the first completion and
    closes when a multiple of N have been completed since. Whoever does as many as it can begins too many while nothing
    comes back yet: the window opens a generation after the first completion.

    Raises:
        StackError: It does no jobs, or left.
    """
    looks = _looks(who)
    opened, before = _opened(who, looks, generation_s)
    worker_s, helpers_s = _cpu_s(who.worker()), _cpu_s(who.helpers())
    wave, wanted, most_mb, weighed = who.at_a_time or 1, 0, 0.0, 0.0
    for now, completed in looks:
        done, seconds = completed - before, now - opened
        if now - weighed > WEIGH_S:
            most_mb, weighed = max(most_mb, _pss_mb(who.worker())), now
        if seconds >= window_s:
            wanted = wanted or (done // wave + 1) * wave
            if done >= wanted:
                break
        if seconds >= PATIENCE_S + 2 * (window_s + generation_s):  # then that is what it does in so long
            break
    if not done:
        raise StackError(f"only {completed} jobs came to an end")
    worker_s, helpers_s = _cpu_s(who.worker()) - worker_s, _cpu_s(who.helpers()) - helpers_s
    return Pace(done, seconds, worker_s, worker_s + helpers_s, most_mb)


def _looks(who: Contender) -> Iterator[tuple[float, int]]:
    """Give the time and how many are completed, again and again; see to it that others are waiting meanwhile."""
    who.hand_in(who.reserve + (who.at_a_time or 0))
    while True:
        completed = who.completed()
        yield time.monotonic(), completed
        who.check()
        if (missing := who.reserve - who.waiting()) > who.reserve // 4:
            who.hand_in(missing)
        time.sleep(LOOK_S)


def _opened(who: Contender, looks: Iterator[tuple[float, int]], generation_s: float) -> tuple[float, int]:
    began = time.monotonic()
    for now, completed in looks:
        if completed:
            break
        if now - began > START_S + generation_s:
            raise StackError(f"none of the jobs came to an end within {now - began:.0f} s")
    if who.at_a_time:
        return now, completed
    return next(look for look in looks if look[0] - now >= generation_s)


def _cpu_s(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            total += sum(psutil.Process(pid).cpu_times()[:4])  # those of children that have ended among them
    return total


def _pss_mb(pids: Sequence[int]) -> float:
    return sum(sizes[1] for pid in pids if (sizes := sizes_of(pid)))
