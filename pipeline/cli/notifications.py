"""What callers and operators are told: listed with every try, sent again, and the endpoints that fail."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.text import Text

from pipeline import views
from pipeline.cli import complete
from pipeline.cli.common import AsJson, acting, err, folding_table, id_of, out, plain, runtime, service_named, time_of
from pipeline.errors import NotAllowedNow
from pipeline.lifecycle import redeliver as redelivery
from pipeline.runtime import Runtime
from pipeline.store import deliveries, endpoints, keys
from pipeline.store.deliveries import Wanted
from pipeline.store.outbox import Told

notifications = typer.Typer(
    help="What callers and operators are told: deliveries, dead letters, endpoints that fail.", no_args_is_help=True
)

MAX_SAID = 200
"""Of what a receiver answered, what the table of tries shows; --json has all that was kept."""

Service = Annotated[
    str | None, typer.Option(help="Only what is told of this service's jobs.", autocompletion=complete.services)
]
Event = Annotated[str | None, typer.Option(help="Only this event, such as job.completed.")]
Endpoint = Annotated[
    str | None, typer.Option(help="Only what is for this endpoint, such as 'shop https://shop.example'.")
]
Job = Annotated[str | None, typer.Option(help="Only what is told of this job.")]
Since = Annotated[str | None, typer.Option(metavar="TIME|AGE", help="Planned then or later: 2026-01-31T12:00Z, or 6h.")]
Until = Annotated[str | None, typer.Option(metavar="TIME|AGE", help="Planned before: a time, or an age.")]


@notifications.command("list")
def list_notifications(
    *,
    state: Annotated[Told | None, typer.Option(help="Only those in this state; dead ones were given up.")] = None,
    service: Service = None,
    event: Event = None,
    endpoint: Endpoint = None,
    job: Job = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest notifications."""
    rt = runtime()
    chosen = {"state": state, "service": service, "event": event, "endpoint": endpoint, "job": job}
    wanted = _wanted(rt, chosen, since=since, until=until)
    with rt.db.transaction() as tx:
        found = deliveries.newest(tx, wanted, at_most=limit)
    if as_json:
        print(json.dumps([_view(one) for one in found]))
        return
    table = folding_table("notifications", "id", "planned", "event", "for", "state", "tries", "next try", "error")
    for one in found:
        next_try = f"{one.due_at:%Y-%m-%d %H:%M:%S}" if one.due_at else ""
        cells = (one.event, one.endpoint, one.state, one.attempts, next_try, one.error)
        table.add_row(str(one.id), f"{one.created_at:%Y-%m-%d %H:%M:%S}", *map(plain, cells))
    out.print(table)


