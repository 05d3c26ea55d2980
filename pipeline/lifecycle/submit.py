"""Submit: claim due jobs with their intent written down, POST them side by side, record each answer as it comes."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from pipeline import telemetry, tracing
from pipeline.errors import (
    AccountBlocked,
    Ambiguous,
    KeyRefused,
    NoCredit,
    ProviderError,
    Rejected,
    Throttled,
    Unavailable,
)
from pipeline.jobs import TOLD, Outcome, State, Via
from pipeline.lifecycle.account import KeyCheck
from pipeline.lifecycle.window import Window
from pipeline.predictions import Prediction, Status
from pipeline.runtime import Runtime
from pipeline.store import account, claims
from pipeline.store.answers import Answer, record
from pipeline.store.claims import Start
from pipeline.store.moves import Move
from pipeline.store.tables import new_id
from pipeline.threads import Groups, Loop
from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)

BEGIN_WITHIN_S = 1.0
"""A POST that has not begun so long after its claim is given back: others may take this process for dead soon."""

WINDOW_SLACK_S = 0.1
"""How much longer than the provider's our window is: clocks tick differently, and its edge may belong to both."""

LAST_WRITES_S = 1.5
"""How long the answers that have come may take to be written when the process stops."""

FIRST_LOOK_S = 2.0
"""How long a lost answer's callback may take before the provider's list is read."""

_LONGEST_BACKOFF_S = 60.0


@dataclass(frozen=True, slots=True)
class Posted:
    """One POST's end: the answer to record, and what it says of the account."""

    start: Start
    answer: Answer
    error: ProviderError | None = None
    halt: str | None = None
    balance: float | None = None


