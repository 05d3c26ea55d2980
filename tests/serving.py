"""A web server of a test's own, started as the Procfile says: on another database, with other settings."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.embedded import procfile
from pipeline.embedded.ports import hold
from pipeline.embedded.processes import Process, Program, wait_until
from tests.http import get


@dataclass(frozen=True)
class Served:
    """A running web server: its address, and what it has logged so far."""

    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()


@contextlib.contextmanager
def serving(environ: Mapping[str, str], folder: Path) -> Iterator[Served]:
    """Run a web server in exactly this environment of ours, until the block ends."""
    held = hold(None)
    served = Served(f"http://127.0.0.1:{held.number}", folder / f"web-{held.number}.log")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    program = Program(
        name="web",
        argv=procfile.shell(procfile.read()["web"]),
        log=served.log_file,
        cwd=procfile.PROCFILE.parent,
        env={"LANG": "C.UTF-8", **environ, "PATH": path, "PORT": str(held.number)},
    )
    process = Process(program)
    try:
        assert wait_until(lambda: get(f"{served.url}/healthz").status == 200, 30.0), served.log
        yield served
    finally:
        process.stop(25.0)
        held.close()
