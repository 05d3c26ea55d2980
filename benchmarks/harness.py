"""
Runs a case: its sides by turns, so that whatever else the machine does meets all of them; gives medians and spreads.

    @contextmanager
    def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
        with a_server() as server:
            yield {"ours": lambda: {"requests/s": …}, "the floor": lambda: {"requests/s": …}}

    CASE = Case("receiver", "One callback, from its first byte to 204.", sides, baseline="the floor")
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

Figures = Mapping[str, float]
"""What one run of a side gave: each name says the unit (`jobs/s`, `p99 ms`, `CPU ms/job`)."""

Side = Callable[[], Figures]
"""One run of one side."""

TIMES = 5
"""How often each side runs, at least, for a figure that is to be told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is to be done: a *smoke* run shows that the cases work, and measures nothing."""

    times: int = TIMES
    smoke: bool = False
    options: Mapping[str, str] = field(default_factory=dict)  # `--set name=value`, for those who look closer

    def pick(self, full: T, smoke: T) -> T:
        """The size of something, in a full run or in a smoke run."""
        return smoke if self.smoke else full


@dataclass(frozen=True, slots=True)
class Case:
    """Something that is measured: its sides, one of which the others are compared with."""

    name: str
    shows: str
    sides: Callable[[Plan], AbstractContextManager[Mapping[str, Side]]]
    baseline: str | None = None
    needs: tuple[str, ...] = ()  # libraries that only this case needs, as one imports them
    options: tuple[str, ...] = ()  # what `--set` may name


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one side: the median of its samples, the least and the most, and its share of the baseline's."""

    side: str
    figure: str
    samples: Sequence[float]
    ratio: float | None

    @property
    def median(self) -> float:
        """The one in the middle."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most."""
        return min(self.samples), max(self.samples)


@dataclass(frozen=True, slots=True)
class Result:
    """What a case gave: for each side, for each figure, a sample for each run."""

    case: str
    shows: str
    baseline: str | None
    samples: Mapping[str, Mapping[str, Sequence[float]]]
    seconds: float

    def median(self, side: str, figure: str) -> float | None:
        """One median; None: it was not measured."""
        found = self.samples.get(side, {}).get(figure)
        return statistics.median(found) if found else None

    def rows(self) -> Iterator[Row]:
        """Everything, as a table shows it."""
        for side, figures in self.samples.items():
            for figure, samples in figures.items():
                base = self.median(self.baseline, figure) if self.baseline and side != self.baseline else None
                yield Row(side, figure, samples, statistics.median(samples) / base if base else None)


def run(case: Case, plan: Plan, tell: Callable[[str], None] = lambda _: None) -> Result:
    """
    Run *case*: every side once, then every side again, and so on; *tell* is told of each run as it ends.

    Of the turns every second goes backwards, so that no side always follows the same one.
    """
    began = time.monotonic()
    samples: dict[str, dict[str, list[float]]] = {}
    with case.sides(plan) as sides:
        for turn in range(plan.times):
            order = list(sides.items())
            for name, side in order if turn % 2 == 0 else reversed(order):
                figures = side()
                for figure, value in figures.items():
                    samples.setdefault(name, {}).setdefault(figure, []).append(float(value))
                said = ", ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
                tell(f"{case.name} {turn + 1}/{plan.times}: {name}: {said}")
        ordered = {name: samples[name] for name in sides if name in samples}
    return Result(case.name, case.shows, case.baseline, ordered, time.monotonic() - began)
