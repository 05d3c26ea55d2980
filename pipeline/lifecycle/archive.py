"""
Archive: copy what jobs made to storage of our own, before the provider deletes it.

A download goes to a nameless temporary file, is hashed on its way, and only then put into storage: nothing that is half
a file is ever seen, or left behind by a process that is killed. What fails is tried again on the same URL, until the
provider has said for minutes that it is not there, or has had its seven days.
"""

import asyncio
import hashlib
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import BinaryIO
from urllib.parse import urlsplit
from uuid import UUID

from pipeline import sniffing, telemetry, tracing
from pipeline.errors import Blocked, PipelineError, StorageFailed, TooMuch, Unreachable
from pipeline.outbound import Outbound, shown
from pipeline.outputs import JSON, SOURCE_DAYS, TEXT, Review
from pipeline.runtime import Runtime
from pipeline.storage import Storage
from pipeline.store import assets, pruning
from pipeline.store.assets import Claimed, Later, Lost, Settled, Stored
from pipeline.store.tables import id_from
from pipeline.threads import Groups, Loop

log = telemetry.get(__name__)

AT_ONCE = 32
"""Files under way in one process."""

MAX_BYTES = 2 * 1024**3
DOWNLOAD_S = 900.0
IDLE_S = 30.0
LEAST_BYTES_S = 4096.0
PUT_S = 600.0
LEASE_S = DOWNLOAD_S + PUT_S + 60.0
"""Longer than a file can take. A dead worker is noticed within seconds, a stuck one then."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 1800.0
"""The pause before another attempt doubles, from the one to the other, and varies by half."""

GONE_AFTER = (3, 300.0)
"""A file is lost after so many answers in a row, over so many seconds, that it is not there."""

GONE = frozenset({403, 404, 410})
"""How a CDN says that a file is not there: to whom it does not list a folder, S3 answers 403."""

LOOK_BACK_S = 60.0
"""How often outputs are looked for that nobody planned to fetch."""

LOOK_BACK_DAYS = 8


class Archiver:
    """One process's downloads."""

    def __init__(self, rt: Runtime, worker_id: UUID, loop: Loop, outbound: Outbound, wake: Callable[[], None]) -> None:
        self._rt = rt
        self._worker_id = worker_id
        self._loop = loop
        self._outbound = outbound
        self._wake = wake
        self._ends: Groups[Stored | Lost | Later] = Groups("outputs", self._record)
        self._under_way: dict[UUID, Future[None] | None] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._more = False  # there was more to claim than there was room for
        self._looked_back_at = float("-inf")
        self._adopted = id_from(time.time() - LOOK_BACK_DAYS * 86_400)  # of earlier releases' jobs, those up to this id
        self._tidied = False

    def look(self) -> float | None:
        """Take the outputs that are due and fetch them. Returns when to look again by itself, in seconds."""
        storage = self._rt.storage
        if self._stopping:
            return None
        if storage is None:
            return self._give_up_old()
        if not self._tidied:
            self._tidied = True
            self._loop.spawn(asyncio.to_thread(self._tidy, storage))
        free = AT_ONCE - len(self._under_way)
        self._more = free <= 0
        if self._more:
            return None  # the next that ends wakes us
        with self._rt.db.statement() as tx:
            claimed = assets.claim(tx, worker_id=self._worker_id, at_most=free, lease_s=LEASE_S)
        self._more = len(claimed) == free
        with self._changed:
            self._under_way.update((one.id, None) for one in claimed)
        for one in claimed:
            fetching = self._loop.spawn(self._fetch(one, storage))
            with self._changed:
                if one.id in self._under_way:
                    self._under_way[one.id] = fetching
        return None if claimed else self._look_back()

    def finish(self, wait_s: float) -> None:
        """Wait up to *wait_s* seconds for the files under way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, wait_s)
        self._ends.flush(1.5)

    def stop(self) -> None:
        """Abandon what is under way at once, and let others fetch it: a file of gigabytes is not waited for."""
        self._stopping = True
        with self._changed:
            futures = [future for future in self._under_way.values() if future]
        for future in futures:
            future.cancel()
        self._ends.flush(1.5)
        with self._rt.db.transaction() as tx:
            given_back = assets.give_back(tx, self._worker_id)
        if given_back:
            log.info("archive.given_back", count=given_back)

    def _look_back(self) -> float | None:
        """Find outputs that nobody planned to fetch: planned while nobody archived, or by a release before this one."""
        if time.monotonic() - self._looked_back_at < LOOK_BACK_S:
            return None
        with self._rt.db.transaction() as tx:
            last = assets.adopt(tx, after=self._adopted)
            self._adopted = last or self._adopted
            woken = assets.wake_idle(tx)
        if last is None and not woken:
            self._looked_back_at = time.monotonic()
            return None
        return 0.0

    def _give_up_old(self) -> float | None:
        if time.monotonic() - self._looked_back_at < LOOK_BACK_S:
            return None
        with self._rt.db.transaction() as tx:
            lost = assets.lose_old(tx)
            assets.count_lost(tx, lost)
        if lost:
            log.warning("outputs.lost", count=len(lost), why=self._rt.storage_problem)
            return 0.0
        self._looked_back_at = time.monotonic()
        return None

    def _tidy(self, storage: Storage) -> None:
        try:
            if left := storage.tidy_now():
                log.info("archive.tidied", files=left)
        except OSError as error:
            log.warning("archive.untidy", why=type(error).__name__)

    async def _fetch(self, one: Claimed, storage: Storage) -> None:
        telemetry.bind(job_id=str(one.job_id))
        try:
            end = await self._ended(one, storage)
            if not self._stopping:
                self._ends.put(end)
        finally:
            with self._changed:
                self._under_way.pop(one.id, None)
                self._changed.notify_all()
            if self._more:  # the duty rests a little between two looks: there will be more than this one place
                self._more = False
                self._wake()

    async def _ended(self, one: Claimed, storage: Storage) -> Stored | Lost | Later:
        try:
            with tempfile.TemporaryFile() as file:
                with tracing.span("archive", job_id=str(one.job_id), index=one.index, address=one.source_url):
                    stored = await (self._downloaded(one, file) if one.source_url else _written(one, file))
                await asyncio.wait_for(storage.keep(stored.storage_key, file, stored.content_type), PUT_S)
                return stored
        except _Failed as failed:
            return _after(one, str(failed), gone=failed.gone)
        except Blocked as error:  # the settings may be mended within the seven days
            return _after(one, error.detail, pause_s=LONGEST_PAUSE_S)
        except TooMuch:
            return Lost(one.id, one.job_id, f"It is larger than {MAX_BYTES // 1024**2} MiB.")
        except (Unreachable, StorageFailed) as error:
            return _after(one, error.detail)
        except (TimeoutError, OSError) as error:  # no room for it here, or storage that hangs
            return _after(one, f"Here: {type(error).__name__} {getattr(error, 'strerror', None) or ''}".strip())
        except Exception as error:
            log.exception("archive.failed", job_id=str(one.job_id), index=one.index)
            return _after(one, type(error).__name__)

    async def _downloaded(self, one: Claimed, file: BinaryIO) -> Stored:
        assert one.source_url
        digest = hashlib.sha256()
        head = b""
        async with self._outbound.get(
            one.source_url, total_s=DOWNLOAD_S, idle_s=IDLE_S, max_bytes=MAX_BYTES, least_bytes_s=LEAST_BYTES_S
        ) as download:
            if download.status != 200:
                raise _Failed(f"Its server answers {download.status}.", gone=download.status in GONE)
            async for piece in download.pieces():
                digest.update(piece)
                file.write(piece)
                if len(head) < sniffing.HEAD_BYTES:
                    head += piece[: sniffing.HEAD_BYTES - len(head)]
            declared = download.content_type
        file.flush()
        if not head:
            raise _Failed("Its server sent nothing in its place.")
        if sniffing.is_no_such_file(head, urlsplit(one.source_url).path):
            raise _Failed("Its server sent a page in its place.")
        stored = await asyncio.to_thread(_described, one, file, digest.hexdigest(), head, declared)
        if stored.declared:
            log.warning("output.type_differs", url=shown(one.source_url), declared=declared, is_=stored.content_type)
        return stored

    def _record(self, group: Sequence[Stored | Lost | Later]) -> None:
        ends = [one for one in group if not isinstance(one, Later)]
        later = [one for one in group if isinstance(one, Later)]
        with self._rt.db.transaction() as tx:
            settled = assets.settle(tx, ends)
            done = {one.id for one in settled}
            # Left out: what others stored meanwhile, which is not ours any more, or what was reviewed meanwhile.
            again = [Later(one.id, 0.0, "It was reviewed meanwhile.") for one in ends if one.id not in done]
            assets.put_off(tx, [*later, *again], worker_id=self._worker_id)
            pruning.note_leftovers(
                tx, [one.storage_key for one in ends if isinstance(one, Stored) and one.id not in done]
            )
            assets.count_lost(tx, settled)
        self._check(settled, [one for one in ends if isinstance(one, Stored) and one.id in done])
        words = {one.id: one.error for one in group if isinstance(one, Lost | Later)}
        for one in settled:
            said = log.info if one.state == "stored" else log.error
            said(
                f"output.{one.state}", job_id=str(one.job_id), index=one.index, review=one.review, why=words.get(one.id)
            )
        for put_off in later:
            facts = {"asset_id": str(put_off.id), "job_id": put_off.job_id and str(put_off.job_id)}
            log.warning("output.postponed", for_s=round(put_off.s, 1), why=put_off.error, **facts)
        if any(one.told for one in settled):
            self._rt.nudge("notify")

    def _check(self, settled: Sequence[Settled], stored: Sequence[Stored]) -> None:
        """
        See that the files are there, now that rows say so and nobody may remove them any more.

        Somebody may have removed the last other output of the same content while this one found the file there.
        """
        storage = self._rt.storage
        if storage is None or not stored:
            return
        gone = self._loop.run(storage.missing([one.storage_key for one in stored]))
        missing = [one.id for one in stored if one.storage_key in gone]
        if missing:
            with self._rt.db.transaction() as tx:
                assets.fetch_again(tx, missing)
            log.warning("archive.fetched_again", count=len(missing))
            self._wake()


class _Failed(PipelineError):
    """An answer that is not the file."""

    def __init__(self, detail: str, *, gone: bool = False) -> None:
        super().__init__(detail)
        self.gone = gone


def _after(one: Claimed, error: str, *, gone: bool = False, pause_s: float | None = None) -> Lost | Later:
    """What follows a failed attempt."""
    if gone and one.gone + 1 >= GONE_AFTER[0] and (one.gone_s or 0.0) >= GONE_AFTER[1]:
        return Lost(one.id, one.job_id, f"{error} It said so {one.gone + 1} times.")
    if one.age_s >= SOURCE_DAYS * 86_400:
        return Lost(one.id, one.job_id, f"{error} The provider keeps files for {SOURCE_DAYS} days.")
    if pause_s is None:
        pause_s = min(FIRST_PAUSE_S * 2 ** min(one.attempts - 1, 20), LONGEST_PAUSE_S)
    return Later(one.id, pause_s * random.uniform(0.5, 1.0), error, gone, one.job_id)  # noqa: S311 - only to spread the load


async def _written(one: Claimed, file: BinaryIO) -> Stored:
    """An output that is its own content: a text, an object, or a file as base64."""
    value = one.value
    if isinstance(value, str):
        content = sniffing.decoded(value)
        declared = None if content is not None else TEXT
        content = value.encode() if content is None else content
    else:
        content, declared = json.dumps(value, ensure_ascii=False).encode(), JSON
    file.write(content)
    file.flush()
    stored = _described(one, file, hashlib.sha256(content).hexdigest(), content[: sniffing.HEAD_BYTES])
    return replace(stored, content_type=declared) if declared else stored


def _described(one: Claimed, file: BinaryIO, sha256: str, head: bytes, declared: str | None = None) -> Stored:
    size = file.seek(0, os.SEEK_END)
    content_type = sniffing.content_type(head, declared)
    width, height = sniffing.pixels(file, content_type)
    folder = "quarantine" if one.review == Review.QUARANTINED else "files"
    return Stored(
        one.id,
        one.job_id,
        one.review,
        f"{folder}/{sha256[:2]}/{sha256}",
        sha256,
        size,
        content_type,
        width,
        height,
        declared if declared not in (None, content_type, sniffing.UNKNOWN) else None,
    )
