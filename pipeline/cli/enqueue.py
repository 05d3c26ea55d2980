"""`pipeline enqueue`: hand in jobs from a prompt, a file or standard input, and bring home what they produce."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from uuid import UUID

import typer

from pipeline import views
from pipeline.cli import complete, intake
from pipeline.cli.common import AsJson, err, json_object, labels, runtime, service_named
from pipeline.cli.jobs import show_jobs
from pipeline.cli.rows import Defaults, Format, Row, format_of, read
from pipeline.cli.waiting import progress, wait_for
from pipeline.errors import InvalidInput
from pipeline.runtime import Runtime
from pipeline.store import assets, reading

SHOWN = 100
"""So many jobs are shown in a table; all of them with --json."""

AT_ONCE = 500

FAILED = 1
NOT_OVER = 3
NOT_FETCHED = 4
INTERRUPTED = 130

_MEMORY_BYTES = 32 * 1024 * 1024


def enqueue(
    prompt: Annotated[
        str | None, typer.Argument(help="What to generate; or - for jobs from standard input.", show_default=False)
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(help="Jobs from a file: .jsonl, .csv, or text with a prompt on each line.", show_default=False),
    ] = None,
    written: Annotated[
        Format | None, typer.Option("--format", help="How the file, or standard input, is written.", show_default=False)
    ] = None,
    service: Annotated[str, typer.Option(help="On whose behalf.", autocompletion=complete.services)] = "operator",
    model: Annotated[
        str | None, typer.Option(help="DEFAULT_MODEL unless given.", autocompletion=complete.models)
    ] = None,
    options: Annotated[str, typer.Option("--input", help="More of the model's input, as a JSON object.")] = "{}",
    priority: Annotated[int | None, typer.Option(min=-10, max=10, help="0 unless given.")] = None,
    run_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before, such as 2026-01-31T12:00:00Z.")
    ] = None,
    deadline_s: Annotated[float | None, typer.Option(help="When to give up, in seconds from the start.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Kept with the job; may be repeated.")
    ] = None,
    callback_url: Annotated[str | None, typer.Option(metavar="URL", help="Where to tell how it ended.")] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key is the same job. Of many jobs: KEY-1, KEY-2, …")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="So many jobs of the same prompt.")] = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all have ended.")] = False,
    timeout_s: Annotated[float | None, typer.Option(min=0.0, help="Wait no longer; the jobs go on.")] = None,
    download: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Wait, then fetch what was made: JOB-0.png, …")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """
    Hand in jobs: one prompt, or those of a file or of standard input.

    A file of text has a prompt on each line. One of JSON Lines has an object on each, as POST /v1/jobs takes it. In CSV
    the first line names the columns: prompt and other inputs of the model; input.NAME and metadata.NAME; model,
    priority, run_at, deadline_s, callback_url, callback_task, idempotency_key. A cell that is JSON (7, true, "7") is
    that, any other is text; prompts and metadata always are. Options hold for all jobs that do not say otherwise.

    When any line is wrong it is named, and nothing is stored. Up to 10,000 jobs are stored in one transaction. A longer
    file is read twice, first to check it, and stored by the 10,000: should that be cut short, the same command with the
    same --key (one is made up and named, if need be) stores the rest.

    Exit status: 0 all accepted or, with --wait, completed; 1 refused, or a job did not complete; 2 wrong usage; 3 some
    have not ended in --timeout-s; 4 a file could not be fetched; 130 Ctrl-C: the jobs go on.
    """
    given = [prompt not in (None, "-"), prompt == "-" or file == Path("-"), file not in (None, Path("-"))]
    if given.count(True) != 1:
        raise typer.BadParameter("give a prompt, or --file FILE, or - for standard input")
    if count > 1 and not given[0]:
        raise typer.BadParameter("--count is for one prompt")
    fields = {
        "model": model,
        "priority": priority,
        "run_at": run_at,
        "deadline_s": deadline_s,
        "callback_url": callback_url,
    }
    defaults = Defaults(
        fields={name: value for name, value in fields.items() if value is not None},
        input=json_object(options),
        metadata=labels(metadata),
        key=key,
    )
    rt = runtime()
    caller = service_named(rt, service)
    if prompt is not None and prompt != "-":
        rows: list[Row] = [(0, {"input": {"prompt": prompt}}) for _ in range(count)]
        if key is not None and count == 1:
            rows[0][1]["idempotency_key"] = key
        ids = intake.store(rt, caller, lambda: iter(rows), defaults)
    else:
        with _opened(file) as source:
            format_ = written or (format_of(file.name) if file else Format.TEXT)
            ids = intake.store(rt, caller, lambda: read(source, format_), defaults)
    status = 0
    try:
        if not as_json:
            err.print(f"accepted [bold]{len(ids):,}[/bold] job{'s' if len(ids) > 1 else ''}")
        if wait or download or timeout_s is not None:
            status = _bring_home(rt, ids, timeout_s, download)
    except KeyboardInterrupt:
        wait_for(rt, ids, timeout_s=0.0).say()
        status = INTERRUPTED
    _show(rt, ids, as_json=as_json)
    raise typer.Exit(status)


def _bring_home(rt: Runtime, ids: Sequence[UUID], timeout_s: float | None, folder: Path | None) -> int:
    """Wait, fetch the files if they are wanted, and give the exit status."""
    waited = wait_for(rt, ids, timeout_s=timeout_s)
    waited.say()
    missing = _fetch(rt, ids, folder) if folder else []
    for one in missing:
        err.print(f"not fetched: {one}", markup=False)
    if waited.open:
        return NOT_OVER
    if not waited.well:
        return FAILED
    return NOT_FETCHED if missing else 0


def _fetch(rt: Runtime, ids: Sequence[UUID], folder: Path) -> list[str]:
    from pipeline.cli.download import fetch  # noqa: PLC0415 - aiohttp, for those who want files

    missing: list[str] = []
    total = sum(len(row.outputs or ()) for row in _rows(rt, ids))
    done = 0
    with progress("fetching", total) as shown:

        def told() -> None:
            nonlocal done
            done += 1
            shown(done)

        for start in range(0, len(ids), AT_ONCE):
            some = ids[start : start + AT_ONCE]
            jobs = [views.job(row) for row in _rows(rt, some)]
            with rt.db.transaction() as tx:
                copies = assets.copies(tx, some)
            missing += asyncio.run(fetch(rt, jobs, copies, folder, told))
    return missing


def _opened(file: Path | None) -> BinaryIO:
    """The file; or all of standard input, or of a pipe such as `<(…)`, so that it can be read twice."""
    if file is None or file == Path("-"):
        return _kept(sys.stdin.buffer)
    try:
        source = file.open("rb")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from None
    if source.seekable():
        return source
    with source:
        return _kept(source)


def _kept(source: BinaryIO) -> BinaryIO:
    spool: Any = tempfile.SpooledTemporaryFile(_MEMORY_BYTES)  # noqa: SIM115 - whoever asked closes it
    shutil.copyfileobj(source, spool)
    return spool  # type: ignore[no-any-return]


def _rows(rt: Runtime, ids: Sequence[UUID]) -> Iterator[Any]:
    for start in range(0, len(ids), AT_ONCE):
        with rt.db.transaction() as tx:
            found = reading.those(tx, ids[start : start + AT_ONCE])
        yield from found


def _show(rt: Runtime, ids: Sequence[UUID], *, as_json: bool) -> None:
    if not as_json:
        show_jobs(list(_rows(rt, ids[:SHOWN])), as_json=False)
        if len(ids) > SHOWN:
            err.print(f"and {len(ids) - SHOWN:,} more: `pipeline jobs` lists them")
        return
    before = "["
    for row in _rows(rt, ids):  # as many as they are, never all in memory
        sys.stdout.write(before + json.dumps(views.job(row)))
        before = ", "
    print("]")
