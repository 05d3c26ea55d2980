"""A broker behind TLS whose certificate nobody vouches for, as Heroku's: `rediss://` reaches it, every way we have."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery

from pipeline.broker import QUEUE, make_celery
from pipeline.embedded.processes import Server
from pipeline.jobs import State
from pipeline.lifecycle.examine import broker
from pipeline.nudges import Nudger
from pipeline.runtime import Runtime
from pipeline.sandbox import Sandbox
from pipeline.settings import load
from tests.conftest import Caller
from tests.factories import scalar, state, until
from tests.test_stopping import running

CERTIFICATE = Path(__file__).with_name("shop.test.pem")


class Terminator:
    """TLS on loopback in front of a server without."""

    def __init__(self, behind: str) -> None:
        parts = urlsplit(behind)
        self._behind = parts.hostname, parts.port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0
        self.handshakes = 0

    def __enter__(self) -> "Terminator":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handshakes += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            behind_reader, behind_writer = await asyncio.open_connection(*self._behind)
            ways = [self._pass(reader, behind_writer), self._pass(behind_reader, writer)]
            await asyncio.wait([asyncio.ensure_future(way) for way in ways], return_when="FIRST_COMPLETED")
            behind_writer.close()
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()


@pytest.fixture
def terminator(valkey: Server) -> Iterator[Terminator]:
    """Put TLS in front of Valkey."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    with Terminator(valkey.url) as running:
        yield running


@pytest.fixture
def url(terminator: Terminator) -> str:
    """Give its address as the settings make it of a platform's."""
    given = {"DATABASE_URL": "postgres://nobody@127.0.0.1/none", "REDIS_URL": f"rediss://127.0.0.1:{terminator.port}/0"}
    return load(given).broker_url


def test_nudges_and_the_doctor_get_through(
    url: str, terminator: Terminator, valkey: Server, make_rt: Callable[..., Runtime]
) -> None:
    """Each has a connection of its own."""
    nudger = Nudger(make_celery(url), url)
    nudger("submit")
    with redis.Redis.from_url(valkey.url) as client:
        until(lambda: client.llen(QUEUE) == 1)
    assert not nudger.failing
    assert {finding.code for finding in broker.broker(make_rt(broker_url=url))} == {"ok"}
    assert terminator.handshakes >= 2


def test_a_worker_takes_what_another_app_hands_in(
    url: str, rt: Runtime, environ: dict[str, str], caller: Caller, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Celery's own connections, both ways."""
    app = Celery("shop", broker=url, set_as_current=False)
    with running("worker", {**environ, "BROKER_URL": url}, tmp_path):
        body = {"service": caller.service.name, "input": {"prompt": "a lighthouse"}}
        app.send_task("pipeline.enqueue", queue=QUEUE, kwargs=body)
        job_id = until(lambda: scalar(rt, "SELECT id FROM jobs"), 60.0)
        until(lambda: state(rt, job_id) == State.COMPLETED, 60.0)
    app.close()
