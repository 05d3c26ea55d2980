"""The window of POSTs under way: small before anything is known, as wide as is needed, small again after trouble."""

import pytest

from pipeline.lifecycle.window import FIRST, LARGEST, Window


def full(window: Window, answers: int) -> None:
    """So many good answers, each while the window was full."""
    for _ in range(answers):
        window.hear(good=True, full=True)


def test_each_good_answer_of_a_full_window_lets_one_more_out() -> None:
    """So it doubles with every round of answers."""
    window = Window()
    assert window.size == FIRST
    full(window, FIRST)
    assert window.size == 2 * FIRST


def test_it_grows_no_wider_than_a_process_can_serve() -> None:
    window = Window()
    full(window, 2 * LARGEST)
    assert window.size == LARGEST


@pytest.mark.parametrize("held_back", [True, False])
def test_one_bad_answer_makes_it_small(*, held_back: bool) -> None:
    """What is under way already may be lost too; no more shall be."""
    window = Window()
    full(window, LARGEST)
    window.hear(good=False, full=held_back)
    assert window.size == FIRST


def test_it_shrinks_while_there_is_room() -> None:
    """A burst of this morning says nothing of what may safely be under way tonight."""
    window = Window()
    full(window, LARGEST)
    for _ in range(30):
        window.hear(good=True, full=False)
    assert window.size == LARGEST - 30


def test_it_never_shrinks_below_what_it_began_with() -> None:
    window = Window()
    for _ in range(1000):
        window.hear(good=True, full=False)
    assert window.size == FIRST
