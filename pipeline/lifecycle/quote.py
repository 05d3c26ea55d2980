"""Quote: ask the provider what jobs will cost, and remember it for all that cost the same."""

import asyncio
import threading
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pipeline import prices, telemetry
from pipeline.errors import ProviderError, Rejected
from pipeline.runtime import Runtime
from pipeline.store import prices as price_list
from pipeline.store.prices import Question
from pipeline.wavespeed import Timeouts, WaveSpeed

log = telemetry.get(__name__)

AT_ONCE = 8

_SHORTLY = Timeouts(connect_s=2.0, read_s=5.0)
_one_at_a_time = threading.Lock()


async def ask(rt: Runtime, provider: WaveSpeed, wanted: Mapping[Question, Mapping[str, Any]]) -> None:
    """
    Ask for the price of each of *wanted* (an example of its inputs is the value), and keep the answers.

    What the provider cannot be asked for now stays as it was.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(model: str, model_input: Mapping[str, Any]) -> Decimal | ProviderError | None:
        async with gate:
            try:
                return await provider.price(model, prices.question(model_input))
            except Rejected:
                return None  # it names no price for this
            except ProviderError as error:
                return error

    answers = await asyncio.gather(*(one(model, example) for (model, _), example in wanted.items()))
    told = dict(zip(wanted, answers, strict=True))
    found = {question: answer for question, answer in told.items() if not isinstance(answer, ProviderError)}
    if found:
        await asyncio.to_thread(_keep, rt, found)
    for (model, _), answer in told.items():
        shown = {"why": answer.code} if isinstance(answer, ProviderError) else {"usd": answer and float(answer)}
        log.info("price.asked", model=model, **shown)


def ask_now(rt: Runtime, model: str, model_input: Mapping[str, Any]) -> None:
    """
    Ask for one price while a caller waits: shortly, and one at a time, for the others want the same.

    Raises:
        ConfigError: There is no API key in this process.
    """
    question = (model, prices.key(model_input))

    async def asked() -> None:
        provider = rt.provider(_SHORTLY)
        try:
            await ask(rt, provider, {question: model_input})
        finally:
            await provider.close()

    with _one_at_a_time:
        with rt.db.transaction() as tx:
            known = price_list.known(tx, [question]).get(question)
        if known is None or not known.fresh:
            asyncio.run(asked())


def _keep(rt: Runtime, found: Mapping[Question, Decimal | None]) -> None:
    with rt.db.transaction() as tx:
        price_list.keep(tx, found)
