"""Notifications: what callers and operators are told, each with its tries; dead letters are sent again."""

from typing import Any

from flask import Blueprint, request, url_for
from flask.typing import ResponseReturnValue

from pipeline.errors import FieldError, InvalidInput, UnknownPath
from pipeline.lifecycle import redeliver
from pipeline.lifecycle.redeliver import Resent
from pipeline.store import deliveries, endpoints, reading
from pipeline.store.deliveries import Wanted
from pipeline.store.outbox import Told
from pipeline.web.dashboard import outputs, page

bp = Blueprint("notifications", __name__)

LIMIT = 50

COUNTED = 10_000
"""Counting dead letters stops here."""

_WITHIN_S = 15.0
"""How long sending again may keep who asked for it waiting."""


@bp.get("/notifications")
def show() -> ResponseReturnValue:
    """Show the newest that fit the filters, and the receivers that fail."""
    wanted, filters = _wanted()
    before = request.args.get("before")
    with page.runtime().db.transaction() as tx:
        found = deliveries.page(tx, wanted, before=page.id_of(before) if before else None, limit=LIMIT)
        dead = deliveries.count(tx, wanted, at_most=COUNTED) if wanted.state == Told.DEAD else None
        troubled = endpoints.troubled(tx)
    return page.show(
        "notifications.html",
        rows=found.rows,
        filters=filters,
        states=list(Told),
        dead=dead,
        counted=COUNTED,
        troubled=troubled,
        before=before,
        more=url_for(".show", **filters, before=found.next) if found.next else None,
        first=url_for(".show", **filters) if before else None,
    )


@bp.get("/notifications/<notification_id>")
def one(notification_id: str) -> ResponseReturnValue:
    """Show one, with every try and what was answered."""
    row, tries = _one(notification_id)
    with page.runtime().db.transaction() as tx:
        job = reading.job(tx, row.job_id) if row.job_id else None
    withheld = outputs.WITHHELD if outputs.withheld(job) else None
    return page.show("notification.html", row=row, tries=tries, withheld=withheld)


@bp.post("/notifications/<notification_id>/replay")
def replay(notification_id: str) -> ResponseReturnValue:
    """Send one again."""
    row, _ = _one(notification_id)
    with page.act("notification.replay", row.id):
        sent = redeliver.redeliver(page.runtime(), Wanted(ids=[row.id]))
    return page.done(_said(sent) if sent.count else "It is being sent at this moment.")


@bp.post("/notifications/replay")
def replay_dead() -> ResponseReturnValue:
    """Send all dead ones again that fit the filters."""
    wanted, filters = _wanted(state=Told.DEAD)
    with page.act("notification.replay", None, **filters) as entry:
        sent = redeliver.redeliver(page.runtime(), wanted, within_s=_WITHIN_S)
        entry.target = f"{sent.count} notifications"
    return page.done(_said(sent))


@bp.post("/notifications/endpoints/enable")
def enable() -> ResponseReturnValue:
    """Send to an endpoint again that was switched off."""
    name = page.words("receiver")
    if name is None:
        raise InvalidInput(errors=[FieldError("receiver", "Must be its whole name.")])
    with page.act("endpoint.enable", name):
        redeliver.switch_on(page.runtime(), name)
    return page.done(f"{name} is on.")


def _wanted(*, state: str | None = None) -> tuple[Wanted, dict[str, Any]]:
    """What the filters say, and the filters themselves."""
    names = ("state", "service", "event", "receiver", "job", "since", "until")
    filters = {name: said for name in names if (said := page.words(name))}
    if state:
        filters["state"] = state
    if filters.get("state", Told.DEAD) not in set(Told):
        raise InvalidInput(errors=[FieldError("state", f"Must be one of {', '.join(Told)}.")])
    return (
        Wanted(
            state=filters.get("state"),
            service=filters.get("service"),
            event=filters.get("event"),
            endpoint=filters.get("receiver"),
            job_id=page.id_in("job", filters.get("job")),
            since=page.time_in("since", filters.get("since")),
            until=page.time_in("until", filters.get("until")),
        ),
        filters,
    )


def _one(notification_id: str) -> tuple[Any, list[Any]]:
    wanted = page.id_of(notification_id)
    with page.runtime().db.transaction() as tx:
        found = deliveries.newest(tx, Wanted(ids=[wanted]), at_most=1)
        tries = deliveries.of(tx, [wanted])[wanted]
    if not found:
        raise UnknownPath("There is no such notification; what is old may have been pruned.")
    return found[0], tries


def _said(sent: Resent) -> str:
    said = "It is sent again." if sent.count == 1 else f"{sent.count:,} are sent again."
    if not sent.finished:
        said += " There are more: repeat it."
    for name in sent.switched_off:
        said += f" {name} is switched off: it gets no more than a probe until it is switched on."
    return said
