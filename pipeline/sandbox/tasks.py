"""A task: one paid generation, and how the API, its webhook and the ledger show it."""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.sandbox.catalogue import Model
from pipeline.sandbox.faults import Fate
from pipeline.sandbox.pictures import clip, picture
from pipeline.sandbox.wire import timestamp

MODERATION = (1200, "The content contains sensitive information.")
NO_PROMPT = (1400, "The parameter prompt is required.")
FINAL = frozenset({"completed", "failed", "cancelled", "timeout", "deleted"})


@dataclass(slots=True, eq=False)
class Task:
    """Mutable: it starts, ends, and may be deleted."""

    id: str
    model: Model
    input: Mapping[str, Any]
    base: str  # scheme and host the submit came to: where the links lead
    webhook: str | None
    price: float
    created_ns: int
    fate: Fate
    own_faults: Mapping[str, object]  # from its prompt; they outlive changes of the dial
    first_status: str
    key_id: str  # of the API key that asked for it
    status: str = "created"
    code: int = 0
    error: str = ""
    started: float = 0.0  # the loop's clock
    took_ms: int = 0
    finished: asyncio.Event | None = None  # there only when a submit waits for it: there are many tasks
    announced: asyncio.Event | None = None  # each of its webhooks was tried once, or none is to be sent

    @property
    def refunded(self) -> bool:
        """Whether its price was paid back: nothing came of it."""
        return bool(self.error)

    @property
    def is_sync(self) -> bool:
        """Whether its submit is answered with the result."""
        return self.input.get("enable_sync_mode") is True

    @property
    def prompt(self) -> str:
        """What to make; empty when the model was given none."""
        prompt = self.input.get("prompt")
        return prompt if isinstance(prompt, str) else ""

    @property
    def outputs(self) -> list[str]:
        """Links to the files, or the files themselves in naked base64, once it is completed."""
        if self.status != "completed":
            return []
        numbers = range(1, self.model.outputs(self.input) + 1)
        if self.input.get("enable_base64_output") is True:
            return [base64.b64encode(self.file(number)).decode() for number in numbers]
        return [f"{self.base}/files/predictions/{self.id}/{n}.{self.model.extension}" for n in numbers]

    def file(self, number: int) -> bytes:
        """Output *number* (from 1), made when somebody asks for it."""
        if self.model.extension == "mp4":
            return clip(self.id, number)
        return picture(self.id, number, self.prompt, self.model.size(self.input))

    def prediction(self, *, with_input: bool = False, status: str | None = None) -> dict[str, object]:
        """The task as the API and the webhook show it; *status* overrides it for the answer to the submit."""
        shown: dict[str, object] = {"id": self.id, "model": self.model.id}
        if with_input:
            shown["input"] = self.input
        outputs = self.outputs if status is None else []
        shown |= {
            "outputs": outputs,
            "urls": {"get": f"{self.base}/api/v3/predictions/{self.id}/result"},
            "has_nsfw_contents": [self.fate.nsfw] * len(outputs),
            "status": status or self.status,
            "created_at": timestamp(self.created_ns),
            "error": self.error if status is None else "",
        }
        if self.code and status is None:
            shown["code"] = self.code
        took = self.took_ms if status is None else 0
        return shown | {"executionTime": took, "timings": {"inference": took}}

    def wake(self) -> None:
        """Let a submit that waits for this task go on."""
        for event in (self.finished, self.announced):
            if event is not None:
                event.set()

    def charge(self) -> dict[str, object]:
        """Its row of the ledger. The row of a failed task stays: its price was refunded, its status says so."""
        return {
            "prediction_id": self.id,
            "model": self.model.id,
            "prompt": self.prompt,
            "price": self.price,
            "at": timestamp(self.created_ns),
            "status": self.status,
        }
