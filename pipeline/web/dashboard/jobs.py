"""Jobs: the newest first, chosen by what is known of them, or found by an id."""

from typing import Any
from uuid import UUID

from flask import Blueprint, redirect, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy import Connection

from pipeline.jobs import State
from pipeline.store import lists, reading, services
from pipeline.store.lists import Wanted
from pipeline.web.dashboard import page, words

bp = Blueprint("jobs", __name__)

LIMIT = 30
LONGEST = 300
"""Characters of what may be looked for."""

FILTERS = ("service", "state", "model", "metadata")


@bp.get("/jobs")
def show() -> ResponseReturnValue:
    """Show one page of jobs; or, of a `find`, lead to the job that has this id or this task."""
    errors: dict[str, str] = {}
    said = {name: request.args.get(name, "").strip() for name in (*FILTERS, "find")}
    if said["find"] and (found := _found(said["find"])):
        return redirect(url_for("dashboard.job.show", job_id=found), 303)
    if said["find"]:
        errors["find"] = "No job has this id, and no task of a job's either. Take the whole id."
    before = request.args.get("before")
    held = request.args.get("held") == "1"
    after = page.id_of(before) if before else None
    with page.runtime().db.transaction() as tx:
        everyone = services.everyone(tx)
        wanted = _wanted(said, {one.name: one.id for one in everyone}, errors, held=held)
        chosen = lists.page(tx, wanted, after=after, limit=LIMIT) if not errors else lists.Page((), None)
    kept: dict[str, Any] = {name: said[name] or None for name in FILTERS} | {"held": "1" if held else None}
    return page.answer(
        "jobs.html",
        422 if errors else 200,
        rows=[_line(row) for row in chosen.rows],
        said=said,
        held=held,
        errors=errors,
        services=[one.name for one in everyone],
        states=list(State),
        filtered=any(kept.values()),
        more=url_for(".show", **kept, before=chosen.next) if chosen.next else None,
        first=url_for(".show", **kept) if before else None,
    )


def _found(text: str) -> UUID | None:
    """The job of that id, or the one that a task of the provider's of that id is of."""
    if len(text) > LONGEST or not text.isprintable():
        return None
    with page.runtime().db.transaction() as tx:
        try:
            job_id = UUID(text)
        except ValueError:
            return reading.job_of_task(tx, text)
        return _known(tx, job_id) or reading.job_of_task(tx, text)


def _known(tx: Connection, job_id: UUID) -> UUID | None:
    return job_id if reading.states(tx, [job_id]) else None


def _wanted(said: dict[str, str], known: dict[str, UUID], errors: dict[str, str], *, held: bool) -> Wanted:
    """What the filters choose; each that cannot be understood is named in *errors*."""
    for name in FILTERS:
        if len(said[name]) > LONGEST or not said[name].isprintable():
            errors[name] = f"Must be at most {LONGEST} printable characters."
            said[name] = ""
    if said["service"] and said["service"] not in known:
        errors["service"] = "There is no service of this name."
    if said["state"] and said["state"] not in set(State):
        errors["state"] = f"Must be one of {', '.join(State)}."
    elif said["state"] and held and said["state"] != State.UNKNOWN:
        errors["state"] = "Only an unknown job can wait for a decision: choose another state, or all of them."
    name, equals, value = said["metadata"].partition("=")
    if said["metadata"] and not (name.strip() and equals):
        errors["metadata"] = "Write it as name=value, such as order=4711."
    if errors:
        return Wanted()
    return Wanted(
        service_ids=[known[said["service"]]] if said["service"] else None,
        state=State(said["state"]) if said["state"] else State.UNKNOWN if held else None,
        model=said["model"] or None,
        metadata={name.strip(): value.strip()} if said["metadata"] else {},
        held=held,
    )


def _line(row: Any) -> dict[str, Any]:
    return {
        "job": row,
        "prompt": words.beginning(row.input.get("prompt")),
        "took_s": (row.finished_at - row.created_at).total_seconds() if row.finished_at else None,
    }
