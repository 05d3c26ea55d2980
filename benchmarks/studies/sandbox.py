"""
How many submits a second the sandbox answers, and how many webhooks it delivers, over loopback.

    python -m benchmarks.studies.sandbox [submits]

Client, receiver and sandbox share the machine, so that this is a lower bound.
"""

import asyncio
import sys
import time

import aiohttp
from aiohttp import web

from pipeline.sandbox import Sandbox, running

IN_FLIGHT = 64


async def submit(sandbox: Sandbox, count: int, query: str) -> float:
    """Seconds for *count* submits, IN_FLIGHT at a time."""
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    url = f"{sandbox.url}/api/v3/openai/dall-e-2{query}"
    numbers = iter(range(count))
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        async def worker() -> None:
            for number in numbers:
                async with session.post(url, data=b'{"prompt":"a lighthouse, number %d"}' % number) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - began


async def main(count: int) -> None:
    """Without webhooks, then with them."""
    arrived = 0
    everything = asyncio.Event()

    async def receive(request: web.Request) -> web.Response:
        nonlocal arrived
        await request.read()
        arrived += 1
        if arrived == count:
            everything.set()
        return web.Response(status=204)

    app = web.Application()
    app.add_routes([web.post("/hook", receive)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    with running(faults={"generation_s": 0}, balance=1e9) as sandbox:
        took = await submit(sandbox, count, "")
        print(f"submits:               {count / took:7,.0f}/s")
        began = time.perf_counter()
        await submit(sandbox, count, f"?webhook=http%3A%2F%2F127.0.0.1%3A{port}%2Fhook")
        await asyncio.wait_for(everything.wait(), 120)
        print(f"submits and webhooks:  {count / (time.perf_counter() - began):7,.0f}/s")
        assert len(sandbox.ledger()) == 2 * count
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5_000))
