"""Accept: check a request, store the job, nudge. Nothing is half-done: a refused request leaves no trace."""

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Protocol, TypeVar
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

from pipeline import addresses, models, prices
from pipeline.errors import (
    BudgetExceeded,
    ConfigError,
    FieldError,
    InvalidInput,
    MalformedRequest,
    NotScreened,
    PromptRefused,
    Unavailable,
)
from pipeline.lifecycle import quote, screen
from pipeline.models import Catalogue
from pipeline.runtime import Runtime
from pipeline.store import budgets, intake
from pipeline.store.budgets import Purse, Purses
from pipeline.store.database import Transaction
from pipeline.store.intake import NewJob, Stored
from pipeline.store.services import Service

T = TypeVar("T", covariant=True)  # noqa: PLC0105 - mypy asks for it of a protocol

MAX_DEADLINE_S = 7 * 86400
"""The provider keeps results for seven days: nothing can be learnt of a job after that."""

NO_PRICE = "The provider names no price for it, and there is a budget: set one with `pipeline models price MODEL USD`."

REFUSED = (InvalidInput, PromptRefused, NotScreened)
"""Why a request is not accepted that may have been accepted before, under its key."""

ODD_KEY = "Must be 1 to 255 printable ASCII characters."

MAX_DELAY = timedelta(days=366)
_MAX_METADATA = 50
_MAX_DEPTH = 32
_MAX_URL = 2000
_PLAIN = re.compile(r"[\x21-\x7e]+")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ODD_ESCAPE = re.compile(r"\\u(0000|d[89a-f])")
_KEY = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,254}")

Seconds = Annotated[StrictFloat, Field(ge=1, le=MAX_DEADLINE_S)]  # takes whole numbers too
MetadataName = Annotated[StrictStr, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[StrictStr, Field(max_length=500)]


def _time_as_text(value: object) -> object:
    if not isinstance(value, str):  # a bare number would be read as seconds, or as milliseconds
        raise ValueError("must be a text such as 2026-01-31T12:00:00Z")
    return value


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON has one kind of number


def address(url: str) -> str:
    """An address that may be called back, wherever it leads; else a ValueError that says what it must be."""
    if len(url) > _MAX_URL or not _PLAIN.fullmatch(url):
        raise ValueError("must be an http:// or https:// address, percent-encoded, of at most 2000 characters")
    if addresses.parse(url).raw_fragment:
        raise ValueError("must have no fragment")
    return url


def callback_problem(rt: Runtime, url: str) -> FieldError | None:
    """What is wrong with calling back *url*, where it leads to too, as far as can be known without asking DNS."""
    try:
        problem = addresses.address_problem(address(url), rt.settings.outbound_allow)
    except ValueError as error:
        problem = str(error)
    return FieldError("callback_url", f"{problem}.") if problem else None


_ADDRESS = {"format": "uri", "maxLength": _MAX_URL, "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://"}


class JobRequest(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """What a caller asks for."""

    model: StrictStr | None = Field(None, description="The provider's id of a model; the operator chose the default.")
    input: dict[str, Any] = Field(description="What the model is asked: its `prompt`, and its own options.")
    priority: Annotated[StrictInt, Field(ge=-10, le=10), BeforeValidator(_whole)] = Field(
        0, description="Higher goes first, among the service's own jobs."
    )
    run_at: Annotated[AwareDatetime, BeforeValidator(_time_as_text)] | None = Field(
        None, description="Not before this time, at most 366 days ahead; with a zone. What has passed is now."
    )
    deadline_s: Seconds | None = Field(
        None, description="How many seconds after `run_at` the job expires, unless it has ended."
    )
    callback_url: Annotated[StrictStr, AfterValidator(address), Field(json_schema_extra=_ADDRESS)] | None = Field(
        None, description="Where its owner is told of the end: a public address."
    )
    callback_task: StrictStr | None = Field(
        None, description="The name of a Celery task to be told instead, if the service may name it."
    )
    metadata: Annotated[dict[MetadataName, MetadataValue], Field(max_length=_MAX_METADATA)] = Field(
        {}, description="Labels of your own: shown with the job."
    )


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constants)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)


def canonical(value: Any) -> str:
    """JSON in ASCII, equal for values that mean the same, whatever the order of their fields."""
    return _CANONICAL.encode(value)


def decode(body: bytes) -> Any:
    """
    The JSON value in *body*, of whatever kind.

    Raises:
        MalformedRequest: It is not JSON in UTF-8.
    """
    try:
        return _JSON.decode(body.decode())
    except (ValueError, RecursionError):  # bad UTF-8 and endless digits are ValueErrors too
        raise MalformedRequest("The body must be a JSON object in UTF-8.") from None


