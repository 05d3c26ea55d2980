"""How many jobs at a time somebody does best, with no more memory than this product's worker takes."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.instead.pace import Pace

GAIN = 1.1
"""How much faster twice as many at a time must be for still more to be tried."""


@dataclass(frozen=True, slots=True)
class Size:
    """So many at a time."""

    concurrency: int
    rate: float  # jobs a second, when it was tried
    full: bool  # it is the memory that allows no more

    def at(self, generation_s: float, *, tried_s: float, at_most: int) -> int:
        """
        So many where a generation takes *generation_s*, of what was best at *tried_s*.

        Four times as long a wait for each leaves room for four times as many, where there is the memory.
        """
        longer = 1.0 if self.full else max(1.0, generation_s / tried_s)
        return max(self.concurrency, min(at_most, round(self.concurrency * longer)))


def fitting(probe: Callable[[int], Pace], *, first: int, at_most: int, most_mb: float) -> Size:
    """
    Try *first* at a time, then twice as many and so on, until that is hardly faster or takes more than *most_mb*.

    In the latter case as many are tried as should just fit. The fastest of those that fit is it; *first*, if none does.
    """
    fit: dict[int, Pace] = {}
    concurrency, full = first, False
    while concurrency <= at_most:
        pace = probe(concurrency)
        if full := pace.pss_mb > most_mb:
            if (between := _just_fitting(fit, concurrency, pace, most_mb)) not in fit:
                second = probe(between)
                fit |= {between: second} if second.pss_mb <= most_mb or not fit else {}
            break
        slower = bool(fit) and pace.rate < GAIN * max(one.rate for one in fit.values())
        fit[concurrency] = pace
        if slower:
            break
        concurrency *= 2
    best = max(fit, key=lambda one: fit[one].rate)
    return Size(best, fit[best].rate, full)


def _just_fitting(fit: dict[int, Pace], too_many: int, pace: Pace, most_mb: float) -> int:
    """As many as fit, if each takes as much as those between the last size that did and the first that did not."""
    if not fit:
        return too_many
    last = max(fit)
    each_mb = (pace.pss_mb - fit[last].pss_mb) / (too_many - last)
    return last + int((most_mb - fit[last].pss_mb) / each_mb)
