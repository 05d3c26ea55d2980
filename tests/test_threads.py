"""The threads of a worker: duties that miss no wake, groups that lose no item, one loop that outlives its tasks."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from pipeline.errors import Unavailable
from pipeline.threads import Duty, Groups, Loop
from tests.factories import at_once, until

# -- Duty -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def duty() -> Iterator[Callable[..., Duty]]:
    """Start a duty: `duty(look)`. Stopped at the end."""
    started: list[Duty] = []

    def start(look: Callable[[], float | None]) -> Duty:
        one = Duty("test", look)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()
        one.join(10)


class Work:
    """Something to look at: counts the looks, and notices two at a time."""

    def __init__(self) -> None:
        self.looks = 0
        self.inside = threading.Semaphore(1)
        self.overlapped = False
        self.entered = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def look(self) -> float | None:
        if not self.inside.acquire(blocking=False):
            self.overlapped = True
            return None
        try:
            self.looks += 1
            self.entered.set()
            self.may_end.wait(30)
        finally:
            self.inside.release()
        return None


def test_a_duty_begins_with_a_look(duty: Callable[..., Duty]) -> None:
    """What was due before this process began must not wait for a nudge."""
    work = Work()
    duty(work.look)
    until(lambda: work.looks == 1)


def test_a_wake_during_a_look_means_one_more_look(duty: Callable[..., Duty]) -> None:
    """The look may have passed the row already that the wake is about."""
    work = Work()
    work.may_end.clear()
    one = duty(work.look)
    assert work.entered.wait(10)
    for _ in range(50):
        one.wake()
    work.may_end.set()
    until(lambda: work.looks == 2)
    one.stop()
    one.join(10)
    assert work.looks == 2


def test_a_duty_rests_between_two_looks_and_then_finds_all_that_came(duty: Callable[..., Duty]) -> None:
    """Under load many wakes are one look; the first after a quiet time is at once."""
    looks: list[float] = []

    def look() -> float | None:
        looks.append(time.monotonic())
        return None

    one = Duty("test", look, rest_s=0.2)
    one.start()
    until(lambda: looks)
    until(lambda: one.wake() or len(looks) >= 4)  # type: ignore[func-returns-value]
    one.stop()
    one.join(10)

    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(looks))


def test_no_wake_is_lost_among_many(duty: Callable[..., Duty]) -> None:
    """Whatever was put down before a wake is seen by a look that begins after it."""
    lock = threading.Lock()
    waiting = [0]
    seen = [0]

    def look() -> float | None:
        with lock:
            seen[0] += waiting[0]
            waiting[0] = 0
        return None

    one = duty(look)

    def put(_: int) -> None:
        for _ in range(200):
            with lock:
                waiting[0] += 1
            one.wake()

    at_once(put, 6)
    until(lambda: seen[0] == 1200)


def test_a_duty_is_never_done_twice_at_a_time(duty: Callable[..., Duty]) -> None:
    """Two looks of one process would claim more than it can begin."""
    work = Work()
    one = duty(work.look)

    def wake(_: int) -> None:
        for _ in range(300):
            one.wake()

    at_once(wake, 4)
    until(lambda: work.looks > 1)
    assert not work.overlapped


def test_a_duty_that_wishes_to_looks_again_by_itself(duty: Callable[..., Duty]) -> None:
    """The pacer comes back for the next free start, without a nudge."""
    looks: list[float | None] = [0.0, 0.01, 0.0, None]
    asked = list(looks)
    done = threading.Event()

    def look() -> float | None:
        wish = asked.pop(0)
        if not asked:
            done.set()
        return wish

    duty(look)
    assert done.wait(10)


def test_a_wake_cuts_a_wait_short(duty: Callable[..., Duty]) -> None:
    """A place came free earlier than thought."""
    looks = []

    def look() -> float | None:
        looks.append(1)
        return 3600.0

    one = duty(look)
    until(lambda: len(looks) == 1)
    one.wake()
    until(lambda: len(looks) == 2)


@pytest.mark.parametrize("error", [Unavailable("away"), ValueError("a mistake of ours"), KeyError("x")])
def test_a_duty_survives_whatever_a_look_raises(duty: Callable[..., Duty], error: Exception) -> None:
    """A thread that died silently would be a process that looks alive and does nothing."""
    looks = []

    def look() -> float | None:
        looks.append(1)
        if len(looks) < 3:
            raise error
        return None

    one = duty(look)
    for number in (1, 2):
        until(lambda number=number: len(looks) == number)  # type: ignore[misc]
        one.wake()
    until(lambda: len(looks) >= 3)


def test_a_duty_whose_look_failed_tries_again_by_itself(duty: Callable[..., Duty]) -> None:
    """The database comes back without telling anybody."""
    looks = []

    def look() -> float | None:
        looks.append(1)
        if len(looks) == 1:
            raise Unavailable("away")
        return None

    duty(look)
    until(lambda: len(looks) == 2)


def test_a_stopped_duty_begins_no_further_look(duty: Callable[..., Duty]) -> None:
    """SIGTERM: no new POSTs."""
    work = Work()
    work.may_end.clear()
    one = duty(work.look)
    assert work.entered.wait(10)
    one.wake()
    one.stop()
    one.wake()
    work.may_end.set()
    one.join(10)
    assert work.looks == 1


def test_a_duty_that_never_began_can_be_stopped_and_joined() -> None:
    """A process may be told to stop before it has started."""
    one = Duty("test", lambda: None)
    one.stop()
    one.join(10)


def test_look_once_looks_until_there_is_nothing_more_at_once() -> None:
    """`pipeline sweep` without a worker does all that is due, and returns."""
    wishes: list[float | None] = [0.0, 0.0, 5.0, 0.0]

    def look() -> float | None:
        return wishes.pop(0)

    Duty("test", look).look_once()
    assert wishes == [0.0]


# -- Groups -----------------------------------------------------------------------------------------------------------


class Writer:
    """Keeps the groups it is given; waits inside each while `open` is not set."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def write(self, group: Sequence[int]) -> None:
        self.entered.set()
        self.open.wait(30)
        self.groups.append(list(group))

    @property
    def items(self) -> list[int]:
        return [item for group in self.groups for item in group]


