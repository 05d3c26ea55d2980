"""Accept: check a request, store the job, nudge. Nothing is half-done: a refused request leaves no trace."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from pipeline import models
from pipeline.errors import BudgetExceeded, ConfigError, FieldError, InvalidInput, MalformedRequest, Unavailable
from pipeline.lifecycle import quote
from pipeline.runtime import Runtime
from pipeline.store import budgets, intake
from pipeline.store.budgets import Purse, Purses
from pipeline.store.database import Transaction
from pipeline.store.intake import NewJob, Stored
from pipeline.store.services import Service

MAX_DEADLINE_S = 7 * 86400
"""The provider keeps results for seven days: nothing can be learnt of a job after that."""

NO_PRICE = "The provider names no price for it, and there is a budget: set one with `pipeline models price MODEL USD`."

MAX_DELAY = timedelta(days=366)
_MAX_METADATA = 50
_MAX_DEPTH = 32
_MAX_URL = 2000
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")

Seconds = Annotated[StrictFloat, Field(ge=1, le=MAX_DEADLINE_S)]  # takes whole numbers too
MetadataName = Annotated[StrictStr, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[StrictStr, Field(max_length=500)]


def _time_as_text(value: object) -> object:
    if not isinstance(value, str):  # a bare number would be read as seconds, or as milliseconds
        raise ValueError("must be a text such as 2026-01-31T12:00:00Z")
    return value


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be an http:// or https:// address, percent-encoded, of at most 2000 characters")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("must have no credentials and no fragment")
    return url


class JobRequest(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """What a caller asks for."""

    model: StrictStr | None = None
    input: dict[str, Any]
    priority: Annotated[StrictInt, Field(ge=-10, le=10)] = 0
    run_at: Annotated[AwareDatetime, BeforeValidator(_time_as_text)] | None = None
    deadline_s: Seconds | None = None
    callback_url: Annotated[StrictStr, AfterValidator(_address)] | None = None
    callback_task: StrictStr | None = None
    metadata: Annotated[dict[MetadataName, MetadataValue], Field(max_length=_MAX_METADATA)] = {}


def decode(body: bytes) -> Any:
    """
    The JSON value in *body*, of whatever kind.

    Raises:
        MalformedRequest: It is not JSON in UTF-8.
    """
    try:
        return json.loads(body.decode(), parse_constant=_no_constants)
    except (ValueError, RecursionError):  # bad UTF-8 and endless digits are ValueErrors too
        raise MalformedRequest("The body must be a JSON object in UTF-8.") from None


def check(value: Any, *, default_model: str) -> JobRequest:
    """
    Check one request, its model input too, before anything is stored or paid.

    Raises:
        InvalidInput: Its `errors` name every wrong field.
    """
    if not isinstance(value, dict):
        raise InvalidInput("A job is a JSON object.", errors=[FieldError("", "Send an object with the field input.")])
    if unstorable := _unstorable(value):
        raise InvalidInput(errors=unstorable)
    try:
        request = JobRequest.model_validate(value)
    except ValidationError as error:
        raise InvalidInput(errors=[_field_error(item) for item in error.errors(include_url=False)]) from None
    if request.run_at and request.run_at > datetime.now(UTC) + MAX_DELAY:
        raise InvalidInput(errors=[FieldError("run_at", "Must be at most 366 days from now.")])
    model = request.model or default_model
    if problem := models.name_problem(model):
        raise InvalidInput(errors=[FieldError("model", problem)])
    if errors := models.check(model, request.input):
        raise InvalidInput(errors=errors)
    return request


def accept(rt: Runtime, service: Service, request: JobRequest, *, key: str | None = None) -> tuple[UUID, bool]:
    """
    Store one checked request. With an idempotency *key*, the same request again is the same job.

    What it costs is reserved in the same transaction from the budgets of its service and of the account.

    Returns:
        The job's id, and whether this call made it.

    Raises:
        InvalidInput: The key is not 1 to 255 printable ASCII characters; or there is a budget, and no price.
        IdempotencyConflict: The key was used for another request.
        BudgetExceeded: A budget does not cover it.
        Unavailable: There is a budget, and the provider cannot be asked for the price now.
    """
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):  # a message may hold anything
        message = "Must be 1 to 255 printable ASCII characters."
        raise InvalidInput(errors=[FieldError("Idempotency-Key", message)])
    if (task := request.callback_task) and task not in {allowed["task"] for allowed in service.callback_tasks}:
        message = f"Is not a task that {service.name} may name; `pipeline services set` allows one."
        raise InvalidInput(errors=[FieldError("callback_task", message)])
    payload, options = models.split(request.input)
    job = NewJob(
        service_id=service.id,
        model=request.model or rt.settings.default_model,
        input=payload,
        options=options,
        metadata=request.metadata,
        priority=request.priority,
        run_at=request.run_at if request.run_at and request.run_at > datetime.now(UTC) else None,  # the past is now
        deadline_s=float(request.deadline_s or rt.settings.deadline_s),
        callback_url=request.callback_url,
        callback_task=request.callback_task,
    )
    fingerprint = _fingerprint(request) if key else b""
    try:
        job_id, stored = _stored(rt, job, key, fingerprint)
    except _PriceWanted:
        try:
            quote.ask_now(rt, job.model, job.input)
            job_id, stored = _stored(rt, job, key, fingerprint, however_old=True)
        except (_PriceWanted, ConfigError):  # or there is no key in this process to ask with
            raise Unavailable("The provider cannot be asked now what this costs, and a budget hangs on it.") from None
    if stored:
        rt.nudge("submit" if stored.priced else "admit")
    return job_id, stored is not None


class _PriceWanted(Exception):
    """A budget hangs on a price that is not known yet."""


def _stored(
    rt: Runtime, job: NewJob, key: str | None, fingerprint: bytes, *, however_old: bool = False
) -> tuple[UUID, Stored | None]:
    """Store one job and reserve its price, or neither."""
    with rt.db.transaction() as tx:
        stored: Stored | None
        if key is None:
            (stored,) = intake.add(tx, [job], however_old=however_old)
            job_id = job.id
        else:
            job_id, stored = intake.add_once(tx, job, key, fingerprint, however_old=however_old)
        if stored and stored.budgeted:
            _reserve(tx, job.service_id, stored)
    return job_id, stored


def _reserve(tx: Transaction, service_id: UUID, stored: Stored) -> None:
    purses = Purses(tx, [service_id])
    if not purses.limit(service_id):
        return
    if not stored.priced:
        raise _PriceWanted
    if stored.usd is None:
        raise InvalidInput(errors=[FieldError("model", NO_PRICE)])
    if short := purses.reserve(service_id, stored.usd):
        raise BudgetExceeded(short_of(short, stored.usd))
    purses.save()


def short_of(purse: Purse, usd: Decimal) -> str:
    """Say which budget does not cover *usd*. What others have left is not a caller's business."""
    costs = f"The job costs {usd.normalize():f} USD"
    if purse.scope == budgets.ACCOUNT:
        return f"{costs}, more than is left of this {purse.period}'s budget of the account."
    limit = f"this {purse.period}'s budget of {purse.limit_usd.normalize():f} USD"
    return f"{costs}, and {purse.left.normalize():f} are left of {limit}."


