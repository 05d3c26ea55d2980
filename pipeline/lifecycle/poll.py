"""Poll: ask about the jobs whose callback has not come, or whose deadline has; slower and slower."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import measures, telemetry, tracing
from pipeline.errors import KeyRefused, NotFound, ProviderError, Rejected
from pipeline.jobs import State, Via
from pipeline.lifecycle.account import KeyCheck
from pipeline.predictions import Prediction, Status
from pipeline.runtime import Runtime
from pipeline.store import account, alarms, stats
from pipeline.store.alarms import Question
from pipeline.store.moves import Move, advance
from pipeline.threads import Groups, Loop
from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)

AT_ONCE = 50
"""GETs under way in one process."""

LONGEST_DELAY_S = 120.0
EXPIRED_DELAY_S = 1800.0
"""An expired job is asked about every half hour for a day: its result was paid for."""

LEASE_S = 60.0
"""Longer than a GET can take; then another process asks."""

LOST_AFTER = (3, 600.0)
"""A result is lost after so many 404s in a row, over so many seconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the provider said to one question."""

    question: Question
    answer: Prediction | ProviderError


class Poller:
    """One process's polls, within a budget of their own that all processes share."""

    def __init__(self, rt: Runtime, loop: Loop, provider: WaveSpeed, wake: Callable[[], None]) -> None:
        self._rt = rt
        self._loop = loop
        self._provider = provider
        self._key_check = KeyCheck(provider)
        self._wake = wake
        self._answers: Groups[Told] = Groups("polls", self._record)
        self._under_way = 0
        self._changed = threading.Condition()
        self._stopping = False

    def look(self) -> float | None:
        """Take the jobs that are due and ask about them."""
        free = AT_ONCE - self._under_way
        if free <= 0 or self._stopping:
            return None
        with self._rt.db.transaction() as tx:
            granted = account.grant_polls(tx, free, per_minute=self._rt.settings.polls_per_minute)
            questions = alarms.claim_questions(tx, at_most=granted, lease_s=LEASE_S) if granted else []
            stats.add(tx, [(stats.NOBODY, measures.POLLS, len(questions))])
        with self._changed:
            self._under_way += len(questions)
        for question in questions:
            self._loop.spawn(self._ask(question))
        return None

    def stop(self, wait_s: float) -> None:
        """Ask no more; wait up to *wait_s* seconds for answers: those that come later another process asks for."""
        self._stopping = True
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, max(wait_s, 0.0))
        self._answers.flush(1.5)

    async def _ask(self, question: Question) -> None:
        telemetry.bind(job_id=str(question.job_id))
        answer: Prediction | ProviderError
        try:
            with tracing.span("poll", job_id=str(question.job_id), attempt=question.number):
                answer = await self._provider.result(question.prediction_id)
        except KeyRefused as error:  # the key, or this one task that we may not ask about?
            answer = Rejected(error.detail) if await self._key_check.works() else error
        except ProviderError as error:
            answer = error
        except Exception as error:
            log.exception("poll.failed", job_id=str(question.job_id))
            answer = ProviderError(type(error).__name__)
        self._answers.put(Told(question, answer))
        with self._changed:
            self._under_way -= 1
            idle = self._under_way == 0
            self._changed.notify_all()
        if idle:
            self._wake()

    def _record(self, group: Sequence[Told]) -> None:
        moves: list[Move] = []
        later = {}
        answered = []
        with self._rt.db.transaction() as tx:
            for told in group:
                question, answer = told.question, told.answer
                if isinstance(answer, Prediction):
                    answered.append(question.attempt_id)
                move = self._verdict(question, answer)
                if isinstance(answer, NotFound):
                    count, since_s = alarms.count_missing(tx, question.attempt_id)
                    if count >= LOST_AFTER[0] and since_s >= LOST_AFTER[1]:
                        move = _result_lost(question, answer)
                if move:
                    moves.append(move)
                else:
                    later[question.job_id] = self._delay_s(question, answer)
            alarms.found_again(tx, answered)
            alarms.ask_again(tx, later)
            moved = advance(tx, moves)
        halted = False
        if any(isinstance(told.answer, KeyRefused) for told in group):
            with self._rt.db.transaction() as tx:
                halted = account.halt(tx, "key_refused", balance=None)
        for told in group:
            said = told.answer.said if isinstance(told.answer, Prediction) else told.answer.code
            job_id = told.question.job_id
            log.info("job.polled", job_id=str(job_id), said=said, moved=job_id in moved, age_s=told.question.age_s)
        if halted:
            log.error("account.halted", reason="key_refused")
        if moved or halted:
            self._rt.nudge("submit", "archive", "notify")

    def _verdict(self, question: Question, answer: Prediction | ProviderError) -> Move | None:
        """The move that an answer brings, if any."""
        running = isinstance(answer, Prediction) and answer.status is Status.RUNNING
        untold = isinstance(answer, Rejected) and not isinstance(answer, NotFound)
        if (running or untold) and question.past_deadline and question.state == State.PROCESSING:
            said = "it is still running" if running else "nothing: it refuses to be asked about this task"
            return Move(
                question.job_id,
                State.EXPIRED,
                attempt_id=question.attempt_id,
                due_s=EXPIRED_DELAY_S,
                via=Via.DEADLINE,
                data={"why": f"the deadline passed, and the provider says {said}"},
            )
        if running or not isinstance(answer, Prediction):
            return None
        completed = answer.status is Status.COMPLETED
        return Move(
            question.job_id,
            State.COMPLETED if completed else State.FAILED,
            attempt_id=question.attempt_id,
            via=Via.POLL,
            prediction_id=question.prediction_id,
            outputs=answer.files if completed else None,
            error=answer.problem,
            inference_ms=answer.inference_ms,
            data={"via": Via.POLL},
        )

    def _delay_s(self, question: Question, answer: Prediction | ProviderError) -> float:
        """Half of the job's age, between the first poll's delay and two minutes."""
        if question.state == State.EXPIRED:
            return EXPIRED_DELAY_S
        if isinstance(answer, NotFound):
            return LOST_AFTER[1] / LOST_AFTER[0] + 1
        if isinstance(answer, ProviderError):
            return max(answer.retry_after_s or 0.0, self._rt.settings.first_poll_s, 5.0)
        return min(max(self._rt.settings.first_poll_s, question.age_s / 2), LONGEST_DELAY_S)


def _result_lost(question: Question, answer: NotFound) -> Move:
    message = "The provider no longer knows this task; its result is lost."
    return Move(
        question.job_id,
        State.FAILED,
        attempt_id=question.attempt_id,
        via=Via.POLL,
        error={"code": "result_lost", "message": message, "provider_code": answer.provider_code},
        data={"via": Via.POLL, "code": "result_lost"},
    )
