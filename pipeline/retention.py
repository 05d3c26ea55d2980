"""
How long rows are kept: the kinds of things that may be pruned, their ages unless told otherwise, how ages are written.

Jobs are kept until somebody says otherwise: they are what was paid for. What only guards against repeats, or tells a
person of trouble, has done its work after a month.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from pipeline.errors import InvalidInput
from pipeline.jobs import FINAL, State

DAY_S = 86_400
FOREVER = "forever"


class Kind(StrEnum):
    """What can be pruned: jobs by the state they ended in, and what gathers beside them."""

    COMPLETED = State.COMPLETED
    FAILED = State.FAILED
    CANCELLED = State.CANCELLED
    EXPIRED = State.EXPIRED
    KEYS = "keys"  # idempotency keys; never one whose job has not ended
    REFUSALS = "refusals"
    ORPHANS = "orphans"  # callbacks whose token is nobody's
    NOTICES = "notices"  # what the operator was told, or could not be
    STATS = "stats"  # what happened in each minute; the totals stay
    DELIVERIES = "deliveries"  # the tries of notifications that have ended; those stay, with how they ended
    ENDPOINTS = "endpoints"  # receivers that failed, and have not for so long: they work, or nobody calls them any more


ENDED = tuple(Kind(state) for state in sorted(FINAL | {State.EXPIRED}))
"""The states whose jobs can be pruned: an expired one once nobody asks about it any more."""

BESIDE = (Kind.REFUSALS, Kind.ORPHANS, Kind.NOTICES, Kind.STATS, Kind.DELIVERIES, Kind.ENDPOINTS)
"""What gathers beside the jobs and is of no service."""

OF_A_SERVICE = frozenset({*ENDED, Kind.KEYS})
"""The kinds that a service may have an age of its own for."""

DEFAULT_S: Mapping[Kind, int | None] = {
    **dict.fromkeys(Kind, 30 * DAY_S),
    **dict.fromkeys(ENDED),
    Kind.STATS: 90 * DAY_S,
}
"""How long each kind is kept while nobody says otherwise, in seconds; None: for good."""

LEAST_S: Mapping[Kind, int] = {**dict.fromkeys(Kind, DAY_S), **dict.fromkeys(ENDED, 2 * DAY_S)}
"""
The shortest age of each kind, in seconds. The provider's bill is compared nightly and needs the jobs of the day before,
and a caller is told for 27 hours.
"""

_UNITS = {"h": 3600, "d": DAY_S, "w": 7 * DAY_S}
_MOST_S = 100 * 366 * DAY_S


def age_of(kind: Kind, text: str) -> int | None:
    """
    The age that *text* spells, such as 90d, 48h, 12w or forever (None), in seconds.

    Raises:
        InvalidInput: It spells none, or one that is too short for that kind.
    """
    if text == FOREVER:
        return None
    found = re.fullmatch(r"([0-9]{1,6})([hdw])", text, re.ASCII)
    seconds = int(found[1]) * _UNITS[found[2]] if found else None
    if seconds is None or seconds > _MOST_S:
        raise InvalidInput(f"{text!r} is no age: say hours, days or weeks, such as 48h, 90d or 12w, or '{FOREVER}'.")
    if seconds < LEAST_S[kind]:
        raise InvalidInput(f"{kind}: {text} is too short, they are kept for at least {shown(LEAST_S[kind])}.")
    return seconds


def shown(age_s: int | None) -> str:
    """An age as it is written: in days where it is whole days, else in hours."""
    if age_s is None:
        return FOREVER
    return f"{age_s // DAY_S}d" if age_s % DAY_S == 0 else f"{age_s // 3600}h"
