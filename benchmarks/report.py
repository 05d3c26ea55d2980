"""
Results as files: everything in JSON, tables in Markdown, the cost against size as a picture.

    python -m benchmarks.report      tell the kept results (`benchmarks/results`) in the README and in the documentation
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import machine, targets
from benchmarks.harness import Result

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "pipeline" / "docs" / "speed.md")
ASKED = "Speed"
"""The heading below which stands what is asked; below those that are a case's name, its figures."""


def save(folder: Path, result: Result, facts: Mapping[str, object], options: Mapping[str, str] | None = None) -> None:
    """
    Write `results.json`, `results.md` and, where sizes were measured, `sizes.png`; *options* are those of its run.

    What the folder has of other cases stays: a case can be measured again by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    every = kept(folder) if file.exists() else {}
    every[result.case] = {"machine": facts, "options": dict(options or {}), **asdict(result)}
    file.write_text(json.dumps(every, indent=1) + "\n")
    _write_tables(folder, every)
    if result.case == "sizes":
        from benchmarks import plot  # noqa: PLC0415 - matplotlib, for those who have measured sizes

        plot.sizes(result, folder / "sizes.png")


def _write_tables(folder: Path, every: Mapping[str, Any]) -> None:
    (folder / "results.md").write_text(markdown(every))


def kept(folder: Path) -> dict[str, Any]:
    """What was saved there, as JSON."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def read(folder: Path) -> dict[str, Result]:
    """What was saved there."""
    return {name: result_of(one) for name, one in kept(folder).items()}


def result_of(one: Mapping[str, Any]) -> Result:
    """One result, from its JSON."""
    return Result(**{name: value for name, value in one.items() if name not in {"machine", "options"}})


def markdown(every: Mapping[str, Any]) -> str:
    """Every table: first what is asked, then case by case."""
    tables = (line for name, lines in _told(every).items() for line in (f"## {name}", "", *lines, ""))
    return "\n".join(["# Measured", "", *tables])


def retold(page: str, every: Mapping[str, Any]) -> str:
    """The same page with the figures of today: the first table below each heading of which something is known."""
    told = _told(every)

    def section(words: str) -> str:
        lines = told.get(words.partition("\n")[0].lstrip("# "))
        return _TABLE.sub(lambda _: "\n".join(lines) + "\n", words, count=1) if lines else words

    return "".join(map(section, re.split("(?m)^(?=#)", page)))


_TABLE = re.compile(r"(?m)(^\|.*\n)+(\n\*20.*\n)?")
"""A table, and the line below it that says when and on what it was measured."""


def _told(every: Mapping[str, Any]) -> dict[str, list[str]]:
    """What stands below each heading: a table, and when and on what it was measured."""
    results = {name: result_of(one) for name, one in every.items()}
    places = sorted({machine.where(one["machine"]) for one in every.values()})
    return {ASKED: [*asked(results), "", f"*{'; '.join(places)}.*"]} | {
        name: [*table(result), "", f"*{_measured(every[name])}.*"] for name, result in results.items()
    }


def _measured(one: Mapping[str, Any]) -> str:
    options = "".join(f", `--set {name}={value}`" for name, value in one.get("options", {}).items())
    return machine.line(one["machine"]) + options


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
    base = f" against {result.baseline} |" if result.baseline else ""
    yield f"| | figure | median | least–most |{base}"
    yield "|---|---|---|---|" + ("---|" if base else "")
    for row in result.rows():
        least, most = row.spread
        share = f"{said(row.ratio)} ×" if row.ratio is not None else ""
        line = f"| {row.side} | {row.figure} | {said(row.median)} | {said(least)}–{said(most)} |"
        yield f"{line} {share} |" if base else line


def said(value: float) -> str:
    """A number with three digits that count, and no more."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def lines(results: Sequence[Result]) -> Iterator[str]:
    """All tables of a run, for a terminal."""
    for result in results:
        yield from ("", f"{result.case}: {result.shows} ({result.seconds:.0f} s)", *table(result))


def main() -> None:
    """Tell the results that are kept wherever they are told."""
    every = kept(KEPT)
    _write_tables(KEPT, every)
    for page in PAGES:
        page.write_text(retold(page.read_text(), every))


if __name__ == "__main__":
    main()
