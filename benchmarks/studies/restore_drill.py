"""
The restore drill: a backup of a running stack, taken with jobs in flight, is restored elsewhere, and the stack goes on.

    python -m benchmarks.studies.restore_drill --how dump          pg_dump into an empty server
    python -m benchmarks.studies.restore_drill --how basebackup    pg_basebackup, a whole server

The provider (our imitation) and the archive's folder live on, as they would. Everything else of the first stack is lost
some seconds after the backup: in that time it went on working, and paying. The second stack gets the backup, and the
first one's address and API key. What is typed is what `pipeline/docs/backup.md` tells to type; what is counted is
compared with the provider's own ledger. Exit status 1 when something did not come out as that page says.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from pipeline import sandbox
from pipeline.embedded import api, postgres
from pipeline.embedded.accounts import account_for
from pipeline.embedded.foreground import Options, Stack, running
from pipeline.embedded.memory import NAME as MEMORY
from pipeline.embedded.supervisor import StopSignals
from pipeline.sandbox import Sandbox

FIRST_JOBS, LATER_JOBS = 60, 20
AT_ONCE = 20
"""Tasks at a time: some of the first jobs are still queued when the backup is taken."""

PATIENCE_S = 180.0
DIAL = {"latency_s": [0.2, 3.0], "generation_s": [2.0, 8.0]}
_COMPLETED = "SELECT id::text FROM pipeline.jobs WHERE state = 'completed'"
_OPEN = "state IN ('submitting', 'unknown', 'processing')"


@dataclass
class Caller:
    """A service that hands in jobs, each with a key of its own, and remembers what it was told."""

    url: str
    key: str

    def hand_in(self, prompts: Sequence[str]) -> Counter[int]:
        """Hand in a job for each prompt; the same again is the same job."""
        statuses: Counter[int] = Counter()
        for prompt in prompts:
            body = {"input": {"prompt": prompt}}
            statuses[api.call("POST", f"{self.url}/v1/jobs", body, key=self.key, idempotency_key=prompt)[0]] += 1
        return statuses

    def take_back(self, job_id: str) -> int:
        """Cancel a job."""
        return api.call("POST", f"{self.url}/v1/jobs/{job_id}/cancel", key=self.key)[0]

    def served(self, job_id: str) -> int:
        """The status with which a job's first file is answered."""
        return api.call("GET", f"{self.url}/v1/jobs/{job_id}/outputs/0", key=self.key)[0]


