"""The operator's door. Commands talk to Postgres themselves: they work while web and workers are down."""

import json
import sys
import time
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from pipeline import telemetry, views
from pipeline.embedded.demo import demo
from pipeline.embedded.dev import dev
from pipeline.errors import InvalidInput, PipelineError, UnknownJob
from pipeline.jobs import FINAL, State
from pipeline.runtime import Runtime, from_environment
from pipeline.settings import load
from pipeline.store import reading, schema
from pipeline.store import services as registry

COLUMNS = ("job", "state", "settled by", "service", "model", "created", "took", "result")
SPARED = ("created", "service", "model", "settled by", "took", "result", "state")
"""Which of them a narrow terminal goes without, in this order."""

BORDERS = 3  # of each column, and one more of the table
RESULT_ROOM = 15  # less of a result says nothing
ID_WIDTH = 36 + BORDERS + 1

ENDED = FINAL | {State.EXPIRED}

cli = typer.Typer(
    name="pipeline",
    help="A webhook-driven job pipeline for WaveSpeedAI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with variables would show secrets and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)
services = typer.Typer(help="The services that may hand in jobs, and their keys.", no_args_is_help=True)
cli.add_typer(services, name="services")
cli.command()(dev)
cli.command()(demo)

WIDE = 10_000
"""Columns of what is no terminal: a pipe or a file gets every line whole."""

out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, one JSON value on stdout.")]


def main() -> None:
    """Run the command line. A PipelineError is said in words, with exit status 1; wrong usage is 2."""
    try:
        cli()
    except PipelineError as error:
        print(f"pipeline: {error.detail}", file=sys.stderr)
        for problem in error.errors:
            print(f"  {problem.field}: {problem.message}", file=sys.stderr)
        sys.exit(1)


@cli.command()
def migrate() -> None:
    """Bring the database's schema up to this code. Safe to run twice, and while the previous release runs."""
    schema.upgrade(load().database_url)
    err.print(f"the schema is at [bold]{schema.known()[-1]}[/bold]")


@cli.command()
def enqueue(
    prompt: Annotated[str, typer.Argument(help="What to generate.")],
    *,
    service: Annotated[str, typer.Option(help="On whose behalf.")] = "operator",
    model: Annotated[str | None, typer.Option(help="DEFAULT_MODEL unless given.")] = None,
    options: Annotated[str, typer.Option("--input", help="More of the model's input, as a JSON object.")] = "{}",
    priority: Annotated[int, typer.Option(min=-10, max=10)] = 0,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same job.")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="So many jobs of the same prompt.")] = 1,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all have ended; exit status 1 unless completed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hand in a job."""
    from pipeline.lifecycle.accept import accept, check  # noqa: PLC0415 - spares the other commands its imports

    rt = _runtime()
    caller = _service(rt, service)
    request = check(
        {"input": {**_object(options), "prompt": prompt}, "priority": priority} | ({"model": model} if model else {}),
        default_model=rt.settings.default_model,
    )
    ids = [accept(rt, caller, request, key=key and (key if count == 1 else f"{key}-{n}"))[0] for n in range(count)]
    if not as_json:
        err.print(f"accepted [bold]{len(ids)}[/bold] job{'s' if len(ids) > 1 else ''}")
    ended = _wait(rt, ids) if wait else True
    _show_jobs([_row(rt, job_id) for job_id in ids], as_json=as_json)
    time.sleep(0.1)  # the nudge leaves from a daemon thread
    if not ended:
        raise typer.Exit(1)


@cli.command()
def jobs(
    *,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    needs_decision: Annotated[bool, typer.Option("--needs-decision", help="Only those held for a person.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest jobs."""
    rt = _runtime()
    with rt.db.transaction() as tx:
        rows = reading.jobs(tx, state=state, held=needs_decision, limit=limit)
    _show_jobs(rows, as_json=as_json)


@cli.command()
def show(job: Annotated[str, typer.Argument(help="The job's id.")], *, as_json: AsJson = False) -> None:
    """Show one job: its attempts, and what happened to it in order."""
    rt = _runtime()
    job_id = _job_id(job)
    row = _row(rt, job_id)
    with rt.db.transaction() as tx:
        attempts, events = reading.attempts(tx, job_id), reading.events(tx, job_id)
    if as_json:
        whole = views.job(row) | {
            "attempts": [views.attempt(attempt) for attempt in attempts],
            "events": [views.event(event) for event in events],
        }
        print(json.dumps(whole))
        return
    for name, value in views.job(row).items():
        if value not in (None, {}, []):
            shown = json.dumps(value) if isinstance(value, dict | list) else value
            out.print(Text(f"{name:>18}  ", "dim").append(_plain(shown)))
    table = _folding("attempts", "#", "started", "ended", "outcome", "prediction", "HTTP", "said")
    for attempt in map(views.attempt, attempts):
        table.add_row(*map(_plain, attempt.values()))
    out.print(table)
    table = _folding("events", "#", "at", "what", "")
    for event in map(views.event, events):
        data = ", ".join(f"{name}={value}" for name, value in event["data"].items())
        table.add_row(*map(_plain, (event["seq"], event["at"], event["kind"], data)))
    out.print(table)


@cli.command()
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
    rt, job_id = _runtime(), _job_id(job)
    _row(rt, job_id)
    if adopt is not None:
        decisions.adopt(rt, job_id, adopt)
    elif resubmit:
        decisions.resubmit(rt, job_id)
    else:
        decisions.give_up(rt, job_id)
    err.print(f"the job is {_row(rt, job_id).state} now")


@cli.command()
def sweep(
    *,
    loop: Annotated[bool, typer.Option("--loop", help="Keep sweeping, and do the work: no broker needed.")] = False,
) -> None:
    """Find the rows whose time has come and look after them, in this process, without a broker."""
    from pipeline.broker import SWEEP_S  # noqa: PLC0415
    from pipeline.stopping import Stop  # noqa: PLC0415
    from pipeline.worker import Worker  # noqa: PLC0415

    worker = Worker(_runtime("sweep"))
    if not loop:
        worker.look_once()
        worker.stop()
        return
    with Stop() as stop:
        worker.start(stop.wait)
        while not stop.wait(SWEEP_S):
            worker.sweep()
        worker.stop()


@cli.command()
def sandbox(
    *,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8787,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    generation_s: Annotated[float | None, typer.Option(help="How long a task runs, in seconds.")] = None,
    faults: Annotated[str, typer.Option(help="What goes wrong, such as '{\"lose_answer\": 0.1}'.")] = "{}",
    api_key: Annotated[str | None, typer.Option(help="The one key accepted; any, by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the faults repeatable.")] = None,
) -> None:
    """Imitate the provider, for development and tests: the API, signed webhooks, and every way it can go wrong."""
    from pipeline.sandbox import BadFault, serve  # noqa: PLC0415 - needs the extra `sandbox`

    dial = _object(faults) | ({} if generation_s is None else {"generation_s": generation_s})
    try:
        serve(host=host, port=port, faults=dial, api_key=api_key, seed=seed)
    except BadFault as error:
        raise InvalidInput(str(error)) from None
    except (OSError, OverflowError) as error:  # the port is taken, or there is none of that number
        why = str(error).rpartition(": ")[2].rstrip(".")
        raise PipelineError(f"The sandbox cannot listen on {host}, port {port}: {why}.") from None


@services.command("create")
def create_service(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, '_', '.', '-'.")],
    *,
    operator: Annotated[bool, typer.Option(help="Its key sees and acts on every service's jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a service. Its key is shown once, now, and kept only as a hash."""
    rt = _runtime()
    with rt.db.transaction() as tx:
        key = registry.create(tx, _name(name), operator=operator)
    if key is None:
        raise InvalidInput(
            f"There is a service named {name} already; `pipeline services rotate {name}` makes a new key."
        )
    _show_key(name, key, as_json=as_json)


@services.command("rotate")
def rotate_key(name: str, *, as_json: AsJson = False) -> None:
    """Give a service a new key; the old one ends at once."""
    rt = _runtime()
    with rt.db.transaction() as tx:
        key = registry.rotate(tx, _name(name))
    if key is None:
        raise InvalidInput(f"There is no service named {name}.")
    _show_key(name, key, as_json=as_json)


@services.command("revoke")
def revoke_key(name: str) -> None:
    """Refuse a service's key from now on. Its jobs go on."""
    rt = _runtime()
    with rt.db.transaction() as tx:
        if not registry.revoke(tx, _name(name)):
            raise InvalidInput(f"There is no service named {name}.")


@services.command("list")
def list_services(*, as_json: AsJson = False) -> None:
    """List the services."""
    rt = _runtime()
    with rt.db.transaction() as tx:
        found = registry.everyone(tx)
    if as_json:
        print(
            json.dumps(
                [{"name": one.name, "operator": one.operator, "revoked": one.revoked_at is not None} for one in found]
            )
        )
        return
    table = Table("name", "operator", "created", "revoked")
    for one in found:
        table.add_row(
            one.name, "yes" if one.operator else "", f"{one.created_at:%Y-%m-%d}", "yes" if one.revoked_at else ""
        )
    out.print(table)


def _runtime(name: str = "cli") -> Runtime:
    rt = from_environment(name, pool_size=4)
    telemetry.configure(rt.settings.log_level if name == "sweep" else "error")
    return rt


def _service(rt: Runtime, name: str) -> registry.Service:
    """The named service; `operator`, the command line's own, is made when first needed, its key never shown."""
    with rt.db.transaction() as tx:
        found = registry.by_name(tx, _name(name))
        if found is None and name == "operator":
            registry.create(tx, name, operator=True)
            found = registry.by_name(tx, name)
    if found is None:
        raise InvalidInput(f"There is no service named {name}; `pipeline services create {name}` adds it.")
    return found


def _name(name: str) -> str:
    if not registry.NAME.fullmatch(name):
        raise InvalidInput("A service's name has up to 63 lower-case letters, digits, '_', '.' or '-'.")
    return name


def _job_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a job's id.") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidInput(f"{text!r} is not a JSON object.")
    return value


def _row(rt: Runtime, job_id: UUID) -> Any:
    with rt.db.transaction() as tx:
        row = reading.job(tx, job_id)
    if row is None:
        raise UnknownJob(f"There is no job {job_id}.")
    return row


def _wait(rt: Runtime, ids: list[UUID]) -> bool:
    """Show progress until every job has ended. True when all are completed."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
    )
    with bar:
        task = bar.add_task("waiting", total=len(ids))
        while True:
            with rt.db.transaction() as tx:
                now = reading.states(tx, ids)
            ended = [state for state in now.values() if state in ENDED]
            tally = ", ".join(f"{list(now.values()).count(state)} {state}" for state in sorted(set(now.values())))
            bar.update(task, completed=len(ended), description=tally)
            if len(ended) == len(ids):
                return set(ended) == {State.COMPLETED}
            time.sleep(0.2)


def _show_jobs(rows: Any, *, as_json: bool) -> None:
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


def _line(job: dict[str, Any]) -> dict[str, Text]:
    took = job["timings"]["total_ms"]
    result = job["error"]["message"] if job["error"] else ", ".join(str(one["url"]) for one in job["outputs"])
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
    return dict(zip(COLUMNS, map(_plain, cells), strict=True))


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


def _folding(title: str, *names: str) -> Table:
    """Make a table that breaks long words instead of cutting them off."""
    return Table(*(Column(name, overflow="fold") for name in names), title=title, title_justify="left")


def _plain(value: object) -> Text:
    """A text as it is: what a stranger wrote is no markup of ours, and no control code of the terminal's."""
    text = "" if value is None else str(value)
    return Text("".join(char if char.isprintable() else "\ufffd" for char in text))


def _show_key(name: str, key: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "key": key}))
    else:
        out.print(f"service [bold]{name}[/bold], key (shown only now):")
        print(key)
