"""The services that may hand in jobs, and their keys."""

import json
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.common import AsJson, acting, err, in_one_line, out, plain, runtime, service_name
from pipeline.lifecycle import services as use
from pipeline.store import services as registry
from pipeline.store.services import Service

services = typer.Typer(help="The services that may hand in jobs, and their keys.", no_args_is_help=True)

_OPTIONS = {
    "weight": "--weight",
    "max_in_flight": "--max-in-flight",
    "requests_per_minute": "--requests-per-minute",
    "callback_url": "--callback-url",
    "nsfw_policy": "--nsfw-policy",
    "callback_tasks": "--callback-task",
}

Name = Annotated[str, typer.Argument(help="The service's name.")]


@services.command("create")
def create_service(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, '_', '.', '-'.")],
    *,
    operator: Annotated[bool, typer.Option(help="Its key sees and acts on every service's jobs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a service. Its key is shown once, now, and kept only as a hash."""
    rt = runtime()
    with in_one_line(), acting(rt, "service.create", service_name(name), operator=operator):
        made = use.create(rt, name, operator=operator)
    _show_key(name, made.key, secret=made.secret, as_json=as_json)


@services.command("rotate")
def rotate_key(name: str, *, as_json: AsJson = False) -> None:
    """Give a service a new key; the old one ends at once."""
    rt = runtime()
    with acting(rt, "service.rotate_key", service_name(name)):
        key = use.rotate(rt, name)
    _show_key(name, key, as_json=as_json)


@services.command("secret")
def show_secret(
    name: Name,
    *,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; the former signs beside it for a day.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the secret that signs what a service is told (Standard Webhooks): its receiver verifies with it."""
    rt = runtime()
    with acting(rt, "service.rotate_secret" if rotate else "service.show_secret", service_name(name)):
        secret = use.secret(rt, name, rotate=rotate)
    print(json.dumps({"name": name, "secret": secret}) if as_json else secret)


@services.command("revoke")
def revoke_key(name: str) -> None:
    """Refuse a service's key from now on. Its jobs go on."""
    rt = runtime()
    with acting(rt, "service.revoke", service_name(name)):
        use.revoke(rt, name)


@services.command("set")
def set_service(
    name: Name,
    *,
    weight: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Its share of the starts while others wait too.")
    ] = None,
    max_in_flight: Annotated[str | None, typer.Option(metavar="N|none", help="Its tasks at a time, at most.")] = None,
    requests_per_minute: Annotated[
        str | None, typer.Option(metavar="N|none", help="What its key may ask of our API.")
    ] = None,
    callback_url: Annotated[
        str | None, typer.Option(metavar="URL|none", help="Where it is told of its jobs' ends.")
    ] = None,
    nsfw_policy: Annotated[
        str | None,
        typer.Option(metavar="allow|flag|quarantine|none", help="Of flagged outputs; none: the setting."),
    ] = None,
    callback_task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK[@QUEUE]|none", help="A Celery task its jobs may name; again for each. All of them."),
    ] = None,
) -> None:
    """Change a service's share, its limits, and whom it may have told. What is not named stays."""
    texts: dict[str, str | list[str] | None] = {
        "weight": None if weight is None else str(weight),
        "max_in_flight": max_in_flight,
        "requests_per_minute": requests_per_minute,
        "callback_url": callback_url,
        "nsfw_policy": nsfw_policy,
        "callback_tasks": callback_task or None,
    }
    said = {field: text for field, text in texts.items() if text is not None}
    if not said:
        raise typer.BadParameter("say what to change, such as --weight 3")
    rt = runtime()
    with in_one_line(_OPTIONS):
        facts = use.read(rt, said)
    with acting(rt, "service.change", service_name(name), by=None, **use.told(facts)):
        use.change(rt, name, facts)
    err.print(f"{name}: {', '.join(said).replace('_', ' ')} set")


@services.command("pause")
def pause_service(name: Name) -> None:
    """Begin no job of a service until it is resumed. New ones wait; what runs goes on, and so do deadlines."""
    rt = runtime()
    with acting(rt, "service.pause", service_name(name)):
        use.pause(rt, name)
    err.print(f"{name} is paused")


@services.command("resume")
def resume_service(name: Name) -> None:
    """Let the jobs of a paused service go on."""
    rt = runtime()
    with acting(rt, "service.resume", service_name(name)):
        use.resume(rt, name)
    err.print(f"{name} goes on")


@services.command("list")
def list_services(*, as_json: AsJson = False) -> None:
    """List the services, their shares and limits."""
    rt = runtime()
    with rt.db.transaction() as tx:
        found = registry.everyone(tx)
    if as_json:
        print(json.dumps([_view(one) for one in found]))
        return
    table = Table("name", "", "created", "weight", "in flight", "a minute", "flagged", "told at", "tasks")
    for one in found:
        marks = {"operator": one.operator, "revoked": one.revoked_at, "paused": one.paused_at}
        table.add_row(
            one.name,
            ", ".join(word for word, is_so in marks.items() if is_so),
            f"{one.created_at:%Y-%m-%d}",
            str(one.weight),
            plain(one.max_in_flight),
            plain(one.requests_per_minute),
            plain(one.nsfw_policy),
            plain(one.callback_url),
            plain(", ".join(f"{task['task']}@{task['queue']}" for task in one.callback_tasks)),
        )
    out.print(table)


def _view(one: Service) -> dict[str, object]:
    return {
        "name": one.name,
        "operator": one.operator,
        "revoked": one.revoked_at is not None,
        "weight": one.weight,
        "max_in_flight": one.max_in_flight,
        "requests_per_minute": one.requests_per_minute,
        "paused_at": one.paused_at and one.paused_at.isoformat(),
        "callback_url": one.callback_url,
        "callback_tasks": list(one.callback_tasks),
        "nsfw_policy": one.nsfw_policy,
    }


def _show_key(name: str, key: str, *, secret: str | None = None, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "key": key} | ({"secret": secret} if secret else {})))
        return
    out.print(f"service [bold]{name}[/bold], key (shown only now):")
    print(key)
    if secret:
        err.print(
            f"its notifications are signed with {secret} (`services secret {name}` shows it again)", soft_wrap=True
        )
