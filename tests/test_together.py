"""What comes at the same time is done together: nothing is lost, nobody waits for good, one fault is one item's."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pipeline.errors import Contended, Unavailable
from pipeline.together import Together
from tests.factories import until


class Work:
    """Doubles numbers; keeps the groups; waits at the gate while that is closed."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = 0
        self.most_inside = 0
        self._lock = threading.Lock()

    def __call__(self, items: Sequence[int]) -> list[int]:
        with self._lock:
            self.groups.append(list(items))
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        try:
            assert self.gate.wait(30)
            if -1 in items:
                raise ValueError("odd")
            if -3 in items:
                raise Contended("another was first")
            if -2 in items:
                raise Unavailable("away")
            return [2 * item for item in items]
        finally:
            with self._lock:
                self.inside -= 1


def brought(together: Together[int, int], work: Work, *items: int) -> list[Future[int]]:
    """Bring the first, and the others while it is under way; then it may end. What came of each."""
    work.gate.clear()
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(together.do, items[0])
        until(lambda: work.groups)
        others = [pool.submit(together.do, item) for item in items[1:]]
        until(lambda: together.waiting == len(others))
        work.gate.set()
    return [first, *others]


def test_alone_an_item_is_done_at_once_by_itself() -> None:
    """On a quiet night nobody waits for company."""
    work = Work()
    assert [Together(work).do(number) for number in range(3)] == [0, 2, 4]
    assert work.groups == [[0], [1], [2]]


def test_of_many_threads_each_gets_what_came_of_its_own_item() -> None:
    """Whatever groups they were in, none larger than allowed, no more at once than allowed."""
    work = Work()
    together = Together(work, at_most=7, at_once=2)
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(together.do, range(4000)))

    assert found == [2 * number for number in range(4000)]
    assert sorted(number for group in work.groups for number in group) == list(range(4000))
    assert max(map(len, work.groups)) <= 7
    assert work.most_inside <= 2


def test_what_came_meanwhile_is_one_group() -> None:
    """Under load the groups grow."""
    work = Work()
    found = brought(Together(work, at_once=1), work, *range(9))
    assert [one.result() for one in found] == [2 * number for number in range(9)]
    assert [len(group) for group in work.groups] == [1, 8]


def test_beside_a_group_under_way_another_begins_once_it_is_full() -> None:
    """Else two small ones would take turns; but who is many does not wait for one that is slow."""
    work = Work()
    work.gate.clear()
    together = Together(work, at_most=3, at_once=2)
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(together.do, 0)
        until(lambda: work.groups)
        others = [pool.submit(together.do, number) for number in (1, 2)]
        until(lambda: together.waiting == 2)
        assert work.inside == 1
        others.append(pool.submit(together.do, 3))
        until(lambda: work.inside == 2)
        others.append(pool.submit(together.do, 4))
        until(lambda: together.waiting == 1)
        work.gate.set()
        assert [one.result(30) for one in (first, *others)] == [0, 2, 4, 6, 8]

    assert [sorted(group) for group in work.groups] == [[0], [1, 2, 3], [4]]


@pytest.mark.parametrize(("odd", "error"), [(-1, ValueError), (-3, Contended)])
def test_one_that_fails_takes_no_other_with_it(odd: int, error: type[Exception]) -> None:
    """Its group fails; each of it is done by itself then, and only that one fails again, or has to come again."""
    work = Work()
    together = Together(work, at_once=1)
    first, one, failed, three = brought(together, work, 0, 1, odd, 3)
    assert [first.result(), one.result(), three.result()] == [0, 2, 6]
    assert isinstance(failed.exception(), error)
    assert together.do(5) == 10


def test_where_the_database_is_away_all_who_wait_are_told_and_the_next_try_again() -> None:
    """Else each of them would wait for its own time-out, one after the other."""
    work = Work()
    together = Together(work, at_once=1)
    for one in brought(together, work, -2, 1, 2, 3):
        assert isinstance(one.exception(), Unavailable)
        assert not isinstance(one.exception(), Contended)
    assert work.groups == [[-2]]
    assert together.do(5) == 10
