"""Charts: whatever the series, what is drawn is well-formed, lies inside its frame, and can be read out."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.web.dashboard import charts
from pipeline.web.dashboard.charts import HEIGHT, WIDTH, Chart, Part
from pipeline.web.dashboard.words import duration

SVG = "{http://www.w3.org/2000/svg}"
START = datetime(2026, 3, 1, 10, 7, tzinfo=UTC)

values = st.one_of(
    st.none(),
    st.just(0.0),
    st.floats(0, 1e4),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(0, 10**18).map(float),
)
SCALES = st.sampled_from([charts.counts, charts.durations, charts.amounts, charts.percents])


def times(count: int, step_s: int = 60) -> list[datetime]:
    return [START + timedelta(seconds=n * step_s) for n in range(count)]


def numbers(element: ET.Element) -> Sequence[tuple[str, float]]:
    """Each coordinate of an element, and along what axis it is."""
    found = [
        (name[0] if name[0] != "c" else name[1], float(element.attrib[name]))
        for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy")
        if name in element.attrib
    ]
    for pair in element.get("points", "").split():
        x, y = pair.split(",")
        found += [("x", float(x)), ("y", float(y))]
    path = element.get("d", "")
    assert re.fullmatch(r"(M[-\d.]+ [-\d.]+V[-\d.]+H[-\d.]+V[-\d.]+Z)*", path)
    for command, said in re.findall(r"([MVH])([^MVHZ]+)", path):
        if command == "M":
            x, y = said.split()
            found += [("x", float(x)), ("y", float(y))]
        else:
            found.append(("x" if command == "H" else "y", float(said)))
    return found


@given(
    count=st.integers(0, 130),
    step_s=st.sampled_from([60, 900, 3600, 6 * 3600, 86_400]),
    bars=st.integers(0, 3),
    lines=st.integers(0, 3),
    scale=SCALES,
    data=st.data(),
)
def test_whatever_the_series_the_drawing_is_whole_and_inside_its_frame(
    count: int, step_s: int, bars: int, lines: int, scale: Callable[[float], list[float]], data: st.DataObject
) -> None:
    """Empty, constant, huge, with gaps, and what is no number at all."""

    def part(name: str) -> Part:
        one = st.lists(values, min_size=count, max_size=count) | values.map(lambda value: [value] * count)
        return Part(name, "a", data.draw(one))

    chart = Chart(
        'A <chart> & "more"',
        times(count, step_s),
        bars=[part(f"bar {n}") for n in range(bars)],
        lines=[part(f"line {n}") for n in range(lines)],
        scale=scale,
    )
    root = ET.fromstring(chart.svg())
    assert root.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    assert root.get("role") == "img"
    assert (root.get("aria-label") or "").startswith('A <chart> & "more"')
    for element in root.iter():
        assert "style" not in element.attrib
        for axis, number in numbers(element):
            assert math.isfinite(number)
            assert 0 <= number <= (WIDTH if axis == "x" else HEIGHT)


@given(most=st.floats(0, charts.LARGEST * 4), scale=SCALES)
def test_a_scale_is_short_begins_at_nothing_and_has_room_for_the_most(
    most: float, scale: Callable[[float], list[float]]
) -> None:
    lines = scale(most)
    assert lines[0] == 0
    assert 2 <= len(lines) <= 6
    gaps = [after - before for before, after in pairwise(lines)]
    assert min(gaps) > 0
    assert max(gaps) == pytest.approx(min(gaps))
    assert scale is charts.percents or lines[-1] >= most * (1 - 1e-6)


def test_scales_are_as_people_count() -> None:
    assert charts.counts(0) == [0, 1]
    assert charts.counts(3) == [0, 1, 2, 3]
    assert charts.counts(47) == [0, 20, 40, 60]
    assert charts.durations(0.9) == [0, 0.5, 1]
    assert charts.durations(100) == [0, 30, 60, 90, 120]
    assert charts.durations(9 * 3600) == [0, 5 * 3600, 10 * 3600]
    assert charts.amounts(0.36) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [charts.compact(n) for n in (0, 5, 950, 1500, 2e6, 1e15)] == ["0", "5", "950", "1.5k", "2M", "1000T"]


def test_a_chart_without_anything_says_so() -> None:
    """Zeros are nothing to show, and an empty frame would look like a fault."""
    for lines in ([], [Part("completed", "a", [0.0, None])]):
        chart = Chart("Throughput", times(2), lines=lines, empty="No job ended.")
        assert "No job ended." in chart.svg()
        assert chart.words == "Throughput: No job ended."
        assert "polyline" not in chart.svg()
        assert chart.rows == []


def test_a_line_breaks_where_nothing_is_known() -> None:
    """A line through a gap would tell what nobody measured."""
    root = ET.fromstring(Chart("x", times(6), lines=[Part("p", "a", [1, 2, None, 3, None, 0])]).svg())
    assert len(root.findall(f"{SVG}polyline")) == 1
    assert len(root.findall(f"{SVG}circle")) == 2


def test_bars_stand_on_one_another() -> None:
    chart = Chart("x", times(1), bars=[Part("a", "a", [1]), Part("b", "b", [2]), Part("none", "c", [0])])
    first, second = ET.fromstring(chart.svg()).findall(f"{SVG}path")
    ys = [sorted({y for axis, y in numbers(path) if axis == "y"}) for path in (first, second)]
    assert ys[0][0] == ys[1][1]
    assert ys[0][1] - ys[0][0] == pytest.approx((ys[1][1] - ys[1][0]) / 2, abs=0.2)


def test_who_cannot_see_it_hears_the_most_and_the_last() -> None:
    chart = Chart("Latency", times(3), lines=[Part("p95", "a", [1.5, 240.0, None])], say=duration)
    assert chart.words == "Latency, times in UTC. p95: at most 4 min, at 01 Mar 10:08; last 4 min."
    assert chart.rows == [(START + timedelta(minutes=1), ["4 min"]), (START, ["1.5 s"])]


@pytest.mark.parametrize(
    ("count", "step_s", "first"), [(60, 60, "10:10"), (24, 3600, "12:00"), (57, 3 * 3600, "2 Mar"), (120, 21_600, "")]
)
def test_times_are_named_at_whole_ones_in_utc(count: int, step_s: int, first: str) -> None:
    """As many as have room on a phone."""
    begin = datetime.fromtimestamp(START.timestamp() // step_s * step_s, UTC)
    at = [begin + timedelta(seconds=n * step_s) for n in range(count)]
    labels = [one.text for one in ET.fromstring(Chart("x", at).svg()).findall(f"{SVG}text[@y='{HEIGHT - 8}']")]
    assert 3 <= len(labels) <= 7
    assert not first or labels[0] == first
