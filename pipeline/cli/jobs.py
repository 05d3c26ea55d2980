"""Jobs: list, show, decide."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline import standing, views
from pipeline.cli.account import warn
from pipeline.cli.common import (
    AsJson,
    acting,
    err,
    folding_table,
    job_id_of,
    job_row,
    labels,
    out,
    plain,
    runtime,
    service_named,
)
from pipeline.jobs import State
from pipeline.store import lists, reading
from pipeline.store.lists import Wanted

COLUMNS = ("job", "state", "settled by", "service", "model", "created", "took", "result")
SPARED = ("created", "service", "model", "settled by", "took", "result", "state")
"""Which of them a narrow terminal goes without, in this order."""

BORDERS = 3  # of each column, and one more of the table
RESULT_ROOM = 15  # less of a result says nothing
ID_WIDTH = 36 + BORDERS + 1


def jobs(
    *,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    needs_decision: Annotated[bool, typer.Option("--needs-decision", help="Only those held for a person.")] = False,
    model: Annotated[str | None, typer.Option(help="Only those of this model.")] = None,
    service: Annotated[str | None, typer.Option(help="Only those of this service.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only those with this metadata; may be repeated.")
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Only those older than this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs."""
    rt = runtime()
    before = job_id_of(after) if after else None
    wanted = Wanted(
        service_ids=[service_named(rt, service, revoked=True).id] if service else None,
        state=state or (State.UNKNOWN if needs_decision else None),
        model=model,
        metadata=labels(metadata),
        held=needs_decision,
    )
    rows: list[Any] = []
    while len(rows) < limit:  # a page may end before it is full
        with rt.db.transaction() as tx:
            page = lists.page(tx, wanted, after=before, limit=limit - len(rows))
        rows += page.rows
        before = page.next
        if before is None:
            break
    warn(rt)
    show_jobs(rows, as_json=as_json)


def show(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """Show one job: its attempts, and what happened to it in order."""
    rt = runtime()
    job_id = job_id_of(job)
    row = job_row(rt, job_id)
    with rt.db.transaction() as tx:
        attempts, events = reading.attempts(tx, job_id), reading.events(tx, job_id)
        stands = standing.of(row, reading.around(tx, row.service_id))
    warn(rt)
    if as_json:
        whole = views.job(row, rt.settings.public_url) | {
            "attempts": [views.attempt(attempt) for attempt in attempts],
            "events": [views.event(event) for event in events],
        }
        print(json.dumps(whole))
        return
    for name, value in views.job(row, rt.settings.public_url).items():
        if value not in (None, {}, []):
            shown = json.dumps(value) if isinstance(value, dict | list) else value
            out.print(Text(f"{name:>18}  ", "dim").append(plain(shown)))
    then = f" {stands.then}: {views.time(stands.at)}." if stands.at else ""
    out.print(Text(f"{'now':>18}  ", "dim").append(plain(stands.words + then)))
    table = folding_table("attempts", "#", "started", "ended", "outcome", "prediction", "HTTP", "said")
    for attempt in map(views.attempt, attempts):
        table.add_row(*map(plain, attempt.values()))
    out.print(table)
    table = folding_table("events", "#", "at", "what", "")
    for event in map(views.event, events):
        data = ", ".join(f"{name}={value}" for name, value in event["data"].items())
        table.add_row(*map(plain, (event["seq"], event["at"], event["kind"], data)))
    out.print(table)


def decide(
    job: Annotated[str, typer.Argument(help="The id of a job whose paid request is in doubt.")],
    *,
    adopt: Annotated[str | None, typer.Option(metavar="ID", help="This task of the provider's is its own.")] = None,
    resubmit: Annotated[bool, typer.Option("--resubmit", help="Submit it again: it may be paid for twice.")] = False,
    give_up: Annotated[bool, typer.Option("--give-up", help="Let it fail.")] = False,
) -> None:
    """Say what became of a job that nothing could prove (`pipeline jobs --needs-decision` lists them)."""
    from pipeline.lifecycle import decide as decisions  # noqa: PLC0415

    if [adopt is not None, resubmit, give_up].count(True) != 1:
        raise typer.BadParameter("choose one of --adopt ID, --resubmit and --give-up")
    rt, job_id = runtime(), job_id_of(job)
    job_row(rt, job_id)
    decision = "adopt" if adopt is not None else "resubmit" if resubmit else "give_up"
    with acting(rt, "job.decide", job_id, decision=decision, task=adopt):
        if adopt is not None:
            decisions.adopt(rt, job_id, adopt)
        elif resubmit:
            decisions.resubmit(rt, job_id)
        else:
            decisions.give_up(rt, job_id)
    err.print(f"the job is {job_row(rt, job_id).state} now")


def show_jobs(rows: Any, *, as_json: bool) -> None:
    """Print a table of jobs, as wide as there is room; or their JSON."""
    found = [views.job(row) for row in rows]
    if as_json:
        print(json.dumps(found))
        return
    lines = [_line(job) for job in found]
    widths = {name: max([len(name), *(line[name].cell_len for line in lines)]) for name in COLUMNS}
    shown, result = _fitting(widths, out.width)
    table = Table()
    for name in shown:
        table.add_column(name, no_wrap=True, max_width=result if name == "result" else None)
    for line in lines:
        failed = line["state"].plain == State.FAILED
        table.add_row(*(line[name] for name in shown), style="red" if failed else None)
    out.width = max(out.width, ID_WIDTH)  # an id is shown whole however narrow the terminal is
    out.print(table)


def _made(output: dict[str, Any]) -> str:
    """Where an output is; or why no address of it is told."""
    return str(output["url"] or output["review"] or "")


def _line(job: dict[str, Any]) -> dict[str, Text]:
    took = job["timings"]["total_ms"]
    result = job["error"]["message"] if job["error"] else ", ".join(map(_made, job["outputs"]))
    cells = (
        job["id"],
        job["state"],
        job["settled_by"],
        job["service"],
        job["model"],
        job["created_at"][:19],
        None if took is None else f"{took / 1000:.1f} s",
        result,
    )
    return dict(zip(COLUMNS, map(plain, cells), strict=True))


def _fitting(widths: dict[str, int], room: int) -> tuple[list[str], int]:
    """Choose the columns that fit into *room* with the ids whole, and how much of the result is shown."""
    shown = list(COLUMNS)
    least = widths | {"result": min(widths["result"], RESULT_ROOM)}
    for name in SPARED:
        if sum(least[each] + BORDERS for each in shown) < room:
            break
        shown.remove(name)
    others = sum(widths[each] + BORDERS for each in shown if each != "result")
    return shown, max(1, room - others - BORDERS - 1)