class Drill:
    """One run of it."""

    def __init__(self, how: str, room: Path, provider: Sandbox, signals: StopSignals) -> None:
        self._how = how
        self._room = room
        self._provider = provider
        self._signals = signals
        self._first = [f"first {number}" for number in range(FIRST_JOBS)]
        self._later = [f"later {number}" for number in range(LATER_JOBS)]
        self.rows: list[tuple[str, object]] = []
        self.breaches: list[str] = []

    def run(self) -> None:
        self._provider.faults(**DIAL)
        with running(self._options("a"), self._signals, say) as stack:
            self._before_the_loss(stack)
        shutil.copy(self._room / "a" / "postgres" / "password", self._room / "password")
        shutil.rmtree(self._room / "a" / "postgres")  # the disk is gone, and the broker with it
        shutil.rmtree(self._room / "a" / "valkey", ignore_errors=True)
        (self._room / "b").mkdir(mode=0o700)
        shutil.copy(self._room / "a" / MEMORY, self._room / "b" / MEMORY)  # the same address, the same API key
        self._restore()
        with running(self._options("b"), self._signals, say) as stack:
            self._afterwards(stack)

    def _options(self, name: str) -> Options:
        archive = (self._room / "archive").as_uri()
        defaults = {
            "ARCHIVE_URL": archive,
            "MAX_IN_FLIGHT": str(AT_ONCE),
            "UNKNOWN_PATIENCE_S": "20",
            "WAVESPEED_LEVEL": "gold",
            "POLL_AFTER_S": "5",
        }
        return Options(data=self._room / name, follow=False, defaults=defaults)

    def _before_the_loss(self, stack: Stack) -> None:
        caller = Caller(stack.facts.url, stack.facts.api_key)
        url = stack.facts.database_url
        self._each_service(url, "pause")  # they begin together, however long it takes to hand them in
        self._expect("handed in", caller.hand_in(self._first)[201], FIRST_JOBS)
        self._each_service(url, "resume")
        wait(stack, lambda: self._busy(stack), "jobs in every state")
        say(f"backing up with {self._how}, while it works")
        self._back_up(url)
        caller.hand_in(self._later)
        wait(stack, lambda: states(stack)["completed"] >= 2 * FIRST_JOBS // 3, "work that the backup does not know")
        self._had = {job_id for (job_id,) in query(url, _COMPLETED)}  # their callers were told
        say("everything is lost")
        stack.stop_everyone(0.0)

    def _busy(self, stack: Stack) -> bool:
        now = states(stack)
        return now["queued"] >= 3 and all(now[state] for state in ("submitting", "processing", "completed"))

    def _back_up(self, url: str) -> None:
        target = str(self._room / "backup")
        with postgres.programs(None) as programs:
            if self._how == "dump":
                shell(programs / "pg_dump", "--format=custom", f"--file={target}", url)
            else:
                shell(programs / "pg_basebackup", "--checkpoint=fast", f"--pgdata={target}", f"--dbname={url}")
                shell(programs / "pg_verifybackup", target)

    def _restore(self) -> None:
        """Restore, and pause every service before anything works on it."""
        home = self._room / "b" / "postgres"
        backup = self._room / "backup"
        if self._how == "basebackup":
            home.mkdir(mode=0o700)
            account = account_for(home / "data")
            shutil.move(backup, home / "data")
            shutil.copy(self._room / "password", home / "password")
            if account:
                for path in (home / "data", *(home / "data").rglob("*")):
                    os.chown(path, account.uid, account.gid, follow_symlinks=False)
        with postgres.running(home) as server:
            if self._how == "dump":
                with postgres.programs(None) as programs:
                    shell(programs / "pg_restore", "--exit-on-error", "--no-owner", f"--dbname={server.url}", backup)
            pipeline(server.url, "migrate")
            self._each_service(server.url, "pause")
            self._known = query(server.url, "SELECT input->>'prompt', state, id::text FROM pipeline.jobs")
        self.rows += [(f"in the backup: {state}", count) for state, count in sorted(self._by_state().items())]

    def _by_state(self) -> Counter[str]:
        return Counter(state for _, state, _ in self._known)

    def _afterwards(self, stack: Stack) -> None:
        url, caller = stack.facts.database_url, Caller(stack.facts.url, stack.facts.api_key)
        begun = time.monotonic()
        wait(stack, lambda: not query(url, f"SELECT FROM pipeline.jobs WHERE {_OPEN}"), "what was in flight")
        self.rows.append(("what was in flight had ended after", f"{time.monotonic() - begun:.0f} s"))
        found = self._reconcile(url)
        known = {
            task for (task,) in query(url, "SELECT prediction_id FROM pipeline.attempts WHERE prediction_id <> ''")
        }
        truth = {one["prediction_id"] for one in self._provider.ledger()} - known
        self._expect("tasks named by `pipeline reconcile`", found, truth, shown=len(found))
        self._orphans(url, truth)

        paid = {one["prompt"] for one in self._provider.ledger() if one["prediction_id"] in truth}
        queued = {prompt: job_id for prompt, state, job_id in self._known if state == "queued"}
        self.rows.append(("… of them, for jobs that are queued in the backup", len(paid & {*queued})))
        self.rows.append(("… of them, for jobs that came after it", len(paid - {*queued})))
        taken_back = {prompt for prompt, job_id in queued.items() if job_id in self._had}
        answers = Counter(caller.take_back(queued[prompt]) for prompt in taken_back)
        self._expect("taken back, their callers have the file", answers[200], len(taken_back))

        self._each_service(url, "resume")
        left = len(self._known) - len(taken_back)
        wait(stack, lambda: states(stack)["completed"] == left, "the queued jobs")
        again = caller.hand_in([prompt for prompt, *_ in self._known])
        self._expect("sent again with their keys, jobs of the backup: the same", again[200], len(self._known))
        missing = [prompt for prompt in self._later if prompt not in {prompt for prompt, *_ in self._known}]
        again = caller.hand_in(missing)
        self._expect("sent again with their keys, jobs after it: new", again[201], len(missing))
        wait(stack, lambda: states(stack)["completed"] == left + len(missing), "all jobs")

        charges = Counter(one["prompt"] for one in self._provider.ledger())
        twice = {prompt for prompt, count in charges.items() if count > 1}
        self._expect("paid twice: the others that reconcile had named", twice, paid - taken_back, shown=len(twice))
        self._files(stack, caller)

    def _orphans(self, url: str, tasks: set[str]) -> None:
        """A callback for each task that the backup does not know, as they come when a provider tries again."""
        for one in {one["prediction_id"]: one["id"] for one in self._provider.deliveries()}.items():
            if one[0] in tasks:
                self._provider.resend(one[1])
        found = query(url, "SELECT DISTINCT prediction_id FROM pipeline.callbacks WHERE verdict = 'orphan'")
        self._expect("… and by callbacks of nobody's (orphan)", {task for (task,) in found}, tasks, shown=len(found))

    def _reconcile(self, url: str) -> set[str]:
        done = pipeline(url, "reconcile", "--hours", "1", "--grace-s", "0", "--json", ok=(0, 1))
        differences = json.loads(done.stdout)["differences"]
        unknown = [one for one in differences if one["kind"] == "unknown_to_us"]
        self._expect("other differences", len(differences) - len(unknown), 0)
        return {task for one in unknown for task in one["prediction_ids"]}

    def _files(self, stack: Stack, caller: Caller) -> None:
        url = stack.facts.database_url
        wait(stack, lambda: not query(url, "SELECT FROM pipeline.assets WHERE state = 'pending'"), "the files")
        ids = [job_id for (job_id,) in query(url, _COMPLETED)]
        self._expect("files served", Counter(map(caller.served, ids)), Counter({200: len(ids)}), shown=len(ids))
        known = {key for (key,) in query(url, "SELECT storage_key FROM pipeline.assets WHERE storage_key <> ''")}
        archive = self._room / "archive"
        there = {str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()}
        self.rows.append(("files in the archive that no job knows", len(there - known)))

    def _each_service(self, url: str, what: str) -> None:
        for service in json.loads(pipeline(url, "services", "list", "--json").stdout):
            pipeline(url, "services", what, service["name"])

    def _expect(self, what: str, found: Any, expected: Any, *, shown: object = None) -> None:
        self.rows.append((what, found if shown is None else shown))
        if found != expected:
            self.breaches.append(f"{what}: {found}, not {expected}")


def pipeline(url: str, *words: str, ok: Sequence[int] = (0,)) -> "subprocess.CompletedProcess[str]":
    say(f"pipeline {' '.join(words)}")
    return shell(sys.executable, "-m", "pipeline", *words, env={"DATABASE_URL": url}, ok=ok)


def shell(
    *argv: object, env: dict[str, str] | None = None, ok: Sequence[int] = (0,)
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [str(word) for word in argv], env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode not in ok:
        raise SystemExit(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def query(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()


def states(stack: Stack) -> Counter[str]:
    return Counter(dict(query(stack.facts.database_url, "SELECT state, count(*) FROM pipeline.jobs GROUP BY 1")))


def wait(stack: Stack, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"Waited {PATIENCE_S:.0f} s in vain for {what}: {dict(states(stack))}")
        stack.wait(0.2)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--how", choices=("dump", "basebackup"), default="dump")
    how = arguments.parse_args().how
    with (
        tempfile.TemporaryDirectory() as room,
        sandbox.running() as provider,
        StopSignals().caught() as signals,
    ):
        os.environ |= {"WAVESPEED_BASE_URL": provider.url, "WAVESPEED_API_KEY": "restore-drill"}
        drill = Drill(how, Path(room), provider, signals)
        drill.run()
    table = Table("what", "", title=f"A backup by {how}, restored", title_justify="left")
    for what, figure in drill.rows:
        table.add_row(what, str(figure))
    Console(width=110).print(table)
    print("\n".join(drill.breaches) or "It came out as pipeline/docs/backup.md says.")
    return 1 if drill.breaches else 0


if __name__ == "__main__":
    sys.exit(main())
