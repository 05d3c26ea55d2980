"""`pipeline bench`: how fast this is here, against the floor of the machine and what one could use instead."""

import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import err, out
from pipeline.embedded import procfile
from pipeline.errors import ConfigError, InvalidInput

if TYPE_CHECKING:
    from benchmarks.harness import Case, Result

Cases = Annotated[list[str] | None, typer.Argument(help="Which cases; all of them, by default.")]


def bench(
    cases: Cases = None,
    *,
    times: Annotated[int, typer.Option(min=1, help="How often each side of a case runs.")] = 5,
    save: Annotated[Path | None, typer.Option(help="A folder for results.json, results.md and sizes.png.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="As little as shows that the cases work: no figures.")] = False,
    options: Annotated[list[str] | None, typer.Option("--set", help="A size of a case: name=value.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="Only say which cases there are.")] = False,
) -> None:
    """
    Measure this product on this machine: its own stack, started for it, never the real provider.

    The sides of a case run by turns, so that what else the machine does meets all of them. Compare the ratios;
    the figures are the machine's. All cases take about two hours; results of other cases in --save stay.
    """
    known = _benchmarks()
    wanted = cases or list(known.NAMES)
    if odd := [name for name in wanted if name not in known.NAMES]:
        raise InvalidInput(f"There is no case named {', '.join(odd)}: they are {', '.join(known.NAMES)}.")
    loaded = [_sound(known.load(name)) for name in wanted]
    if list_them:
        for case in loaded:
            out.print(f"[bold]{case.name:10}[/bold] {case.shows}", highlight=False)
            if case.options:
                out.print(f"{'':10} --set {', '.join(case.options)}", highlight=False)
        return
    chosen = dict(_pair(option) for option in options or ())
    if odd := [name for name in chosen if not any(name in case.options for case in loaded)]:
        raise InvalidInput(f"--set {odd[0]}: {_options(loaded)}.")
    if smoke and save and (save / "results.json").exists():
        raise InvalidInput(
            f"--save {save}: results are kept there, and a smoke run measures nothing. Name another folder."
        )
    harness, machine, report = (
        importlib.import_module(f"benchmarks.{name}") for name in ("harness", "machine", "report")
    )
    plan = harness.Plan(1 if smoke else times, smoke, chosen)
    results: dict[str, Result] = {}
    for case in loaded:
        facts = machine.facts()
        results[case.name] = harness.run(case, plan, lambda said: err.print(said, highlight=False, soft_wrap=True))
        if save:  # after each: an hour's work is not lost by what happens in its last minute
            told = {name: value for name, value in chosen.items() if name in case.options and name != "data"}
            report.save(save, results[case.name], facts, told | ({"smoke": "yes"} if smoke else {}))
    verdicts = () if smoke else ("", *report.asked(results))
    for line in (*report.lines(list(results.values())), *verdicts, "", machine.line(facts)):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _benchmarks() -> Any:
    """The cases, beside the package: they are no part of what is installed."""
    root = procfile.PROCFILE.parent
    if not (root / "benchmarks" / "cases").is_dir():
        raise ConfigError("There are no benchmarks here: this command runs from a checkout, not from a package.")
    sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.cases")


def _options(cases: "Sequence[Case]") -> str:
    known = [f"{case.name} has {', '.join(case.options)}" for case in cases if case.options]
    return "there is no such size; " + ("; ".join(known) or "these cases have none")


def _sound(case: "Case") -> "Case":
    if missing := [name for name in case.needs if find_spec(name) is None]:
        raise ConfigError(f"{case.name} needs {', '.join(missing)}: `make bench` installs what benchmarks need.")
    return case


def _pair(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not equals:
        raise InvalidInput(f"--set {option}: must be name=value.")
    return name, value
