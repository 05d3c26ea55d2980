"""The models: what the provider offers, what it takes and costs, and which of them stand still."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.table import Table

from pipeline.cli.common import AsJson, acting, dollars, err, out, plain, runtime, usd_shown
from pipeline.errors import InvalidInput, ProviderError
from pipeline.lifecycle import catalogue, pauses
from pipeline.models import SCHEMAS, name_problem
from pipeline.runtime import Runtime
from pipeline.store import catalogue as store
from pipeline.store import prices as price_list
from pipeline.store.catalogue import Model

models = typer.Typer(help="The models: what there is, what it takes and costs.", no_args_is_help=True)

Price = tuple[bool, Decimal | None, datetime]
"""Whether a person set it, USD (None: the provider names none), and when."""

Name = Annotated[str, typer.Argument(help="Such as openai/dall-e-2.")]


@models.command("list")
def list_models(
    words: Annotated[str, typer.Argument(help="Only those whose name or kind has these letters.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """List the models of the provider's catalogue. Prices are asked for when a job needs them."""
    rt = runtime()
    with rt.db.transaction() as tx:
        found = {one.id: one for one in store.everything(tx)}
        prices: dict[str, list[Price]] = defaultdict(list)
        for model, by_hand, usd, at in price_list.everything(tx):
            prices[model].append((by_hand, usd, at))
    everyone = [found.get(name) or Model(name) for name in sorted({*found, *prices})]
    shown = [one for one in everyone if words.lower() in f"{one.id} {one.kind or ''}".lower()]
    if as_json:
        print(json.dumps([_view(one, prices[one.id]) for one in shown]))
        return
    table = Table("model", "kind", "USD a job", "said by", "")
    for one in shown:
        said_by = {"you" if by_hand else "the provider" for by_hand, _, _ in prices[one.id]}
        costs, said = _costs(prices[one.id]), " and ".join(sorted(said_by))
        table.add_row(plain(one.id), plain(one.kind), costs, said, ", ".join(_conditions(one)))
    out.print(table)
    if not any(one.listed_at for one in found.values()):
        err.print("the provider's catalogue was not read yet: a worker does, or `pipeline models sync`")


@models.command("show")
def show_model(model: Name, *, as_json: AsJson = False) -> None:
    """Show what one model takes, as JSON Schema."""
    rt = runtime()
    with rt.db.transaction() as tx:
        found = next((one for one in store.everything(tx) if one.id == model), None)
        schema = SCHEMAS.get(model) or store.schema_of(tx, model)
        prices = [(by_hand, usd, at) for name, by_hand, usd, at in price_list.everything(tx) if name == model]
    if found is None and schema is None:
        _refuse_unknown(rt, model, always=True)
    one = found or Model(model)
    if as_json:
        print(json.dumps(_view(one, prices) | {"description": one.description, "schema": schema}))
        return
    told = [one.kind, one.description, *_conditions(one), f"{_costs(prices)} USD a job" if prices else None]
    for line in filter(None, told):
        err.print(plain(line))
    print(json.dumps(schema, indent=2))


@models.command("sync")
def sync_models(
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Withdraw what is missing, even if that is most of the catalogue.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read the provider's catalogue now. A worker does that every day."""
    rt = runtime()
    try:
        change = catalogue.sync(rt, believed=force)
    except ProviderError as error:
        raise InvalidInput(f"The catalogue cannot be read: {error.detail}") from None
    if as_json:
        facts = {"listed": change.listed, "added": change.added, "withdrawn": change.withdrawn}
        print(json.dumps(facts | {"doubtful": change.doubtful}))
    else:
        err.print(f"{change.listed} models, {change.added} of them new; {change.withdrawn} were withdrawn")
    if change.doubtful:
        err.print("most of what there was is missing, so nothing was withdrawn; --force believes it")
        raise typer.Exit(1)


@models.command("price")
def set_price(
    model: Name,
    usd: Annotated[str, typer.Argument(help="US dollars a job; 'ask' asks the provider again.")],
) -> None:
    """Set what a job of a model costs, whatever its inputs: for a model that the provider names no price for."""
    if problem := name_problem(model):
        raise InvalidInput(f"model: {problem}")
    amount = None if usd == "ask" else dollars(usd)
    rt = runtime()
    with rt.db.transaction() as tx:
        if amount is not None:
            price_list.set_by_hand(tx, model, amount)
        elif not price_list.forget(tx, model):
            raise InvalidInput(f"Nothing is known of the model {model}.")
    told = "is asked of the provider again" if amount is None else f"is {usd_shown(amount)} USD a job"
    err.print(plain(f"the price of {model} {told}"))


@models.command("pause")
def pause_model(model: Name) -> None:
    """Begin no job of a model until it is resumed. New ones wait; what runs goes on, and so do deadlines."""
    if problem := name_problem(model):
        raise InvalidInput(f"model: {problem}")
    rt = runtime()
    _refuse_unknown(rt, model)
    with acting(rt, "model.pause", model):
        fresh = pauses.pause(rt, model)
    err.print(plain(f"{model} is paused" if fresh else f"{model} was paused before"))


@models.command("resume")
def resume_model(model: Name) -> None:
    """Let the jobs of a paused model go on."""
    if problem := name_problem(model):
        raise InvalidInput(f"model: {problem}")
    rt = runtime()
    with acting(rt, "model.resume", model):
        fresh = pauses.resume(rt, model)
    err.print(plain(f"{model} goes on" if fresh else f"{model} was not paused"))


def _refuse_unknown(rt: Runtime, model: str, *, always: bool = False) -> None:
    """Say so when *model* is most likely mistyped."""
    known = rt.catalogue()
    if always or (known.known and not known.knows(model) and not rt.settings.allow_unlisted_models):
        near = known.nearest(model)
        hint = f" The nearest are {', '.join(near)}." if near else " `pipeline models sync` reads the catalogue."
        raise InvalidInput(f"Nothing is known of the model {model}.{hint}")


def _conditions(one: Model) -> list[str]:
    found = []
    if one.paused_at:
        found.append(f"paused since {one.paused_at:%Y-%m-%d %H:%M}")
    if one.withdrawn_at:
        found.append(f"withdrawn {one.withdrawn_at:%Y-%m-%d}")
    elif not one.listed_at:
        found.append("not in the catalogue")
    return found


def _costs(prices: Sequence[Price]) -> str:
    chosen = [usd for by_hand, usd, _ in prices if by_hand] or [usd for _, usd, _ in prices]
    named = sorted({usd for usd in chosen if usd is not None})
    if not named:
        return "none named" if prices else ""
    return usd_shown(named[0]) if len(named) == 1 else f"{usd_shown(named[0])} to {usd_shown(named[-1])}"


def _view(one: Model, prices: Sequence[Price]) -> dict[str, Any]:
    return {
        "model": one.id,
        "kind": one.kind,
        "listed": bool(one.listed_at) and not one.withdrawn_at,
        "listed_at": _iso(one.listed_at),
        "withdrawn_at": _iso(one.withdrawn_at),
        "paused_at": _iso(one.paused_at),
        "prices": [
            {
                "usd": None if usd is None else float(usd),
                "said_by": "operator" if by_hand else "provider",
                "at": at.isoformat(),
            }
            for by_hand, usd, at in prices
        ],
    }


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None
