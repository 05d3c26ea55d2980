"""Web servers of a benchmark's own: the Procfile's line with any app, or gunicorn with the same app."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.costs import cpu_s
from pipeline.embedded import procfile
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, wait_until

OURS = "pipeline.web.server:app"
"""The factory that the Procfile's web line names."""

GUNICORN = {
    "gunicorn gthread": "python -m gunicorn --bind 127.0.0.1:$PORT --worker-class gthread --threads 64 '{}()'",
    "gunicorn gevent": "python -m gunicorn --bind 127.0.0.1:$PORT --worker-class gevent '{}()'",
}
"""The other web server, with one worker process too; `{}` is the app's factory."""


@dataclass(frozen=True)
class Web:
    """A running web server."""

    url: str
    process: Process

    @property
    def cpu_s(self) -> float:
        """What all its processes have worked so far, in seconds."""
        return cpu_s(self.process.pid)


def granian(app: str) -> str:
    """The Procfile's web line, with another factory in it."""
    line = procfile.read()["web"]
    assert line.endswith(OURS)
    return line.removesuffix(OURS) + app


@contextlib.contextmanager
def web(line: str, environ: Mapping[str, str], folder: Path) -> Iterator[Web]:
    """Run a web server, one worker process, in exactly this environment; it listens when this returns."""
    with contextlib.closing(hold(None)) as port:
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        log = folder / f"web-{port.number}.log"
        program = Program(
            name="web",
            argv=procfile.shell(line),
            log=log,
            cwd=procfile.PROCFILE.parent,
            env={"LANG": "C.UTF-8", **environ, "PATH": path, "PORT": str(port.number), "WEB_CONCURRENCY": "1"},
        )
        process = Process(program)
        try:
            started = wait_until(lambda: _listens(port.number) or process.poll() is not None, 30.0)
            assert started, log.read_text()
            assert process.poll() is None, log.read_text()
            yield Web(f"http://127.0.0.1:{port.number}", process)
        finally:
            process.stop(25.0)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
