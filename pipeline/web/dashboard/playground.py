"""The playground: one request by hand, what it costs, what becomes of it, and the same as a program."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flask import Blueprint, current_app, redirect, request, url_for
from flask.typing import ResponseReturnValue

from pipeline import standing
from pipeline.errors import FieldError, InvalidInput, NotScreened, PipelineError, UnknownJob
from pipeline.jobs import TOLD
from pipeline.lifecycle import accept, quote
from pipeline.lifecycle import services as use
from pipeline.models import name_problem
from pipeline.outputs import HIDDEN, Kept
from pipeline.runtime import Runtime
from pipeline.store import reading, reviews
from pipeline.store import services as registry
from pipeline.store.outbox import Told
from pipeline.store.services import Service
from pipeline.web.dashboard import access, entered, outputs, page, timeline
from pipeline.web.dashboard.entered import Entered
from pipeline.web.dashboard.samples import samples
from pipeline.web.dashboard.timeline import Story

bp = Blueprint("playground", __name__)

OURS = "playground"
"""The service whose jobs these are where there is no other; it is made when it is first needed."""

TOLD_WITHIN_S = 120
"""For how long after a job's end its notification is watched, too."""

MOVES = 12
"""So many of the last things that happened to a job are shown; its own page has all."""


@bp.get("/playground")
def show() -> ResponseReturnValue:
    """The form: as it is at first, or as it was for one `job`, with what became of that."""
    rt = page.runtime()
    row = _job(rt)
    if row is None:
        form = entered.fresh(rt.catalogue(), _model(rt), request.args.get("service", ""))
    else:
        form = entered.of_job(rt.catalogue(), row, deadline_s=rt.settings.deadline_s)
        form = form if access.person().may_act else form.discreet()
    return _page(rt, form, row)


@bp.post("/playground")
def run() -> ResponseReturnValue:
    """Run what was entered; or only look at its price, and at the programs that ask for the same."""
    rt = page.runtime()
    form = entered.sent(rt.catalogue(), request.form)
    if request.form.get("do") != "run":
        return _page(rt, form, _job(rt))
    try:
        wanted = form.request()
        service = _service(rt, form.service)
        told = {"service": service.name, "model": form.model if name_problem(form.model) is None else None}
        with page.act("playground.run", **told) as entry:
            job_id, _ = accept.take(rt, service, wanted, key=form.key(wanted))
            entry.target = str(job_id)
    except PipelineError as error:
        answer = current_app.make_response(_page(rt, form, _job(rt), refused=error))
        answer.status_code = error.status
        return answer
    return redirect(url_for(".show", job=job_id), 303)


def _job(rt: Runtime) -> Any:
    """The job that the address names, if any."""
    named = request.args.get("job")
    if named is None:
        return None
    with rt.db.transaction() as tx:
        row = reading.job(tx, page.id_of(named, UnknownJob))
    if row is None:
        raise UnknownJob
    return row


def _model(rt: Runtime) -> str:
    """The model that the address names, or the one for jobs that name none; while that is offered."""
    named, known = request.args.get("model"), rt.catalogue()
    if named:
        return named.strip()[:200]
    usual = rt.settings.default_model
    return usual if not known.known or known.lists(usual) or not known.names else known.names[0]


def _service(rt: Runtime, name: str) -> Service:
    """
    The service whose job it is to be.

    Raises:
        InvalidInput: There is none of that name, or its key was revoked.
    """
    with rt.db.transaction() as tx:
        found = registry.by_name(tx, name) if registry.NAME.fullmatch(name) else None
        ours = name == OURS and found is None and registry.by_name(tx, OURS, revoked=True) is None
    if ours:
        with page.act("service.create", OURS):
            use.create(rt, OURS)
        return _service(rt, OURS)
    if found is None:
        raise InvalidInput(errors=[FieldError("service", "Choose one of these services.")])
    return found


def _page(rt: Runtime, form: Entered, row: Any, *, refused: PipelineError | None = None) -> str:
    with rt.db.transaction() as tx:
        services = [one for one in registry.everyone(tx) if one.revoked_at is None]
    names = [one.name for one in services] or [OURS]
    if form.service not in names:
        usual = next((one.name for one in services if not one.operator), names[0])
        form = replace(form, service=OURS if OURS in names else usual)
    wanted, problem = _checked(rt, form)
    fields, others = _beside(form, refused or problem)
    if request.method == "GET":  # nobody has typed anything yet
        fields, others = {name: said for name, said in fields.items() if name == "model"}, []
    return page.show(
        "playground.html",
        form=form,
        services=names,
        makes=not services,
        models=() if page.is_refresh() else rt.catalogue().names,
        errors=fields,
        others=others,
        price=None if problem or wanted is None else _price(rt, wanted),
        priced=problem is None,
        samples=[] if wanted is None else samples(_base(rt), wanted, f"playground-{form.nonce}"),
        **_story(rt, row),
    )


def _checked(rt: Runtime, form: Entered) -> tuple[dict[str, Any] | None, PipelineError | None]:
    """The request that was entered, if it can be read, and what is wrong with it."""
    try:
        wanted = form.request()
    except InvalidInput as error:
        return None, error
    try:
        accept.check(wanted, default_model=rt.settings.default_model, catalogue=rt.catalogue())
    except InvalidInput as error:
        return wanted, error
    return wanted, None


def _price(rt: Runtime, wanted: Mapping[str, Any]) -> Any:
    """What it costs, as the provider says; it is not asked only because a page is kept fresh."""
    return quote.of(rt, wanted["model"], wanted["input"], asking=not page.is_refresh())


def _beside(form: Entered, error: PipelineError | None) -> tuple[dict[str, str], list[str]]:
    """What is wrong, by the form's fields; and what belongs beside none of them."""
    if error is None:
        return {}, []
    fields: dict[str, str] = {}
    others = []
    for one in error.errors:
        place = form.place(one.field)
        if place:
            said = one.message if one.field == place else f"{one.field.removeprefix(entered.INPUT)}: {one.message}"
            fields[place] = f"{fields[place]} {said}" if place in fields else page.sentence(said)
        else:
            others.append(f"{one.field}: {one.message}" if one.field else one.message)
    if not error.errors or isinstance(error, NotScreened):
        others.insert(0, error.detail)
    return fields, others


def _base(rt: Runtime) -> str:
    return rt.settings.public_url or request.host_url.rstrip("/")


def _story(rt: Runtime, row: Any) -> dict[str, Any]:
    """What became of a job, as far as it has come."""
    if row is None:
        return {"job": None, "live": False}
    with rt.db.transaction() as tx:
        around = reading.around(tx, row.service_id)
        events = reading.events(tx, row.id)
        notifications = reading.notifications(tx, row.id)
        kept = reviews.outputs(tx, row.id)
    waits = rt.storage is not None and any(one.state == Kept.PENDING and one.review not in HIDDEN for one in kept)
    ended = row.finished_at or row.deadline_at
    recent = (events[-1].at - ended).total_seconds() < TOLD_WITHIN_S if events else False
    untold = recent and any(one.state == Told.PENDING for one in notifications)
    return {
        "job": row,
        "standing": standing.of(row, around),
        "moves": timeline.tell(Story(events=events))[-MOVES:],
        "outputs": outputs.of(row, kept),
        "notifications": notifications,
        "live": row.state not in TOLD or waits or untold,
    }
