"""The services: who may hand in jobs, their keys, limits, budgets, and whom they have told."""

from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, current_app, request, url_for
from flask.typing import ResponseReturnValue

from pipeline.errors import InvalidInput, UnknownPath
from pipeline.lifecycle import budgets as budgeting
from pipeline.lifecycle import services as use
from pipeline.outputs import Policy
from pipeline.store import budgets
from pipeline.store import services as registry
from pipeline.store.budgets import ACCOUNT, Period, Purse
from pipeline.store.services import AT_MOST, Load, Service
from pipeline.web.dashboard import page

bp = Blueprint("services", __name__)

PERIODS: tuple[Period, ...] = ("day", "month")

_FIELDS = ("weight", "max_in_flight", "requests_per_minute", "callback_url", "callback_tasks", "nsfw_policy")


@bp.get("/services")
def show() -> ResponseReturnValue:
    """All services, what they may do, and what they do now."""
    return _list()


@bp.post("/services")
def act() -> ResponseReturnValue:
    """Add a service, or limit what all of them together may spend."""
    try:
        return _limit(ACCOUNT, ACCOUNT, url_for(".show")) if request.form.get("do") == "budgets" else _create()
    except InvalidInput as error:
        return _wrong(_list(form=request.form, errors=_errors(error)))


def _create() -> ResponseReturnValue:
    """Its key and secret are shown in this answer; the key never again."""
    rt, operator = page.runtime(), "operator" in request.form
    name = use.name_of(request.form.get("name", "").strip())
    with page.act("service.create", name, operator=operator):
        made = use.create(rt, name, operator=operator)
    return _list(made=made, name=name)


@bp.get("/services/<name>")
def one(name: str) -> ResponseReturnValue:
    """One service."""
    return _one(_found(name))


@bp.post("/services/<name>")
def change(name: str) -> ResponseReturnValue:
    """Change one service: what `do` says. What is shown only once is shown in this answer."""
    service = _found(name)
    do = _DEEDS.get(request.form.get("do", ""))
    if do is None:
        raise InvalidInput("Nothing of the sort can be done with a service.")
    try:
        return do(service)
    except InvalidInput as error:
        return _wrong(_one(service, form=request.form, errors=_errors(error)))


def _set(service: Service) -> ResponseReturnValue:
    rt, form = page.runtime(), request.form
    said: dict[str, str | list[str] | None] = {
        field: form[field].strip() or None for field in _FIELDS if field in form and field != "callback_tasks"
    }
    if "callback_tasks" in form:
        said["callback_tasks"] = form["callback_tasks"].replace(",", " ").split()
    facts = use.read(rt, said)
    with page.act("service.change", service.name, **use.told(facts)):
        use.change(rt, service.name, facts)
    return page.done(f"{service.name} is changed.", to=_address(service))


def _budgets(service: Service) -> ResponseReturnValue:
    return _limit(str(service.id), service.name, _address(service))


def _pause(service: Service) -> ResponseReturnValue:
    with page.act("service.pause", service.name):
        use.pause(page.runtime(), service.name)
    return page.done(f"{service.name} is paused: its jobs wait, and what runs goes on.")


def _resume(service: Service) -> ResponseReturnValue:
    with page.act("service.resume", service.name):
        use.resume(page.runtime(), service.name)
    return page.done(f"{service.name} goes on.")


def _revoke(service: Service) -> ResponseReturnValue:
    with page.act("service.revoke", service.name):
        use.revoke(page.runtime(), service.name)
    return page.done(f"The key of {service.name} is refused from now on.")


def _rotate_key(service: Service) -> ResponseReturnValue:
    with page.act("service.rotate_key", service.name):
        key = use.rotate(page.runtime(), service.name)
    return _one(_found(service.name), key=key)


def _show_secret(service: Service) -> ResponseReturnValue:
    with page.act("service.show_secret", service.name):
        secret = use.secret(page.runtime(), service.name)
    return _one(service, secret=secret)


