"""
How much memory each of the Procfile's processes takes under load: whether they fit the smallest dynos (512 MB).

    python -m benchmarks.studies.memory --jobs 600 --waiting 40

The whole stack as `pipeline dev` runs it, default concurrency, files archived and callers told. The jobs come in two
batches and one by one, each one by one waits for its end (`Prefer: wait`), lists are read meanwhile. Memory is read
from /proc/PID/smaps_rollup five times a second: RSS counts what processes share for each of them; PSS once, as a dyno
does. The exit status is 1 when a line of the Procfile, with all its children, comes to 300 MB of PSS.
"""

import argparse
import json
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from uuid import uuid4

import psycopg

from pipeline.embedded import stack
from pipeline.embedded.stack import RunningStack
from pipeline.sandbox import Sandbox

LINES = ("web", "worker", "beat")
MOST_MB = 300
FILE_KB = 1024


class Receiver(BaseHTTPRequestHandler):
    """Hears, and says no more."""

    protocol_version = "HTTP/1.1"
    heard = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Receiver.heard += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Memory:
    """The most that each line's processes took together, in MB: (RSS, PSS)."""

    def __init__(self, running: RunningStack) -> None:
        self._running = running
        self.at_rest = self._look()
        self.most: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            for name, sizes in self._look().items():
                self.most[name] = [max(pair) for pair in zip(self.most[name], sizes, strict=True)]

    def _look(self) -> dict[str, tuple[float, float]]:
        found = {}
        for name, pids in self._running.pids().items():
            if name in LINES:
                each = [sizes for pid in pids if (sizes := _sizes(pid))]
                found[name] = (sum(rss for rss, _ in each), sum(pss for _, pss in each))
        return found


def _sizes(pid: int) -> tuple[float, float] | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has left
        return None
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return kb["Rss"] * 1024 / 1e6, kb["Pss"] * 1024 / 1e6


def call(running: RunningStack, path: str, body: bytes | None = None, **headers: str) -> None:
    """As good callers do it: what is answered 503 is sent again, with the same key."""
    headers |= {"Authorization": f"Bearer {running.api_key}", "Idempotency-Key": str(uuid4())}
    while True:
        try:
            request = urllib.request.Request(running.url + path, body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()
                return
        except HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--waiting", type=int, default=40, help="how many callers hand in one by one, and wait")
    plan = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    callback = f"http://127.0.0.1:{server.server_port}/heard"

    def line(number: int) -> str:
        return json.dumps({"input": {"prompt": f"memory {number}"}, "callback_url": callback})

    with stack.running() as running:
        Sandbox(running.sandbox_url).faults(file_kb=FILE_KB, generation_s=[0.2, 2.0])
        call(running, "/openapi.json")
        time.sleep(5.0)
        singles = plan.jobs // 3
        began = time.monotonic()
        with Memory(running) as memory, ThreadPoolExecutor(plan.waiting) as callers:

            def one(number: int) -> None:
                call(
                    running,
                    "/v1/jobs",
                    line(number).encode(),
                    **{"Content-Type": "application/json", "Prefer": "wait=25"},
                )
                call(running, "/v1/jobs?limit=100")

            waiting = [callers.submit(one, number) for number in range(singles)]
            for part in range(2):
                numbers = range(
                    singles + part * (plan.jobs - singles) // 2, singles + (part + 1) * (plan.jobs - singles) // 2
                )
                lines = "".join(f"{line(number)}\n" for number in numbers)
                call(running, "/v1/jobs/batch", lines.encode(), **{"Content-Type": "application/x-ndjson"})
            for each in waiting:
                each.result()
            told = "SELECT count(*) FROM pipeline.notifications WHERE state = 'delivered'"
            stored = "SELECT count(*) FROM pipeline.assets WHERE state = 'stored'"
            with psycopg.connect(running.database_url, autocommit=True) as db:
                while any(db.execute(query).fetchone()[0] < plan.jobs for query in (told, stored)):  # type: ignore[index]
                    time.sleep(0.2)
            seconds = time.monotonic() - began
            processes = {name: len(pids) for name, pids in running.pids().items()}
    print(f"{plan.jobs} jobs done, {FILE_KB} KB each stored, {Receiver.heard} told, in {seconds:.0f} s")
    print(f"{'':8} {'processes':>9} {'RSS at rest':>12} {'RSS, most':>10} {'PSS, most':>10}   (MB)")
    for name in LINES:
        rss, pss = memory.most[name]
        print(f"{name:8} {processes[name]:9} {memory.at_rest[name][0]:12.0f} {rss:10.0f} {pss:10.0f}")
    sys.exit(1 if max(pss for _, pss in memory.most.values()) >= MOST_MB else 0)


if __name__ == "__main__":
    main()