class Submitter:
    """One process's submits. `look` claims, the event loop posts, `Groups` records."""

    def __init__(self, rt: Runtime, worker_id: UUID, loop: Loop, provider: WaveSpeed, wake: Callable[[], None]) -> None:
        self._rt = rt
        self._worker_id = worker_id
        self._loop = loop
        self._provider = provider
        self._wake = wake
        self._key_check = KeyCheck(provider)
        self._answers: Groups[Posted] = Groups("answers", self._record)
        self._window = Window()
        self._under_way: dict[UUID, Start] = {}
        self._unclear: Sequence[UUID] = ()  # attempts of a claim that may have been committed or not
        self._doubts: set[UUID] = set()  # attempts with bad answers of which the account does not know yet
        self._weighed: set[UUID] = set()  # attempts whose answers the account knows, but not yet their rows
        self._changed = threading.Condition()
        self._stopping = False
        self._calm = True
        self._full = False  # the window held back what could have been claimed
        self._hungry = False  # there was more to claim than could begin at once

    def look(self) -> float | None:
        """Claim what is due and allowed, and start its POSTs. Returns when to look again by itself, in seconds."""
        settings = self._rt.settings
        self._full = True  # unless the claim below leaves room
        free = self._window.size - len(self._under_way)  # a claim never takes more than can begin at once
        if free <= 0 or self._stopping or self._doubts:  # where one POST fared badly, no others follow unasked
            self._hungry = True  # POSTs that end wake us
            return None
        self._give_back_unclear()
        at_most = min(free, claims.BATCH)
        attempt_ids = [new_id() for _ in range(at_most)]
        begin_by = time.monotonic() + BEGIN_WITHIN_S
        self._unclear = attempt_ids  # until the answer to the COMMIT is here
        with self._rt.db.transaction() as tx:
            claim = claims.claim(
                tx,
                worker_id=self._worker_id,
                limits=settings.limits,
                window_s=settings.submit_window_s + WINDOW_SLACK_S,
                lease_s=settings.lease_s,
                at_most=at_most,
                attempt_ids=attempt_ids,
            )
        self._unclear = ()
        self._calm = claim.calm
        self._full = len(claim.starts) == at_most
        with self._changed:
            self._under_way.update((start.attempt_id, start) for start in claim.starts)
        for start in claim.starts:
            self._loop.spawn(self._post(start, begin_by))
        return 0.0 if claim.again else claim.wait_s

    def finish(self, wait_s: float) -> None:
        """Let what was claimed be sent, and wait up to *wait_s* seconds for the answers."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, wait_s)

    def close(self) -> None:
        """Begin no more POSTs: what is being claimed at this moment is given back."""
        self._stopping = True

    def stop(self, wait_s: float) -> None:
        """
        Begin no more POSTs, wait up to *wait_s* seconds for the answers, and give up the rest as `unknown`.

        Claims whose POST has not begun go back to the queue.
        """
        self.close()
        self.finish(max(wait_s, 0.0))
        with self._changed:
            abandoned = list(self._under_way.values())
            self._under_way.clear()
        self._give_back_unclear()
        if abandoned:
            with self._rt.db.transaction() as tx:
                record(tx, [_lost(start, "the process was stopped before the answer came") for start in abandoned])
            log.warning("submit.abandoned", count=len(abandoned))
        self._answers.flush(LAST_WRITES_S)

    def _give_back_unclear(self) -> None:
        """
        Put back what a claim took whose COMMIT was never answered: surely nothing of it was sent.

        Else it would wait for its lease to end, and then as an unknown job for a proof that nothing was made.
        """
        if not self._unclear:
            return
        with self._rt.db.transaction() as tx:
            unsent = claims.unsent(tx, self._unclear)
            record(tx, [_not_sent(start, "whether it was claimed was unclear", due_s=0.0) for start in unsent])
        if unsent:
            log.warning("submit.given_back", count=len(unsent))
        self._unclear = ()

    async def _post(self, start: Start, begin_by: float) -> None:
        telemetry.bind(job_id=str(start.job_id))
        if self._stopping or time.monotonic() > begin_by:
            # A process that was held up: others may have used the account's allowance since, or may think us dead.
            posted = Posted(start, _not_sent(start, "it could not be sent in time", due_s=0.0))
        elif self._doubts:
            posted = Posted(start, _not_sent(start, "another had just fared badly", due_s=0.0))
        else:
            try:
                with tracing.span("submit", job_id=str(start.job_id), attempt=start.number):
                    posted = await self._sent(start)
            except Exception as error:
                # Whatever it was, the request may have left: the one thing we may not assume is that it did not.
                log.exception("submit.failed", job_id=str(start.job_id))
                posted = Posted(start, _lost(start, f"unexpected: {type(error).__name__}"), Ambiguous())
        if posted.error and not _is_jobs_own(posted):
            self._doubts.add(start.attempt_id)
        with self._changed:
            abandoned = start.attempt_id not in self._under_way
        if not abandoned or posted.answer.outcome is not Outcome.LOST:  # that a stop cut it off, the stop has said
            self._answers.put(posted)
        if sign := _sign(posted):
            self._window.hear(good=sign == "+", full=self._full)
        with self._changed:
            self._under_way.pop(start.attempt_id, None)
            self._changed.notify_all()
        if self._hungry and len(self._under_way) <= self._window.size // 2:
            self._hungry = False
            self._wake()

    async def _sent(self, start: Start) -> Posted:
        webhook = self._rt.webhook_for(start.token)
        try:
            prediction = await self._provider.submit(start.model, start.input, webhook=webhook)
        except KeyRefused as error:
            self._doubts.add(start.attempt_id)
            return await self._key_refused(start, error)
        except NoCredit as error:
            self._doubts.add(start.attempt_id)
            balance = await self._key_check.balance()
            return Posted(start, _blocked(start, error), error, halt="insufficient_credits", balance=balance)
        except Ambiguous as error:
            return Posted(start, _lost(start, error.detail, error.http_status), error)
        except Throttled as error:
            return Posted(start, _throttled(start, error), error)
        except Rejected as error:
            return Posted(start, _rejected(start, error, Rejected.code), error)
        except ProviderError as error:
            due_s = random.uniform(0, min(_LONGEST_BACKOFF_S, 2.0 ** min(start.number, 6)))  # noqa: S311 - full jitter
            return Posted(start, _not_sent(start, error.detail, due_s=due_s), error)
        return Posted(start, _accepted(start, prediction, self._rt.settings.first_poll_s))

    async def _key_refused(self, start: Start, error: KeyRefused) -> Posted:
        """Is it the key, or only what it may do? The balance tells; while it cannot, no POST goes out either."""
        if await self._key_check.works():
            return Posted(start, _rejected(start, error, "forbidden"), error)
        return Posted(start, _blocked(start, error), error, halt="key_refused")

    def _record(self, group: Sequence[Posted]) -> None:
        """Write a group of answers down. May be called again for the same ones, whatever failed and whenever."""
        fresh = [posted for posted in group if posted.start.attempt_id not in self._weighed]
        ids = {posted.start.attempt_id for posted in fresh}
        doubted = not self._doubts.isdisjoint(ids)
        try:
            self._weigh(fresh)  # first: what goes back to the queue must find the brakes on
        except Unavailable:
            raise  # it is told soon; until then no POST follows
        except Exception:
            self._doubts -= ids  # it never will be
            raise
        self._doubts -= ids
        self._weighed |= ids
        with self._rt.db.transaction() as tx:
            moved = record(tx, [posted.answer for posted in group])
        self._weighed.difference_update(posted.start.attempt_id for posted in group)
        for posted in group:
            log.info(
                "attempt.ended",
                job_id=str(posted.start.job_id),
                attempt=posted.start.number,
                outcome=posted.answer.outcome,
                http_status=posted.answer.http_status,
                moved=posted.start.job_id in moved,
            )
        if any(posted.answer.move.to is State.COMPLETED for posted in group):
            self._rt.nudge("archive")
        if doubted or any(posted.answer.move.to is State.QUEUED for posted in group):
            self._wake()
        if any(posted.answer.move.to in TOLD for posted in group):
            self._rt.nudge("notify")

    def _weigh(self, group: Sequence[Posted]) -> None:
        """Tell the account's brakes, in a transaction of its own: claims lock the account before the jobs."""
        troubled = any(posted.error and not _is_jobs_own(posted) for posted in group)
        if not group or (self._calm and not troubled):
            return
        throttled = [posted for posted in group if isinstance(posted.error, Throttled)]
        refusals = [posted.error for posted in group if isinstance(posted.error, Throttled)]
        accepted = [posted for posted in group if _sign(posted) == "+"]
        lost = [posted for posted in group if _sign(posted) == "-"]
        said = account.Answers(
            results="".join(map(_sign, group)),
            accepted_at=max((posted.start.started_at for posted in accepted), default=None),
            throttled_at=max((posted.start.started_at for posted in throttled), default=None),
            throttled=len(throttled),
            retry_after_s=max((error.retry_after_s for error in refusals if error.retry_after_s), default=None),
            concurrency=any(error.concurrency for error in refusals),
            lost_at=max((posted.start.started_at for posted in lost), default=None),
        )
        halts = [posted for posted in group if posted.halt]
        with self._rt.db.transaction() as tx:
            effect = account.weigh(tx, said, max_in_flight=self._rt.settings.limits.max_in_flight)
            halted = bool(halts) and account.halt(tx, halts[0].halt or "", balance=halts[0].balance)
        self._calm = self._calm and not troubled
        if effect.reason:
            log.warning("account.backed_off", reason=effect.reason, backoff_s=effect.backoff_s)
        if halted:
            log.error("account.halted", reason=halts[0].halt)
            self._rt.nudge("notify")


