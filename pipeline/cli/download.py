"""Fetch what jobs have produced into a folder."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import OutboundError, Unreachable
from pipeline.files import WholeFile, name_of
from pipeline.outbound import Outbound
from pipeline.outputs import HIDDEN

AT_ONCE = 8
TRIES = 3
PAUSE_S = 1.0
FILE_S = 300.0
"""How long one file may take."""

IDLE_S = 30.0
MAX_BYTES = 1 << 30


async def fetch(
    outbound: Outbound, jobs: Iterable[dict[str, Any]], folder: Path, told: Callable[[], None]
) -> list[str]:
    """
    Fetch the outputs of all these jobs, and call *told* after each; give what is wrong with those that failed.

    *outbound* is closed at the end.

    Each is called after its job's id and its number. It is there whole or not at all.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def one(job_id: str, output: dict[str, Any]) -> str | None:
        async with room:
            wrong = await _fetch(outbound, job_id, output, folder)
        told()
        return wrong and f"{job_id}, output {output['index']}: {wrong}"

    try:
        found = await asyncio.gather(*(one(job["id"], output) for job in jobs for output in job["outputs"]))
    finally:
        await outbound.close()
    return [wrong for wrong in found if wrong]


async def _fetch(outbound: Outbound, job_id: str, output: dict[str, Any], folder: Path) -> str | None:
    url = output.get("source_url")
    if output.get("review") in HIDDEN:
        return f"it is {output['review']}"
    if url is None:  # some models answer with a text
        value = output.get("value")
        with WholeFile(folder / f"{job_id}-{output['index']}.txt") as file:
            file.write((value if isinstance(value, str) else json.dumps(value)).encode())
        return None
    place = folder / name_of(job_id, output["index"], url, output.get("content_type"))
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
