"""The services that may hand in jobs, and their keys."""

import json
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.common import AsJson, out, runtime, service_name
from pipeline.errors import InvalidInput
from pipeline.store import services as registry

services = typer.Typer(help="The services that may hand in jobs, and their keys.", no_args_is_help=True)


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
    _show_key(name, key, as_json=as_json)


@services.command("rotate")
def rotate_key(name: str, *, as_json: AsJson = False) -> None:
    """Give a service a new key; the old one ends at once."""
    rt = runtime()
    with rt.db.transaction() as tx:
        key = registry.rotate(tx, service_name(name))
    if key is None:
        raise InvalidInput(f"There is no service named {name}.")
    _show_key(name, key, as_json=as_json)


@services.command("revoke")
def revoke_key(name: str) -> None:
    """Refuse a service's key from now on. Its jobs go on."""
    rt = runtime()
    with rt.db.transaction() as tx:
        if not registry.revoke(tx, service_name(name)):
            raise InvalidInput(f"There is no service named {name}.")


@services.command("list")
def list_services(*, as_json: AsJson = False) -> None:
    """List the services."""
    rt = runtime()
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


def _show_key(name: str, key: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"name": name, "key": key}))
    else:
        out.print(f"service [bold]{name}[/bold], key (shown only now):")
        print(key)