def _rotate_secret(service: Service) -> ResponseReturnValue:
    with page.act("service.rotate_secret", service.name):
        secret = use.secret(page.runtime(), service.name, rotate=True)
    return _one(service, secret=secret, fresh=True)


_DEEDS: Mapping[str, Callable[[Service], ResponseReturnValue]] = {
    "set": _set,
    "budgets": _budgets,
    "pause": _pause,
    "resume": _resume,
    "revoke": _revoke,
    "rotate-key": _rotate_key,
    "show-secret": _show_secret,
    "rotate-secret": _rotate_secret,
}


def _limit(scope: str, target: str, back: str) -> ResponseReturnValue:
    """Set the limits that were typed, and leave alone those that are as they were."""
    rt = page.runtime()
    with rt.db.transaction() as tx:
        known = {one.period: one.limit_usd for one in budgets.everything(tx) if one.scope == scope}
    typed: dict[Period, str] = {
        period: request.form[period].strip().removeprefix("$") or use.NONE
        for period in PERIODS
        if period in request.form
    }
    wanted = {period: usd for period, usd in budgeting.limits(typed).items() if usd != known.get(period)}
    told = {period: use.NONE if usd is None else str(usd) for period, usd in wanted.items()}
    if wanted:
        with page.act("budget.change", target, **told):
            budgeting.limit(rt, scope, wanted)
    return page.done("The budgets are changed." if wanted else "The budgets are as they were.", to=back)


def _list(**facts: Any) -> str:
    rt = page.runtime()
    with rt.db.transaction() as tx:
        found = registry.everyone(tx)
        loads = registry.loads(tx)
        purses = budgets.everything(tx)
    return page.show(
        "services.html",
        services=found,
        loads=loads,
        idle=Load(),
        purses=_by_scope(purses),
        periods=PERIODS,
        account=ACCOUNT,
        at_most=AT_MOST,
        usual=rt.settings.nsfw_policy,
        **{"form": {}, "errors": {}, "made": None, **facts},
    )


def _one(service: Service, **facts: Any) -> str:
    rt = page.runtime()
    with rt.db.transaction() as tx:
        load = registry.loads(tx, service.id).get(service.id, Load())
        purses = _by_scope(budgets.everything(tx))
    now = {
        "weight": service.weight,
        "max_in_flight": service.max_in_flight or "",
        "requests_per_minute": service.requests_per_minute or "",
        "callback_url": service.callback_url or "",
        "callback_tasks": "\n".join(f"{task['task']}@{task['queue']}" for task in service.callback_tasks),
        "nsfw_policy": service.nsfw_policy or "",
    }
    now |= {period: f"{purse.limit_usd.normalize():f}" for period, purse in purses.get(str(service.id), {}).items()}
    return page.show(
        "service.html",
        service=service,
        load=load,
        purses=purses.get(str(service.id), {}),
        periods=PERIODS,
        at_most=AT_MOST,
        policies=list(Policy),
        usual=rt.settings.nsfw_policy,
        **{"form": {}, "errors": {}, "key": None, "secret": None, "fresh": False, **facts},
        now=now,
    )


def _by_scope(purses: list[Purse]) -> dict[str, dict[Period, Purse]]:
    found: dict[str, dict[Period, Purse]] = {}
    for one_ in purses:
        found.setdefault(one_.scope, {})[one_.period] = one_
    return found


def _found(name: str) -> Service:
    rt = page.runtime()
    found = None
    if registry.NAME.fullmatch(name):
        with rt.db.transaction() as tx:
            found = registry.by_name(tx, name, revoked=True)
    if found is None:
        raise UnknownPath("There is no service of this name.")
    return found


def _address(service: Service) -> str:
    return url_for(".one", name=service.name)


def _errors(error: InvalidInput) -> dict[str, str]:
    """What is wrong by its field; what belongs to none stands by the name ''."""
    return {one.field: page.sentence(one.message) for one in error.errors} or {"": error.detail}


def _wrong(text: str) -> ResponseReturnValue:
    answer = current_app.make_response(text)
    answer.status_code = InvalidInput.status
    return answer
