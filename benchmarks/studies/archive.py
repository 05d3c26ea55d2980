"""
200 outputs of 5 MB: how fast they are archived, how much memory that takes, and what is left of a worker's SIGKILL.

    python -m benchmarks.studies.archive                 about a minute
    python -m benchmarks.studies.archive --files 1000 --mb 20 --kills 5

The stack of `pipeline dev`, files in a folder. While the jobs complete their files are not there, so that all outputs
wait at once; then the archive runs alone, and its worker is killed while files are under way. In the end every file is
read and compared: with the sha256 in the database, with the sandbox's own file, and with what lies in the folder.
"""

import argparse
import contextlib
import hashlib
import signal
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import psycopg

from pipeline.embedded import stack
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox

LIMITS = {"SUBMITS_PER_MINUTE": "100000", "MAX_IN_FLIGHT": "5000"}
COUNT = """
    SELECT count(*) FILTER (WHERE state = 'stored'), count(*) FILTER (WHERE worker_id IS NOT NULL)
    FROM pipeline.assets
"""


class Memory:
    """How much more the worker holds than at rest, sampled every 20 ms; also the one that comes after it."""

    def __init__(self, running: RunningStack) -> None:
        self._running = running
        self.at_rest = max(self._sizes().values())
        self.grown: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            for pid, size in self._sizes().items():
                self.grown[pid] = max(self.grown.get(pid, 0), size - self.at_rest)

    def _sizes(self) -> dict[int, int]:
        sizes = {}
        for pid in self._running.pids()["worker"]:
            with contextlib.suppress(psutil.Error):
                sizes[pid] = psutil.Process(pid).memory_info().rss
        return sizes


def counts(url: str) -> tuple[int, int]:
    """Outputs stored, and under way."""
    with psycopg.connect(url) as db:
        row = db.execute(COUNT).fetchone()
    assert row
    return row[0], row[1]


def hand_in(running: RunningStack, files: int) -> None:
    """One job for each file."""
    lines = "".join(f'{{"input": {{"prompt": "file {number}"}}}}\n' for number in range(files))
    request = urllib.request.Request(f"{running.url}/v1/jobs/batch", lines.encode(), method="POST")
    request.add_header("Content-Type", "application/x-ndjson")
    request.add_header("Authorization", f"Bearer {running.api_key}")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 201


def archive(running: RunningStack, files: int, kills: int) -> float:
    """Wait until all are stored, and kill the worker now and then. Returns the seconds."""
    began = time.monotonic()
    at = [files * (number + 1) // (kills + 1) for number in range(kills)]
    while True:
        stored, under_way = counts(running.database_url)
        if stored == files:
            return time.monotonic() - began
        if at and stored >= at[0] and under_way:
            at.pop(0)
            print(f"SIGKILL with {stored} stored and {under_way} under way")
            running.kill("worker", signal.SIGKILL)
        time.sleep(0.05)


def compare(running: RunningStack) -> list[str]:
    """What is wrong with the files; nothing, if all is well."""
    with psycopg.connect(running.database_url) as db:
        rows = db.execute("SELECT storage_key, sha256, bytes, source_url FROM pipeline.assets").fetchall()
    folder = running.data / "files"

    def one(row: tuple[str, str, int, str]) -> str | None:
        key, sha256, size, url = row
        content = (folder / key).read_bytes()
        with urllib.request.urlopen(url) as answer:
            original = answer.read()
        same = hashlib.sha256(content).hexdigest() == sha256 == hashlib.sha256(original).hexdigest()
        return None if same and len(content) == size else key

    with ThreadPoolExecutor(4) as threads:
        wrong = [f"differs: {key}" for key in threads.map(one, rows) if key]
    known = {row[0] for row in rows}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    left = {name for name in there - known if "#" in name}
    if left:
        print(f"{len(left)} unfinished files of killed workers, under names that nobody reads")
    return wrong + [f"of nobody: {name}" for name in sorted(there - known - left)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--mb", type=int, default=5)
    parser.add_argument("--kills", type=int, default=1)
    plan = parser.parse_args()
    with stack.running(env=LIMITS) as running:
        Sandbox(running.sandbox_url).faults(file_kb=plan.mb * 1024, generation_s=0.1, file_expired=1.0)
        hand_in(running, plan.files)
        with psycopg.connect(running.database_url, autocommit=True) as db:
            waiting = "SELECT count(*) FROM pipeline.assets"
            while db.execute(waiting).fetchone() != (plan.files,):
                time.sleep(0.1)
            Sandbox(running.sandbox_url).faults(file_expired=0.0)
            time.sleep(3.0)  # the workers' memory at rest
            with Memory(running) as memory:
                db.execute("UPDATE pipeline.assets SET due_at = clock_timestamp(), gone = 0 WHERE state = 'pending'")
                seconds = archive(running, plan.files, plan.kills)
        size = plan.files * plan.mb
        print(f"the worker at rest: RSS {memory.at_rest / 2**20:.1f} MiB")
        print(f"{plan.files} files of {plan.mb} MB in {seconds:.1f} s: {size / seconds:.0f} MB/s")
        for pid, grown in memory.grown.items():
            print(f"worker {pid}: RSS grew by {grown / 2**20:.1f} MiB at most")
        wrong = compare(running)
        print("\n".join(wrong) or "every sha256 is right, in the row, in the folder and at the source")
        sys.exit(1 if wrong or max(memory.grown.values(), default=0) > 50 * 2**20 else 0)


if __name__ == "__main__":
    main()
