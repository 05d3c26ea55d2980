"""Load for a stack: jobs handed in as services do, over HTTP and from another Celery app over the broker."""

import threading
import time
from collections import Counter
from dataclasses import dataclass
from urllib.error import URLError

import psycopg
from celery import Celery

from pipeline.broker import QUEUE
from pipeline.embedded import api
from pipeline.embedded.foreground import Facts

AT_FIRST = 0.7  # the share handed in without a pause; the others while processes stop and start
PAUSE_S = 0.1


@dataclass(frozen=True)
class Standing:
    """How far a load has come, by the database."""

    states: Counter[str]  # of jobs
    completed: Counter[str]  # jobs by their prompt
    unanswered: int  # attempts that nothing is known of yet
    lost: int  # attempts whose answer was lost

    @property
    def open(self) -> int:
        """Jobs that are not final."""
        return self.states.total() - self.states["completed"] - self.states["failed"]


class Load:
    """
    A number of jobs, each with a prompt of its own, by turns over HTTP and over the broker.

    A caller whose request found no answer repeats it with the same key until it has one, as good callers do.
    """

    def __init__(self, facts: Facts, service: str, count: int) -> None:
        self.prompts = [f"drill {number}" for number in range(1, count + 1)]
        self.cut_off = 0  # requests that were begun and found no answer
        self._facts = facts
        self._service = service
        self._given_up = False
        self._app = Celery("load", broker=facts.broker_url, set_as_current=False)
        self._thread = threading.Thread(target=self._hand_in, name="load", daemon=True)

    def start(self) -> None:
        """Begin to hand in."""
        self._thread.start()

    @property
    def handed_in(self) -> bool:
        """Every job was taken."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Hand in no more."""
        self._given_up = True
        self._thread.join(15.0)
        self._app.close()

    def standing(self) -> Standing:
        """Ask the database."""
        with psycopg.connect(self._facts.database_url) as db:
            states = db.execute("SELECT state, count(*) FROM pipeline.jobs GROUP BY 1").fetchall()
            done = db.execute("SELECT input->>'prompt' FROM pipeline.jobs WHERE state = 'completed'").fetchall()
            outcomes: dict[str | None, int] = dict(
                db.execute("SELECT outcome, count(*) FROM pipeline.attempts GROUP BY 1").fetchall()
            )
        completed = Counter(str(prompt) for (prompt,) in done)
        return Standing(Counter(dict(states)), completed, outcomes.get(None, 0), outcomes.get("lost", 0))

    def _hand_in(self) -> None:
        at_first = int(AT_FIRST * len(self.prompts))
        for number, prompt in enumerate(self.prompts):
            if number >= at_first:
                time.sleep(PAUSE_S)
            if number % 2:
                body = {"service": self._service, "input": {"prompt": prompt}}
                self._app.send_task("pipeline.enqueue", kwargs=body, queue=QUEUE)
            else:
                self._post(prompt)

    def _post(self, prompt: str) -> None:
        while not self._given_up:
            try:
                status, _ = api.call(
                    "POST",
                    f"{self._facts.url}/v1/jobs",
                    {"input": {"prompt": prompt}},
                    key=self._facts.api_key,
                    idempotency_key=prompt,
                )
            except OSError as error:
                refused = isinstance(error, URLError) and isinstance(error.reason, ConnectionRefusedError)
                self.cut_off += not refused
            else:
                if status in (200, 201):
                    return
            time.sleep(PAUSE_S)
