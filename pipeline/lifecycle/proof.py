"""
What the provider's list proves of a lost attempt: that a task may be it, or that it never came to be.

That proof is only as good as the list. One that shows tasks late makes it false, and each false one is paid for: so
the same job waits twice as long each time, and nothing is proven while something speaks against the list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline import models
from pipeline.predictions import Prediction
from pipeline.store.missing import KNOWN_FOR_DAYS, Missing

LONGEST_DELAY_S = 3600.0
GIVEN_UP_AFTER_S = 7 * 86400.0  # the provider keeps nothing for longer: then only a person can end it
UNASKED = 2
"""So often a job may be submitted again though the list has shown nothing newer."""


@dataclass(frozen=True, slots=True)
class Trust:
    """How far the provider's list is to be believed now."""

    base_s: float  # how long a task may take to show
    late: bool  # in the last days it took one longer
    behind: bool  # it does not show what it must
    newest_at: datetime | None  # when the newest task it shows was made, by the provider's clock; None: it does not say

    def patience_s(self, one: Missing) -> float:
        """How long after its POST an attempt may be proven absent: twice as long each time."""
        return self.base_s * 2.0**one.absences

    def against(self, one: Missing, *, until: datetime, age_s: float) -> str | None:
        """
        What speaks against the list's word that an attempt has no task, if anything does.

        Its task was made before *until*, by the provider's clock.
        """
        if self.behind:
            return "the provider's list is behind: it does not show what the provider made for us since"
        if one.past_deadline:
            return None  # not submitted again: nothing is paid for it
        if age_s > KNOWN_FOR_DAYS * 86400:
            return "it was lost so long ago that the provider's list would not show it any more"
        if one.absences and self.late:
            return "it was submitted again before, and the provider's list shows tasks late these days"
        if one.absences >= UNASKED and not (self.newest_at and self.newest_at > until):
            return f"it was submitted again {one.absences} times before, and the provider's list shows nothing newer"
        return None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the provider's list held in a window; `complete` when every page was read."""

    items: Sequence[Prediction]
    trust: Trust
    complete: bool


def is_same_request(item: Prediction, one: Missing) -> bool:
    """The same request, whichever of the options that we keep to ourselves the provider's echo has, or the job."""
    return models.split(item.input or {})[0] == models.split(one.input)[0]


def has_other_words(item: Prediction, one: Missing) -> bool:
    """
    Whether a task was surely made from another prompt than an attempt's.

    Other differences prove nothing: nobody promised that the list repeats an input to the letter. It may fill in
    defaults, name a picture's copy, or cut the prompt short; a task of ours taken for another's would be paid again.
    """
    theirs, ours = (item.input or {}).get("prompt"), one.input.get("prompt")
    if not isinstance(theirs, str) or not isinstance(ours, str):
        return False
    return not _plain(ours).startswith(_plain(theirs).rstrip(".… "))


def _plain(words: str) -> str:
    return " ".join(words.casefold().split())


def doubt(reading: Reading, unclear: int) -> str:
    """Why neither the task nor its absence is proven."""
    if not reading.complete:
        return "the provider's list could not be read to its end"
    return f"{unclear} tasks in the provider's list may be it, and the list does not show enough to tell"


def delay_s(age_s: float, patience_s: float) -> float:
    """Soon at first, then at half the age; once exactly when patience ends; hourly, and after 7 days once a week."""
    if age_s > GIVEN_UP_AFTER_S:
        return GIVEN_UP_AFTER_S
    delay_s = min(max(2.0, age_s / 2), 60.0 if age_s < patience_s else LONGEST_DELAY_S)
    return min(delay_s, patience_s - age_s + 0.1) if age_s < patience_s else max(delay_s, 10.0)
