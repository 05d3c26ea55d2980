"""The models: what there is, what it costs, and which of them stand still."""

from collections import defaultdict
from decimal import Decimal
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from pipeline.errors import FieldError, InvalidInput
from pipeline.lifecycle import pauses
from pipeline.models import name_problem
from pipeline.store import catalogue
from pipeline.store import prices as price_list
from pipeline.web.dashboard import page

bp = Blueprint("models", __name__)

AT_MOST = 100


@bp.get("/models")
def show() -> ResponseReturnValue:
    """The models whose name or kind has the letters asked for, those that stand still first."""
    rt = page.runtime()
    letters = request.args.get("q", "").strip().lower()
    with rt.db.transaction() as tx:
        found = catalogue.everything(tx)
        prices: dict[str, list[Any]] = defaultdict(list)
        for model, by_hand, usd, _ in price_list.everything(tx):
            prices[model].append((by_hand, usd))
    known = {one.id for one in found}
    found += [catalogue.Model(name) for name in sorted(prices) if name not in known]
    fitting = [one for one in found if letters in f"{one.id} {one.kind or ''}".lower()]
    fitting.sort(key=lambda one: (one.paused_at is None, one.withdrawn_at is not None, one.id))
    return page.show(
        "models.html",
        models=fitting[:AT_MOST],
        more=len(fitting) - AT_MOST,
        q=letters,
        costs={one.id: _costs(prices[one.id]) for one in fitting[:AT_MOST]},
        read=any(one.listed_at for one in found),
        usual=rt.settings.default_model,
    )


@bp.post("/models/pause")
def pause() -> ResponseReturnValue:
    """Begin no job of a model."""
    model = _named()
    with page.act("model.pause", model):
        fresh = pauses.pause(page.runtime(), model)
    return page.done(f"{model} is paused: its jobs wait." if fresh else f"{model} was paused before.")


@bp.post("/models/resume")
def resume() -> ResponseReturnValue:
    """Let the jobs of a model go on."""
    model = _named()
    with page.act("model.resume", model):
        fresh = pauses.resume(page.runtime(), model)
    return page.done(f"{model} goes on." if fresh else f"{model} was not paused.")


def _named() -> str:
    model = request.form.get("model", "")
    if problem := name_problem(model):
        raise InvalidInput(errors=[FieldError("model", problem)])
    return model


def _costs(prices: list[tuple[bool, Decimal | None]]) -> tuple[Decimal, Decimal, bool] | None:
    """The least and the most that a job costs, and whether a person said so; None while nothing is known."""
    by_hand = [usd for hand, usd in prices if hand]
    named = [usd for usd in by_hand or (usd for _, usd in prices) if usd is not None]
    return (min(named), max(named), bool(by_hand)) if named else None
