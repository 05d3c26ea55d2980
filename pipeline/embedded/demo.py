"""`pipeline demo`: a dozen jobs through the whole stack, and a table of what became of them."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from pipeline.embedded import api
from pipeline.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    from pipeline.embedded.foreground import Stack

PATIENCE_S = 60.0
REAL_PATIENCE_S = 600.0  # others wait there, too
FINAL = ("completed", "failed", "expired", "cancelled")
SUBJECTS = (
    "a lighthouse at dawn, watercolour",
    "a fox reading in a hammock",
    "an observatory under the milky way",
    "a bakery window on a rainy evening",
    "a paper boat on a very large puddle",
    "a market in a city of canals",
    "a teapot that dreams of the sea",
    "two herons in the morning mist",
    "a night train crossing a viaduct",
    "a cat asleep on a stack of maps",
)
NEXT = """
Next:
  make dev                 the same stack, kept running: dashboard with a playground, API, a service key
  make test                the tests, on real servers too
  less README.md           how to hand in jobs, and how to deploy
"""


@dataclass
class Errand:
    """A job of the demo, and how it is meant to end."""

    prompt: str
    state: str = "completed"
    settled_by: str | None = "webhook"  # None: either way
    why: str = ""
    job: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """The job is final, and its files are stored, or lost."""
        return self.job.get("state") in FINAL and all(one["stored"] or one["lost"] for one in self.job["outputs"])

    @property
    def files(self) -> int:
        """How many of its files are stored."""
        return sum(bool(one["stored"]) for one in self.job.get("outputs") or ())

    @property
    def kept(self) -> bool:
        """It ended as it was meant to."""
        return (
            self.over
            and self.job["state"] == self.state
            and self.settled_by in (None, self.job["settled_by"])
            and bool(self.job["error"]) == (self.state == "failed")
            and self.files == len(self.job["outputs"])
        )


def errands(*, real: bool, webhooks: bool) -> list[Errand]:
    """Choose the jobs: one that costs little at the real provider, a dozen with two mishaps at the sandbox."""
    if real:
        return [Errand(SUBJECTS[0], settled_by=None)]
    way = "webhook" if webhooks else "poll"
    return [
        *(Errand(subject, settled_by=way) for subject in SUBJECTS),
        Errand("a postcard that gets lost [sandbox:webhook_drop]", settled_by="poll", why="its webhook never came"),
        Errand("something the provider refuses [sandbox:fail]", "failed", way, why="refused by the provider"),
    ]


def demo() -> None:
    """Run a dozen jobs through everything, started on this machine for it: servers, web, worker and beat."""
    try:
        from pipeline.embedded.foreground import Options, running  # noqa: PLC0415  # needs the extra `embedded`
        from pipeline.embedded.supervisor import Stopped, StopSignals  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed here: run `make setup`.") from None

    console = Console() if sys.stdout.isatty() else Console(width=120)
    begun = time.monotonic()
    options = Options(defaults={"POLL_AFTER_S": "3"}, follow=False)
    with (
        StopSignals().caught() as signals,
        contextlib.suppress(Stopped),
        running(options, signals, say=console.print) as stack,
    ):
        chosen = errands(real=stack.real, webhooks=stack.webhooks)
        if stack.real:
            console.print(_price_notice(chosen[0].prompt))
        try:
            _run(stack, chosen, console)
            console.print(_table(chosen))
            if broken := sum(not errand.kept for errand in chosen):
                raise PipelineError(f"{broken} of {len(chosen)} jobs did not end as they should.")
        except (PipelineError, OSError) as error:
            console.print(stack.logs.ends(), markup=False, highlight=False)
            raise PipelineError(str(error)) from None
        ended = "It ended as it should" if len(chosen) == 1 else f"All {len(chosen)} ended as they should"
        files = sum(errand.files for errand in chosen)
        kept = f"{files} {'file was' if files == 1 else 'files were'} archived"
        console.print(f"{ended}, and {kept}, {time.monotonic() - begun:.1f} s after the start.")
        console.print(NEXT, markup=False, highlight=False)
        return
    sys.exit(1)  # interrupted


def _run(stack: "Stack", chosen: Sequence[Errand], console: Console) -> None:
    """Hand the jobs in, over HTTP as any caller would, and follow them to their ends."""
    for errand in chosen:
        errand.job = _ask(stack, "POST", "/v1/jobs", {"input": {"prompt": errand.prompt}})
    deadline = time.monotonic() + (REAL_PATIENCE_S if stack.real else PATIENCE_S)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("jobs finished, files archived", total=len(chosen))
        while not all(errand.over for errand in chosen) and time.monotonic() < deadline:
            stack.wait(0.2)
            for errand in chosen:
                if not errand.over:
                    errand.job = _ask(stack, "GET", f"/v1/jobs/{errand.job['id']}")
            progress.update(bar, completed=sum(errand.over for errand in chosen))


def _ask(stack: "Stack", method: str, path: str, body: object = None) -> dict[str, Any]:
    status, answer = api.call(method, stack.facts.url + path, body, key=stack.facts.api_key)
    if status not in (200, 201):
        raise PipelineError(f"{method} {path} was answered with {status}: {answer}")
    return dict(answer)


def _price_notice(prompt: str) -> str:
    """Say what the one job will cost; the provider knows best."""
    base = os.environ.get("WAVESPEED_BASE_URL") or "https://api.wavespeed.ai"
    model = os.environ.get("DEFAULT_MODEL") or "openai/dall-e-2"
    body = {"model_id": model, "inputs": {"prompt": prompt}}
    try:
        _, answer = api.call("POST", f"{base}/api/v3/model/price", body, key=os.environ["WAVESPEED_API_KEY"])
        price = f"${float(answer['data']['price']):.3f}"
    except (OSError, TypeError, KeyError, ValueError):
        price = "a price the provider would not tell"
    return f"WAVESPEED_API_KEY is set: one job of {model} at the real service, for {price}."


def _table(chosen: Sequence[Errand]) -> Table:
    table = Table(title="What became of the jobs", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("prompt", no_wrap=True)
    for heading in ("state", "settled by", "files"):
        table.add_column(heading)
    table.add_column("provider", justify="right")
    table.add_column("in all", justify="right")
    table.add_column("", overflow="fold")
    for errand in chosen:
        job, timings = errand.job, errand.job.get("timings") or {}
        table.add_row(
            errand.prompt.partition(" [sandbox:")[0],
            f"[{'green' if job['state'] == 'completed' else 'yellow'}]{job['state']}",
            str(job["settled_by"] or "–"),
            _files(errand),
            _seconds(timings.get("provider_ms")),
            _seconds(timings.get("total_ms")),
            _remark(errand),
        )
    return table


def _remark(errand: Errand) -> str:
    error = errand.job.get("error") or {}
    told = f"{error.get('code')}: {error.get('message')}" if error else errand.why
    return told if errand.kept else f"[red]should be {errand.state}, by {errand.settled_by or 'either'}[/] {told}"


def _files(errand: Errand) -> str:
    count = len(errand.job["outputs"])
    return "" if not count else f"{errand.files} archived" if errand.files == count else f"{errand.files} of {count}"


def _seconds(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds / 1000:.2f} s"
