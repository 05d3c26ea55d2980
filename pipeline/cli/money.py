"""Money: budgets, and our ledger against the provider's bill. Prices are with the models."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline.cli.common import (
    AsJson,
    acting,
    err,
    folding_table,
    in_one_line,
    out,
    plain,
    runtime,
    service_named,
    usd_shown,
)
from pipeline.errors import ProviderError
from pipeline.lifecycle import budgets as budgeting
from pipeline.lifecycle.audit import Comparison, audit
from pipeline.store import budgets as store
from pipeline.store import services as registry
from pipeline.store.budgets import ACCOUNT, Period

budgets = typer.Typer(help="What may be spent in a day or a month (of UTC).", no_args_is_help=True)

UNREAD = 2
"""The exit status when the bill cannot be read, so that nothing can be said."""

Service = Annotated[str | None, typer.Option(help="Of this service; of all together unless given.")]


@budgets.command("set")
def set_budget(
    *,
    service: Service = None,
    daily: Annotated[str | None, typer.Option(metavar="USD", help="A day's limit; 'none' ends it.")] = None,
    monthly: Annotated[str | None, typer.Option(metavar="USD", help="A month's limit; 'none' ends it.")] = None,
) -> None:
    """
    Limit what may be spent. A job that a budget does not cover is refused before anything is paid.

    What is reserved or was spent in this period already counts.
    """
    wanted: dict[Period, str] = {}
    if daily is not None:
        wanted["day"] = daily
    if monthly is not None:
        wanted["month"] = monthly
    if not wanted:
        raise typer.BadParameter("say --daily USD, --monthly USD, or both")
    with in_one_line():
        limits = budgeting.limits(wanted)
    rt = runtime()
    scope = str(service_named(rt, service, revoked=True).id) if service else ACCOUNT  # its jobs go on, and spend
    whose = plain(f"of {service}" if service else "of all together")
    with acting(rt, "budget.change", service or ACCOUNT, **wanted):
        budgeting.limit(rt, scope, limits)
    for period, limit in limits.items():
        told = "has no limit" if limit is None else f"is limited to {usd_shown(limit)} USD"
        err.print(f"the {period}'s budget {whose} {told}")


@budgets.command("list")
def list_budgets(*, as_json: AsJson = False) -> None:
    """List the budgets: what is spent, reserved for jobs that have not ended, and left."""
    rt = runtime()
    with rt.db.transaction() as tx:
        purses = store.everything(tx)
        names = {str(one.id): one.name for one in registry.everyone(tx)}
    rows = [(None if one.scope == ACCOUNT else names.get(one.scope, one.scope), one) for one in purses]
    if as_json:
        found = [
            {"service": name, "period": one.period, "since": one.since.isoformat(), "limit_usd": float(one.limit_usd)}
            | {"spent_usd": float(one.spent), "reserved_usd": float(one.reserved), "left_usd": float(one.left)}
            for name, one in rows
        ]
        print(json.dumps(found))
        return
    table = Table("service", "period", "since", "limit", "spent", "reserved", "left")
    for name, one in rows:
        amounts = map(usd_shown, (one.limit_usd, one.spent, one.reserved, one.left))
        table.add_row(name or "all together", one.period, one.since.isoformat(), *amounts)
    out.print(table)


def reconcile(
    *,
    hours: Annotated[float, typer.Option(min=0.01, max=31 * 24, help="So far back from --until.")] = 24.0,
    until: Annotated[datetime | None, typer.Option(help="In UTC; now unless given.")] = None,
    grace_s: Annotated[
        float, typer.Option(min=0, max=86_400, help="How long a charge may take to show in the bill.")
    ] = 600.0,
    as_json: AsJson = False,
) -> None:
    """
    Compare our ledger with the provider's bill: charged twice, charged but not ours, ours and never charged.

    Exit status: 0 they agree, 1 they differ, 2 the bill cannot be read.
    """
    end = until.replace(tzinfo=UTC) if until else datetime.now(UTC)
    rt = runtime()
    try:
        with err.status("reading the bill") as status:
            found = audit(
                rt,
                end - timedelta(hours=hours),
                end,
                grace=timedelta(seconds=grace_s),
                progress=lambda lines: status.update(f"reading the bill: {lines} lines"),
            )
    except ProviderError as error:
        err.print(plain(f"pipeline: the bill cannot be read: {error.detail}"))
        raise typer.Exit(UNREAD) from None
    if as_json:
        print(json.dumps(_comparison_view(found)))
    else:
        _show(found)
    if not found.agrees:
        raise typer.Exit(1)


def _show(found: Comparison) -> None:
    err.print(f"{found.tasks} tasks were billed from {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC,")
    err.print(
        f"{usd_shown(found.usd)} USD, of which somebody else made {found.others} for {usd_shown(found.others_usd)} USD"
    )
    if found.pruned_until:
        err.print(
            f"jobs submitted until {found.pruned_until:%Y-%m-%d %H:%M} UTC were pruned: {found.forgotten} tasks for"
            f" {usd_shown(found.forgotten_usd)} USD from then, which nobody here knows any more, are not compared"
        )
    if found.differences:
        table = folding_table("differences", "what", "job", "task", "model", "USD", "at")
        for one in found.differences:
            jobs = "\n".join(map(str, one.job_ids)) or "?"
            at = f"{one.at:%Y-%m-%d %H:%M:%S}" if one.at else ""
            cells = (one.kind.replace("_", " "), jobs, "\n".join(one.prediction_ids), one.model, usd_shown(one.usd), at)
            table.add_row(*map(_lines, cells))
        out.print(table)
    err.print("the ledgers agree" if found.agrees else "the ledgers differ")


def _comparison_view(found: Comparison) -> dict[str, Any]:
    return {
        "since": found.since.isoformat(),
        "until": found.until.isoformat(),
        "tasks": found.tasks,
        "usd": float(found.usd),
        "others": {"tasks": found.others, "usd": float(found.others_usd)},
        "pruned": {
            "until": found.pruned_until and found.pruned_until.isoformat(),
            "tasks": found.forgotten,
            "usd": float(found.forgotten_usd),
        },
        "agrees": found.agrees,
        "differences": [
            {
                "kind": one.kind,
                "job_ids": [str(job_id) for job_id in one.job_ids],
                "prediction_ids": list(one.prediction_ids),
                "model": one.model,
                "usd": float(one.usd),
                "at": one.at and one.at.isoformat(),
            }
            for one in found.differences
        ],
    }


def _lines(value: object) -> Text:
    return Text("\n").join(map(plain, str(value or "").split("\n")))
