"""
A model's JSON Schema as a form: its fields in order, and what a person typed in them as the model's input.

The schema is somebody else's: what is odd in it becomes a field for JSON, and nothing in it can make this raise. What
is wrong with an input is for `models` to say; here only what cannot be read as an input at all.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.errors import FieldError

MAX_FIELDS = 100
MAX_CHOICES = 500
_MAX_WORDS = 400
_MAX_DEPTH = 8
_HUGE = 1e15
_LONG_FROM = 300
"""A text that may have so many characters has room for them."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")

ON = "on"
"""What a switch that is on says; any other text is off."""


class Kind(StrEnum):
    """How a field is filled in."""

    LINE = "line"
    TEXT = "text"
    CHOICE = "choice"
    SWITCH = "switch"
    WHOLE = "whole"
    NUMBER = "number"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an input. `default` is what the model takes when nothing is said, if it is known."""

    name: str
    kind: Kind
    title: str
    hint: str = ""
    required: bool = False
    default: Any = None
    choices: Sequence[str] = ()
    least: int | float | None = None
    most: int | float | None = None
    max_length: int | None = None
    values: Sequence[Any] = ()  # what each of the choices means


def fields(schema: object) -> list[Field]:
    """The fields of a model's input, in its own order; none when the schema names none."""
    root = schema if isinstance(schema, dict) else {}
    properties = root.get("properties")
    if not isinstance(properties, dict):
        return []
    order = [name for name in _list(root.get("x-order-properties")) if isinstance(name, str) and name in properties]
    names = list(dict.fromkeys([*order, *properties]))[:MAX_FIELDS]
    required = _list(root.get("required"))
    return [_field(str(name), _plain(properties[name], root), required=name in required) for name in names]


def read(known: Sequence[Field], typed: Mapping[str, str | None]) -> tuple[dict[str, Any], list[FieldError]]:
    """
    The input that was typed, and what of it cannot be read, each by its field's name.

    What was left empty is not said. A switch is said where that is not what the model does anyway.
    """
    found: dict[str, Any] = {}
    wrong = []
    for field in known:
        text = typed.get(field.name)
        if field.kind == Kind.SWITCH:
            on = bool(field.default) if text is None else text == ON
            if on != bool(field.default) or field.required:
                found[field.name] = on
        elif text:
            try:
                found[field.name] = _value(field, text)
            except ValueError as error:
                wrong.append(FieldError(field.name, str(error)))
    return found, wrong


def typed(known: Sequence[Field], model_input: Mapping[str, Any]) -> dict[str, str | None]:
    """What a person would have typed for an input, by field; None where nothing."""
    return {
        field.name: _spelt(field, model_input[field.name]) if field.name in model_input else None for field in known
    }


def json_in(text: str) -> Any:
    """
    The JSON value in *text*.

    Raises:
        ValueError: It is none, said in words.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("Is nested too deep.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"Is not JSON: line {error.lineno}, column {error.colno}.") from None
    except ValueError:  # a constant, or a number of endless digits
        raise ValueError("Is not JSON.") from None


def _refuse(name: str) -> None:
    raise ValueError(name)


def _field(name: str, schema: Mapping[str, Any], *, required: bool) -> Field:
    kind, values = _kind(name, schema)
    numbers = kind in {Kind.WHOLE, Kind.NUMBER}
    default = schema.get("default")
    title = schema.get("title")
    length = schema.get("maxLength")
    return Field(
        name,
        kind,
        title[:80] if isinstance(title, str) and title.strip() else name.replace("_", " ").capitalize(),
        _hint(schema, kind, default),
        required,
        default,
        tuple(map(_text, values)),
        _bound(schema.get("minimum")) if numbers else None,
        _bound(schema.get("maximum")) if numbers else None,
        length if isinstance(length, int) and not isinstance(length, bool) and length > 0 else None,
        tuple(values),
    )


def _kind(name: str, schema: Mapping[str, Any]) -> tuple[Kind, Sequence[Any]]:
    values = _list(schema.get("enum")) or ([schema["const"]] if "const" in schema else [])
    values = [value for value in values if value is not None]
    if 0 < len(values) <= MAX_CHOICES and not any(isinstance(value, dict | list) for value in values):
        return Kind.CHOICE, values
    said = schema.get("type")
    kinds = [one for one in (said if isinstance(said, list) else [said]) if one != "null"]
    if len(kinds) != 1:
        return Kind.JSON, ()
    if kinds[0] == "string":
        length = schema.get("maxLength")
        long = "prompt" in name.lower() or (isinstance(length, int) and length >= _LONG_FROM)
        return (Kind.TEXT if long else Kind.LINE), ()
    simple = {"boolean": Kind.SWITCH, "integer": Kind.WHOLE, "number": Kind.NUMBER}
    return (simple.get(kinds[0], Kind.JSON) if isinstance(kinds[0], str) else Kind.JSON), ()


def _plain(schema: object, root: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any]:
    """A property's schema without the detours that generators take: a reference, or itself or nothing."""
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return {}
    for name in ("anyOf", "oneOf", "allOf"):
        branches = [one for one in _list(schema.get(name)) if not (isinstance(one, dict) and one.get("type") == "null")]
        if len(branches) == 1:
            rest = {key: value for key, value in schema.items() if key != name}
            return {**_plain(branches[0], root, depth + 1), **rest}
    pointer = schema.get("$ref")
    if isinstance(pointer, str) and pointer.startswith("#/"):
        place: Any = root
        for part in pointer[2:].split("/")[:_MAX_DEPTH]:
            place = place.get(part) if isinstance(place, dict) else None
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return {**_plain(place, root, depth + 1), **rest}
    return schema


def _hint(schema: Mapping[str, Any], kind: Kind, default: object) -> str:
    words = schema.get("description")
    said = " ".join(words.split())[:_MAX_WORDS] if isinstance(words, str) else ""
    form = "JSON." if kind == Kind.JSON else ""
    usual = f"Unless given: {_text(default)[:80]}." if default is not None and default not in ("", [], {}) else ""
    return " ".join(filter(None, (said, form, usual if kind != Kind.SWITCH else "")))


def _bound(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _HUGE else None  # no NaN either


def _value(field: Field, text: str) -> Any:
    if field.kind == Kind.CHOICE:
        return next((value for value in field.values if _text(value) == text), text)
    if field.kind == Kind.WHOLE:
        if not _WHOLE.fullmatch(text.strip()):
            raise ValueError("Must be a whole number.")
        return int(text)
    if field.kind == Kind.NUMBER:
        said = text.strip()
        if not _NUMBER.fullmatch(said) or not math.isfinite(float(said)):
            raise ValueError("Must be a number.")
        return int(said) if _WHOLE.fullmatch(said) else float(said)
    if field.kind == Kind.JSON:
        return json_in(text)
    return text


def _spelt(field: Field, value: Any) -> str:
    if field.kind == Kind.SWITCH:
        return ON if value is True else ""
    if field.kind == Kind.JSON:
        return json.dumps(value, ensure_ascii=False, indent=2)
    return _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
