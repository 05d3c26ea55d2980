"""Lists of jobs, page by page."""

import base64
import re
from typing import Any
from uuid import UUID

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from pipeline import models, views
from pipeline.errors import FieldError, InvalidInput
from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import lists, services
from pipeline.store.lists import Wanted
from pipeline.store.services import Service
from pipeline.web.api import examples, shapes
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import Answer, Body, Call, Parameter, described

bp = Blueprint("lists", __name__, url_prefix="/v1")

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
MAX_LABELS = 10

METADATA = "metadata."
KNOWN = ("state", "model", "after", "limit", "service", "metadata.NAME")

_LIMIT = re.compile("[0-9]{1,3}")


_FILTERS = [
    Parameter("state", "query", "Only jobs in this state.", {"type": "string", "enum": list(State)}, "completed"),
    Parameter("model", "query", "Only jobs for this model.", {"type": "string", "maxLength": 200}, "openai/dall-e-2"),
    Parameter(
        "metadata",
        "query",
        "Only jobs that carry this label: `metadata.order=4711`. Several must all be carried.",
        {
            "type": "object",
            "propertyNames": {"pattern": r"^metadata\..+"},
            "additionalProperties": {"type": "string"},
            "maxProperties": MAX_LABELS,
        },
        {"metadata.order": "4711"},
        {"style": "form", "explode": True},
    ),
    Parameter(
        "after",
        "query",
        "Go on where a page ended: its `next`, unchanged.",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]{21}[AQgw]$"},
    ),
    Parameter(
        "limit",
        "query",
        "How many jobs a page has at most.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        50,
    ),
    Parameter("service", "query", "Only this service's jobs. For operator keys.", {"type": "string"}),
]


@bp.get("/jobs")
@described(
    Call(
        "List jobs",
        "The newest first, page by page, until `next` is null. A page takes as long however many jobs there are; they"
        " are never counted. Under a rare combination of filters one may hold fewer than `limit`, or none, and go on.",
        place=3,
        parameters=_FILTERS,
        answers=[
            Answer(
                200,
                "One page.",
                [Body(shapes.JobList, {"the last page": {"items": [examples.COMPLETED], "next": None}})],
            )
        ],
        errors=[InvalidInput],
    )
)
def list_jobs() -> ResponseReturnValue:
    """The newest jobs, filtered, and the cursor of the next page: `{"items": […], "next": cursor or null}`."""
    rt, service = caller()
    asked = _Query(rt, service)
    with rt.db.transaction() as tx:
        page = lists.page(tx, asked.wanted, after=asked.after, limit=asked.limit)
    items = [views.job(row, rt.settings.public_url) for row in page.rows]
    return jsonify(items=items, next=page.next and cursor(page.next))


def cursor(job_id: UUID) -> str:
    """Where a page ended, as callers hand it back."""
    return base64.urlsafe_b64encode(job_id.bytes).rstrip(b"=").decode()


class _Query:
    """The query string, read once; InvalidInput names every parameter that is wrong."""

    def __init__(self, rt: Runtime, service: Service) -> None:
        self._wrong: list[FieldError] = []
        said: dict[str, str] = {}
        for name, values in request.args.lists():
            shown = name.replace("\x00", "\ufffd")[:100]
            if name not in KNOWN[:-1] and not (name.startswith(METADATA) and len(name) > len(METADATA)):
                self._refuse(shown, f"Is not a parameter we know; there are {', '.join(KNOWN)}.")
            elif len(values) > 1:
                self._refuse(shown, "Must be given once.")
            elif "\x00" in name + values[0]:
                self._refuse(shown, "Must not contain NUL characters.")
            else:
                said[name] = values[0]
        self.limit = self._limit(said.get("limit"))
        self.after = self._after(said.get("after"))
        self.wanted = Wanted(
            service_ids=self._services(rt, service, said.get("service")),
            state=self._state(said.get("state")),
            model=self._model(said.get("model")),
            metadata=self._metadata(said),
        )
        if self._wrong:
            raise InvalidInput("Some parameters are wrong.", errors=self._wrong)

    def _refuse(self, field: str, message: str) -> None:
        self._wrong.append(FieldError(field, message))

    def _limit(self, said: str | None) -> int:
        if said is None:
            return DEFAULT_LIMIT
        if not _LIMIT.fullmatch(said) or not 1 <= int(said) <= MAX_LIMIT:
            self._refuse("limit", f"Must be a whole number from 1 to {MAX_LIMIT}.")
            return DEFAULT_LIMIT
        return int(said)

    def _after(self, said: str | None) -> UUID | None:
        if said is None:
            return None
        try:
            found = UUID(bytes=base64.urlsafe_b64decode(said.encode("ascii") + b"=="))
        except ValueError:  # what is no base64, no ASCII or of another length
            found = None
        if found is None or cursor(found) != said:
            self._refuse("after", "Must be the `next` of an earlier page, unchanged.")
        return found

    def _state(self, said: str | None) -> State | None:
        if said is not None and said not in set(State):
            self._refuse("state", f"Must be one of {', '.join(State)}.")
            return None
        return said and State(said)  # type: ignore[return-value]

    def _model(self, said: str | None) -> str | None:
        if said is not None and (problem := models.name_problem(said)):
            self._refuse("model", problem)
        return said

    def _metadata(self, said: dict[str, str]) -> dict[str, str]:
        labels = {name.removeprefix(METADATA): value for name, value in said.items() if name.startswith(METADATA)}
        if len(labels) > MAX_LABELS:
            self._refuse(METADATA + next(iter(labels)), f"At most {MAX_LABELS} metadata filters can be combined.")
        return labels

    def _services(self, rt: Runtime, service: Service, said: str | None) -> Any:
        if not service.operator:
            if said is not None:
                self._refuse("service", "Is for operators; your key lists your own jobs anyway.")
            return [service.id]
        if said is None:
            return None
        with rt.db.transaction() as tx:
            named = services.by_name(tx, said, revoked=True) if services.NAME.fullmatch(said) else None
        if named is None:
            self._refuse("service", "There is no service of this name.")
            return None
        return [named.id]
