"""What a job waits for now, in plain words: the same for every door."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.jobs import State

HALTS: Mapping[str, str] = {
    "key_refused": "the provider refuses the key",
    "insufficient_credits": "the credit is used up",
}
"""Why the account is halted."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands; `at` is when what `then` names comes, if that is known."""

    words: str
    then: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Around:
    """What a job's standing hangs on beside its own row."""

    now: datetime  # by the database's clock
    halted: bool = False  # the account
    backoff_until: datetime | None = None  # of the account
    paused: bool = False  # the job's service


def of(job: Any, around: Around) -> Standing:
    """How *job* stands, a row of `store.reading`."""
    state = State(job.state)
    if state is State.QUEUED:
        return _queued(job, around)
    if state is State.SUBMITTING:
        return Standing(
            "It is just being given to the provider.", "If no answer comes, that counts as lost", job.due_at
        )
    if state is State.PROCESSING:
        return Standing("The provider works on it.", "If no callback comes, it is asked", job.due_at)
    if state is State.UNKNOWN:
        return _unknown(job)
    if state is State.EXPIRED:
        if job.due_at is None:
            return Standing("Its deadline has passed, and nobody asks about it any more.")
        words = "Its deadline has passed. Its task may still complete, and was paid for, so it is asked about."
        return Standing(words, "Next", job.due_at)
    return Standing(_ENDED[state])


_ENDED = {
    State.COMPLETED: "It is done.",
    State.FAILED: "It has failed.",
    State.CANCELLED: "It was taken back before it was submitted, and costs nothing.",
}


def _queued(job: Any, around: Around) -> Standing:
    waits = job.due_at if job.due_at > around.now else None
    if job.attempts == 0 and job.run_at > around.now:
        return Standing("It was asked for at a later time.", "It begins", job.run_at)
    if around.paused:
        return Standing("Its service is paused: it waits until somebody lets the service go on.")
    if around.halted:
        return Standing("The provider account is halted: it waits with all others, and goes on by itself.")
    if not job.admitted:
        words = "It waits to be checked, priced and covered by the budgets."
        return Standing(words, "Next try" if waits else "", waits)
    if around.backoff_until and around.backoff_until > around.now:
        until = max(around.backoff_until, waits or around.now)
        return Standing("The provider turned requests away: all jobs pause for a moment.", "Next try", until)
    if waits:
        words = "Its last try brought nothing, and cost nothing." if job.attempts else "It was put off."
        return Standing(words, "Next try", waits)
    return Standing("It waits for its turn: for a free start, and a free place at the provider.")


def _unknown(job: Any) -> Standing:
    if job.held_at:
        words = f"Held for a person: {job.held_reason}. It may have been paid for, so nothing is repeated by itself."
        return Standing(words, "Next look", job.due_at)
    return Standing(
        "The answer to its submission was lost, so it may be paid for: its task is looked for in the provider's list.",
        "Next look",
        job.due_at,
    )
