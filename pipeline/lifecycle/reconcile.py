"""
Reconcile: a paid POST whose answer was lost is looked for, never blindly repeated.

The rungs: the callback that carries its token (heard at any time); an id that such a callback named but could
not prove; the provider's list; and the proof of absence, two complete reads of that list, see `proof`. A job that was
submitted again for such a proof, and lost again, is looked for at all its times.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from uuid import UUID

from pipeline import telemetry
from pipeline.broker import SWEEP_S
from pipeline.errors import KeyRefused, ProviderError, Rejected
from pipeline.lifecycle.account import KeyCheck
from pipeline.lifecycle.proof import Reading, Trust, delay_s, doubt, has_other_words, is_same_request
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
UNREAD_S = 10.0  # at most so long until a list that could not be read is asked for again
ASKED_AFTER_S = 3600.0
"""How long beyond its patience a job waits for a list that cannot be read, or believed, before a person is asked."""

LATE_FACTOR = 2.0
"""So many times as long as a task of ours took to show, in the last days, the next ones are waited for."""


class Reconciler:
    """Looks for lost attempts. One process at a time does, by a lease on the account's row."""

    def __init__(self, rt: Runtime, worker_id: UUID, loop: Loop, provider: WaveSpeed) -> None:
        self._rt = rt
        self._worker_id = worker_id
        self._loop = loop
        self._provider = provider
        self._key_check = KeyCheck(provider)
        self._clock_ahead: timedelta | None = None  # the provider's clock, less the database's
        self._lateness_s: float | None = None  # of the list, as it was last told

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
            newest_at = self._learn_clock(clock)
        except ProviderError as error:
            self._unread([one for one in lost if not one.earlier], error)
            return
        trust = self._trust(newest_at)
        proven: set[UUID] = set()
        groups = sorted(self._clusters(lost), key=lambda group: group[-1].started_at, reverse=True)
        failures = 0
        while groups:
            group, *groups = groups
            waited_s = time.monotonic() - clock.started
            try:
                reading = self._read(group, trust)
            except ProviderError as error:
                failures += 1
                if self._is_of_the_model(error):
                    hopeless = [other for other in groups if other[0].model == group[0].model]
                elif failures > 1 or isinstance(error, KeyRefused):  # one that fails may be of that time alone
                    hopeless = groups
                else:
                    hopeless = []
                unread = {one.job_id for other in (group, *hopeless) for one in other}
                self._unread([one for one in lost if one.job_id in unread and not one.earlier], error)
                groups = [other for other in groups if other not in hopeless]
                continue
            failures = 0
            with self._rt.db.transaction() as tx:
                taken = missing.known_ids(tx, [item.id for item in reading.items])
            for one in group:
                with self._rt.db.transaction() as tx:
                    if self._conclude(tx, one, reading, taken, age_s=one.age_s + waited_s):
                        proven.add(one.attempt_id)
        self._submit_again(lost, proven)
        self._rt.nudge("submit", "archive", "notify")

    def _submit_again(self, lost: Sequence[Missing], proven: set[UUID]) -> None:
        """Give back to the queue the jobs of which no attempt has a task: each was looked for just now."""
        in_doubt = {one.job_id for one in lost if one.attempt_id not in proven}
        for one in lost:
            if one.earlier or one.job_id in in_doubt:
                continue
            with self._rt.db.transaction() as tx:
                moved = missing.requeue_absent(tx, one, why="two complete reads of the provider's list do not show it")
            if moved:
                log.warning("attempt.absent", job_id=str(one.job_id), absences=one.absences + 1)

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
        youngest_s = min((one.age_s for one in lost), default=UNREAD_S)
        log.warning("reconcile.list_unread", count=len(lost), why=error.code)
        with self._rt.db.transaction() as tx:
            again_s = max(error.retry_after_s or 0.0, min(max(youngest_s / 4, 1.0), UNREAD_S))
            missing.unread(tx, lost, next_s=again_s, why=error.code)
            for one in lost:
                if one.age_s > self._rt.settings.unknown_patience_s + ASKED_AFTER_S:
                    self._hold(tx, one, f"the provider's list could not be read ({error.code})")
        halted = False
        if isinstance(error, KeyRefused) and not self._loop.run(self._key_check.works()):
            with self._rt.db.transaction() as tx:
                halted = account.halt(tx, "key_refused", balance=None)
        if halted:
            log.error("account.halted", reason="key_refused")
        self._rt.nudge("notify")

    def _conclude(self, tx: Transaction, one: Missing, reading: Reading, taken: set[str], age_s: float) -> bool:
        """Give an attempt the task that the list shows for it; True when it is proven that there is none."""
        first, last = self._window(one)
        candidates = [
            item
            for item in reading.items
            if item.id not in taken
            and item.model in {None, one.model}
            and (item.created_at is None or first <= item.created_at <= last)
        ]
        same = [item for item in candidates if item.input is not None and is_same_request(item, one)]
        unclear = [item for item in candidates if item not in same and not has_other_words(item, one)]
        found = None
        if same:
            found, why = same[-1], "the provider's list shows a task with this model and input"
        elif len(unclear) == 1 and self._rt.settings.account_exclusive and not self._has_rivals(tx, one):
            found, why = unclear[0], "the only task of this model in the window, on an account nobody else uses"
        if found and missing.adopt(tx, one, found, poll_s=self._rt.settings.first_poll_s, why=why):
            taken.add(found.id)
            log.info("attempt.found", job_id=str(one.job_id), via="list")
            return False
        nothing = reading.complete and not same and not unclear
        if one.earlier and nothing:
            return True
        patience_s = reading.trust.patience_s(one)
        against = reading.trust.against(one, until=last, age_s=age_s) if nothing else doubt(reading, len(unclear))
        absent = against is None and age_s >= patience_s
        gap_s = min(60.0, patience_s / 5)
        if absent and one.absent_s is not None and one.absent_s >= gap_s:
            return True
        missing.looked(
            tx,
            one,
            absent=absent,
            next_s=gap_s if absent else delay_s(age_s, patience_s),
            window=[first.isoformat(timespec="milliseconds"), last.isoformat(timespec="milliseconds")],
            listed=len(reading.items),
            candidates=[item.id for item in (*same, *unclear)][:20],
            complete=reading.complete,
            patience_s=round(patience_s, 1),
            **({"why": against} if against and nothing and age_s >= patience_s else {}),
        )
        if against and age_s >= patience_s + (ASKED_AFTER_S if nothing else 0.0):
            self._hold(tx, one, against)
        return False

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
            or (found.input is not None and not is_same_request(found, one))
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

    def _read(self, lost: Sequence[Missing], trust: Trust) -> Reading:
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
                return Reading(items, trust, complete=len(page.items) == page.count)
        return Reading(items, trust, complete=False)

    def _learn_clock(self, clock: "_Clock") -> datetime | None:
        """
        Compare the clocks anew: either may be set while we run, and a window beside the task would prove it absent.

        An answer that took long tells too little; when several did, the window is taken wide.

        Returns:
            When the newest task that the list shows was made, by the provider's clock; None when it does not say.
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
        if page.count == 0:
            return datetime.min.replace(tzinfo=UTC)
        return max((item.created_at for item in page.items if item.created_at), default=None)

    def _trust(self, newest_at: datetime | None) -> Trust:
        """How far the list is to be believed now, whose newest task is of *newest_at*."""
        with self._rt.db.transaction() as tx:
            lateness_s = missing.lateness_s(tx)
            base_s = max(self._rt.settings.unknown_patience_s, LATE_FACTOR * (lateness_s or 0.0))
            known_at = missing.newest_known_at(tx, older_than_s=base_s)
        if lateness_s and lateness_s != self._lateness_s:
            log.warning("reconcile.list_late", by_s=lateness_s, patience_s=base_s)
        self._lateness_s = lateness_s
        earliest = known_at and known_at + (self._clock_ahead or timedelta()) - self._slack()
        behind = bool(earliest and newest_at and newest_at < earliest)
        return Trust(base_s, late=lateness_s is not None, behind=behind, newest_at=newest_at)


class _Clock:
    """The database's clock, read once and kept going here."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self.started = time.monotonic()

    def now(self) -> datetime:
        return self._now + timedelta(seconds=time.monotonic() - self.started)
