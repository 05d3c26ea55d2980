"""Jobs to hand in, from a file: one a line of text, one an object of JSON Lines, or one a row of CSV."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any, BinaryIO

from pipeline.errors import FieldError, InvalidInput

OF_THE_JOB = frozenset(
    {"model", "priority", "run_at", "deadline_s", "callback_url", "callback_task", "idempotency_key"}
)
"""Columns that are fields of the job; every other is one of the model's input, unless it begins with a prefix."""

NUMBERS = frozenset({"priority", "deadline_s"})
INPUT, METADATA = "input.", "metadata."

Row = tuple[int, dict[str, Any]]
"""The line of the file where a job begins, from 1 (0: there is no file), and the job as the API takes it."""


class Format(StrEnum):
    """How jobs are written down in a file."""

    TEXT = "text"
    JSONL = "jsonl"
    CSV = "csv"


def format_of(name: str) -> Format:
    """How a file of that name is written."""
    endings = {".jsonl": Format.JSONL, ".ndjson": Format.JSONL, ".csv": Format.CSV}
    return endings.get(PurePath(name).suffix.lower(), Format.TEXT)


@dataclass(frozen=True)
class Defaults:
    """What holds for every job that does not say otherwise itself."""

    fields: Mapping[str, Any]
    input: Mapping[str, Any]
    metadata: Mapping[str, str]
    key: str | None = None

    def complete(self, number: int, job: dict[str, Any]) -> dict[str, Any]:
        """Fill in what the *number*th job leaves open."""
        whole = {**self.fields, **job}
        for name, defaults in (("input", self.input), ("metadata", self.metadata)):
            said = job.get(name, {})
            if isinstance(said, dict) and (defaults or name in job):  # else it is refused as it is
                whole[name] = {**defaults, **said}
        if self.key is not None:
            whole.setdefault("idempotency_key", f"{self.key}-{number}")
        return whole


def read(file: BinaryIO, written: Format) -> Iterator[Row]:
    """
    Read the jobs of a file, from its beginning, one by one. Blank lines are passed over.

    Raises:
        InvalidInput: A line cannot be read; it is named.
    """
    file.seek(0)
    readers = {Format.TEXT: _text, Format.JSONL: _jsonl, Format.CSV: _csv}
    return readers[written](_lines(file))


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise _wrong(number, "", "Is not UTF-8.") from None
        yield number, text.removeprefix("\ufeff") if number == 1 else text  # Excel's mark


def _text(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        if prompt := line.strip():
            yield number, {"input": {"prompt": prompt}}


def _jsonl(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise _wrong(number, "", "Must be a job as a JSON object.")
        yield number, value


def _csv(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    begun = 0  # the line where the row begins: a cell may span several

    def numbered() -> Iterator[str]:
        nonlocal begun
        for number, line in lines:
            begun = begun or number
            yield line

    rows = csv.reader(numbered(), strict=True)
    header: list[str] = []
    while True:
        begun = 0
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise _wrong(begun or 1, "", f"Is not CSV: {error}.") from None
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            for name in header:
                if not name or header.count(name) > 1:
                    raise _wrong(begun, name, "Each column has a name of its own, in the first line.")
            continue
        if len(cells) > len(header):
            raise _wrong(begun, "", f"Has {len(cells)} cells, and there are {len(header)} columns.")
        yield begun, _job(begun, dict(zip(header, cells, strict=False)))


def _job(line: int, cells: Mapping[str, str]) -> dict[str, Any]:
    """Make a job of a row of cells; an empty one says nothing."""
    job: dict[str, Any] = {"input": {}}
    for column, cell in cells.items():
        if not cell:
            continue
        if column.startswith(METADATA):
            job.setdefault("metadata", {})[column.removeprefix(METADATA)] = cell
        elif column in NUMBERS:
            if not isinstance(number := _value(cell), int | float):
                raise _wrong(line, column, "Must be a number.")
            job[column] = number
        elif column in OF_THE_JOB:
            job[column] = cell
        else:
            name = column.removeprefix(INPUT)
            job["input"][name] = cell if name == "prompt" else _value(cell)
    return job


def _value(cell: str) -> Any:
    """A cell that is JSON, such as 7, true, ["a"] or "7", is that; any other is the text it is."""
    try:
        return json.loads(cell, parse_constant=_no_constants)
    except (ValueError, RecursionError):
        return cell


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _wrong(line: int, field: str, message: str) -> InvalidInput:
    return InvalidInput("Nothing was stored: a line cannot be read.", errors=[FieldError(field, message, line)])
