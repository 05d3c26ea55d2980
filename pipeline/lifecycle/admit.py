"""
Admit: check, price and pay into the budget what was queued without all that, before it is first claimed.

Jobs come here that were written straight into the database, and those whose price nobody had asked for yet.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from pipeline import models, prices, telemetry
from pipeline.errors import BudgetExceeded
from pipeline.jobs import State
from pipeline.lifecycle import quote
from pipeline.lifecycle.accept import NO_PRICE, short_of
from pipeline.runtime import Runtime
from pipeline.store import account, admission
from pipeline.store import prices as price_list
from pipeline.store.admission import Admission, Applicant
from pipeline.store.budgets import Purses
from pipeline.store.database import Transaction
from pipeline.store.moves import Move, advance
from pipeline.store.prices import Price, Question
from pipeline.threads import Loop
from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)

AT_ONCE = 200

ASK_AGAIN_S = 5.0
"""When to ask again for a price that a budget hangs on, in seconds."""


class Admitter:
    """One process's admissions. `look` takes a batch of those that are due."""

    def __init__(self, rt: Runtime, loop: Loop, provider: WaveSpeed) -> None:
        self._rt = rt
        self._loop = loop
        self._provider = provider

    def look(self) -> float | None:
        """Admit what is due; at once again while there is more."""
        with self._rt.db.transaction() as tx:
            applicants = admission.waiting(tx, at_most=AT_ONCE)
            sound = {_question(one): one.input for one in applicants if not _problem(one)}
            known = price_list.known(tx, sorted(sound))
            may_ask = account.condition(tx).halted_reason != "key_refused"  # then nothing but the probe goes out
        if not applicants:
            return None
        unsure = {asked: example for asked, example in sound.items() if not _is_fresh(known.get(asked))}
        if unsure and may_ask:
            self._loop.run(quote.ask(self._rt, self._provider, unsure))
            with self._rt.db.transaction() as tx:
                known = price_list.known(tx, sorted(sound))
        with self._rt.db.transaction() as tx:
            waiting = self._settle(tx, admission.lock(tx, applicants), known)
        self._rt.nudge("submit")
        return 0.0 if len(applicants) == AT_ONCE else ASK_AGAIN_S if waiting else None

    def _settle(self, tx: Transaction, applicants: Sequence[Applicant], known: Mapping[Question, Price]) -> bool:
        """Admit or refuse each, the longest waiting first. True when some go on waiting for their price."""
        purses = Purses(tx, {one.service_id for one in applicants})
        admitted, refused, waiting = [], [], []
        for one in applicants:
            if problem := _problem(one):
                refused.append(_refusal(one, "invalid_input", problem))
                continue
            price = known.get(_question(one))
            if not purses.limit(one.service_id):
                admitted.append(_admission(one, price.usd if price else None))
            elif price is None:
                waiting.append(one.job_id)
            elif price.usd is None:
                refused.append(_refusal(one, "invalid_input", f"model: {NO_PRICE}"))
            elif short := purses.reserve(one.service_id, price.usd):
                refused.append(_refusal(one, BudgetExceeded.code, short_of(short, price.usd)))
            else:
                admitted.append(_admission(one, price.usd))
        admission.admit(tx, admitted)
        admission.postpone(tx, waiting, ASK_AGAIN_S)
        advance(tx, refused)
        purses.save()
        for move in refused:
            log.warning("job.refused", job_id=str(move.job_id), code=move.error and move.error["code"])
        return bool(waiting)


def _is_fresh(price: Price | None) -> bool:
    return price is not None and price.fresh


def _question(one: Applicant) -> Question:
    return one.model, prices.key(models.split(one.input)[0])


def _problem(one: Applicant) -> str | None:
    """What is wrong with it, field by field; None when nothing is."""
    if wrong := models.name_problem(one.model):
        return f"model: {wrong}"
    return " ".join(f"{found.field}: {found.message}" for found in models.check(one.model, one.input)) or None


def _admission(one: Applicant, usd: Decimal | None) -> Admission:
    sent, ours = models.split(one.input)
    return Admission(one.job_id, usd, sent, ours)


def _refusal(one: Applicant, code: str, message: str) -> Move:
    error: dict[str, Any] = {"code": code, "message": message, "provider_code": None}
    return Move(one.job_id, State.FAILED, error=error, data={"code": code, "why": "refused before it was submitted"})
