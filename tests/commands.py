"""
Run `python -m pipeline …` as a process of its own, without waiting a second each time for its libraries.

Commands are forked off a process that has imported the libraries, and of the product what looks at nothing around it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "aiohttp",
        "alembic.command",
        "celery.app",
        "jsonschema",
        "kombu.transport.redis",
        "pipeline.lifecycle.batch",
        "pipeline.runtime",
        "pipeline.store.schema",
        "pipeline.views",
        "psycopg",
        "pydantic",
        "rich.progress",
        "rich.table",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlalchemy.orm",
        "structlog",
        "typer",
        "uuid_utils",
    ]
)

TIMEOUT_S = 60.0


def command(environ: Mapping[str, str], *words: str | bytes) -> "subprocess.CompletedProcess[str]":
    """Run one command in exactly this environment, and give what it printed and its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch()
        err.touch()
        status = start(environ, words, out, err)
        return subprocess.CompletedProcess(list(words), status, out.read_text(), err.read_text())


def start(environ: Mapping[str, str], words: tuple[str | bytes, ...], out: Path, err: Path | None = None) -> int:
    """Run one command whose output goes to *out*, a file or a terminal; give its exit status."""
    process = _FORKED.Process(target=_become, args=(dict(environ), [os.fsdecode(word) for word in words], out, err))
    process.start()
    process.join(TIMEOUT_S)
    status = process.exitcode
    if status is None:
        process.kill()
        raise TimeoutError(f"{words} still runs after {TIMEOUT_S} s")
    return status


def _become(environ: dict[str, str], words: list[str], out: Path, err: Path | None) -> None:
    for number, path in ((1, out), (2, err)):
        if path:
            os.dup2(os.open(path, os.O_WRONLY | os.O_NOCTTY), number)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["pipeline", *words]
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
