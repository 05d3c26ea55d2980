"""
Charts: plain SVG, drawn by the server, in words for who cannot see it and as a table for who wants the figures.

Pure: series go in, markup comes out. No style is inline, for the page's policy forbids it: colours and sizes are the
classes of dashboard.css. What is not a number, or is none, is a gap.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from markupsafe import Markup

WIDTH, HEIGHT = 480, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 12, 26
"""What is left free around the plot, for labels."""

LARGEST = 1e15
"""No point is higher: beyond that there are no whole numbers."""

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400

DURATIONS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, HOUR_S)
"""Between lines of a scale of time, in seconds; beyond it they are whole hours."""

SPACINGS_S = (
    *(MINUTE_S * n for n in (1, 5, 10, 20, 30)),
    *(HOUR_S * n for n in (1, 2, 4, 6, 12)),
    *(DAY_S * n for n in (1, 2, 5, 7, 14, 30, 60, 180, 360)),
)
"""Between labels of times, in seconds."""

Say = Callable[[float], str]


def counts(most: float) -> list[float]:
    """Where the lines of a scale of whole numbers are: from 0 to *most* or a little above, at most six of them."""
    step = _nice(most / 4)
    return _steps(max(1.0, step), most)


def durations(most: float) -> list[float]:
    """Likewise for seconds, by steps as people count them."""
    step = next((one for one in DURATIONS_S if one * 4 >= most), None)
    return _steps(step if step is not None else HOUR_S * max(1.0, _nice(most / 4 / HOUR_S)), most)


def amounts(most: float) -> list[float]:
    """Likewise for what may be a fraction."""
    return _steps(_nice(most / 4), most)


def percents(most: float) -> list[float]:
    """From none to all, whatever the most is."""
    return [0.0, 25.0, 50.0, 75.0, 100.0]


def compact(value: float) -> str:
    """A number that fits beside a scale: 950, 1.2k, 30M."""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{name}"
    return f"{value:.3g}"


def _nice(step: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below *step*."""
    if step < 1e-12:
        return 1.0
    size = 10.0 ** math.floor(math.log10(step))
    return next(one * size for one in (1, 2, 5, 10) if one * size >= step * (1 - 1e-9))


def _steps(step: float, most: float) -> list[float]:
    return [n * step for n in range(max(1, math.ceil(most / step - 1e-9)) + 1)]


def _number(value: float | None) -> float | None:
    """A height that can be drawn; None: a gap."""
    return None if value is None or not math.isfinite(value) else min(max(float(value), 0.0), LARGEST)


@dataclass(frozen=True, slots=True)
class Part:
    """One of the things a chart shows; *look* is the class that colours it."""

    name: str
    look: str
    values: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: *bars* are stacked, *lines* lie over them. Each part has a value for every one of *times*, or None."""

    title: str
    times: Sequence[datetime]
    bars: Sequence[Part] = ()
    lines: Sequence[Part] = ()
    say: Say = "{:,.0f}".format
    scale: Callable[[float], list[float]] = counts
    empty: str = "Nothing to show yet."

    @property
    def parts(self) -> tuple[Part, ...]:
        """All it shows, what lies in front first."""
        return (*self.lines, *self.bars)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it but zeros and gaps."""
        return not any(_number(value) for part in self.parts for value in part.values)

    @property
    def shown(self) -> list[Part]:
        """The parts that can be seen: those with more than zeros and gaps; all of an empty chart's."""
        return [part for part in self.parts if self.is_empty or any(_number(value) for value in part.values)]

    @property
    def words(self) -> str:
        """The gist, for who cannot see it."""
        if self.is_empty:
            return f"{self.title}: {self.empty}"
        return f"{self.title}, times in UTC. {' '.join(self._gist(part) for part in self.parts)}"

    def _gist(self, part: Part) -> str:
        values = [(_number(value), at) for value, at in zip(part.values, self.times, strict=True)]
        known = [(value, at) for value, at in values if value is not None]
        most, at = max(known, default=(0.0, None))
        if at is None or not most:
            return f"{part.name}: none."
        last, _ = known[-1]
        return f"{part.name}: at most {self.say(most)}, at {at.astimezone(UTC):%d %b %H:%M}; last {self.say(last)}."

    @property
    def rows(self) -> list[tuple[datetime, list[str]]]:
        """The figures of each time there are any of, the newest first."""
        columns = [[_number(value) for value in part.values] for part in self.parts]
        found = zip(self.times, zip(*columns, strict=True), strict=True) if columns else ()
        return [
            (at, ["–" if value is None else self.say(value) for value in values])
            for at, values in reversed(list(found))
            if any(values)
        ]

    def svg(self) -> Markup:
        """Draw it."""
        drawn = Markup("").join(_draw(self))
        return Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">'
            "{}</svg>"
        ).format(WIDTH, HEIGHT, self.words, drawn)