def take(rt: Runtime, service: Service, value: Any, *, key: str | None = None) -> tuple[UUID, bool]:
    """
    Check a request as it came, and accept it: `check`, `screen.check`, then `accept`.

    What was accepted once under its *key* stays so, though it would be refused by now: its model was withdrawn since,
    or a word in it is one that prompts are screened for.
    """
    try:
        request = check(value, default_model=rt.settings.default_model, catalogue=rt.catalogue())
        screen.check(rt, service, request.model or rt.settings.default_model, request.input)
        return accept(rt, service, request, key=key)
    except REFUSED:
        if known := _accepted_before(rt, service, value, key):
            return known, False
        raise


def _accepted_before(rt: Runtime, service: Service, value: Any, key: str | None) -> UUID | None:
    if not is_key(key):
        return None
    try:
        meant = fingerprint(shaped(value))
    except InvalidInput:
        return None
    with rt.db.transaction() as tx:
        return intake.named(tx, service.id, {str(key): meant}).get(str(key))


def check(value: Any, *, default_model: str, catalogue: Catalogue, looked_at: bool = False) -> JobRequest:
    """
    Check one request, its model input too, before anything is stored or paid. *catalogue* is `rt.catalogue()`.

    *looked_at*: it is known to be `storable`.

    Raises:
        InvalidInput: Its `errors` name every wrong field.
    """
    request = shaped(value, looked_at=looked_at)
    if request.run_at and request.run_at > datetime.now(UTC) + MAX_DELAY:
        raise InvalidInput(errors=[FieldError("run_at", "Must be at most 366 days from now.")])
    if errors := catalogue.problems(request.model or default_model, request.input):
        raise InvalidInput(errors=errors)
    return request


def shaped(value: Any, *, looked_at: bool = False) -> JobRequest:
    """
    Read a request whose fields are of the right kinds; what they name may not exist. *looked_at*: it is `storable`.

    Raises:
        InvalidInput: As `check` does.
    """
    if not isinstance(value, dict):
        raise InvalidInput("A job is a JSON object.", errors=[FieldError("", "Send an object with the field input.")])
    if not looked_at and (unstorable := _unstorable(value)):
        raise InvalidInput(errors=unstorable)
    try:
        return JobRequest.model_validate(value)
    except ValidationError as error:
        raise InvalidInput(errors=[_field_error(item) for item in error.errors(include_url=False)]) from None


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
    key = known_key(key)
    job = new_job(rt, service, request)

    def store(tx: Transaction, *, however_old: bool) -> tuple[UUID, Stored | None]:
        meant = fingerprint(request) if key else b""
        job_id, stored = add_one(tx, job, key, meant, however_old=however_old)
        if stored:
            reserve(tx, job.service_id, [stored])
        return job_id, stored

    job_id, stored = priced(rt, [job], store)
    if stored:
        wake(rt, [stored])
    return job_id, stored is not None


def known_key(key: str | None) -> str | None:
    """
    Check an Idempotency-Key, if there is one.

    Raises:
        InvalidInput: It is not 1 to 255 printable ASCII characters.
    """
    if key is not None and not is_key(key):
        raise InvalidInput(errors=[FieldError("Idempotency-Key", ODD_KEY)])
    return key


def is_key(value: object) -> bool:
    """Whether *value*, which may be anything, may be an idempotency key."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def new_job(rt: Runtime, service: Service, request: JobRequest) -> NewJob:
    """
    The job that a checked request asks for.

    Raises:
        InvalidInput: It wants to be told where nobody may be called, or by a task that its service may not name.
    """
    if request.callback_url and (problem := callback_problem(rt, request.callback_url)):
        raise InvalidInput(errors=[problem])
    if (task := request.callback_task) and task not in {allowed["task"] for allowed in service.callback_tasks}:
        message = f"Is not a task that {service.name} may name; `pipeline services set` allows one."
        raise InvalidInput(errors=[FieldError("callback_task", message)])
    payload, options = models.split(request.input)
    return NewJob(
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


class Store(Protocol[T]):
    """What is done in the accepting transaction; *however_old*: an old price will do. Done twice at most."""

    def __call__(self, tx: Transaction, *, however_old: bool) -> T: ...


def priced(rt: Runtime, jobs: Collection[NewJob], store: Store[T]) -> T:
    """
    Store jobs by *store* and give what it returns; when a budget hangs on prices, ask for them first.

    Raises:
        Unavailable: The provider cannot be asked now.
    """
    try:
        with rt.db.transaction() as tx:
            return store(tx, however_old=False)
    except _PriceWanted:
        try:
            quote.ask_now(rt, {(job.model, prices.key(job.input)): job.input for job in jobs})
            with rt.db.transaction() as tx:
                return store(tx, however_old=True)
        except (_PriceWanted, ConfigError):  # or there is no key in this process to ask with
            raise Unavailable("The provider cannot be asked now what this costs, and a budget hangs on it.") from None


class _PriceWanted(Exception):
    """A budget hangs on a price that is not known yet."""


def add_one(
    tx: Transaction, job: NewJob, key: str | None, meant: bytes, *, however_old: bool, owner: UUID | None = None
) -> tuple[UUID, Stored | None]:
    """
    Store one job, unless *key* names it already; nothing is reserved yet.

    The key is one of *owner*, if that is not the job's service; *meant* is the fingerprint of what it names.
    """
    if key is None:
        (stored,) = intake.add(tx, [job], however_old=however_old)
        return job.id, stored
    return intake.add_once(tx, job, key, meant, however_old=however_old, owner=owner)


def reserve(tx: Transaction, service_id: UUID, stored: Sequence[Stored]) -> None:
    """
    Reserve what jobs of one service, just stored, cost together; if they count against a budget.

    Raises:
        InvalidInput: The provider names no price; the lines are those of *stored*, when there are several.
        BudgetExceeded: A budget does not cover them.
    """
    if not any(one.budgeted for one in stored):
        return
    purses = Purses(tx, [service_id])
    if not purses.limit(service_id):
        return
    if not all(one.priced for one in stored):
        raise _PriceWanted
    if missing := [number for number, one in enumerate(stored) if one.usd is None]:
        raise PriceMissing(missing)
    usd = sum((one.usd for one in stored if one.usd is not None), Decimal())
    if short := purses.reserve(service_id, usd):
        raise BudgetExceeded(short_of(short, usd, len(stored)))
    purses.save()


class PriceMissing(InvalidInput):
    """There is a budget, and the provider names no price; `places` says of which of the jobs."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__(errors=[FieldError("model", NO_PRICE)])
        self.places = places


