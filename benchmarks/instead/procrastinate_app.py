"""
One procrastinate task a job; the queue stands in the same Postgres.

    python -m benchmarks.instead.procrastinate_app 200        so many at a time
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from procrastinate import App, PsycopgConnector

from benchmarks.instead import generation

app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"], min_size=1, max_size=8))


@app.task(name="generate")
def generate(job: str, model: str, input: dict[str, Any]) -> None:
    """Do one job: in a thread, since the SDK blocks."""
    generation.generate(job, model, input)


async def work(concurrency: int) -> None:
    """Work until SIGTERM."""
    # The threads of asyncio itself are a few more than there are cores: without this, so few jobs would run at a time.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(concurrency))
    async with app.open_async():
        await app.run_worker_async(concurrency=concurrency)


if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1])))
