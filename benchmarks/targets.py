"""What is asked of the product, measure by measure, and whether the results give it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from benchmarks.harness import Result

Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Target:
    """One measure: how it is read from the results, what it must be at least, and what it should be."""

    measure: str
    read: Callable[[Results], float | None]
    at_least: float
    aim: float
    more_is_better: bool = True
    unit: str = ""

    def verdict(self, value: float) -> str:
        """`aim`, `met` or `short`."""
        if self._reaches(value, self.aim):
            return "aim"
        return "met" if self._reaches(value, self.at_least) else "short"

    def _reaches(self, value: float, wanted: float) -> bool:
        return value >= wanted if self.more_is_better else value <= wanted


@dataclass(frozen=True, slots=True)
class Verdict:
    """One measure, measured."""

    target: Target
    value: float

    @property
    def word(self) -> str:
        """`aim`, `met` or `short`."""
        return self.target.verdict(self.value)


def figure(case: str, side: str, name: str) -> Callable[[Results], float | None]:
    """The median of one figure."""

    def read(results: Results) -> float | None:
        return results[case].median(side, name) if case in results else None

    return read


def ratio(case: str, side: str, other: str, name: str) -> Callable[[Results], float | None]:
    """How many times one side's median is another's."""

    def read(results: Results) -> float | None:
        if case not in results:
            return None
        one, two = results[case].median(side, name), results[case].median(other, name)
        return one / two if one is not None and two else None

    return read


TARGETS: tuple[Target, ...] = ()


def judged(results: Results) -> Iterator[Verdict]:
    """Each target of which the results know something."""
    for target in TARGETS:
        value = target.read(results)
        if value is not None:
            yield Verdict(target, value)
