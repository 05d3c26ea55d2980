"""Who is slow or silent must not take every place that notifications are sent from."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.lanes import CROWDED, EACH, MOST, SILENT, SILENT_AFTER, Lanes


def test_an_endpoint_has_its_places_and_no_more() -> None:
    """However many notifications wait for it."""
    lanes = Lanes()
    for _ in range(EACH):
        lanes.begin("slow")
    assert (lanes.rooms(), lanes.each) == ({"slow": 0}, EACH)
    lanes.end("slow", answered=True)
    assert lanes.rooms() == {"slow": 1}


def test_who_does_not_answer_gets_few_places_until_it_does() -> None:
    """Each try there holds its place until the time is over."""
    lanes = Lanes()
    for left in [EACH] * (SILENT_AFTER - 1) + [SILENT]:
        lanes.begin("silent")
        lanes.end("silent", answered=False)
        assert lanes.rooms() == {"silent": left}
    lanes.begin("silent")
    assert lanes.rooms() == {"silent": SILENT - 1}
    lanes.end("silent", answered=True)
    assert lanes.rooms() == {}


def test_when_it_is_crowded_whoever_has_no_place_still_gets_one() -> None:
    """Those that hold many are the slow ones: the others go on, one at a time each."""
    lanes = Lanes()
    for number in range(CROWDED):
        lanes.begin(f"slow {number % 5}")
    assert lanes.each == 1
    assert set(lanes.rooms().values()) == {0}
    assert lanes.free == MOST - CROWDED
    lanes.begin("another")
    assert lanes.rooms()["another"] == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_what_has_ended_takes_no_place(steps: list[tuple[str, bool]]) -> None:
    """Else an endpoint would get fewer and fewer."""
    lanes = Lanes()
    for name, _ in steps:
        lanes.begin(name)
    for name, answered in steps:
        lanes.end(name, answered=answered)
    assert lanes.free == MOST
    assert set(lanes.rooms().values()) <= {SILENT, EACH}
