"""Messages that could not become jobs: see what is wrong with them, mend it, and hand them in again."""

import json
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.text import Text

from pipeline.cli.common import AsJson, err, folding_table, out, plain, runtime
from pipeline.errors import InvalidInput, NotAllowedNow
from pipeline.store import refusals as store
from pipeline.store.refusals import Refusal

refusals = typer.Typer(
    help="Messages from other apps that could not become jobs: listed, unless a command is given.",
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The refusal's id.")]


@refusals.callback(invoke_without_command=True)
def list_refusals(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest refusals; of what they say only `show` tells."""
    if context.invoked_subcommand:
        return
    rt = runtime()
    with rt.db.transaction() as tx:
        found = store.newest(tx, at_most=limit)
    if as_json:
        print(json.dumps([_view(one) for one in found]))
        return
    table = folding_table("refusals", "id", "at", "task", "service", "code", "what is wrong")
    for one in found:
        wrong = "\n".join(f"{error['field']}: {error['message']}".removeprefix(": ") for error in one.errors)
        said = Text("\n").join(map(plain, wrong.split("\n")))
        table.add_row(
            str(one.id), f"{one.at:%Y-%m-%d %H:%M:%S}", *map(plain, (one.task_id, one.service, one.code)), said
        )
    out.print(table)


@refusals.command("show")
def show_refusal(refusal: Id, *, as_json: AsJson = False) -> None:
    """Show one refusal, with all that its sender said."""
    rt = runtime()
    refusal_id = _id(refusal)
    with rt.db.transaction() as tx:
        found = store.one(tx, refusal_id)
    if found is None:
        raise NotAllowedNow(f"There is no refusal {refusal_id}.")
    whole = _view(found) | {"request": found.request}
    if as_json:
        print(json.dumps(whole))
        return
    for name, value in whole.items():
        shown = json.dumps(value) if isinstance(value, dict | list) else value
        out.print(Text(f"{name:>12}  ", "dim").append(plain(shown)))


@refusals.command("retry")
def retry_refusal(refusal: Id, *, as_json: AsJson = False) -> None:
    """Hand it in again, its task's id being the key: no second job comes of it. Gone when it was accepted."""
    from pipeline.lifecycle import messages  # noqa: PLC0415 - spares the other commands its imports

    job_id = messages.try_again(runtime(), _id(refusal))
    if as_json:
        print(json.dumps({"job": str(job_id)}))
    else:
        out.print(f"accepted as job {job_id}")


@refusals.command("drop")
def drop_refusal(refusal: Id) -> None:
    """Forget it."""
    rt = runtime()
    refusal_id = _id(refusal)
    with rt.db.transaction() as tx:
        if not store.remove(tx, refusal_id):
            raise NotAllowedNow(f"There is no refusal {refusal_id}.")
    err.print("forgotten")


def _view(one: Refusal) -> dict[str, Any]:
    return {
        "id": str(one.id),
        "at": one.at and one.at.isoformat(),
        "door": one.door,
        "task_id": one.task_id,
        "service": one.service,
        "code": one.code,
        "errors": list(one.errors),
        "whole": bool(one.request and one.request["whole"]),
    }


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a refusal's id.") from None
