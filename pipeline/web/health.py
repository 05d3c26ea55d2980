"""Is this process alive, and can the product do its work?"""

from flask import Blueprint, current_app, jsonify
from flask.typing import ResponseReturnValue

from pipeline.broker import SWEEP_S
from pipeline.errors import Unavailable
from pipeline.nudges import Nudger
from pipeline.outputs import SOURCE_DAYS
from pipeline.runtime import Runtime
from pipeline.settings import OFF
from pipeline.store import account, custody, endpoints, schema
from pipeline.store.database import Transaction
from pipeline.web.api import examples, shapes
from pipeline.web.openapi.calls import Answer, Body, Call, described

bp = Blueprint("health", __name__)

UNARCHIVED_LATE_S = 3600.0
SWEEP_LATE_S = 6 * SWEEP_S


@bp.get("/healthz")
@described(
    Call(
        "Is the process alive?",
        "It answers, whatever else may be wrong: a platform restarts what does not.",
        tag="Probes",
        answers=[Answer(200, "It is.", [Body(shapes.Alive, {"alive": {"status": "ok"}})])],
        needs_key=False,
    )
)
def alive() -> ResponseReturnValue:
    """Say that this process answers; nothing else is asked."""
    return jsonify(status="ok")


@bp.get("/readyz")
@described(
    Call(
        "Can it do its work?",
        "503 only when no request could succeed: without its database, or with a schema older than the code. Otherwise"
        " `degraded` names what does not work as it should, for a person to see.",
        tag="Probes",
        answers=[
            Answer(
                200,
                "It can.",
                [Body(shapes.Readiness, {"well": {"status": "ok", "degraded": []}, "degraded": examples.DEGRADED})],
            )
        ],
        errors=[Unavailable],
        needs_key=False,
    )
)
def ready() -> ResponseReturnValue:
    """503 only when no request could succeed: no database, or a schema older than the code. Else what is degraded."""
    rt: Runtime = current_app.extensions["runtime"]
    with rt.db.transaction() as tx:
        if schema.is_older_than_the_code(tx):
            raise Unavailable("The database's schema is older than this code: run `pipeline migrate`.")
        degraded = [*_degraded(rt, account.condition(tx)), *_late(rt, tx)]
    return jsonify(status="ok", degraded=degraded)


def _late(rt: Runtime, tx: Transaction) -> list[dict[str, str]]:
    """What has gone wrong for days."""
    found = []
    if rt.settings.archive_url != OFF and (age_s := custody.at_risk_s(tx)):
        left_h = max(SOURCE_DAYS * 86_400 - age_s, 0) / 3600
        found.append(
            {"what": "outputs", "why": f"the provider deletes the first that nobody has copied in {left_h:.0f} h"}
        )
    if endpoints.any_is_off(tx):
        why = "nothing got through for days, so some are switched off: `pipeline notifications endpoints`"
        found.append({"what": "receivers", "why": why})
    return found


def _degraded(rt: Runtime, condition: account.Condition) -> list[dict[str, str]]:
    found = []
    if rt.storage is None and rt.settings.archive_url != OFF:
        found.append({"what": "archive", "why": f"outputs are not kept: {rt.storage_problem}"})
    elif condition.unarchived_s is not None and condition.unarchived_s > UNARCHIVED_LATE_S:
        hours = condition.unarchived_s / 3600
        found.append({"what": "archive", "why": f"an output has not been copied for {hours:.0f} h"})
    if isinstance(rt.nudge, Nudger) and rt.nudge.failing:
        found.append({"what": "broker", "why": "nudges cannot be sent; jobs wait for the next sweep"})
    if condition.halted_reason:
        found.append({"what": "account", "why": f"halted: {condition.halted_reason}"})
    elif condition.backoff_s:
        found.append({"what": "account", "why": f"backing off for {condition.backoff_s:.0f} s more"})
    if condition.swept_s is None or condition.swept_s > SWEEP_LATE_S:
        age = "never" if condition.swept_s is None else f"{condition.swept_s:.0f} s ago"
        found.append({"what": "sweep", "why": f"last run {age}; is a worker with its beat running?"})
    return found