def test_everything_is_written_once_and_in_order() -> None:
    """The order in which answers came is what the breaker judges by."""
    writer = Writer()
    groups = Groups("test", writer.write)
    for item in range(1000):
        groups.put(item)
    assert groups.flush(30)
    assert writer.items == list(range(1000))


def test_alone_an_item_waits_for_nothing() -> None:
    """No timer, no minimum: the first is a group of its own."""
    writer = Writer()
    groups = Groups("test", writer.write)
    groups.put(1)
    assert groups.flush(30)
    groups.put(2)
    assert groups.flush(30)
    assert writer.groups == [[1], [2]]


def test_what_comes_during_a_write_is_the_next_group() -> None:
    """Under load the groups grow by themselves, up to what one statement should hold."""
    writer = Writer()
    writer.open.clear()
    groups = Groups("test", writer.write)
    groups.put(0)
    assert writer.entered.wait(10)
    for item in range(1, 451):
        groups.put(item)
    writer.open.set()
    assert groups.flush(30)
    assert [len(group) for group in writer.groups] == [1, Groups.LARGEST, Groups.LARGEST, 50]


def test_many_threads_put_and_nothing_is_lost() -> None:
    """Answers come from the event loop and from who stops the process."""
    writer = Writer()
    groups = Groups("test", writer.write)

    def put(number: int) -> None:
        for item in range(300):
            groups.put(number * 1000 + item)

    at_once(put, 6)
    assert groups.flush(30)
    assert sorted(writer.items) == [number * 1000 + item for number in range(6) for item in range(300)]


def test_while_the_database_is_away_items_wait_in_order() -> None:
    """They were paid for: dropping them would leave them to the reconciler."""
    writer = Writer()
    away = [True, True]

    def write(group: Sequence[int]) -> None:
        if away:
            away.pop()
            raise Unavailable("away")
        writer.write(group)

    groups = Groups("test", write)
    for item in range(20):
        groups.put(item)
    assert groups.flush(30)
    assert writer.items == list(range(20))


def test_one_odd_item_does_not_take_the_others_with_it() -> None:
    """A group is many jobs' answers."""
    writer = Writer()
    writer.open.clear()

    def write(group: Sequence[int]) -> None:
        if 13 in group:
            raise ValueError("odd")
        writer.write(group)

    groups = Groups("test", write)
    groups.put(0)
    assert writer.entered.wait(10)
    for item in range(1, 30):
        groups.put(item)
    writer.open.set()
    assert groups.flush(30)
    assert writer.items == [item for item in range(30) if item != 13]
    groups.put(30)
    assert groups.flush(30)
    assert writer.items[-1] == 30


def test_flush_says_when_the_time_was_too_short() -> None:
    """A process that stops must know what it leaves behind."""
    writer = Writer()
    writer.open.clear()
    groups = Groups("test", writer.write)
    groups.put(1)
    assert not groups.flush(0.05)
    writer.open.set()
    assert groups.flush(30)
    assert groups.flush(0.0)


# -- Loop -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Give a loop, stopped at the end."""
    one = Loop()
    yield one
    one.stop()


async def doubled(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def test_the_loop_runs_work_of_many_threads(loop: Loop) -> None:
    """One loop for the process: connections stay warm."""
    assert at_once(lambda number: [loop.run(doubled(number + item)) for item in range(50)], 4) == [
        [2 * (number + item) for item in range(50)] for number in range(4)
    ]


def test_what_work_raises_comes_to_who_waits_and_the_loop_goes_on(loop: Loop) -> None:
    """One failed GET must not end the process's HTTP."""

    async def fail() -> None:
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        loop.run(fail())
    loop.spawn(fail())
    assert loop.run(doubled(4)) == 8


def test_stopping_cancels_what_still_runs_and_lets_it_clean_up() -> None:
    """A POST that hangs must not keep the process alive."""
    loop = Loop()
    begun, cleaned = threading.Event(), threading.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    future = loop.spawn(hang())
    assert begun.wait(10)
    loop.stop()
    assert cleaned.is_set()
    with pytest.raises(CancelledError):
        future.result(10)
    assert not [thread for thread in threading.enumerate() if thread is loop._thread]
