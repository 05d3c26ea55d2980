"""
One program as an OS process: started on a leash, in a session of its own, stopped with all its descendants.

Its own session keeps the terminal's Ctrl-C away, so that we decide the order of stopping. Its output goes straight
to a log file: no pipe of ours can fill up and hold it, or break under it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.embedded.accounts import Account
from pipeline.embedded.logs import tail
from pipeline.errors import PipelineError

LEASH = Path(__file__).with_name("leash.py")


class StackError(PipelineError):
    """Something of the stack did not start, or did not end; the message says what, and shows its log."""

    code = "stack_failed"
    title = "The stack on this machine failed"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, where and as whom, and how to know that it is ready."""

    name: str
    argv: tuple[str, ...]
    log: Path
    cwd: Path
    output: Path | None = None  # of standard output alone; None: the log takes that, too
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)  # secrets: never shown
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    prepare: Callable[[], None] = lambda: None  # before each start
    ready: Callable[[], bool] = lambda: True  # may raise nothing; asked until true


Kin = Mapping[int, Sequence[psutil.Process]]


class Process:
    """A started program. Start it from a thread that lives as long as it should (`leash.py`)."""

    def __init__(self, program: Program) -> None:
        self.program = program
        account = program.account
        uid, gid = (account.uid, account.gid) if account else (-1, -1)
        leash = (sys.executable, "-I", "-S", str(LEASH), os.getpid(), program.stop_signal.value, uid, gid)
        with program.log.open("ab") as log, (program.output or program.log).open("ab") as output:
            self._popen = subprocess.Popen(
                [*map(str, leash), *program.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=program.cwd,
                env=program.env,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self.started = time.monotonic()
        self._root = psutil.Process(self.pid)
        self.family: tuple[psutil.Process, ...] = (self._root,)

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    def look(self, kin: Kin | None = None) -> tuple[psutil.Process, ...]:
        """Find its descendants; those seen before and still there count, though their parent may be gone."""
        found = {one.pid: one for one in self.family if _alive(one)}
        kin = kin or children_by_parent()
        unseen = [*found, self.pid] if self.poll() is None else list(found)
        while unseen:
            for child in kin.get(unseen.pop(), ()):
                if child.pid not in found and _alive(child):
                    found[child.pid] = child
                    unseen.append(child.pid)
        self.family = tuple(found.values())
        return self.family

    def signal(self, number: int) -> None:
        """Signal the program itself, not its descendants."""
        if self.poll() is None:
            self._popen.send_signal(number)

    def end(self) -> None:
        """Make sure that nothing of it is left, now: kill, reap, forget."""
        self.look()
        if self.poll() is None:
            self._popen.kill()
        for one in self.family:
            _kill(one)
        self._popen.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone, or (macOS) only zombies left
            os.killpg(self.pid, signal.SIGKILL)  # what was born since we looked; the group outlives its leader
        wait_until(lambda: not self.look(), 5.0)

    def stop(self, timeout_s: float = 25.0) -> bool:
        """Ask it to stop, and end it when it does not. True if it went by itself."""
        self.look()
        self.signal(self.program.stop_signal)
        willing = wait_until(lambda: self.poll() is not None, timeout_s)
        self.end()
        return willing


class Server:
    """A program that others connect to: the same URL before and after a restart."""

    def __init__(self, program: Program, url: str) -> None:
        self.program = program
        self.url = url
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process, f"{self.program.name} is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it and return when it serves."""
        assert self._process is None, f"{self.program.name} is running already"
        self.program.prepare()
        self._process = Process(self.program)
        if not wait_until(lambda: self.program.ready() or self._gone(), 60.0) or self._gone():
            self.stop()
            raise StackError(f"{self.program.name} did not start. Its log ends:\n{tail(self.program.log)}")

    def stop(self) -> None:
        """Stop it; nothing happens when it is not running."""
        if self._process:
            self._process.stop()
            self._process = None

    def restart(self) -> None:
        """Stop it, and start it at the same place."""
        self.stop()
        self.start()

    def _gone(self) -> bool:
        return self._process is None or self._process.poll() is not None


def children_by_parent() -> Kin:
    """Everybody's children, in one pass over the machine's processes."""
    kin: dict[int, list[psutil.Process]] = {}
    for one in psutil.process_iter(["ppid"]):
        kin.setdefault(one.info["ppid"], []).append(one)
    return kin


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> bool:
    """Wait for *condition*; False when it did not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def end_all(strangers: Iterable[psutil.Process], grace_s: float = 5.0) -> None:
    """End processes that are no children of ours (left by a killed stack): ask, wait, kill."""
    left = [one for one in strangers if _alive(one)]
    for one in left:
        _kill(one, signal.SIGTERM)
    _, left = psutil.wait_procs(left, timeout=grace_s)
    for one in left:
        _kill(one)
    psutil.wait_procs(left, timeout=grace_s)


def _alive(one: psutil.Process) -> bool:
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(one: psutil.Process, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # raised, too, when the pid has been given to somebody else
        one.send_signal(number)
