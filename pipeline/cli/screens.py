"""What prompts are screened for: lists of terms, for all services or for one, by category."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline import screening
from pipeline.cli.common import AsJson, err, out, plain, runtime, service_named
from pipeline.errors import InvalidInput
from pipeline.runtime import Runtime
from pipeline.screening import CATEGORIES, EVERYONE
from pipeline.store import screens as store
from pipeline.store import services as registry

screens = typer.Typer(
    help="What prompts are screened for before anything is paid: lists of terms.", no_args_is_help=True
)

MAX_BYTES = 4 * 1024 * 1024
"""What a file of terms may have at most."""

Category = Annotated[str, typer.Argument(help=f"One of {', '.join(CATEGORIES)}.")]
ServiceName = Annotated[str | None, typer.Option("--service", help="Its own list, instead of that of all services.")]
Words = Annotated[
    list[str], typer.Argument(metavar="TERM…", help="A word, or several in quotes; * at the end: may go on.")
]


@screens.command("list")
def list_terms(
    *,
    category: Annotated[str | None, typer.Option(help=f"One of {', '.join(CATEGORIES)}.")] = None,
    service: ServiceName = None,
    as_json: AsJson = False,
) -> None:
    """List the terms: what holds for all services first, unless one is named."""
    rt = runtime()
    scope = None if service is None else _scope(rt, service)
    with rt.db.transaction() as tx:
        found = store.listed(tx, scope=scope, category=None if category is None else _category(category))
    if as_json:
        rows = [
            {"service": one.service, "category": one.category, "term": one.term, "since": one.created_at.isoformat()}
            for one in found
        ]
        print(json.dumps(rows))
        return
    table = Table("service", "category", "term", "since")
    for one in found:
        table.add_row(plain(one.service or "(all)"), one.category, plain(one.term), f"{one.created_at:%Y-%m-%d}")
    out.print(table)


@screens.command("add")
def add_terms(category: Category, terms: Words, *, service: ServiceName = None) -> None:
    """Refuse prompts that have these terms in them. Case and accents do not matter; processes know it in 5 s."""
    wanted = [_normal(one) for one in terms]
    rt = runtime()
    scope = _scope(rt, service)
    with rt.db.transaction() as tx:
        count = store.add(tx, scope, _category(category), wanted)
    err.print(f"{count} added" + (f", {len(set(wanted)) - count} were there" if count < len(set(wanted)) else ""))


@screens.command("remove")
def remove_terms(category: Category, terms: Words, *, service: ServiceName = None) -> None:
    """Take terms off a list."""
    wanted = {_normal(one) for one in terms}
    rt = runtime()
    scope = _scope(rt, service)
    with rt.db.transaction() as tx:
        count = store.remove(tx, scope, _category(category), wanted)
        if count < len(wanted):
            raise InvalidInput(f"Nothing was removed: only {count} of these {len(wanted)} terms are on that list.")
    err.print(f"{count} removed")


@screens.command("load")
def load_terms(
    category: Category,
    file: Annotated[
        Path | None, typer.Argument(help="A term on each line, # before a remark. None: the small example we ship.")
    ] = None,
    *,
    service: ServiceName = None,
    replace: Annotated[bool, typer.Option("--replace", help="Make it the whole list: others are removed.")] = False,
) -> None:
    """Add the terms of a file to a list, all or none."""
    category = _category(category)
    wanted = _read(_text(category, file))
    rt = runtime()
    scope = _scope(rt, service)
    with rt.db.transaction() as tx:
        before = store.clear(tx, scope, category) if replace else 0
        count = store.add(tx, scope, category, wanted)
    err.print(f"{count} terms, instead of {before}" if replace else f"{count} of {len(wanted)} terms added")


@screens.command("exempt")
def exempt_service(
    service: Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="All exemptions, unless named.")] = None,
    category: Annotated[str | None, typer.Argument(metavar="[CATEGORY]", help=f"{', '.join(CATEGORIES)}.")] = None,
    *,
    end: Annotated[bool, typer.Option("--end", help="The list holds for the service again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the list of all services not hold for one; its own list does. With neither named, say who is exempt."""
    rt = runtime()
    if service is None:
        _show_exempt(rt, as_json=as_json)
        return
    if category is None:
        raise typer.BadParameter(f"name a category: {', '.join(CATEGORIES)}", param_hint="CATEGORY")
    scope = _scope(rt, service)
    with rt.db.transaction() as tx:
        changed = (store.end_exemption if end else store.exempt)(tx, scope, _category(category))
    now = "holds" if end else "does not hold"
    err.print(plain(f"the list of all for {category} {now} for {service}{'' if changed else ', as before'}"))


def _show_exempt(rt: Runtime, *, as_json: bool) -> None:
    with rt.db.transaction() as tx:
        names = {str(one.id): one.name for one in registry.everyone(tx)}
        found = [{"service": names.get(scope, scope), "category": category} for scope, category in store.exempted(tx)]
    if as_json:
        print(json.dumps(found))
        return
    table = Table("service", "category")
    for one in found:
        table.add_row(plain(one["service"]), one["category"])
    out.print(table)


@screens.command("test")
def try_prompt(
    prompt: str,
    *,
    service: ServiceName = None,
    model: Annotated[str | None, typer.Option(help="For PROMPT_SCREEN; the default one unless named.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a prompt would be refused for, and for which terms. Exit status 1 when it would be."""
    rt = runtime()
    caller = None if service is None else service_named(rt, service)
    terms = rt.screens().of(caller and caller.id).terms(prompt)
    found: list[dict[str, str | None]] = [
        {"category": one.category, "term": one.text} for one in sorted(terms, key=lambda one: one.text)
    ]
    if rt.hook and not found:
        asked = (model or rt.settings.default_model, {"prompt": prompt})
        (answer,) = rt.hook.ask(caller.name if caller else "operator", [asked])
        found += [{"category": answer, "term": None}] if answer else []
    if as_json:
        print(json.dumps({"refused": bool(found), "why": found}))
    else:
        for one in found:
            why = f"for the term {one['term']}" if one["term"] else "by PROMPT_SCREEN"
            out.print(plain(f"{one['category']}: {why}"))
        err.print("it would be refused" if found else "it would pass")
    if found:
        raise typer.Exit(1)


def _text(category: str, file: Path | None) -> str:
    if file is None:
        return resources.files("pipeline").joinpath("examples", "screens", f"{category}.txt").read_text("utf-8")
    try:
        with file.open("rb") as source:
            content = source.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InvalidInput(f"{file} has more than {MAX_BYTES // 1024**2} MiB.")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{file} is not text in UTF-8.") from None


def _read(text: str) -> Sequence[str]:
    found: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].strip()
        if said:
            try:
                found[screening.normal(said)] = None
            except ValueError as error:
                raise InvalidInput(f"Nothing was loaded: line {number} {error}.") from None
    return list(found)


def _normal(term: str) -> str:
    try:
        return screening.normal(term)
    except ValueError as error:
        raise InvalidInput(f"{term!r} {error}.") from None


def _category(name: str) -> str:
    if name not in CATEGORIES:
        raise InvalidInput(f"{name!r} is not a category; there are {', '.join(CATEGORIES)}.")
    return name


def _scope(rt: Runtime, service: str | None) -> str:
    return EVERYONE if service is None else str(service_named(rt, service, revoked=True).id)
