"""
The deploy drill: what a deployment does to a stack under load.

On a deploy or restart the platform sends SIGTERM to every process of a dyno at once, Celery's parent and each of its
pool children, granian's parent and its workers, beat, and SIGKILL 30 s later. Here the same is done to web, worker and
beat on this machine while POSTs are under way, callbacks arrive and jobs wait; then all is started again, and the
sandbox's ledger tells what was paid for. Postgres, the broker and the sandbox keep running, as they would.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from urllib.parse import urlsplit

import psycopg
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.embedded import api
from pipeline.embedded.foreground import Options, Stack, running
from pipeline.embedded.load import Load
from pipeline.embedded.processes import StackError
from pipeline.embedded.supervisor import StopSignals

LIMIT_S = 25.0
"""All must have left so long after SIGTERM."""

KILLED_AFTER_S = 30.0
"""What is left then the platform kills."""

LOADING_S = 60.0
PATIENCE_S = 300.0
WORTH_IT = {"unanswered": 4, "processing": 1, "completed": 1, "queued": 4}
"""What makes a load worth a drill: POSTs without an answer, callbacks that are to come and that came, a backlog."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to rehearse."""

    pool: str = "threads"
    jobs: int = 200
    workers: int = 1
    answer_s: float = 5.0  # a POST is answered after a fifth of this to all of it
    broker_url: str | None = None  # None: a Valkey of the drill's own


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it; the seconds count from SIGTERM."""

    pool: str
    broker: str
    jobs: int
    processes: int  # that SIGTERM was sent to
    posts_under_way: int  # at that moment
    backlog: int  # jobs that waited then
    exit_s: float  # until the last had left
    killed: tuple[str, ...]  # programs that had to be killed
    statuses: Mapping[str, int]  # the exit status of each; negative: a signal
    answers_lost: int  # POSTs whose answer nobody waited for
    requests_cut_off: int  # of callers, who then repeated them
    lost: int  # jobs that did not complete
    repeated: int  # charges beyond one for each job
    first_post_s: float | None  # until the first POST of the new processes
    done_s: float  # until every job was final

    @property
    def breaches(self) -> list[str]:
        """What a deployment may not do."""
        found = {
            f"the last process left after {self.exit_s:.1f} s": self.exit_s >= LIMIT_S,
            f"killed: {', '.join(self.killed)}": bool(self.killed),
            f"{self.lost} jobs lost": bool(self.lost),
            f"{self.repeated} POSTs repeated": bool(self.repeated),
        }
        return [what for what, happened in found.items() if happened]


def run(plan: Plan, signals: StopSignals) -> Report:
    """
    Start a stack, load it, take it away under the load, and count.

    Raises:
        Stopped: A signal came.
        StackError: The stack or the load did not come up.
    """
    options = Options(
        workers=plan.workers,
        follow=False,
        imitation=True,
        broker_url=plan.broker_url,
        worker_options=f"--pool {plan.pool}" + (" --concurrency 2" if plan.pool == "prefork" else ""),
        # A third of the jobs at once, so that there is a backlog; and whoever hears nothing asks soon.
        defaults={"MAX_IN_FLIGHT": str(max(8, plan.jobs // 3)), "POLL_AFTER_S": "5"},
    )
    with running(options, signals, say=_say) as stack:
        # Some callbacks come before the answer of their POST, some after it.
        dial = {"latency_s": [plan.answer_s / 5, plan.answer_s], "generation_s": [0.2, 2 * plan.answer_s]}
        api.call("POST", f"{stack.facts.sandbox_url}/_sandbox/faults", dial)
        with closing(Load(stack.facts, _service(stack), plan.jobs)) as load, _progress(plan.jobs) as show:
            load.start()
            return _drill(plan, stack, load, show)


def _drill(plan: Plan, stack: Stack, load: Load, show: "_Show") -> Report:
    if not _wait(stack, lambda: _is_under_way(load, show), LOADING_S):
        raise StackError(f"The load did not come up in {LOADING_S:.0f} s. The logs end:\n{stack.logs.ends()}")
    processes = sum(len(pids) for name, pids in stack.processes().items() if name in stack.lines)
    before = load.standing()
    show("SIGTERM to every process")
    asked_at, asked = time.time(), time.monotonic()
    ending = stack.stop_everyone(KILLED_AFTER_S)
    show(f"all had left after {ending.seconds:.1f} s; starting again")
    after = load.standing()
    again_at = time.time()
    stack.start_again()
    _wait(stack, lambda: _is_done(load, show), PATIENCE_S)  # what is not done then counts as lost
    done_s = time.monotonic() - asked

    completed = load.standing().completed
    charges = _charges(stack)
    ours = set(load.prompts)
    later = [at - asked_at for prompt, at in charges if at >= again_at and prompt in ours]
    return Report(
        pool=plan.pool,
        broker=urlsplit(stack.facts.broker_url).scheme,
        jobs=plan.jobs,
        processes=processes,
        posts_under_way=before.unanswered,
        backlog=before.states["queued"],
        exit_s=round(ending.seconds, 2),
        killed=ending.killed,
        statuses=dict(ending.statuses),
        answers_lost=after.unanswered + after.lost,
        requests_cut_off=load.cut_off,
        lost=len(ours - set(completed)),
        repeated=len(charges) - len({prompt for prompt, _ in charges}),
        first_post_s=round(min(later), 2) if later else None,
        done_s=round(done_s, 2),
    )


def show(report: Report) -> None:
    """Print the table."""
    console = Console() if sys.stdout.isatty() else Console(width=100)
    title = f"A deployment under load: {report.pool} pool, {report.broker}, {report.jobs} jobs"
    table = Table("what", "", box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    first_post = "–" if report.first_post_s is None else f"{report.first_post_s:.1f} s"
    rows = {
        "processes that got SIGTERM": report.processes,
        "POSTs under way then": report.posts_under_way,
        "jobs waiting then": report.backlog,
        f"until everything had exited (less than {LIMIT_S:.0f} s)": f"{report.exit_s:.1f} s",
        "programs killed": ", ".join(report.killed) or 0,
        "answers not waited for": report.answers_lost,
        "callers' requests cut off, and repeated": report.requests_cut_off,
        "jobs lost": report.lost,
        "POSTs repeated": report.repeated,
        "SIGTERM until the first new POST": first_post,
        "SIGTERM until all jobs were done": f"{report.done_s:.1f} s",
    }
    for what, figure in rows.items():
        table.add_row(what, str(figure))
    console.print(table)
    verdict = "; ".join(report.breaches)
    console.print(f"[red]{verdict}[/]" if verdict else "Nothing was lost, and nothing was paid for twice.")


class _Show:
    """The progress bar, as a function of what is being done and how many jobs are done."""

    def __init__(self, bar: Progress, jobs: int) -> None:
        self._bar = bar
        self._task = bar.add_task("handing in jobs", total=jobs)

    def __call__(self, doing: str | None = None, done: int | None = None) -> None:
        self._bar.update(self._task, description=doing, completed=done)
        self._bar.refresh()


@contextmanager
def _progress(jobs: int) -> Iterator[_Show]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        yield _Show(bar, jobs)


def _is_under_way(load: Load, show: _Show) -> bool:
    standing = load.standing()
    show(done=standing.states["completed"])
    figures = standing.states | Counter(unanswered=standing.unanswered)
    return all(figures[what] >= least for what, least in WORTH_IT.items())


def _is_done(load: Load, show: _Show) -> bool:
    standing = load.standing()
    show("finishing", done=standing.states["completed"])
    return load.handed_in and standing.open == 0 and standing.states.total() >= len(load.prompts)


def _wait(stack: Stack, condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for *condition* while the stack is kept running; False when it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        stack.wait(0.1)
    return True


def _service(stack: Stack) -> str:
    return str(_value(stack, "SELECT name FROM pipeline.services"))


def _value(stack: Stack, statement: LiteralString) -> Any:
    with psycopg.connect(stack.facts.database_url) as db:
        row = db.execute(statement).fetchone()
    return row[0] if row else None


def _charges(stack: Stack) -> list[tuple[str, float]]:
    """What the provider was paid for: the prompt, and when (Unix time)."""
    _, ledger = api.call("GET", f"{stack.facts.sandbox_url}/_sandbox/ledger")
    return [(charge["prompt"], datetime.fromisoformat(charge["at"]).timestamp()) for charge in ledger["charges"]]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
