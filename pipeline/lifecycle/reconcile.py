"""
Reconcile: a paid POST whose answer was lost is looked for, never blindly repeated.

The rungs: the callback that carries its token (heard at any time); an id that such a callback named but could
not prove; the provider's list; and the proof of absence, two complete reads of that list.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from uuid import UUID

from pipeline import models, telemetry
from pipeline.broker import SWEEP_S
from pipeline.errors import KeyRefused, ProviderError, Rejected
from pipeline.lifecycle.account import KeyCheck
from pipeline.predictions import Prediction
from pipeline.runtime import Runtime
from pipeline.store import account, missing
from pipeline.store.alarms import DEAD_AFTER_S
from pipeline.store.database import Transaction
from pipeline.store.missing import Missing
from pipeline.threads import Loop
from pipeline.wavespeed import WaveSpeed

log = telemetry.get(__name__)

AT_ONCE = 500
LEASE_S = 10.0
"""
How long one process has the list to itself, from each page on. A second reader would do no harm but double the reads;
what one that was killed leaves undone must not wait until it is taken for dead.
"""

TAKEN_S = 3.0
"""
How long the jobs of one look are not due, unless it says otherwise. Not as long as a look may last: nobody else looks
meanwhile, by the lease; but what a look leaves unsaid, because its process or the database died, must not wait for it.
"""

WINDOW_SLACK = timedelta(seconds=2)
CLOCK_SLACK = timedelta(seconds=1)  # the provider's Date header has whole seconds only
CLOCK_TRIES = 3
UNKNOWN_CLOCK_SLACK = timedelta(minutes=15)
TOGETHER = timedelta(seconds=60)
"""Lost attempts whose windows lie within this time are looked for in one read of the list."""

MAX_PAGES = 100
PAGE_SIZE = 100
LONGEST_DELAY_S = 3600.0
GIVEN_UP_AFTER_S = 7 * 86400.0  # the provider keeps nothing for longer: then only a person can end it
UNREAD_S = 10.0  # at most so long until a list that could not be read is asked for again
UNREADABLE_FOR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What the provider's list held in a window; `complete` when every page was read."""

    items: Sequence[Prediction]
    complete: bool