def wake(rt: Runtime, stored: Collection[Stored]) -> None:
    """Have what was stored looked at, once it is committed."""
    rt.nudge(*sorted({"submit" if one.priced else "admit" for one in stored}))


def short_of(purse: Purse, usd: Decimal, count: int = 1) -> str:
    """Say which budget does not cover *usd*. What others have left is not a caller's business."""
    costs = f"The job costs {usd.normalize():f} USD" if count == 1 else f"The jobs cost {usd.normalize():f} USD"
    if purse.scope == budgets.ACCOUNT:
        return f"{costs}, more than is left of this {purse.period}'s budget of the account."
    limit = f"this {purse.period}'s budget of {purse.limit_usd.normalize():f} USD"
    return f"{costs}, and {purse.left.normalize():f} are left of {limit}."


def fingerprint(request: JobRequest) -> bytes:
    """Equal for requests that mean the same, whatever the order of their fields."""
    said = request.model_dump(mode="json")
    for name in ("callback_url", "callback_task"):  # younger than fingerprints that are kept
        if said[name] is None:
            del said[name]
    return hashlib.sha256(canonical(said).encode()).digest()


def _field_error(item: Any) -> FieldError:
    field = ".".join(str(part) for part in item["loc"] if part != "[key]")
    kind = item["type"]
    if kind == "missing":
        return FieldError(field, "Is required.")
    if kind == "extra_forbidden":
        return FieldError(field, "Is not a field we know; remove it.")
    return FieldError(field, f"{item['msg'].removeprefix('Value error, ')}.")


def storable(said: str) -> bool:
    """Whether a value with this `canonical` text can be stored. False: that has to be looked at more closely."""
    nested = said.count("{") + said.count("[")  # at least as much as its depth
    odd = ("\\u" in said and _ODD_ESCAPE.search(said)) or "Infinity" in said or "NaN" in said
    return nested <= _MAX_DEPTH and not odd


def _unstorable(value: Any) -> list[FieldError]:
    """What of *value* cannot be stored, field by field. One look at its text clears nearly all of them, quickly."""
    try:
        return [] if storable(canonical(value)) else _unstorable_in(value)
    except (RecursionError, ValueError):  # a tower, or a number of endless digits
        return _unstorable_in(value)


def _unstorable_in(value: Any, path: str = "", depth: int = 0) -> list[FieldError]:
    """Fields whose text Postgres cannot keep, whose number is no number, or that are a tower to fall from."""
    if depth > _MAX_DEPTH:
        return [FieldError(path, f"Is nested more than {_MAX_DEPTH} deep.")]
    if isinstance(value, str):
        wrong = _UNSTORABLE.search(value)
        return [FieldError(path, "Must not contain NUL characters or lone surrogates.")] if wrong else []
    if isinstance(value, float) and not math.isfinite(value):
        return [FieldError(path, "Is too large a number." if math.isinf(value) else "Is no number.")]
    if isinstance(value, dict):
        found = []
        for name, item in value.items():
            shown = _UNSTORABLE.sub("\ufffd", name)
            below = f"{path}.{shown}" if path else shown
            found += _unstorable_in(name, below) + _unstorable_in(item, below, depth + 1)
        return found
    if isinstance(value, list):
        inside = [_unstorable_in(item, f"{path}.{index}", depth + 1) for index, item in enumerate(value)]
        return [error for errors in inside for error in errors]
    return []
