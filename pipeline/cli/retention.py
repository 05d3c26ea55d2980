"""How long things are kept, and removing what is older."""

import json
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from pipeline.cli.common import AsJson, err, out, plain, runtime, service_named
from pipeline.errors import InvalidInput
from pipeline.retention import DEFAULT_S, ENDED, OF_A_SERVICE, Kind, age_of, shown
from pipeline.runtime import Runtime
from pipeline.store import retention as store
from pipeline.store import services as registry
from pipeline.store.retention import ALL, Age

retention = typer.Typer(help="How long things are kept: listed, unless a command is given.")

WhichKind = Annotated[Kind, typer.Argument(help="Jobs, by the state they ended in, or what gathers beside them.")]
Service = Annotated[str | None, typer.Option(help="Of this service; of all that have none of their own, unless given.")]


@retention.callback(invoke_without_command=True)
def list_ages(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List how long each kind of things is kept: jobs for good, unless an age is set, the rest for 30 or 90 days."""
    if context.invoked_subcommand:
        return
    rt = runtime()
    with rt.db.transaction() as tx:
        ages = store.everything(tx)
        names = {str(one.id): one.name for one in registry.everyone(tx)}
    general = {age.kind: age for age in ages if age.scope == ALL}
    rows: list[tuple[str | None, Age]] = [
        (None, general.get(kind, Age(ALL, kind, DEFAULT_S[kind], files=False))) for kind in Kind
    ]
    rows += [(names.get(age.scope, age.scope), age) for age in ages if age.scope != ALL]
    if as_json:
        print(json.dumps([_view(name, age) for name, age in rows]))
        return
    table = Table("kind", "service", "kept for", "files")
    for name, age in rows:
        table.add_row(age.kind, name or "all", shown(age.age_s), _files(age))
    out.print(table)


@retention.command("set")
def set_age(
    kind: WhichKind,
    age: Annotated[str, typer.Argument(help="Such as 90d, 48h, 12w, or 'forever'.")],
    *,
    service: Service = None,
    files: Annotated[bool, typer.Option("--files", help="The jobs' stored files are removed with them.")] = False,
) -> None:
    """
    Keep a kind of things so long. Workers remove what is older, a little at a time.

    A job's age counts from its end. With it go its history, callbacks, notifications and idempotency key: the same
    request sent again is then a new job.
    """
    if files and kind not in ENDED:
        raise InvalidInput(f"--files: {kind} have no files; those of {', '.join(ENDED)} jobs do.")
    if service and kind not in OF_A_SERVICE:
        raise InvalidInput(f"--service: {kind} are of no service.")
    rt = runtime()
    chosen = Age(_scope(rt, service), kind, age_of(kind, age), files=files)
    with rt.db.transaction() as tx:
        store.keep(tx, chosen)
    kept = "for good" if chosen.age_s is None else f"for {shown(chosen.age_s)}"
    err.print(plain(f"{kind}{f' of {service}' if service else ''}: kept {kept}"))


@retention.command("unset")
def unset_age(kind: WhichKind, *, service: Service = None) -> None:
    """Let the age of all hold again for a service; or for all, what holds while nobody says otherwise."""
    rt = runtime()
    scope = _scope(rt, service)
    with rt.db.transaction() as tx:
        if not store.forget(tx, scope, kind):
            raise InvalidInput(f"No age is set for {kind}{f' of {service}' if service else ''}.")


def prune(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go now.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Remove what is older than `pipeline retention` says it is kept. Workers do so by themselves, more slowly.

    Only jobs that have ended go, and none that somebody is yet to be told of. In small batches, beside the traffic.
    """
    from pipeline.lifecycle import prune as use  # noqa: PLC0415 - spares the other commands its imports

    rt = runtime()
    if dry_run:
        with rt.db.transaction() as tx:
            names = {one.id: one.name for one in registry.everyone(tx)}
        _show([(names.get(old.service_id) if old.service_id else None, old) for old in use.due(rt)], as_json=as_json)
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as progress:
        task = progress.add_task("looking for what is old")

        def tell(gone: Any) -> None:
            progress.update(task, description=f"removed: {_said(gone)}")

        gone = use.everything(rt, progress=tell)
    if as_json:
        print(json.dumps(gone))
    else:
        err.print(f"removed: {_said(gone)}")


def _show(found: list[tuple[str | None, Any]], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"kind": old.kind, "service": name, "count": old.count, "more": old.more}
            for name, old in sorted(found, key=lambda one: (one[1].kind, one[0] or ""))
        ]
        print(json.dumps(rows))
        return
    table = Table("kind", "service", "would go")
    for name, old in sorted(found, key=lambda one: (one[1].kind, one[0] or "")):
        table.add_row(old.kind, name or "", f"{old.count}{' or more' if old.more else ''}")
    out.print(table)


def _said(gone: Mapping[str, int]) -> str:
    counts = [f"{count} {f'{kind} jobs' if kind in ENDED else kind}" for kind, count in gone.items()]
    return ", ".join(counts) or "nothing"


def _scope(rt: Runtime, service: str | None) -> str:
    whose: UUID | None = service_named(rt, service, revoked=True).id if service else None
    return str(whose) if whose else ALL


def _files(age: Age) -> str:
    if age.kind not in ENDED or age.age_s is None:
        return ""
    return "go too" if age.files else "stay"


def _view(name: str | None, age: Age) -> dict[str, object]:
    return {"kind": age.kind, "service": name, "age_s": age.age_s, "files": age.files}
