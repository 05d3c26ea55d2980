"""Results as files: everything in JSON, tables in Markdown, the cost against size as a picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, targets
from benchmarks.harness import Result


def save(folder: Path, results: Mapping[str, Result], facts: Mapping[str, object]) -> None:
    """
    Write `results.json`, `results.md` and, where sizes were measured, `sizes.png`.

    What the folder has of other cases stays: a case can be measured again by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept |= {name: {"machine": facts, **asdict(result)} for name, result in results.items()}
    file.write_text(json.dumps(kept, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(kept))
    if "sizes" in results:
        from benchmarks import plot  # noqa: PLC0415 - matplotlib, for those who have measured sizes

        plot.sizes(result_of(kept["sizes"]), folder / "sizes.png")


def read(folder: Path) -> dict[str, Result]:
    """What was saved there."""
    kept = json.loads((folder / "results.json").read_text())
    return {name: result_of(one) for name, one in kept.items()}


def result_of(kept: Mapping[str, Any]) -> Result:
    """One result, from its JSON."""
    return Result(**{name: value for name, value in kept.items() if name != "machine"})


def markdown(kept: Mapping[str, Any]) -> str:
    """Every table: first what is asked, then case by case."""
    results = {name: result_of(one) for name, one in kept.items()}
    lines = ["# Measured", "", *asked(results)]
    for name, result in results.items():
        lines += ["", f"## {name}", "", f"{result.shows} {machine.line(kept[name]['machine'])}.", "", *table(result)]
    return "\n".join(lines) + "\n"


def asked(results: Mapping[str, Result]) -> Iterator[str]:
    """The table of what is asked, and what was measured of it."""
    yield "| measure | at least | aim | measured | |"
    yield "|---|---|---|---|---|"
    for one in targets.judged(results):
        target = one.target
        sign = "" if target.more_is_better else "≤ "
        words = (f"{sign}{said(value)}{target.unit}" for value in (target.at_least, target.aim))
        yield f"| {target.measure} | {' | '.join(words)} | {said(one.value)}{target.unit} | {one.word} |"


def table(result: Result) -> Iterator[str]:
    """One case: a line for each figure of each side."""
    base = f"against {result.baseline}" if result.baseline else "ratio"
    yield f"| | figure | median | least–most | {base} |"
    yield "|---|---|---|---|---|"
    for row in result.rows():
        least, most = row.spread
        share = f"{row.ratio:.2f} ×" if row.ratio is not None else ""
        yield f"| {row.side} | {row.figure} | {said(row.median)} | {said(least)}–{said(most)} | {share} |"


def said(value: float) -> str:
    """A number with three digits that count, and no more."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def lines(results: Sequence[Result]) -> Iterator[str]:
    """All tables of a run, for a terminal."""
    for result in results:
        yield from ("", f"{result.case}: {result.shows} ({result.seconds:.0f} s)", *table(result))
