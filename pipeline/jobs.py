"""
A job's life as data: its states, the legal moves between them, and what follows a move.

No other page decides what is legal. The SQL guard, the CHECK constraints, the diagram in the README
and the tests are all read off `TRANSITIONS`.
"""

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a job is; `expired` is not final, because a late verdict was paid for and is still taken."""

    QUEUED = "queued"
    SUBMITTING = "submitting"
    UNKNOWN = "unknown"
    PROCESSING = "processing"
    EXPIRED = "expired"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset(State) - {State.QUEUED, State.UNKNOWN},  # an earlier attempt's verdict counts too
    State.SUBMITTING: frozenset(State) - {State.SUBMITTING, State.CANCELLED, State.EXPIRED},
    State.UNKNOWN: frozenset({State.QUEUED, State.PROCESSING, State.COMPLETED, State.FAILED}),
    State.PROCESSING: frozenset({State.COMPLETED, State.FAILED, State.EXPIRED}),
    State.EXPIRED: frozenset({State.COMPLETED, State.FAILED}),  # the verdict came after all
}

FINAL = frozenset(State).difference(TRANSITIONS)
"""The states with no way out."""

ALARMED = frozenset(TRANSITIONS) - {State.EXPIRED}
"""The states that must have their alarm clock (`due_at`) set; an expired job is looked at for a day, then left."""

IN_FLIGHT = frozenset({State.SUBMITTING, State.PROCESSING, State.UNKNOWN})
"""The states in which a task of ours may be running at the provider and fill one of its places."""


TOLD = FINAL | {State.EXPIRED}
"""The states whose coming callers are told of: the notification is planned in the commit of the move."""


class Via(StrEnum):
    """What brought the verdict."""

    WEBHOOK = "webhook"
    POLL = "poll"
    LIST = "list"
    SUBMIT = "submit"
    OPERATOR = "operator"
    DEADLINE = "deadline"


class Outcome(StrEnum):
    """How one attempt (one paid POST) ended, as far as we know; NULL in the row while it is under way."""

    ACCEPTED = "accepted"  # the provider gave it an id
    REJECTED = "rejected"  # never to be repeated
    THROTTLED = "throttled"  # refused before a task existed
    BLOCKED = "blocked"  # key or credit: the account is halted
    NOT_SENT = "not_sent"  # nothing left this machine
    LOST = "lost"  # the answer was lost: the money may be spent
    ABSENT = "absent"  # was lost; the provider's own list proves that it was never accepted


def sources(target: State) -> frozenset[State]:
    """The states from which a job may move to *target*."""
    return frozenset(state for state, targets in TRANSITIONS.items() if target in targets)


def may_be_retried(state: str, *, looked_after: bool) -> bool:
    """
    Whether a new job like one in *state* cannot be paid beside it.

    A job that expired is *looked after* while its task may still complete.
    """
    return state in FINAL or (state == State.EXPIRED and not looked_after)