class Reconciler:
    """Looks for lost attempts. One process at a time does, by a lease on the account's row."""

    def __init__(self, rt: Runtime, worker_id: UUID, loop: Loop, provider: WaveSpeed) -> None:
        self._rt = rt
        self._worker_id = worker_id
        self._loop = loop
        self._provider = provider
        self._key_check = KeyCheck(provider)
        self._clock_ahead: timedelta | None = None  # the provider's clock, less the database's

    def look(self) -> float | None:
        """Take the unknown jobs whose time has come and look for each; again at once while there are more."""
        with self._rt.db.transaction() as tx:
            if not self._lease(tx):
                return None
            lost = missing.claim_missing(tx, at_most=AT_ONCE, lease_s=TAKEN_S)
            now = missing.now(tx)
        clock = _Clock(now)
        try:
            self._look_for([one for one in lost if not (one.hint_id and self._follow_hint(one))], clock)
        finally:
            with self._rt.db.transaction() as tx:
                account.end_lease(tx, self._worker_id)
                next_s = missing.next_look_s(tx)
        # Soon again without waiting for a sweep: what was lost a moment ago is mostly found at the second look.
        return None if next_s is None or next_s > SWEEP_S else max(next_s, 0.0)

    def _lease(self, tx: Transaction) -> bool:
        return account.lease_list(tx, self._worker_id, lease_s=LEASE_S, dead_after_s=DEAD_AFTER_S)

    def _look_for(self, lost: Sequence[Missing], clock: "_Clock") -> None:
        """
        Look for every one of them, the newest first, those of one time together.

        In one read of all their times, those whom nothing can prove would make it longer and longer; and one that
        breaks off says nothing of anybody.
        """
        if not lost:
            return
        try:
            self._learn_clock(clock)
        except ProviderError as error:
            self._unread(lost, error)
            return
        groups = sorted(self._clusters(lost), key=lambda group: group[-1].started_at, reverse=True)
        failures = 0
        while groups:
            group, *groups = groups
            waited_s = time.monotonic() - clock.started
            try:
                reading = self._read(group)
            except ProviderError as error:
                failures += 1
                if self._is_of_the_model(error):
                    hopeless = [other for other in groups if other[0].model == group[0].model]
                elif failures > 1 or isinstance(error, KeyRefused):  # one that fails may be of that time alone
                    hopeless = groups
                else:
                    hopeless = []
                self._unread([one for other in (group, *hopeless) for one in other], error)
                groups = [other for other in groups if other not in hopeless]
                continue
            failures = 0
            with self._rt.db.transaction() as tx:
                taken = missing.known_ids(tx, [item.id for item in reading.items])
            for one in group:
                with self._rt.db.transaction() as tx:
                    self._conclude(tx, one, reading, taken, age_s=one.age_s + waited_s)
        self._rt.nudge("submit", "archive", "notify")

    def _clusters(self, lost: Sequence[Missing]) -> Iterator[Sequence[Missing]]:
        """Those of one model whose windows lie together, by time."""
        for _, of_model in groupby(sorted(lost, key=lambda one: (one.model, one.started_at)), lambda one: one.model):
            group: list[Missing] = []
            for one in of_model:
                first, last = self._window(one)
                if group and last - self._window(group[0])[0] > max(TOGETHER, 2 * (last - first)):
                    yield group
                    group = []
                group.append(one)
            yield group

    def _is_of_the_model(self, error: ProviderError) -> bool:
        """
        Whether the list is refused for one model alone: what was asked without one was answered a moment ago.

        That of a withdrawn model may be refused for good; those of others are not to wait for it.
        """
        return isinstance(error, Rejected) or (
            isinstance(error, KeyRefused) and self._loop.run(self._key_check.works())
        )

    def _unread(self, lost: Sequence[Missing], error: ProviderError) -> None:
        """The list could not be read: nothing is concluded, and it is asked for again soon."""
        youngest_s = min(one.age_s for one in lost)
        log.warning("reconcile.list_unread", count=len(lost), why=error.code)
        with self._rt.db.transaction() as tx:
            again_s = max(error.retry_after_s or 0.0, min(max(youngest_s / 4, 1.0), UNREAD_S))
            missing.unread(tx, lost, next_s=again_s, why=error.code)
            for one in lost:
                if one.age_s > self._rt.settings.unknown_patience_s + UNREADABLE_FOR_S:
                    self._hold(tx, one, f"the provider's list could not be read ({error.code})")
        halted = False
        if isinstance(error, KeyRefused) and not self._loop.run(self._key_check.works()):
            with self._rt.db.transaction() as tx:
                halted = account.halt(tx, "key_refused", balance=None)
        if halted:
            log.error("account.halted", reason="key_refused")
        self._rt.nudge("notify")

    def _conclude(self, tx: Transaction, one: Missing, reading: Reading, taken: set[str], age_s: float) -> None:
        first, last = self._window(one)
        candidates = [
            item
            for item in reading.items
            if item.id not in taken
            and item.model in {None, one.model}
            and (item.created_at is None or first <= item.created_at <= last)
        ]
        same = [item for item in candidates if item.input is not None and _same_request(item, one)]
        unclear = [item for item in candidates if item not in same and not _has_other_words(item, one)]
        found = None
        if same:
            found, why = same[-1], "the provider's list shows a task with this model and input"
        elif len(unclear) == 1 and self._rt.settings.account_exclusive and not self._has_rivals(tx, one):
            found, why = unclear[0], "the only task of this model in the window, on an account nobody else uses"
        if found and missing.adopt(tx, one, found, poll_s=self._rt.settings.first_poll_s, why=why):
            taken.add(found.id)
            log.info("attempt.found", job_id=str(one.job_id), via="list")
            return
        patience_s = self._rt.settings.unknown_patience_s
        gap_s = min(60.0, patience_s / 5)
        absent = reading.complete and not same and not unclear and age_s >= patience_s
        if absent and one.absent_s is not None and one.absent_s >= gap_s:
            if missing.requeue_absent(tx, one, why="two complete reads of the provider's list do not show it"):
                log.warning("attempt.absent", job_id=str(one.job_id), age_s=round(age_s, 1))
            return
        missing.looked(
            tx,
            one,
            absent=absent,
            next_s=gap_s if absent else delay_s(age_s, patience_s),
            window=[first.isoformat(timespec="milliseconds"), last.isoformat(timespec="milliseconds")],
            listed=len(reading.items),
            candidates=[item.id for item in (*same, *unclear)][:20],
            complete=reading.complete,
        )
        if not absent and age_s >= patience_s:
            self._hold(tx, one, _doubt(reading, len(unclear)))

    def _hold(self, tx: Transaction, one: Missing, reason: str) -> None:
        if missing.hold(tx, one, reason):
            log.error("job.needs_decision", job_id=str(one.job_id), why=reason)

    def _follow_hint(self, one: Missing) -> bool:
        """A callback that could not be believed named a task: it is ours if the provider knows it, and it fits."""
        first, last = self._window(one)
        found = None
        try:
            found = self._loop.run(self._provider.result(one.hint_id or ""))
        except Rejected:
            pass  # the provider does not know it
        except ProviderError:
            return False  # no answer is no refutation: the next look asks again
        if (
            found is None
            or found.model != one.model
            or (found.created_at and not first <= found.created_at <= last)
            or (found.input is not None and not _same_request(found, one))
        ):
            with self._rt.db.transaction() as tx:
                missing.drop_hint(tx, one)
            return False
        with self._rt.db.transaction() as tx:
            poll_s = self._rt.settings.first_poll_s
            return missing.adopt(
                tx, one, found, poll_s=poll_s, why="a callback named the task, and the provider knows it"
            )

    def _window(self, one: Missing) -> tuple[datetime, datetime]:
        """When the provider may have created an attempt's task, by the provider's clock."""
        ahead, slack = self._clock_ahead or timedelta(), self._slack()
        return one.started_at + ahead - slack, one.ended_at + ahead + slack

    def _slack(self) -> timedelta:
        return WINDOW_SLACK + (CLOCK_SLACK if self._clock_ahead is not None else UNKNOWN_CLOCK_SLACK)

    def _has_rivals(self, tx: Transaction, one: Missing) -> bool:
        """Whether a task in this attempt's window may be another's: its window may overlap at either end."""
        return missing.rivals(tx, one, slack_s=(self._slack() + CLOCK_SLACK).total_seconds()) > 0

    def _read(self, lost: Sequence[Missing]) -> Reading:
        """Read the list once for attempts of one model that were under way at about the same time."""
        windows = [self._window(one) for one in lost]
        first, last = min(window[0] for window in windows), max(window[1] for window in windows)
        items: list[Prediction] = []
        for number in range(1, MAX_PAGES + 1):
            with self._rt.db.transaction() as tx:
                self._lease(tx)
            page = self._loop.run(
                self._provider.list(
                    model=lost[0].model, created_after=first, created_before=last, page=number, page_size=PAGE_SIZE
                )
            )
            items += page.items
            if page.count < PAGE_SIZE:
                return Reading(items, complete=len(page.items) == page.count)
        return Reading(items, complete=False)

    def _learn_clock(self, clock: "_Clock") -> None:
        """
        Compare the clocks anew: either may be set while we run, and a window beside the task would prove it absent.

        An answer that took long tells too little; when several did, the window is taken wide.
        """
        self._clock_ahead = None
        for _ in range(CLOCK_TRIES):
            asked = clock.now()
            page = self._loop.run(self._provider.list(page_size=1))
            answered = clock.now()
            if page.server_time is None:
                break
            if answered - asked < CLOCK_SLACK:
                self._clock_ahead = page.server_time + timedelta(milliseconds=500) - (asked + (answered - asked) / 2)
                break


class _Clock:
    """The database's clock, read once and kept going here."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self.started = time.monotonic()

    def now(self) -> datetime:
        return self._now + timedelta(seconds=time.monotonic() - self.started)


def _same_request(item: Prediction, one: Missing) -> bool:
    """The same request, whichever of the options that we keep to ourselves the provider's echo has, or the job."""
    return models.split(item.input or {})[0] == models.split(one.input)[0]


def _has_other_words(item: Prediction, one: Missing) -> bool:
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


def _doubt(reading: Reading, unclear: int) -> str:
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
