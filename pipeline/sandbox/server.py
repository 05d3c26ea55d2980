"""The sandbox as an HTTP server in the foreground."""

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress

from aiohttp import web

from pipeline.sandbox.control import Control
from pipeline.sandbox.downloads import Downloads
from pipeline.sandbox.faults import Faults
from pipeline.sandbox.provider import Provider
from pipeline.sandbox.receiver import Receiver
from pipeline.sandbox.routes import Routes

MAX_BODY = 16 * 1024 * 1024
START_BALANCE = 1000.0


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    faults: Mapping[str, object] | None = None,
    api_key: str | None = None,
    webhook_secret: str | None = None,
    balance: float = START_BALANCE,
    seed: int | None = None,
    public_url: str | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """
    Imitate the provider until SIGINT or SIGTERM.

    Args:
        host: The address to listen on.
        port: 0 takes a free one; the line printed once it listens names it.
        faults: Where the dial starts, and what a reset returns to; see `Faults`.
        api_key: The one key accepted; None accepts any.
        webhook_secret: None makes one up.
        balance: Dollars.
        seed: Makes the faults repeatable; the same as the fault `seed`.
        public_url: Where links lead; None: to the host a request asked for.
        on_ready: Called with the URL once it listens.

    Raises:
        BadFault: One of *faults* is unknown or out of range.
    """
    start = dict(faults or {}) if seed is None else {**(faults or {}), "seed": seed}
    provider = Provider(faults=Faults().merged(start), secret=webhook_secret, balance=balance)
    app = web.Application(client_max_size=MAX_BODY)
    app.add_routes(Downloads(provider).table())
    app.add_routes(Control(provider).table())
    app.add_routes(Receiver().table())
    app.add_routes(Routes(provider, api_key=api_key, public_url=public_url).table())
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(app, provider, host, port, on_ready))


async def _run(
    app: web.Application, provider: Provider, host: str, port: int, on_ready: Callable[[str], None] | None
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # No access log: its lines would be the tests' noise, and a path may carry a caller's token. Cancellation: who
    # hung up is not slept for; by then the task exists, since nothing is awaited between body and task.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        url = f"http://{f'[{host}]' if ':' in host else host}:{runner.addresses[0][1]}"
        print(f"sandbox listening on {url}", flush=True)
        if on_ready is not None:
            on_ready(url)
        await stop.wait()
    finally:
        await provider.reset()  # lets go of the submits that wait
        await runner.cleanup()
        await provider.close()
