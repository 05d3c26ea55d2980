"""Fetch what jobs have produced into a folder: our own copies, and from the provider what we have none of."""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import OutboundError, StorageFailed, Unreachable
from pipeline.files import WholeFile, name_of
from pipeline.outbound import Outbound
from pipeline.outputs import HIDDEN
from pipeline.runtime import Runtime
from pipeline.storage import Storage
from pipeline.store.assets import Copy

AT_ONCE = 8
TRIES = 3
PAUSE_S = 1.0
FILE_S = 300.0
"""How long one file may take."""

IDLE_S = 30.0
MAX_BYTES = 1 << 30


async def fetch(
    rt: Runtime,
    jobs: Iterable[dict[str, Any]],
    copies: Mapping[tuple[str, int], Copy],
    folder: Path,
    told: Callable[[], None],
) -> list[str]:
    """
    Fetch the outputs of all these jobs, and call *told* after each; give what is wrong with those that failed.

    Each is called after its job's id and its number. It is there whole or not at all.
    """
    room = asyncio.Semaphore(AT_ONCE)
    outbound = rt.outbound()
    source = _Source(rt.storage, copies, outbound)

    async def one(job_id: str, output: dict[str, Any]) -> str | None:
        async with room:
            wrong = await source.fetch(job_id, output, folder)
        told()
        return wrong and f"{job_id}, output {output['index']}: {wrong}"

    try:
        found = await asyncio.gather(*(one(job["id"], output) for job in jobs for output in job["outputs"]))
    finally:
        await outbound.close()
    return [wrong for wrong in found if wrong]


@dataclass(frozen=True)
class _Source:
    """Where files come from: our own storage, then the provider's."""

    storage: Storage | None
    copies: Mapping[tuple[str, int], Copy]
    outbound: Outbound

    async def fetch(self, job_id: str, output: dict[str, Any], folder: Path) -> str | None:
        """Fetch one output; give what is wrong, if it cannot be had."""
        url, index = output.get("source_url"), output["index"]
        if output.get("review") in HIDDEN:
            return f"it is {output['review']}"
        place = folder / name_of(job_id, index, url, output.get("content_type"))
        copied, copy = False, self.copies.get((job_id, index))
        if copy and self.storage:
            copied = await asyncio.to_thread(_copied, self.storage, copy, place)
        if copied:
            return None
        if url is not None:
            return await _downloaded(self.outbound, url, place)
        if "value" not in output:
            return "its file is not where it was stored"
        value = output["value"]  # some models answer with a text
        with WholeFile(folder / f"{job_id}-{index}.txt") as file:
            file.write((value if isinstance(value, str) else json.dumps(value)).encode())
        return None


class _Differs(Exception):
    """What lies in our storage is not what was put there."""


def _copied(storage: Storage, copy: Copy, place: Path) -> bool:
    """Write our own copy to its place; False when it cannot be had whole, from here at least."""
    try:
        with WholeFile(place) as file:
            for piece in storage.read_now(copy.storage_key):
                file.write(piece)
            if file.sha256 != copy.sha256:
                raise _Differs
            return True
    except (StorageFailed, _Differs):
        return False


async def _downloaded(outbound: Outbound, url: str, place: Path) -> str | None:
    """Fetch the provider's file; give what is wrong, if it cannot be had."""
    wrong = ""
    for tried in range(1, TRIES + 1):
        try:
            async with outbound.get(url, total_s=FILE_S, idle_s=IDLE_S, max_bytes=MAX_BYTES) as answer:
                if answer.status == 200:
                    with WholeFile(place) as file:
                        async for piece in answer.pieces():
                            file.write(piece)
                    return None
                wrong = f"the provider answers {answer.status}"
                if answer.status < 500 and answer.status != 429:
                    return wrong
        except Unreachable as error:
            wrong = error.detail
        except OutboundError as error:
            return error.detail
        if tried < TRIES:
            await asyncio.sleep(PAUSE_S * tried)
    return wrong
