"""Fetch what jobs have produced into a folder."""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.files import WholeFile, name_of

AT_ONCE = 8
TRIES = 3
PAUSE_S = 1.0
FILE_S = 300.0
"""How long one file may take."""

_PIECE_BYTES = 1 << 16


async def fetch(jobs: Iterable[dict[str, Any]], folder: Path, told: Callable[[], None]) -> list[str]:
    """
    Fetch the outputs of all these jobs, and call *told* after each; give what is wrong with those that failed.

    Each is called after its job's id and its number. It is there whole or not at all.
    """
    room = asyncio.Semaphore(AT_ONCE)
    limits = aiohttp.ClientTimeout(total=FILE_S, sock_connect=10.0)
    async with aiohttp.ClientSession(timeout=limits) as session:

        async def one(job_id: str, output: dict[str, Any]) -> str | None:
            async with room:
                wrong = await _fetch(session, job_id, output, folder)
            told()
            return wrong and f"{job_id}, output {output['index']}: {wrong}"

        found = await asyncio.gather(*(one(job["id"], output) for job in jobs for output in job["outputs"]))
    return [wrong for wrong in found if wrong]


async def _fetch(session: aiohttp.ClientSession, job_id: str, output: dict[str, Any], folder: Path) -> str | None:
    url = output.get("source_url")
    if url is None:  # some models answer with a text
        value = output.get("value")
        with WholeFile(folder / f"{job_id}-{output['index']}.txt") as file:
            file.write((value if isinstance(value, str) else json.dumps(value)).encode())
        return None
    place = folder / name_of(job_id, output["index"], url, output.get("content_type"))
    wrong = ""
    for tried in range(1, TRIES + 1):
        try:
            async with session.get(url) as answer:
                if answer.status == 200:
                    with WholeFile(place) as file:
                        async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                            file.write(piece)
                    return None
                wrong = f"the provider answers {answer.status}"
                if answer.status < 500 and answer.status != 429:
                    return wrong
        except (aiohttp.ClientError, TimeoutError) as error:
            wrong = type(error).__name__
        if tried < TRIES:
            await asyncio.sleep(PAUSE_S * tried)
    return wrong