def _fingerprint(request: JobRequest) -> bytes:
    """Equal for requests that mean the same, whatever the order of their fields."""
    said = request.model_dump(mode="json")
    for name in ("callback_url", "callback_task"):  # younger than fingerprints that are kept
        if said[name] is None:
            del said[name]
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).digest()


def _field_error(item: Any) -> FieldError:
    field = ".".join(str(part) for part in item["loc"] if part != "[key]")
    kind = item["type"]
    if kind == "missing":
        return FieldError(field, "Is required.")
    if kind == "extra_forbidden":
        return FieldError(field, "Is not a field we know; remove it.")
    return FieldError(field, f"{item['msg'].removeprefix('Value error, ')}.")


def _unstorable(value: Any, path: str = "", depth: int = 0) -> list[FieldError]:
    """Fields whose text Postgres cannot keep, whose number is no number, or that are a tower to fall from."""
    if depth > _MAX_DEPTH:
        return [FieldError(path, f"Is nested more than {_MAX_DEPTH} deep.")]
    if isinstance(value, str):
        wrong = _UNSTORABLE.search(value)
        return [FieldError(path, "Must not contain NUL characters or lone surrogates.")] if wrong else []
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return [FieldError(path, "Is too large a number.")]
    if isinstance(value, dict):
        found = []
        for name, item in value.items():
            shown = _UNSTORABLE.sub("\ufffd", name)
            below = f"{path}.{shown}" if path else shown
            found += _unstorable(name, below) + _unstorable(item, below, depth + 1)
        return found
    if isinstance(value, list):
        return [error for index, item in enumerate(value) for error in _unstorable(item, f"{path}.{index}", depth + 1)]
    return []


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
