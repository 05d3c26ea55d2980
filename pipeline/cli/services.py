"""The services that may hand in jobs, and their keys."""

import json
import re
from typing import Annotated, Any

import typer
from rich.table import Table

from pipeline.broker import QUEUE
from pipeline.cli.common import AsJson, err, out, plain, runtime, service_name
from pipeline.errors import InvalidInput
from pipeline.outputs import Policy
from pipeline.runtime import Runtime
from pipeline.store import keys
from pipeline.store import services as registry
from pipeline.store.database import Transaction
from pipeline.store.services import Service

services = typer.Typer(help="The services that may hand in jobs, and their keys.", no_args_is_help=True)

NONE = "none"
CELERYS_QUEUE = "celery"
"""Where an app listens that was told nothing else."""

_WORD = re.compile(r"[A-Za-z0-9_][\w.:-]{0,199}", re.ASCII)

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
    with rt.db.transaction() as tx:
        key = registry.create(tx, service_name(name), operator=operator)
    if key is None:
        raise InvalidInput(
            f"There is a service named {name} already; `pipeline services rotate {name}` makes a new key."
        )
    with rt.db.transaction() as tx:
        secret = _secret(tx, name)
    _show_key(name, key, secret=secret, as_json=as_json)


@services.command("rotate")
def rotate_key(name: str, *, as_json: AsJson = False) -> None:
    """Give a service a new key; the old one ends at once."""
    rt = runtime()
    with rt.db.transaction() as tx:
        key = registry.rotate(tx, service_name(name))
    if key is None:
        raise InvalidInput(f"There is no service named {name}.")
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
    with rt.db.transaction() as tx:
        secret = _secret(tx, service_name(name), rotate=rotate)
    print(json.dumps({"name": name, "secret": secret}) if as_json else secret)


@services.command("revoke")
def revoke_key(name: str) -> None:
    """Refuse a service's key from now on. Its jobs go on."""
    rt = runtime()
    with rt.db.transaction() as tx:
        if not registry.revoke(tx, service_name(name)):
            raise InvalidInput(f"There is no service named {name}.")


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
    rt = runtime()
    facts: dict[str, object] = {}
    if weight is not None:
        facts["weight"] = weight
    if max_in_flight is not None:
        facts["max_in_flight"] = _limit("--max-in-flight", max_in_flight)
    if requests_per_minute is not None:
        facts["requests_per_minute"] = _limit("--requests-per-minute", requests_per_minute)
    if callback_url is not None:
        facts["callback_url"] = None if callback_url == NONE else _url(rt, callback_url)
    if nsfw_policy is not None:
        facts["nsfw_policy"] = _policy(nsfw_policy)
    if callback_task:
        facts["callback_tasks"] = [] if callback_task == [NONE] else [_task(one) for one in callback_task]
    if not facts:
        raise typer.BadParameter("say what to change, such as --weight 3")
    _change(rt, name, **facts)
    err.print(f"{name}: {', '.join(facts).replace('_', ' ')} set")


@services.command("pause")
def pause_service(name: Name) -> None:
    """Begin no job of a service until it is resumed. New ones wait; what runs goes on, and so do deadlines."""
    _change(runtime(), name, paused=True)
    err.print(f"{name} is paused")


@services.command("resume")
def resume_service(name: Name) -> None:
    """Let the jobs of a paused service go on."""
    rt = runtime()
    _change(rt, name, paused=False)
    rt.nudge("submit")
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


def _change(rt: Runtime, name: str, **facts: Any) -> None:
    with rt.db.transaction() as tx:
        if not registry.change(tx, service_name(name), **facts):
            raise InvalidInput(f"There is no service named {name}.")


def _limit(option: str, text: str) -> int | None:
    if text == NONE:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise InvalidInput(f"{option}: {text!r} is neither a whole number above 0 nor 'none'.")
    return int(text)


def _policy(text: str) -> str | None:
    if text == NONE:
        return None
    if text not in list(Policy):
        raise InvalidInput(f"--nsfw-policy: {text!r} is none of {', '.join(Policy)} and 'none'.")
    return text


def _url(rt: Runtime, text: str) -> str:
    from pipeline.lifecycle.accept import callback_problem  # noqa: PLC0415 - spares the other commands its imports

    if problem := callback_problem(rt, text):
        raise InvalidInput(f"--callback-url: {problem.message}")
    return text


def _task(text: str) -> dict[str, str]:
    task, _, queue = text.partition("@")
    queue = queue or CELERYS_QUEUE
    if not _WORD.fullmatch(task) or not _WORD.fullmatch(queue):
        raise InvalidInput(f"--callback-task: {text!r} is no task's name, such as shop.done or shop.done@shop.")
    if task.startswith("pipeline.") or queue == QUEUE:
        raise InvalidInput(f"--callback-task: {text!r} is of this product's own, which it would call in a circle.")
    return {"task": task, "queue": queue}


def _secret(tx: Transaction, name: str, *, rotate: bool = False) -> str:
    service = registry.by_name(tx, name, revoked=True)
    if service is None:
        raise InvalidInput(f"There is no service named {name}.")
    return keys.rotate(tx, service.id) if rotate else keys.of(tx, service.id)[0]


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
