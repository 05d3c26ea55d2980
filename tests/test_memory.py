"""What the Procfile's processes load: a library that one of them never uses is memory taken for nothing, all day."""

import re
import subprocess
import sys
from pathlib import Path

import redis

from pipeline.broker import QUEUE
from pipeline.embedded.processes import Process, Server
from tests.factories import until
from tests.test_stopping import running


def libraries(process: Process) -> set[str]:
    """Those of which it has loaded a part that is compiled."""
    paths = (mapped.path for one in process.look() for mapped in one.memory_maps())
    return {found[1] for path in paths if (found := re.search(r"/site-packages/(\w+)/", path))}


def test_beat_loads_nothing_that_only_workers_use(environ: dict[str, str], valkey: Server, tmp_path: Path) -> None:
    """It reads the same page of tasks, and says once in 5 s that it is time to sweep: no database, no provider."""
    with redis.Redis.from_url(valkey.url) as broker:
        broker.flushall()
        with running("beat", {**environ, "BROKER_URL": valkey.url}, tmp_path) as beat:
            until(lambda: broker.llen(QUEUE), 60.0)
            loaded = libraries(beat.process)

    assert "pydantic_core" in loaded
    assert loaded.isdisjoint({"aiohttp", "obstore", "psycopg_binary", "sqlalchemy"})


def test_a_web_server_loads_no_client_of_the_provider_and_no_migrations(environ: dict[str, str]) -> None:
    """A price that a caller waits for, a file that is fetched, load theirs when it comes to that."""
    code = (
        "import sys; from pipeline.web import create_app;"
        "assert create_app().test_client().get('/healthz').status_code == 200;"
        "print({'aiohttp', 'alembic', 'obstore'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
