"""
Admit: check, screen, price and pay into the budget what was queued without all that, before it is first claimed.

Jobs come here that were written straight into the database, and those whose price nobody had asked for yet.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from pipeline import models, prices, telemetry
from pipeline.errors import BudgetExceeded, FieldError, PromptRefused
from pipeline.jobs import State
from pipeline.lifecycle import quote, screen
from pipeline.lifecycle.accept import NO_PRICE, callback_problem, short_of
from pipeline.runtime import Runtime
from pipeline.store import account, admission, services
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
        if not applicants:
            return None
        looked_at = self._screened([self._look_at(one) for one in applicants])
        sound = {one.question: one.applicant.input for one in looked_at if one.screened and not one.problem}
        with self._rt.db.transaction() as tx:
            known = price_list.known(tx, sorted(sound))
            may_ask = account.condition(tx).halted_reason != "key_refused"  # then nothing but the probe goes out
        unsure = {asked: example for asked, example in sound.items() if not _is_fresh(known.get(asked))}
        if unsure and may_ask:
            self._loop.run(quote.ask(self._rt, self._provider, unsure))
            with self._rt.db.transaction() as tx:
                known = price_list.known(tx, sorted(sound))
        with self._rt.db.transaction() as tx:
            mine = admission.lock(tx, applicants)
            waiting = self._settle(tx, [one for one in looked_at if one.applicant.job_id in mine], known)
        self._rt.nudge("submit", "notify")  # what is refused has failed
        return 0.0 if len(applicants) == AT_ONCE else ASK_AGAIN_S if waiting else None

    def _look_at(self, applicant: Applicant) -> "_Looked":
        model = applicant.model or self._rt.settings.default_model
        problems = list(self._rt.catalogue().problems(model, applicant.input))
        if applicant.callback_url and (problem := callback_problem(self._rt, applicant.callback_url)):
            problems.append(problem)
        sent, ours = models.split(applicant.input)
        return _Looked(
            applicant,
            model=model,
            sent=sent,
            ours=ours,
            question=(model, prices.key(sent)),
            problem=("invalid_input", _told(problems)) if problems else None,
        )

    def _screened(self, looked_at: Sequence["_Looked"]) -> list["_Looked"]:
        """The same, and what the screen says of those that are sound."""
        found = {one.applicant.job_id: one for one in looked_at}
        by_service: dict[UUID, list[_Looked]] = defaultdict(list)
        for one in looked_at:
            if not one.problem:
                by_service[one.applicant.service_id].append(one)
        for service_id, sound in by_service.items():
            with self._rt.db.transaction() as tx:
                service = services.by_id(tx, service_id)
            if service is None or not screen.is_on(self._rt, service):
                continue
            asked = [(one.model, one.sent) for one in sound]
            for one, said in zip(sound, screen.judged(self._rt, service, asked, one_by_one=True), strict=True):
                if isinstance(said, PromptRefused):
                    found[one.applicant.job_id] = replace(one, problem=(said.code, _told(said.errors)))
                elif said:
                    found[one.applicant.job_id] = replace(one, screened=False)
        return list(found.values())

    def _settle(self, tx: Transaction, applicants: Sequence["_Looked"], known: Mapping[Question, Price]) -> bool:
        """Admit or refuse each, the longest waiting first. True when some go on waiting for their price."""
        purses = Purses(tx, {one.applicant.service_id for one in applicants})
        admitted, refused, waiting = [], [], []
        for one in applicants:
            service_id = one.applicant.service_id
            price = known.get(one.question)
            if one.problem:
                refused.append(one.refusal(*one.problem))
            elif not one.screened:
                waiting.append(one.applicant.job_id)
            elif not purses.limit(service_id):
                admitted.append(one.admission(price.usd if price else None))
            elif price is None:
                waiting.append(one.applicant.job_id)
            elif price.usd is None:
                refused.append(one.refusal("invalid_input", f"model: {NO_PRICE}"))
            elif short := purses.reserve(service_id, price.usd):
                refused.append(one.refusal(BudgetExceeded.code, short_of(short, price.usd)))
            else:
                admitted.append(one.admission(price.usd))
        admission.admit(tx, admitted)
        admission.postpone(tx, waiting, ASK_AGAIN_S)
        advance(tx, refused)
        purses.save()
        for move in refused:
            log.warning("job.refused", job_id=str(move.job_id), code=move.error and move.error["code"])
        return bool(waiting)


@dataclass(frozen=True, slots=True)
class _Looked:
    """An applicant, and all there is to know of it but its price."""

    applicant: Applicant
    model: str
    sent: Mapping[str, Any]
    ours: Mapping[str, Any]
    question: Question
    problem: tuple[str, str] | None  # the code of its refusal, and what is wrong, field by field
    screened: bool = True  # else the operator's own screen gave no answer

    def admission(self, usd: Decimal | None) -> Admission:
        return Admission(self.applicant.job_id, usd, self.model, self.sent, self.ours)

    def refusal(self, code: str, message: str) -> Move:
        error: dict[str, Any] = {"code": code, "message": message, "provider_code": None}
        data = {"code": code, "why": "refused before it was submitted"}
        return Move(self.applicant.job_id, State.FAILED, error=error, data=data)


def _told(errors: Sequence[FieldError]) -> str:
    return " ".join(f"{one.field}: {one.message}" for one in errors)


def _is_fresh(price: Price | None) -> bool:
    return price is not None and price.fresh
