"""Outputs that were flagged as unsafe: a person looks at them, and releases or purges them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.table import Table

from pipeline import views
from pipeline.cli.common import AsJson, acting, err, job_id_of, out, plain, runtime, user
from pipeline.errors import InvalidInput
from pipeline.runtime import Runtime
from pipeline.store import reviews

review = typer.Typer(
    help="Outputs that were flagged as unsafe: look at them, release or purge them.", no_args_is_help=True
)

MAX_NAME = 100

Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Index = Annotated[
    int | None, typer.Option("--output", min=0, max=9999, help="Its number; all under quarantine unless given.")
]
By = Annotated[str | None, typer.Option(help="Who decides; the user of this machine unless given.")]


@review.command("list")
def list_waiting(
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 100,
    after: Annotated[str | None, typer.Option(help="Go on after this entry's id.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the outputs under quarantine, the oldest first. An operator's key fetches them at their address."""
    rt = runtime()
    with rt.db.transaction() as tx:
        found = reviews.waiting(tx, after=None if after is None else job_id_of(after), limit=limit)
    if as_json:
        print(json.dumps([_view(one) for one in found]))
        return
    table = Table("job", "output", "service", "since", "file", "size")
    for one in found:
        size = f"{one.width}x{one.height}" if one.width and one.height else ""
        kept = one.content_type or "not stored yet"
        table.add_row(
            str(one.job_id), str(one.index), plain(one.service), f"{one.created_at:%Y-%m-%d %H:%M}", plain(kept), size
        )
    out.print(table)


@review.command("save")
def save_file(
    job: Job,
    file: Annotated[Path, typer.Argument(help="Where to; what is there is not written over.")],
    *,
    index: Annotated[int, typer.Option("--output", min=0, max=9999, help="The output's number.")] = 0,
) -> None:
    """Save an output to a file, to look at it before deciding."""
    from pipeline.lifecycle import review as decisions  # noqa: PLC0415 - spares the other commands its imports

    one, content = decisions.content(runtime(), job_id_of(job), index)
    try:
        with file.open("xb") as target:
            target.write(content)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}.") from None
    err.print(plain(f"{file}: {one.content_type}, {len(content):,} bytes"))


@review.command("release")
def release_output(job: Job, *, index: Index = None, by: By = None, as_json: AsJson = False) -> None:
    """Let the caller have it: it is served from now on, and `output.released` is sent."""
    from pipeline.lifecycle import review as decisions  # noqa: PLC0415 - spares the other commands its imports

    def one(rt: Runtime, job_id: UUID, number: int, who: str) -> str:
        with acting(rt, "output.release", job_id, by=who, output=number):
            decisions.release(rt, job_id, number, by=who)
        return "released"

    _decide(job, index, by, one, as_json=as_json)


@review.command("purge")
def purge_output(
    job: Job,
    *,
    index: Index = None,
    by: By = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove it for good, bytes and all; with --output one that is not under quarantine, too."""
    from pipeline.lifecycle import review as decisions  # noqa: PLC0415 - spares the other commands its imports

    if not yes:
        typer.confirm("What is purged is gone for good. Go on?", abort=True, err=True)

    def one(rt: Runtime, job_id: UUID, number: int, who: str) -> str:
        with acting(rt, "output.purge", job_id, by=who, output=number):
            return "purged" if decisions.purge(rt, job_id, number, by=who) else "purged before"

    _decide(job, index, by, one, as_json=as_json)


def _decide(
    job: str, index: int | None, by: str | None, decide: Callable[[Runtime, UUID, int, str], str], *, as_json: bool
) -> None:
    """Have one output decided about, or all of the job's that wait; say what became of each."""
    rt, job_id, who = runtime(), job_id_of(job), _who(by)
    if index is not None:
        numbers = [index]
    else:
        with rt.db.transaction() as tx:
            numbers = reviews.waiting_of(tx, job_id)
        if not numbers:
            raise InvalidInput(f"No output of the job {job_id} is under quarantine.")
    done = [{"job": str(job_id), "output": number, "now": decide(rt, job_id, number, who)} for number in numbers]
    if as_json:
        print(json.dumps(done))
        return
    for one in done:
        err.print(f"output {one['output']} is {one['now']}")


def _who(by: str | None) -> str:
    by = user() if by is None else by
    if by is None:
        raise InvalidInput("This user has no name here: say who decides, by --by NAME.")
    name = by.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InvalidInput(f"--by: must be a name of 1 to {MAX_NAME} printable characters.")
    return name


def _view(one: Any) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "job": str(one.job_id),
        "output": one.index,
        "service": one.service,
        "stored": one.state == "stored",
        "content_type": one.content_type,
        "bytes": one.bytes,
        "sha256": one.sha256,
        "width": one.width,
        "height": one.height,
        "since": views.time(one.created_at),
        "address": f"/v1/jobs/{one.job_id}/outputs/{one.index}",
    }
