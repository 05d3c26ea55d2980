"""Batch: many jobs in one request, one a line (NDJSON). All are accepted, or none, and each wrong line is named."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from pipeline.errors import FieldError, InvalidInput, MalformedRequest, PromptRefused, TooLarge
from pipeline.lifecycle import accept, screen
from pipeline.lifecycle.accept import JobRequest
from pipeline.runtime import Runtime
from pipeline.store import batch, intake
from pipeline.store.batch import Added, Line
from pipeline.store.database import Transaction
from pipeline.store.services import Service

MAX_LINES = 10_000

MAX_ERRORS = 100
"""How many wrong fields are named; whoever has more has one mistake many times."""

KEY = "idempotency_key"

GOING = "The job that it named was just being removed: send the batch again."


def accept_lines(rt: Runtime, service: Service, body: bytes, *, key: str | None = None) -> tuple[list[UUID], bool]:
    """
    Store the jobs of all lines of *body*, reserving what they cost together. The same *key* is the same batch.

    A line may carry an `idempotency_key`: it is then the job that this key named before, here or in a single request.

    Returns:
        The jobs' ids in the order of the lines, and whether this call stored the batch.

    Raises:
        TooLarge: There are more than MAX_LINES lines.
        InvalidInput: There are none, or some are wrong: `errors` names up to MAX_ERRORS of their fields.
        PromptRefused: The screen refuses some prompts: `errors` names the lines, as far, and the categories.
        NotScreened: The operator's own screen failed, or took too long.
        IdempotencyConflict: A key, of the whole or of a line, was used for something else.
        BudgetExceeded: A budget does not cover them all.
        Unavailable: There is a budget, and the provider cannot be asked for the prices now.
    """
    key = accept.known_key(key)
    values = _decoded(body)
    storable, meant = _looked_at(values)
    if key:
        with rt.db.transaction() as tx:
            if (known := batch.seen(tx, service.id, key, meant)) is not None:
                return known, False
    lines, excused = _checked(rt, service, values, storable)

    def store(tx: Transaction, *, however_old: bool) -> tuple[list[UUID], Added | None]:
        own = [line.job.id for line in lines]
        if key and (known := batch.claim(tx, service.id, key, meant, own)) is not None:
            return known, None
        added = batch.add(tx, service.id, lines, however_old=however_old)
        if excused and (new := [error for line in added.lines for error in excused.get(line.number, ())]):
            raise _refusal(new)  # the job of its key was just being removed
        if key and added.ids != own:
            batch.rename(tx, service.id, key, added.ids)
        try:
            accept.reserve(tx, service.id, added.stored)
        except accept.PriceMissing as missing:
            wrong = [FieldError("model", accept.NO_PRICE, added.lines[place].number) for place in missing.places]
            raise _refusal(wrong) from None
        return added.ids, added

    ids, added = accept.priced(rt, [line.job for line in lines], store)
    if added and added.stored:
        accept.wake(rt, added.stored)
    return ids, added is not None


def check_lines(rt: Runtime, service: Service, body: bytes) -> None:
    """
    Check the lines of *body* as `accept_lines` does, and store nothing.

    Raises:
        TooLarge, InvalidInput, PromptRefused, NotScreened: As `accept_lines` does.
    """
    values = _decoded(body)
    _checked(rt, service, values, _looked_at(values)[0])


def _decoded(body: bytes) -> list[Any]:
    """The JSON value of each line."""
    body = body.rstrip()
    if not body:
        raise InvalidInput("A batch has at least one line, each a job as a JSON object.")
    if (count := body.count(b"\n") + 1) > MAX_LINES:
        raise TooLarge(f"Send at most {MAX_LINES:,} lines; these are {count:,}.")
    values, wrong = [], []
    for number, line in enumerate(_lines(body), 1):
        try:
            values.append(accept.decode(line))
        except MalformedRequest:
            said = "Must be a job as a JSON object in UTF-8." if line.strip() else "Must not be blank."
            wrong.append(FieldError("", said, number))
            if len(wrong) == MAX_ERRORS:
                break
    if wrong:
        raise _refusal(wrong)
    return values


def _looked_at(values: Iterable[Any]) -> tuple[list[bool], bytes]:
    """
    One look at what each line says: whether it is `storable`, and a fingerprint of the whole.

    That is equal for batches of the same values in the same order, whatever the order of their fields.
    """
    storable, found = [], hashlib.sha256()
    for value in values:
        try:
            said = accept.canonical(value)
            storable.append(accept.storable(said))
        except RecursionError:  # a tower that could just be read: it will be refused
            said = ""
            storable.append(False)
        found.update(said.encode() + b"\n")
    return storable, found.digest()


def _lines(body: bytes) -> Iterator[bytes]:
    """One after the other: all at once would be the whole once more."""
    start = 0
    while (end := body.find(b"\n", start)) >= 0:
        yield body[start:end]
        start = end + 1
    yield body[start:]


def _checked(
    rt: Runtime, service: Service, values: Sequence[Any], storable: Sequence[bool]
) -> tuple[list[Line], Mapping[int, Sequence[FieldError]]]:
    """
    Give the lines as jobs, and what is wrong with those of them that were accepted before, by their numbers.

    What was accepted once under its key stays so, though it would be refused by now: its model was withdrawn since.
    """
    lines: list[Line] = []
    wrong: dict[int, list[FieldError]] = {}
    hopeless = 0
    catalogue = rt.catalogue()
    for number, (value, looked_at) in enumerate(zip(values, storable, strict=True), 1):
        key = None
        try:
            key, value = _key_of(value)  # noqa: PLW2901 - the value without its key
            request = accept.check(
                value, default_model=rt.settings.default_model, catalogue=catalogue, looked_at=looked_at
            )
            lines.append(_line(rt, service, number, key, request))
        except InvalidInput as error:
            wrong[number] = [FieldError(one.field, one.message, number) for one in error.errors]
            hopeless += key is None
            if hopeless >= MAX_ERRORS:
                break
    excused = _accepted_before(rt, service, values, wrong) if wrong else []
    if len(excused) < len(wrong):
        refused = set(wrong).difference(line.number for line in excused)
        raise _refusal([error for number in sorted(refused) for error in wrong[number]])
    if screen.is_on(rt, service):
        known = _screen(rt, service, lines)
        wrong |= {number: [FieldError(KEY, GOING, number)] for number in known}
    return sorted(lines + excused, key=lambda line: line.number) if excused else lines, wrong


def _screen(rt: Runtime, service: Service, lines: Sequence[Line]) -> list[int]:
    """Look the prompts through, but for those of lines that stand for a job there is; give these lines' numbers."""
    named = {line.key: line.fingerprint for line in lines if line.key}
    known: Collection[str | None] = ()
    if named:
        with rt.db.transaction() as tx:
            known = intake.named(tx, service.id, named)
    everyone = lines
    lines = [line for line in lines if line.key not in known]
    refusals = screen.judged(rt, service, [(line.job.model, line.job.input) for line in lines])
    wrong: list[FieldError] = []
    categories: set[str] = set()
    for line, refusal in zip(lines, refusals, strict=True):
        if isinstance(refusal, PromptRefused):
            wrong += [FieldError(one.field, one.message, line.number) for one in refusal.errors]
            categories.update(refusal.categories)
    if wrong:
        which = f"{_which(wrong, 'refused')} ({', '.join(sorted(categories))})"
        raise PromptRefused(f"Nothing was stored: {which}.{_more(wrong)}", errors=wrong[:MAX_ERRORS])
    return [line.number for line in everyone if line.key in known] if known else []


