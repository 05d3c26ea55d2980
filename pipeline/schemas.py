"""
The provider's JSON Schemas, made safe to use, and what they say of an input, field by field.

A schema of somebody else's may be broken, or cost more than it is worth: a pattern that backtracks for hours, a
reference to another server, or to itself. So each is rebuilt from the keywords we know to be harmless, and no others.
What is left out is not checked here; the provider checks it too, and a refusal costs nothing but time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from pipeline import fitting
from pipeline.errors import FieldError

Schema = Mapping[str, Any]

MAX_ERRORS = 20
"""So many wrong fields of one input are named."""

_MAX_DEPTH = 16
_MAX_NODES = 2000
_MAX_BRANCHES = 32
"""Of anyOf and oneOf in all: each is tried on the same value."""

_MAX_SHOWN = 300
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


class _TooLarge(Exception):
    """More of a schema than any model needs."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_PLAIN: Mapping[str, Callable[[object], bool]] = {
    "minimum": _is_number,
    "maximum": _is_number,
    "exclusiveMinimum": _is_number,
    "exclusiveMaximum": _is_number,
    "minLength": _is_count,
    "maxLength": _is_count,
    "minItems": _is_count,
    "maxItems": _is_count,
    "enum": lambda value: isinstance(value, list) and len(value) > 0,
    "const": lambda value: True,
}
"""
Keywords taken over as they are, when they are what they should be. Left out on purpose: `pattern` (backtracking),
`format` (a matter of opinion), `multipleOf` (0.3 is no multiple of 0.1 in floating point), `uniqueItems` (quadratic).
"""


def sound(schema: object) -> Schema | None:
    """
    The harmless part of a schema of an input, without references; None when nothing in it can be used.

    Nothing in *schema* can make this raise or run long; nor can the result, as a schema.
    """
    if not isinstance(schema, dict):
        return None
    try:
        found = _Rebuild(schema).of(schema, 0)
    except _TooLarge:
        return None
    if not isinstance(found, dict) or "properties" not in found:  # it would let anything pass
        return None
    return {**found, "type": "object"}


class _Rebuild:
    """One schema's rebuilding: counts what it makes, and follows references inside the schema."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._nodes = 0
        self._branches = 0

    def of(self, schema: object, depth: int) -> dict[str, Any] | bool:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _TooLarge
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return True
        made: dict[str, Any] = {
            name: schema[name] for name, fits in _PLAIN.items() if name in schema and fits(schema[name])
        }
        if kinds := _kinds(schema):
            made["type"] = kinds
        if schema.get("nullable") is True and isinstance(made.get("enum"), list):
            made["enum"] = [*made["enum"], None]
        self._objects(schema, made, depth)
        if isinstance(schema.get("items"), dict | bool):
            made["items"] = self.of(schema["items"], depth + 1)
        for name in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(name), list) and branches:
                self._branches += len(branches)
                if self._branches <= _MAX_BRANCHES:
                    # Loosened branches may overlap, so that more than one fits what only one was to fit.
                    made.setdefault("allOf", []).append({"anyOf": [self.of(branch, depth + 1) for branch in branches]})
        for part in [*_list(schema.get("allOf")), *self._referred(schema)]:
            made.setdefault("allOf", []).append(self.of(part, depth + 1))
        return made

    def _objects(self, schema: dict[str, Any], made: dict[str, Any], depth: int) -> None:
        properties = schema.get("properties")
        if isinstance(properties, dict):
            made["properties"] = {str(name): self.of(below, depth + 1) for name, below in properties.items()}
            if schema.get("additionalProperties") is False and not schema.get("patternProperties"):
                made["additionalProperties"] = False
        required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
        if required:
            made["required"] = required

    def _referred(self, schema: dict[str, Any]) -> Iterable[object]:
        """What a `$ref` into the same document names; nothing for any other: nothing is ever fetched."""
        pointer = schema.get("$ref")
        if not isinstance(pointer, str) or not pointer.startswith("#/"):
            return ()
        place: Any = self._root
        for part in pointer[2:].split("/")[:_MAX_DEPTH]:
            place = place.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(place, dict) else None
        return () if place is None else (place,)


def _kinds(schema: dict[str, Any]) -> list[str]:
    said = schema.get("type")
    names = [said] if isinstance(said, str) else _list(said)
    if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
        return []  # of a kind we do not know anything may be
    return [*names, "null"] if schema.get("nullable") is True else names


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


@dataclass(frozen=True, slots=True)
class Compiled:
    """A schema made ready, for any number of inputs and threads."""

    fits: fitting.Fits
    validator: Draft202012Validator


def compiled(schema: Schema) -> Compiled:
    """Make a schema ready to be used."""
    return Compiled(fitting.of(schema), Draft202012Validator(schema))


def problems(compiled: Compiled, value: Mapping[str, Any], path: str) -> list[FieldError]:
    """What is wrong with *value*, which stands at *path*: one entry a field, named as the schema does; shows none."""
    if compiled.fits(value):
        return []
    errors = islice(compiled.validator.iter_errors(value), MAX_ERRORS)
    found = [error for one in errors for error in _field_errors(one, path)]
    return list(dict.fromkeys(found))[:MAX_ERRORS]


def _field_errors(error: ValidationError, root: str) -> list[FieldError]:
    path = [root, *(str(part) for part in error.absolute_path)]
    if error.validator == "required":
        names = cast("list[str]", error.validator_value)
        instance = cast("dict[str, Any]", error.instance)
        missing = [name for name in names if name not in instance]
        # jsonschema reports each missing name by itself, the name only in its message
        return [FieldError(".".join([*path, name]), "Is required.") for name in missing if repr(name) in error.message]
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        extra = [name for name in cast("dict[str, Any]", error.instance) if name not in known]
        advice = "Is not an option of this model; remove it."
        return [FieldError(".".join([*path, name]), advice) for name in islice(extra, MAX_ERRORS)]
    return [FieldError(".".join(path), _advice(error))]


_ADVICE = {
    "minLength": "Must have at least {} characters.",
    "maxLength": "Must have at most {} characters.",
    "minItems": "Must have at least {} entries.",
    "maxItems": "Must have at most {} entries.",
    "minimum": "Must be at least {}.",
    "maximum": "Must be at most {}.",
    "exclusiveMinimum": "Must be more than {}.",
    "exclusiveMaximum": "Must be less than {}.",
    "enum": "Must be one of {}.",
    "const": "Must be {}.",
}


def _advice(error: ValidationError) -> str:
    wanted = error.validator_value
    if error.validator == "minLength" and wanted == 1:
        return "Must not be empty."
    if error.validator == "pattern" and wanted == r"\S":
        return "Must not be blank."
    if error.validator == "type":
        names = wanted if isinstance(wanted, list) else [wanted]
        return f"Must be of type {' or '.join(map(str, names))}."
    if error.validator in _ADVICE:
        shown = ", ".join(map(str, wanted)) if isinstance(wanted, list) else str(wanted)
        if len(shown) > _MAX_SHOWN:
            shown = shown[:_MAX_SHOWN] + " …"
        return _ADVICE[str(error.validator)].format(shown)
    if error.validator == "anyOf":
        return "Fits none of the forms that the model's schema allows."
    return f"Does not fit the model's schema ({error.validator})."
