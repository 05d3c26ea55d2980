"""How the benchmarks find the best number at a time within a memory (`benchmarks.instead.sizing`)."""

from collections.abc import Callable

from benchmarks.instead.pace import Pace
from benchmarks.instead.sizing import Size, fitting


def worker(*, rate: Callable[[int], float], each_mb: float) -> Callable[[int], Pace]:
    """One whose memory grows by *each_mb* from 50 MB, and whose rate is known."""
    return lambda concurrency: Pace(round(1000 * rate(concurrency)), 1000.0, 0.0, 0.0, 50 + each_mb * concurrency)


def test_memory_allows_no_more_than_just_fit() -> None:
    """Twice as many as fit are too many; what lies between is tried as well."""
    found = fitting(worker(rate=float, each_mb=37.0), first=1, at_most=400, most_mb=170.0)
    assert (found.concurrency, found.full) == (3, True)


def test_what_is_hardly_faster_ends_the_search() -> None:
    """More at a time than a processor can serve bring nothing, however much memory there is."""
    found = fitting(worker(rate=lambda n: min(float(n), 60.0), each_mb=0.1), first=25, at_most=400, most_mb=170.0)
    assert (found.concurrency, found.full) == (100, False)


def test_slower_is_not_taken() -> None:
    """Of two the faster one, though the other was tried last."""
    found = fitting(worker(rate=lambda n: 100.0 - n, each_mb=0.1), first=25, at_most=400, most_mb=170.0)
    assert found == Size(25, 75.0, full=False)


def test_the_least_there_can_be_is_taken_though_it_is_too_large() -> None:
    """A worker that takes more memory than ours with one job at a time cannot be any smaller."""
    found = fitting(worker(rate=float, each_mb=37.0), first=1, at_most=400, most_mb=60.0)
    assert (found.concurrency, found.full) == (1, True)


def test_longer_generations_leave_room_for_more_at_a_time() -> None:
    """Four times as long a wait, four times as many; but not where memory was the limit, and never too many."""
    assert Size(50, 1.0, full=False).at(20.0, tried_s=5.0, at_most=400) == 200
    assert Size(200, 1.0, full=False).at(20.0, tried_s=5.0, at_most=400) == 400
    assert Size(50, 1.0, full=False).at(0.5, tried_s=5.0, at_most=400) == 50
    assert Size(3, 1.0, full=True).at(20.0, tried_s=5.0, at_most=400) == 3