@dataclass(frozen=True, slots=True)
class _Plot:
    """Where things are."""

    count: int
    top: float  # the value at the upper edge

    @property
    def step(self) -> float:
        return (WIDTH - LEFT - RIGHT) / max(self.count, 1)

    def x(self, n: float) -> float:
        """The middle of a step."""
        return LEFT + (n + 0.5) * self.step

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - min(value / self.top, 1.0) * (HEIGHT - TOP - BOTTOM)


def _draw(chart: Chart) -> Iterable[Markup]:
    stacks = [sum(_number(part.values[n]) or 0.0 for part in chart.bars) for n in range(len(chart.times))]
    most = max([0.0, *stacks, *(_number(value) or 0.0 for part in chart.lines for value in part.values)])
    lines = chart.scale(most)
    plot = _Plot(len(chart.times), lines[-1])
    for value in lines:
        y = plot.y(value)
        yield Markup('<line class="axis" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, y, y)
        label = Markup('<text class="end" x="{}" y="{:.1f}">{}</text>')
        if not chart.is_empty or not value:
            yield label.format(LEFT - 6, y + 4, compact(value) if chart.scale is counts else chart.say(value))
    yield from _labels(chart.times, plot)
    if chart.is_empty:
        yield Markup('<text class="middle" x="{}" y="{}">{}</text>').format(WIDTH / 2, HEIGHT / 2 - 6, chart.empty)
        return
    yield from _stacked(chart.bars, plot)
    for part in chart.lines:
        yield from _line(part, plot)


def _labels(times: Sequence[datetime], plot: _Plot) -> Iterable[Markup]:
    """Name the times that are whole hours, days and so on, as many as have room."""
    if not times:
        return
    stamps = [at.timestamp() for at in times]
    span = stamps[-1] - stamps[0]
    spacing = next((one for one in SPACINGS_S if span / one <= 6.5), SPACINGS_S[-1])
    for n, (stamp, at) in enumerate(zip(stamps, times, strict=True)):
        if stamp % spacing == 0:
            utc = at.astimezone(UTC)
            said = f"{utc.day} {utc:%b}" if spacing >= DAY_S else f"{utc:%H:%M}"
            yield Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>').format(plot.x(n), HEIGHT - 8, said)


def _stacked(bars: Sequence[Part], plot: _Plot) -> Iterable[Markup]:
    """Draw one path for each part, of all its rectangles: a page has fewer elements so."""
    below = [0.0] * plot.count
    half = plot.step * 0.4
    for part in bars:
        drawn = []
        for n, raw in enumerate(part.values):
            value = _number(raw)
            if value:
                low, high = plot.y(below[n]), plot.y(below[n] + value)
                left, right = plot.x(n) - half, plot.x(n) + half
                drawn.append(f"M{left:.1f} {low:.1f}V{high:.1f}H{right:.1f}V{low:.1f}Z")
                below[n] += value
        if drawn:
            yield Markup('<path class="fill-{}" d="{}"/>').format(part.look, "".join(drawn))


def _line(part: Part, plot: _Plot) -> Iterable[Markup]:
    """Draw a line that breaks at gaps; a point with gaps on both sides is a dot."""
    known = ((n, _number(value)) for n, value in enumerate(part.values))
    for there, points in groupby(known, key=lambda point: point[1] is not None):
        if not there:
            continue
        drawn = [f"{plot.x(n):.1f},{plot.y(value):.1f}" for n, value in points if value is not None]
        if len(drawn) == 1:
            x, y = drawn[0].split(",")
            yield Markup('<circle class="dot-{}" cx="{}" cy="{}" r="2.5"/>').format(part.look, x, y)
        else:
            yield Markup('<polyline class="{}" points="{}"/>').format(part.look, " ".join(drawn))
