"""The benchmarks: their arithmetic, and that every case works. What they measure is told elsewhere, never asserted."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import cases, machine, report, targets
from benchmarks.harness import Case, Plan, Side, run
from benchmarks.targets import Target
from pipeline.embedded.environment import users_own
from tests.commands import command

FACTS = machine.facts()


def counting(order: list[str]) -> Case:
    """A case whose floor takes 10, 11, 12 … and ours twice that."""

    @contextmanager
    def sides(plan: Plan) -> Iterator[Mapping[str, Side]]:
        numbers = {name: itertools.count(10) for name in ("the floor", "ours")}

        def side(name: str, times: int) -> Side:
            def once() -> Mapping[str, float]:
                order.append(name)
                return {"ms": times * next(numbers[name])}

            return once

        yield {"the floor": side("the floor", 1), "ours": side("ours", 2)}
        order.append("closed")

    return Case("counting", "Counts.", sides, baseline="the floor")


def test_sides_take_turns_and_every_second_turn_goes_backwards() -> None:
    """What else the machine does meets all of them, and none always follows the same one."""
    order: list[str] = []
    run(counting(order), Plan(times=3))
    assert order == ["the floor", "ours", "ours", "the floor", "the floor", "ours", "closed"]


def test_a_result_has_each_median_its_spread_and_its_share_of_the_baseline() -> None:
    """The ratio is that of the medians; the baseline has none."""
    result = run(counting([]), Plan(times=5))
    floor, ours = result.rows()

    assert (floor.side, floor.median, floor.spread, floor.ratio) == ("the floor", 12.0, (10.0, 14.0), None)
    assert (ours.side, ours.median, ours.spread, ours.ratio) == ("ours", 24.0, (20.0, 28.0), 2.0)


@pytest.mark.parametrize(
    ("value", "more_is_better", "word"),
    [(4.9, True, "short"), (5.0, True, "met"), (20.0, True, "aim"), (21.0, False, "short"), (5.0, False, "aim")],
)
def test_a_target_is_reached_as_aimed_at_or_just_met_or_fallen_short_of(
    value: float, more_is_better: bool, word: str
) -> None:
    """For what should be little, at least means at most."""
    bounds = (5.0, 20.0) if more_is_better else (20.0, 5.0)
    target = Target("x", "a", targets.figure("b", "c"), *bounds, more_is_better=more_is_better)
    assert target.verdict(value) == word


def test_every_target_is_judged_by_the_results_that_are_kept() -> None:
    """What is asked and was never measured would silently be no target any more."""
    measured = {one.target.measure for one in targets.judged(report.read(report.KEPT))}
    assert measured == {target.measure for target in targets.TARGETS}


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_what_is_told_of_the_speed_is_what_was_measured(page: Path) -> None:
    """What is judged, and each case's table, is not typed. Should this fail: `python -m benchmarks.report`."""
    told = page.read_text()
    assert report.retold(told, report.kept(report.KEPT)) == told
    assert all(line in told.splitlines() for line in report.asked(report.read(report.KEPT)))
    assert (report.KEPT / "results.md").read_text() == report.markdown(report.kept(report.KEPT))


def test_the_documentation_has_every_figure_of_every_case() -> None:
    """What was measured five times and more, whether it pleases or not."""
    told = (report.ROOT / "pipeline" / "docs" / "speed.md").read_text()
    kept = report.read(report.KEPT)
    assert kept.keys() == set(cases.NAMES)
    assert [name for name, result in kept.items() if "\n".join(report.table(result)) not in told] == []
    assert all(len(samples) >= 5 for one in kept.values() for each in one.samples.values() for samples in each.values())


def test_a_page_is_told_anew_and_what_else_it_says_stays() -> None:
    """The first table below a heading that names a case, and its date; no other."""
    every = {"counting": {"machine": FACTS, **asdict(run(counting([]), Plan(times=2)))}}
    page = "# Pages\n\nWords.\n\n## counting\n\nMore.\n\n| old |\n|---|\n\n*2001-01-01, long ago.*\n\n| not |\n\n"
    page += "## other\n\n| it |\n"
    told = report.retold(page, every)
    table = "\n".join(report.table(report.result_of(every["counting"])))
    assert told == page.replace("| old |\n|---|\n\n*2001-01-01, long ago.*", f"{table}\n\n*{machine.line(FACTS)}.*")
    assert report.retold(told, every) == told


def test_what_is_saved_can_be_read_again_and_other_cases_stay(tmp_path: Path) -> None:
    """An hour of measuring is not lost by measuring one case again."""
    result = run(counting([]), Plan(times=2))
    report.save(tmp_path, result, FACTS)
    report.save(tmp_path, replace(result, case="other"), FACTS, {"size": "9"})

    assert report.read(tmp_path)["counting"].samples == result.samples
    assert "## counting" in (tmp_path / "results.md").read_text()
    assert "## other" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.md").read_text().rstrip().endswith(", `--set size=9`.*")


def test_a_case_that_is_none_is_named_and_the_others_are_listed() -> None:
    """Nothing is begun."""
    done = command(os.environ, "bench", "receiver", "reciever")
    assert done.returncode == 1
    assert "reciever" in done.stderr
    assert all(name in done.stderr for name in cases.NAMES)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["receiver", "--set", "nosuch=1"], "connections"),
        (["latency", "--set", "jobs=1"], "have none"),
        (["receiver", "--set", "servers"], "name=value"),
        (["receiver", "--smoke", "--save", str(report.KEPT)], "measures nothing"),
    ],
)
def test_what_could_not_be_meant_is_refused_before_anything_is_begun(asked: list[str], said: str) -> None:
    """A size that no case has, and smoke in the place of results."""
    done = command(os.environ, "bench", *asked)
    assert done.returncode == 1
    assert said in done.stderr


EVERY_DAY = ("receiver", "sizes")
"""The others take longer, or try out for longer how many of something are best."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in cases.NAMES]
)
def test_a_case_gives_its_figures_for_each_of_its_sides(name: str, tmp_path: Path) -> None:
    """As little of it as works, by the command that users type, on real servers; the baseline is one of the sides."""
    argv = [sys.executable, "-m", "pipeline", "bench", name, "--smoke", "--save", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False, env=users_own())
    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads((tmp_path / "results.json").read_text()).keys() == {name}
    result = report.read(tmp_path)[name]
    assert result.samples
    assert result.baseline is None or result.baseline in result.samples or name == "sizes"  # smaller ones, here
    for figures in result.samples.values():
        assert all(value > 0 if name.endswith("/s") else value >= 0 for name, each in figures.items() for value in each)
    told = report.read(report.KEPT)[name]  # renamed, a figure would silently be no target any more
    assert {figure for one in result.samples.values() for figure in one} <= {
        figure for one in told.samples.values() for figure in one
    }
    assert name in {"instead", "sizes"} or result.samples.keys() == told.samples.keys()
    assert name != "sizes" or (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_every_target_is_of_a_case() -> None:
    """What is asked of a case that is none would never be judged."""
    assert {target.case for target in targets.TARGETS} == set(cases.NAMES)
