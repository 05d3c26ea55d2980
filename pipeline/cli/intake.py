"""Store the jobs of a command, whole or not at all, in as few transactions as it takes."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from uuid import UUID

from pipeline.cli.common import err
from pipeline.cli.rows import Defaults, Row
from pipeline.cli.waiting import progress
from pipeline.errors import FieldError, InvalidInput, PipelineError
from pipeline.lifecycle import batch
from pipeline.runtime import Runtime
from pipeline.store.services import Service
from pipeline.store.tables import new_id

MAX_BYTES = 32 * 1024 * 1024
"""Of one transaction; as much as one request may hand in."""


@dataclass
class Part:
    """Jobs to be stored in one transaction, as NDJSON; and on which line of its file each began, 0 if in none."""

    at_most: int = batch.MAX_LINES
    lines: list[int] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def takes(self, job: bytes) -> bool:
        """Whether there is room for another."""
        return not self.lines or (len(self.lines) < self.at_most and len(self.body) + len(job) < MAX_BYTES)

    def refusal(self, error: PipelineError) -> PipelineError:
        """The same error, by the lines of the file."""
        if not any(one.line for one in error.errors):
            return error
        found = [
            FieldError(one.field, one.message, (one.line and self.lines[one.line - 1]) or None) for one in error.errors
        ]
        what = "lines" if any(self.lines) else "fields"
        return InvalidInput(f"Nothing was stored: some {what} are wrong.", errors=found)


def store(
    rt: Runtime,
    service: Service,
    rows: Callable[[], Iterator[Row]],
    defaults: Defaults,
    *,
    at_once: int = batch.MAX_LINES,
) -> list[UUID]:
    """
    Store all jobs of *rows*, which is called for each reading of them; give their ids in order.

    A transaction takes *at_once* of them.

    Raises:
        PipelineError: None was stored; or, of more than fit into one transaction, not all: then it was said how to go
            on.
    """
    parts = _parts(rows(), defaults, at_once)
    first, second = next(parts, None), next(parts, None)
    if first is None:
        raise InvalidInput("There is no job in it.")
    if second is None:
        return _store(rt, service, first)
    total = 0
    with progress("checking", 0) as shown:
        for part in chain((first, second), parts):
            try:
                batch.check_lines(rt, service, bytes(part.body))
            except PipelineError as error:
                raise part.refusal(error) from None
            total += len(part.lines)
            shown(total)
    defaults = replace(defaults, key=defaults.key or f"cli-{new_id().hex}")
    ids: list[UUID] = []
    with progress("storing", total) as shown:
        try:
            for part in _parts(rows(), defaults, at_once):
                ids += _store(rt, service, part)
                shown(len(ids))
        except BaseException:
            _say_how_to_go_on(ids, total, defaults)
            raise
    return ids


def _store(rt: Runtime, service: Service, part: Part) -> list[UUID]:
    try:
        return batch.accept_lines(rt, service, bytes(part.body))[0]
    except PipelineError as error:
        raise part.refusal(error) from None


def _parts(rows: Iterator[Row], defaults: Defaults, at_once: int) -> Iterator[Part]:
    part = Part(at_once)
    for number, (line, job) in enumerate(rows, 1):
        encoded = json.dumps(defaults.complete(number, job)).encode() + b"\n"
        if not part.takes(encoded):
            yield part
            part = Part(at_once)
        part.lines.append(line)
        part.body += encoded
    if part.lines:
        yield part


def _say_how_to_go_on(ids: Sequence[UUID], total: int, defaults: Defaults) -> None:
    if ids:
        err.print(
            f"{len(ids):,} of {total:,} jobs are stored. The same command with --key {defaults.key} stores the others,"
            " and none of these again.",
            markup=False,
        )
