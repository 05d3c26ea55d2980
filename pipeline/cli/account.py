"""`pipeline account`: how the provider account is, and the line above other commands when it is not well."""

import asyncio
import json
import sys
from dataclasses import asdict
from datetime import UTC
from typing import Annotated, Any

import typer

from pipeline.cli.common import AsJson, runtime
from pipeline.errors import ProviderError
from pipeline.runtime import Runtime
from pipeline.standing import HALTS
from pipeline.store.account import Condition, condition

_DO = {
    "key_refused": ". Restore it, or set another WAVESPEED_API_KEY and restart the workers",
    "insufficient_credits": ". Top it up",
}


def account(
    *,
    balance: Annotated[bool, typer.Option("--balance", help="Ask the provider for the balance, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how the provider account is: halted, backing off, on trial, and what it may do at once."""
    rt = runtime()
    with rt.db.transaction() as tx:
        now = condition(tx)
    shown = _shown(rt, now)
    if balance:
        try:
            shown["balance_usd"] = asyncio.run(_balance(rt))
        except ProviderError as error:
            shown["balance_usd"] = None
            print(f"The balance cannot be told: {error.detail}", file=sys.stderr)
    if as_json:
        print(json.dumps(shown))
        return
    print(trouble(now) or "The account is in order.")
    for name, value in shown.items():
        if value is not None:
            print(f"{name:>18}  {value}")


def warn(rt: Runtime) -> None:
    """Say on standard error, in a line, that jobs wait for the account; nothing when they do not."""
    with rt.db.transaction() as tx:
        now = condition(tx)
    if said := trouble(now):
        print(said, file=sys.stderr)


def trouble(now: Condition) -> str | None:
    """What is wrong with the account, since when, and what to do; None when nothing is."""
    if now.halted_reason and now.halted_at:
        since = now.halted_at.astimezone(UTC)
        why = HALTS.get(now.halted_reason, now.halted_reason) + _DO.get(now.halted_reason, "")
        return f"The account is halted since {since:%Y-%m-%d %H:%M} UTC: {why}. It resumes by itself."
    if now.backoff_s:
        why = "the provider fails or cannot be reached" if now.trial else "the provider asks us to slow down (429)"
        return f"The account is backing off for {now.backoff_s:.0f} s more: {why}. It goes on by itself."
    return None


def _shown(rt: Runtime, now: Condition) -> dict[str, Any]:
    limits = rt.settings.limits
    at = now.halted_at and now.halted_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return asdict(now) | {
        "halted_at": at,
        "in_flight_cap": limits.max_in_flight if now.in_flight_cap is None else now.in_flight_cap,
        "submits_per_minute": limits.submits_per_minute,
    }


async def _balance(rt: Runtime) -> float:
    provider = rt.provider()
    try:
        return await provider.balance()
    finally:
        await provider.close()