def _key_of(value: Any) -> tuple[str | None, Any]:
    """A line's key, if it has one, and the line without it."""
    if not isinstance(value, dict) or KEY not in value:
        return None, value
    if not accept.is_key(value[KEY]):
        raise InvalidInput(errors=[FieldError(KEY, accept.ODD_KEY)])
    return value[KEY], {name: item for name, item in value.items() if name != KEY}


def _line(rt: Runtime, service: Service, number: int, key: str | None, request: JobRequest) -> Line:
    return Line(number, accept.new_job(rt, service, request), key, accept.fingerprint(request) if key else b"")


def _accepted_before(rt: Runtime, service: Service, values: Sequence[Any], numbers: Iterable[int]) -> list[Line]:
    """Those of these lines whose key names a job that was made of just this request."""
    lines = []
    for number in numbers:
        try:
            key, value = _key_of(values[number - 1])
            if key:
                lines.append(_line(rt, service, number, key, accept.shaped(value)))
        except InvalidInput:
            continue
    with rt.db.transaction() as tx:
        known = intake.named(tx, service.id, {str(line.key): line.fingerprint for line in lines}) if lines else {}
    return [line for line in lines if line.key in known]


def _refusal(wrong: Sequence[FieldError]) -> InvalidInput:
    return InvalidInput(f"Nothing was stored: {_which(wrong, 'wrong')}.{_more(wrong)}", errors=wrong[:MAX_ERRORS])


def _which(wrong: Sequence[FieldError], how: str) -> str:
    lines = sorted({one.line or 0 for one in wrong[:MAX_ERRORS]})
    return f"line {lines[0]} is {how}" if len(lines) == 1 else f"{len(lines)} lines are {how}, from line {lines[0]} on"


def _more(wrong: Sequence[FieldError]) -> str:
    return f" Only the first {MAX_ERRORS} errors are named; there may be more." if len(wrong) >= MAX_ERRORS else ""
