"""
A stack for end-to-end tests: `pipeline dev --json` as its users start it, in a process of its own.

    with stack.running(workers=3) as it:
        it.kill("worker")    # SIGKILL; the stack starts them again
        it.stop("valkey")    # an outage, until it.start("valkey")
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.embedded import procfile, scratch
from pipeline.embedded.logs import tail
from pipeline.embedded.processes import Process, Program, StackError, wait_until


class RunningStack:
    """What `pipeline dev --json` printed, and the ways to hurt it."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.url = facts["url"]
        self.api_key = facts["api_key"]
        self.sandbox_url = facts["sandbox_url"]
        self.database_url = facts["database_url"]
        self.broker_url = facts["broker_url"]
        self.dashboard_password = facts["dashboard_password"]
        self.data = Path(facts["data"])

    def pids(self) -> dict[str, list[int]]:
        """All its processes by name, as they are now (half a second ago, at most)."""
        found: dict[str, list[int]] = json.loads((self.data / "pids.json").read_text())
        return found

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Signal every process of that name."""
        for pid in self.pids()[name]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, name: str) -> None:
        """Stop a program and keep it stopped; return when it is."""
        (self.data / "hold").mkdir(exist_ok=True)
        (self.data / "hold" / name).touch()
        if not wait_until(lambda: not self.pids()[name], 30.0):
            raise StackError(f"{name} did not stop")

    def start(self, name: str) -> None:
        """End what `stop` began; return when the program is there again (it may not be ready yet)."""
        (self.data / "hold" / name).unlink()
        if not wait_until(lambda: bool(self.pids()[name]), 30.0):
            raise StackError(f"{name} did not start")

    def log(self, name: str) -> str:
        """What a program has written so far."""
        return (self.data / "logs" / f"{name}.log").read_text(errors="replace")


@contextlib.contextmanager
def running(
    *,
    data: Path | None = None,
    workers: int = 1,
    public_url: bool = True,
    without: tuple[str, ...] = (),
    via: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[RunningStack]:
    """
    Run a stack; *env* adds to the environment of all its programs.

    *via* names the ports of proxies through which its programs reach postgres, valkey or sandbox.

    Raises:
        StackError: It did not start, or left before the end; with the last of what it said.
    """
    with scratch.directory("run") as room:
        argv = [sys.executable, "-m", "pipeline", "dev", "--json", "--workers", str(workers)]
        argv += ["--data", str(data)] if data else []
        argv += [] if public_url else ["--no-public-url"]
        for name in without:
            argv += ["--without", name]
        for name, port in (via or {}).items():
            argv += ["--via", f"{name}={port}"]
        said, printed = room / "said", room / "printed"
        program = Program(
            name="dev",
            argv=tuple(argv),
            log=said,
            output=printed,
            cwd=procfile.PROCFILE.parent,
            env={**os.environ, **(env or {})},
        )
        process = Process(program)
        try:
            wait_until(lambda: printed.read_bytes().endswith(b"\n") or process.poll() is not None, 120.0)
            if not printed.read_bytes():
                raise StackError(f"`pipeline dev` did not start. It said:\n{tail(said, 60)}")
            yield RunningStack(json.loads(printed.read_text()))
            if process.poll() is not None:
                raise StackError(f"`pipeline dev` left before its time. It said:\n{tail(said, 60)}")
        finally:
            process.stop(60.0)
