"""The events of one job, however often the stream of them breaks."""

import json
import time
from collections.abc import Iterator

import httpx2

from pipeline.client.answers import Event
from pipeline.client.errors import ConnectionFailed
from pipeline.client.retries import Retries, failure
from pipeline.client.steps import Call, JobLike, Pause, Steps, ask, path_of

EVENT_STREAM = "text/event-stream"

SILENCE_S = 60.0
"""A stream that is silent for longer is dead: the pipeline sends something every 15 s."""

SHORT_STREAM_S = 5.0
"""A stream that ends sooner, and brought nothing, is as good as an error."""


class Story:
    """The events of a job so far: where to go on when the stream breaks, and whether that is all."""

    def __init__(self, job: JobLike, after: int, retries: Retries) -> None:
        self.over = False
        self._job = job
        self._after = after
        self._retries = retries
        self._fruitless = 0
        self._opened = 0.0

    def open(self) -> Steps[httpx2.Response]:
        """Ask for what comes next; before it the pause that is due after streams that brought nothing."""
        if self._fruitless:
            broken = httpx2.ReadError("The stream of events ends at once.", request=httpx2.Request("GET", "/events"))
            pause_s = self._retries.pause_s(self._fruitless, broken)
            if pause_s is None:
                raise failure(broken)
            yield Pause(pause_s)
        headers = {"Accept": EVENT_STREAM} | ({"Last-Event-ID": str(self._after)} if self._after else {})
        call = Call("GET", f"{path_of(self._job)}/events", headers=headers, stream=True, answer_s=SILENCE_S)
        answer = yield from ask(call, self._retries)
        self.over = answer.status_code == 204  # there will be no more
        self._opened = time.monotonic()
        self._fruitless += 1
        return answer

    def hear(self, message: httpx2.ServerSentEvent) -> Iterator[Event]:
        """Take in one message of the stream."""
        if not message.data:
            return
        try:
            event = Event.read(json.loads(message.data))
        except (ValueError, TypeError):
            raise ConnectionFailed("The stream of events holds something else.") from None
        self._fruitless = 0
        self._after = event.seq
        self.over = event.job is not None
        yield event

    def closed(self) -> None:
        """The stream has ended, as it does now and then."""
        if time.monotonic() - self._opened > SHORT_STREAM_S:
            self._fruitless = 0
