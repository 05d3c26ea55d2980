"""What can be done with a job that was handed in: take it back, do it again, take its evidence home."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import AsJson, acting, err, job_id_of, job_row, runtime, service_named
from pipeline.cli.jobs import show_jobs
from pipeline.errors import InvalidInput


def cancel(job: Annotated[str, typer.Argument(help="The id of a queued job.")]) -> None:
    """Take a queued job back: it is never submitted."""
    from pipeline.lifecycle import again  # noqa: PLC0415

    rt, job_id = runtime(), job_id_of(job)
    with acting(rt, "job.cancel", job_id):
        moved = again.cancel(rt, service_named(rt, "operator"), job_id)
    err.print("the job is cancelled" if moved else "the job was cancelled before")


def retry(
    job: Annotated[str, typer.Argument(help="The id of a job that has ended.")],
    *,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key is the same retry.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hand in a new job like one that has ended."""
    from pipeline.lifecycle import again  # noqa: PLC0415

    rt, job_id = runtime(), job_id_of(job)
    with acting(rt, "job.retry", job_id):
        new_id, made = again.retry(rt, service_named(rt, "operator"), job_id, key=key)
    if not as_json:
        err.print("accepted a new job" if made else "this key named the retry before")
    show_jobs([job_row(rt, new_id)], as_json=as_json)


def evidence(
    job: Annotated[str, typer.Argument(help="The job's id.")],
    *,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there, instead of printing it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Give everything that is known of a job, as one JSON value."""
    from pipeline.lifecycle import evidence as everything  # noqa: PLC0415

    rt = runtime()
    found = json.dumps(everything.of_job(rt, service_named(rt, "operator"), job_id_of(job)), indent=2)
    if output is None:
        print(found)
        return
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(found + "\n")
    except FileExistsError:
        raise InvalidInput(f"{output} is there already: name another file, or write over it by --force.") from None
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written: {error.strerror}.") from None
    err.print(f"written to {output}")