def _accepted(start: Start, prediction: Prediction, poll_s: float) -> Answer:
    to = {Status.COMPLETED: State.COMPLETED, Status.FAILED: State.FAILED}.get(prediction.status, State.PROCESSING)
    done = to is not State.PROCESSING
    move = Move(
        start.job_id,
        to,
        attempt_id=start.attempt_id,
        due_s=None if done else poll_s,
        via=Via.SUBMIT if done else None,
        prediction_id=prediction.id,
        outputs=prediction.files if to is State.COMPLETED else None,
        error=prediction.problem,
        inference_ms=prediction.inference_ms,
        data={"attempt": start.number, "prediction_id": prediction.id},
    )
    return Answer(start.attempt_id, Outcome.ACCEPTED, move, prediction_id=prediction.id, http_status=200)


def _rejected(start: Start, error: ProviderError, code: str) -> Answer:
    problem = {"code": code, "message": error.detail, "provider_code": error.provider_code}
    move = Move(
        start.job_id,
        State.FAILED,
        attempt_id=start.attempt_id,
        via=Via.SUBMIT,
        error=problem,
        data={"attempt": start.number, "code": code},
    )
    return Answer(start.attempt_id, Outcome.REJECTED, move, http_status=error.http_status, error=error.detail)


def _back(start: Start, outcome: Outcome, why: str, due_s: float, http_status: int | None = None) -> Answer:
    move = Move(
        start.job_id,
        State.QUEUED,
        attempt_id=start.attempt_id,
        due_s=due_s,
        data={"attempt": start.number, "outcome": outcome, "why": why},
    )
    return Answer(start.attempt_id, outcome, move, http_status=http_status, error=why)


def _not_sent(start: Start, why: str, *, due_s: float) -> Answer:
    return _back(start, Outcome.NOT_SENT, why, due_s)


def _throttled(start: Start, error: Throttled) -> Answer:
    return _back(start, Outcome.THROTTLED, error.detail, 0.0, error.http_status)  # the account waits, not the job


def _blocked(start: Start, error: AccountBlocked) -> Answer:
    return _back(start, Outcome.BLOCKED, error.detail, 0.0, error.http_status)


def _lost(start: Start, why: str, http_status: int | None = None) -> Answer:
    move = Move(
        start.job_id,
        State.UNKNOWN,
        attempt_id=start.attempt_id,
        due_s=FIRST_LOOK_S,
        data={"attempt": start.number, "why": why},
    )
    return Answer(start.attempt_id, Outcome.LOST, move, http_status=http_status, error=why)


def _is_jobs_own(posted: Posted) -> bool:
    """A refusal that says nothing of the account."""
    return posted.answer.outcome is Outcome.REJECTED


def _sign(posted: Posted) -> str:
    """How an answer counts for the breaker: '+' the provider works, '-' it does not, '' neither."""
    if posted.answer.outcome in {Outcome.ACCEPTED, Outcome.REJECTED}:
        return "+"
    lost = posted.answer.outcome is Outcome.LOST or (posted.answer.outcome is Outcome.NOT_SENT and posted.error)
    return "-" if lost else ""
