"""Quote: ask the provider what jobs will cost, and remember it for all that cost the same."""

import asyncio
import threading
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pipeline import models, prices, telemetry
from pipeline.errors import ConfigError, Rejected
from pipeline.runtime import Runtime
from pipeline.store import account
from pipeline.store import prices as price_list
from pipeline.store.prices import Price, Question

if TYPE_CHECKING:
    from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)

AT_ONCE = 8

ASK_S = 6.0
"""How long the provider may take to name prices, in seconds: for longer jobs shall not wait for that alone."""

SPARED_S = 5.0
"""When it could not be asked while a caller waited, the next callers do not wait for it for so long."""

_one_at_a_time = threading.Lock()


async def ask(rt: Runtime, provider: "WaveSpeed", wanted: Mapping[Question, Mapping[str, Any]]) -> bool:
    """
    Ask for the price of each of *wanted* (an example of its inputs is the value), and keep the answers.

    Returns:
        Whether all were answered within ASK_S. What was not stays as it was.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(question: Question) -> Decimal | None:
        async with gate:
            try:
                return await provider.price(question[0], prices.question(wanted[question]))
            except Rejected:
                return None  # it names no price for this

    asked = {asyncio.create_task(one(question)): question for question in wanted}
    done, late = await asyncio.wait(asked, timeout=ASK_S)
    for task in late:
        task.cancel()
    found = {asked[task]: task.result() for task in done if task.exception() is None}
    if found:
        await asyncio.to_thread(_keep, rt, found)
    for (model, _), usd in found.items():
        log.info("price.asked", model=model, usd=None if usd is None else float(usd))
    if missed := len(asked) - len(found):
        log.warning("price.not_told", count=missed, late=len(late))
    return not missed


def ask_now(rt: Runtime, wanted: Mapping[Question, Mapping[str, Any]]) -> None:
    """Ask for prices while a caller waits: one caller at a time, for the others want the same."""

    async def asked(unsure: Mapping[Question, Mapping[str, Any]]) -> bool:
        provider = rt.provider()
        try:
            return await ask(rt, provider, unsure)
        finally:
            await provider.close()

    with _one_at_a_time:
        with rt.db.transaction() as tx:
            known = price_list.known(tx, sorted(wanted))
            may_ask = account.condition(tx).halted_reason != "key_refused"  # then nothing but the probe goes out
        unsure = {one: example for one, example in wanted.items() if one not in known or not known[one].fresh}
        if unsure and may_ask and rt.price_pause.over and not asyncio.run(asked(unsure)):
            rt.price_pause.begin(SPARED_S)


def of(rt: Runtime, model: str, model_input: Mapping[str, Any], *, asking: bool = True) -> Price | None:
    """What a job costs, *model_input* as a caller says it; None while nobody can say. *asking*: the provider, too."""
    payload, _ = models.split(model_input)
    question = (model, prices.key(payload))
    if asking:
        with suppress(ConfigError):  # there is no key in this process to ask with
            ask_now(rt, {question: payload})
    with rt.db.transaction() as tx:
        return price_list.known(tx, [question]).get(question)


def _keep(rt: Runtime, found: Mapping[Question, Decimal | None]) -> None:
    with rt.db.transaction() as tx:
        price_list.keep(tx, found)