@notifications.command("show")
def show_notification(
    notification: Annotated[str, typer.Argument(metavar="ID", help="The notification's id.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one notification, with every try and how its answer begins; --json has all of it, and what was sent."""
    rt = runtime()
    notification_id = id_of(notification, "notification")
    with rt.db.transaction() as tx:
        found = deliveries.newest(tx, Wanted(ids=[notification_id]), at_most=1)
        tries = deliveries.of(tx, [notification_id])[notification_id]
    if not found:
        raise NotAllowedNow(f"There is no notification {notification_id}.")
    whole = _view(found[0]) | {"deliveries": [views.delivery(one) for one in tries]}
    if as_json:
        print(json.dumps(whole))
        return
    for name, value in whole.items():
        if name != "deliveries":
            out.print(
                Text(f"{name:>12}  ", "dim").append(plain(json.dumps(value) if isinstance(value, dict) else value))
            )
    table = folding_table("tries", "", "at", "to", "answered", "ms", "said")
    for one in tries:
        said = _shortened((one.error if one.status is None else one.answer) or "")
        cells = (one.target, one.status, one.duration_ms, said)
        table.add_row(str(one.number), f"{one.at:%Y-%m-%d %H:%M:%S}", *map(plain, cells))
    out.print(table)


@notifications.command("replay")
def replay(
    notification: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Which; none: all that the options choose.")
    ] = None,
    *,
    state: Annotated[
        Told | None, typer.Option(help="Those in this state; dead ones, unless ids or a state are given.")
    ] = None,
    service: Service = None,
    event: Event = None,
    endpoint: Endpoint = None,
    job: Job = None,
    since: Since = None,
    until: Until = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Send notifications again, from the beginning of the schedule: one, or all that fit what is said of them.

    Each keeps its id, so a receiver that had it after all knows it again.
    """
    rt = runtime()
    ids = [id_of(one, "notification") for one in notification or ()] or None
    if ids:
        with rt.db.transaction() as tx:
            known = {row.id for row in deliveries.newest(tx, Wanted(ids=ids), at_most=len(ids))}
        if missing := [one for one in ids if one not in known]:
            raise NotAllowedNow(f"There is no notification {missing[0]}. None is sent again.")
    state = state or (None if ids else Told.DEAD)
    chosen = {"state": state, "service": service, "event": event, "endpoint": endpoint, "job": job}
    wanted = _wanted(rt, chosen, since=since, until=until, ids=ids)
    if dry_run:
        with rt.db.transaction() as tx:
            _say_count(deliveries.count(tx, wanted), "would be sent again", as_json=as_json)
        return
    asked: dict[str, Any] = {**chosen, "since": since, "until": until, "ids": len(ids) if ids else None}
    with acting(rt, "notification.replay", ids[0] if ids and len(ids) == 1 else None, **asked):
        sent = redelivery.redeliver(rt, wanted)
    _say_count(sent.count, "are sent again", as_json=as_json)
    for name in sent.switched_off:
        err.print(plain(f"{name} is switched off; `pipeline notifications enable '{name}'` does not wait for a probe"))


@notifications.command("endpoints")
def list_endpoints(*, as_json: AsJson = False) -> None:
    """List the endpoints that fail now, and those that are switched off."""
    rt = runtime()
    with rt.db.transaction() as tx:
        found = endpoints.troubled(tx)
    if as_json:
        print(json.dumps([_endpoint_view(one) for one in found]))
        return
    table = folding_table("endpoints that fail", "endpoint", "since", "failures", "waiting", "", "error")
    for one in found:
        off = f"off since {one.off_at:%Y-%m-%d %H:%M}" if one.off_at else ""
        since = f"{one.failing_since:%Y-%m-%d %H:%M:%S}"
        table.add_row(*map(plain, (one.name, since, one.failures, one.waiting, off, one.error)))
    out.print(table)


@notifications.command("enable")
def enable(endpoint: Annotated[str, typer.Argument(help="Its whole name, as `endpoints` shows it.")]) -> None:
    """Send to an endpoint again that was switched off because it failed for days."""
    rt = runtime()
    with acting(rt, "endpoint.enable", endpoint):
        redelivery.switch_on(rt, endpoint)
    err.print(plain(f"{endpoint} is on"))


@notifications.command("secret")
def operator_secret(
    *,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one; the former signs beside it for a day.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the secret that signs what is sent to OPERATOR_CALLBACK_URL; services have theirs (`services secret`)."""
    rt = runtime()
    with rt.db.transaction() as tx:
        secret = keys.rotate(tx, None) if rotate else keys.of(tx, None)[0]
    print(json.dumps({"secret": secret}) if as_json else secret)


def _wanted(
    rt: Runtime,
    chosen: Mapping[str, str | None],
    *,
    since: str | None,
    until: str | None,
    ids: Sequence[UUID] | None = None,
) -> Wanted:
    if (service := chosen["service"]) is not None:
        service_named(rt, service, revoked=True)  # a slip is told, and not taken for "there are none"
    return Wanted(
        ids=ids,
        state=chosen["state"],
        service=service,
        event=chosen["event"],
        endpoint=chosen["endpoint"],
        job_id=id_of(chosen["job"], "job") if chosen["job"] else None,
        since=time_of(rt, "--since", since),
        until=time_of(rt, "--until", until),
    )


def _shortened(said: str) -> str:
    """What a receiver answered, in a table: the beginning, on one line."""
    line = " ".join(said.split())
    return line if len(line) <= MAX_SAID else f"{line[:MAX_SAID]}…"


def _say_count(count: int, what: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"count": count}))
    else:
        err.print(f"{count} {what}")


def _view(row: Any) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "event": row.event,
        "job_id": row.job_id and str(row.job_id),
        "service": row.service,
        "audience": row.audience,
        "endpoint": row.endpoint,
        "state": row.state,
        "attempts": row.attempts,
        "error": row.error,
        "data": row.data,
        "created_at": views.time(row.created_at),
        "due_at": views.time(row.due_at),
        "replayed_at": views.time(row.replayed_at),
        "ended_at": views.time(row.ended_at),
    }


def _endpoint_view(one: endpoints.Endpoint) -> dict[str, Any]:
    return {
        "endpoint": one.name,
        "failing_since": views.time(one.failing_since),
        "failures": one.failures,
        "waiting": one.waiting,
        "off_at": views.time(one.off_at),
        "probe_at": views.time(one.probe_at),
        "error": one.error,
    }
