"""
Several programs kept running: each started, watched, started again when it dies, and stopped in order.

One thread does it all, in `turn()`, called a few times a second: nothing to lock, and children belong to the thread
that lives as long as we do.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from pipeline.embedded.files import write
from pipeline.embedded.logs import Logs, tail
from pipeline.embedded.processes import Process, Program, StackError, children_by_parent, end_all

PR_SET_CHILD_SUBREAPER = 36
TURN_S = 0.1
LOOK_S = 0.5  # how often the machine's processes are searched for new descendants
EARLY_S = 10.0  # a program that ends sooner than this after its start has something wrong with it
PAUSES_S = (0.0, 0.5, 1.0, 1.5, 1.5, 5.0, 15.0)  # before the next start, after so many early ends
HOPELESS = 3  # early ends at which a start-up gives up


class Stopped(Exception):
    """Raised while waiting, when a signal asks the stack to stop."""


class StopSignals:
    """
    SIGINT, SIGTERM and SIGHUP, noted instead of obeyed: a half-started stack is taken down like a whole one.

    A second signal means "now". One within a second of the first is its echo: the terminal and `make` both send it.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self.now = False

    @property
    def noted(self) -> bool:
        """Somebody asked us to stop."""
        return self._first is not None

    @contextlib.contextmanager
    def caught(self) -> Iterator["StopSignals"]:
        """Take the signals for as long as this lasts."""
        before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():  # while leaving, nobody has to tell us again
                signal.signal(number, signal.SIG_IGN if self.noted else handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        moment = time.monotonic()
        self._first = self._first or moment
        self.now = self.now or moment - self._first > 1


@dataclass(frozen=True)
class Ending:
    """How programs left that were asked to: the seconds it took all, each one's exit status, and who was killed."""

    seconds: float
    statuses: Mapping[str, int]  # negative: the signal that ended it
    killed: tuple[str, ...]


@dataclass
class _Post:
    """A program's place: who holds it now, and when the next may start."""

    program: Program
    process: Process | None = None
    due: float = 0.0
    early_ends: int = 0

    @property
    def group(self) -> str:
        """The Procfile's name: `worker` for `worker.2`."""
        return self.program.name.partition(".")[0]


class Supervisor:
    """Keeps programs running. `DIR/pids.json` names their processes; `DIR/hold/NAME` holds one back while it exists."""

    def __init__(self, directory: Path, logs: Logs, signals: StopSignals, groups: Iterable[str]) -> None:
        self._directory = directory
        self._logs = logs
        self._signals = signals
        self._posts: dict[str, _Post] = {}
        self._pids: dict[str, list[int]] = {}
        self._nobody: Mapping[str, list[int]] = {group: [] for group in groups}
        self._errand: Process | None = None
        self._looked = 0.0
        _adopt_orphans()

    def start(self, *programs: Program) -> None:
        """Start programs, and keep them running from now on."""
        for program in programs:
            self._posts[program.name] = _Post(program)
        self.turn()

    def turn(self) -> None:
        """Do what is due: bury the dead, start their successors, record who is who."""
        before = [post.process for post in self._posts.values()]
        for post in self._posts.values():
            self._tend(post)
        if before != [post.process for post in self._posts.values()] or time.monotonic() > self._looked + LOOK_S:
            self._record()
        self._reap()
        self._logs.show()

    def wait(self, seconds: float = TURN_S) -> None:
        """
        Let time pass, watching.

        Raises:
            Stopped: A signal came.
        """
        end = time.monotonic() + seconds
        while True:
            if self._signals.noted:
                raise Stopped
            self.turn()
            if (left := end - time.monotonic()) <= 0:
                return
            time.sleep(min(TURN_S, left))

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """
        Wait until *condition* holds.

        Raises:
            Stopped: A signal came first.
            StackError: It took too long, or a program keeps ending.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            for post in self._posts.values():
                if post.early_ends >= HOPELESS:
                    raise StackError(f"{post.program.name} does not start. Its log ends:\n{tail(post.program.log)}")
            if time.monotonic() > deadline:
                raise StackError(f"{what} took more than {timeout_s:.0f} s. The logs end:\n{self._logs.ends()}")
            self.wait()

    def run(self, program: Program, timeout_s: float = 60.0) -> None:
        """
        Run a program to its end, once.

        Raises:
            Stopped: A signal came first.
            StackError: It failed, or took too long.
        """
        self._errand = errand = Process(program)
        try:
            self.until(lambda: errand.poll() is not None, program.name, timeout_s)
        finally:
            errand.end()
            self._errand = None
        if status := errand.poll():
            raise StackError(f"{program.name} ended with status {status}. Its log ends:\n{tail(program.log)}")

    def pids(self) -> dict[str, list[int]]:
        """All processes, pool children included, by the Procfile's names."""
        self._record()
        return self._pids

    def stop(self, groups: Iterable[str], grace_s: float = 25.0, *, everyone: bool = False) -> Ending:
        """
        Ask all programs of these groups to stop, at once; end those that have not within *grace_s* seconds.

        With *everyone* each of their processes is asked, pool children included, as platforms do that signal a whole
        container; then, too, none of them may be left.
        """
        leaving = [(post, post.process) for post in self._posts.values() if post.group in groups and post.process]
        asked = [(process, one) for _, process in leaving for one in process.look()]
        began = time.monotonic()
        for process, one in asked:
            if everyone or one.pid == process.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(process.program.stop_signal)
        while left := _left([process for _, process in leaving], everyone=everyone):
            if time.monotonic() > began + grace_s or self._signals.now:
                break
            self._reap()
            self._logs.show()
            time.sleep(0.02)
        seconds = time.monotonic() - began
        for process in left:
            self._logs.say(f"{process.program.name} did not stop, killing it")
        for _, process in leaving:
            process.end()
        for post in [post for post in self._posts.values() if post.group in groups]:
            del self._posts[post.program.name]
        self._reap()
        self._record()
        self._logs.show()
        statuses = {process.program.name: process.poll() or 0 for _, process in leaving}
        return Ending(seconds, statuses, tuple(process.program.name for process in left))

    def _tend(self, post: _Post) -> None:
        hold = self._directory / "hold"
        held = (hold / post.program.name).exists() or (hold / post.group).exists()
        if post.process and (status := post.process.poll()) is not None:
            self._bury(post, post.process, status)
        elif post.process and held:
            self._logs.say(f"{post.program.name} is held back")
            post.process.stop(5.0)
            post.process = None
        if post.process is None and not held and time.monotonic() >= post.due:
            post.program.prepare()
            post.process = Process(post.program)

    def _bury(self, post: _Post, process: Process, status: int) -> None:
        early = time.monotonic() - process.started < EARLY_S and status != -signal.SIGKILL  # killed: not its own doing
        post.early_ends = post.early_ends + 1 if early else 0
        pause = PAUSES_S[min(post.early_ends, len(PAUSES_S) - 1)]
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._logs.say(f"{post.program.name} {how}; starting it again" + (f" in {pause:g} s" if pause else ""))
        process.end()
        post.process, post.due = None, time.monotonic() + pause

    def _record(self) -> None:
        kin = children_by_parent()
        pids = {group: list(numbers) for group, numbers in self._nobody.items()}
        for post in self._posts.values():
            if post.process:
                pids.setdefault(post.group, []).extend(one.pid for one in post.process.look(kin))
        self._looked = time.monotonic()
        if pids != self._pids:
            self._pids = pids
            write(self._directory / "pids.json", json.dumps(pids) + "\n")

    def _reap(self) -> None:
        """Reap adopted orphans; those we started are left to whoever waits for them."""
        ours = [one.pid for one in (self._errand, *(post.process for post in self._posts.values())) if one]
        if sys.platform == "linux":
            with contextlib.suppress(ChildProcessError):
                while (
                    info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                ) and info.si_pid not in ours:
                    os.waitpid(info.si_pid, 0)


def _left(processes: Iterable[Process], *, everyone: bool) -> list[Process]:
    """Find those that still run; with *everyone*, those of which any descendant does, newborn ones included."""
    if not everyone:
        return [process for process in processes if process.poll() is None]
    kin = children_by_parent()
    return [process for process in processes if process.look(kin)]


def clear(directory: Path) -> None:
    """
    End the processes that a killed stack left behind; the caller holds the directory's lock, so it is dead.

    A number in `pids.json` may have been given to another program since: only a process that was there when the file
    was written, and calls itself what we would, is taken for ours.
    """
    file = directory / "pids.json"
    if file.exists():
        written = file.stat().st_mtime
        end_all(
            one for group, pids in json.loads(file.read_text()).items() for one in _still_there(group, pids, written)
        )


def _still_there(group: str, pids: Iterable[int], since: float) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            one = psutil.Process(pid)
            marks = (group, "python", "pipeline")
            if one.create_time() <= since + 1 and any(mark in word for mark in marks for word in one.cmdline()):
                yield one


def _adopt_orphans() -> None:
    """Descendants whose parent died become our children, not init's: so they are reaped, whatever init is."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
