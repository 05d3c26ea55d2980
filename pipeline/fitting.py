"""
Whether a value fits a JSON Schema, told in a microsecond or two, where a validator takes a hundred.

Nearly all that callers send fits. What does not is for jsonschema to name, which is asked whenever this says no. Known
are the keywords that `schemas.sound` leaves, and `pattern`; by a schema with any other one nothing fits.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Fits = Callable[[Any], bool]


def of(schema: Mapping[str, Any] | bool) -> Fits:
    """Give what tells whether a value fits: it never says yes where jsonschema would find something wrong."""
    if isinstance(schema, bool):
        return lambda _: schema
    if not schema.keys() <= _KEYWORDS.keys():
        return lambda _: False
    return _all([_KEYWORDS[name](wanted, schema) for name, wanted in schema.items()])


def _all(checks: Iterable[Fits]) -> Fits:
    every = tuple(checks)
    if len(every) == 1:
        return every[0]

    def fits(value: Any) -> bool:
        for check in every:  # noqa: SIM110 - all() takes three times as long
            if not check(value):
                return False
        return True

    return fits


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS: Mapping[str, Fits] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _number(value) and (isinstance(value, int) or value.is_integer()),
    "null": lambda value: value is None,
    "number": _number,
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}


def _type(wanted: str | list[str], _: object) -> Fits:
    return _any([_KINDS[name] for name in ([wanted] if isinstance(wanted, str) else wanted)])


def _any(checks: Iterable[Fits]) -> Fits:
    every = tuple(checks)
    return every[0] if len(every) == 1 else lambda value: any(check(value) for check in every)


def _properties(wanted: Mapping[str, Any], _: object) -> Fits:
    known = {name: of(below) for name, below in wanted.items()}

    def fits(value: Any) -> bool:
        if isinstance(value, dict):
            for name, item in value.items():
                check = known.get(name)
                if check and not check(item):
                    return False
        return True

    return fits


def _additional(wanted: object, schema: Mapping[str, Any]) -> Fits:
    known = schema.get("properties", {}).keys()
    return lambda value: not isinstance(value, dict) or (wanted is False and value.keys() <= known)


def _required(wanted: Iterable[str], _: object) -> Fits:
    names = frozenset(wanted)
    return lambda value: not isinstance(value, dict) or names <= value.keys()


def _items(wanted: Mapping[str, Any] | bool, _: object) -> Fits:
    one = of(wanted)
    return lambda value: not isinstance(value, list) or all(one(item) for item in value)


def _enum(wanted: Iterable[Any], _: object) -> Fits:
    # By kind, too: True is no 1. Lists and objects are left to jsonschema.
    among = {(isinstance(one, bool), one) for one in wanted if isinstance(one, _PLAIN)}
    return lambda value: isinstance(value, _PLAIN) and (isinstance(value, bool), value) in among


_PLAIN = (str, int, float, type(None))

_KEYWORDS: Mapping[str, Callable[[Any, Mapping[str, Any]], Fits]] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": _required,
    "items": _items,
    "enum": _enum,
    "const": lambda wanted, schema: _enum([wanted], schema),
    "allOf": lambda wanted, _: _all(map(of, wanted)),
    "anyOf": lambda wanted, _: _any(map(of, wanted)),
    "pattern": lambda wanted, _: lambda value: not isinstance(value, str) or bool(re.search(wanted, value)),
    "minLength": lambda wanted, _: lambda value: not isinstance(value, str) or len(value) >= wanted,
    "maxLength": lambda wanted, _: lambda value: not isinstance(value, str) or len(value) <= wanted,
    "minItems": lambda wanted, _: lambda value: not isinstance(value, list) or len(value) >= wanted,
    "maxItems": lambda wanted, _: lambda value: not isinstance(value, list) or len(value) <= wanted,
    "minimum": lambda wanted, _: lambda value: not _number(value) or value >= wanted,
    "maximum": lambda wanted, _: lambda value: not _number(value) or value <= wanted,
    "exclusiveMinimum": lambda wanted, _: lambda value: not _number(value) or value > wanted,
    "exclusiveMaximum": lambda wanted, _: lambda value: not _number(value) or value < wanted,
}
