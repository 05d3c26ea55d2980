"""The provider's schemas: what is of use in them is used, and nothing in them can do harm."""

import json
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pipeline import fitting, schemas


def said(schema: object, value: dict[str, Any]) -> dict[str, str]:
    """What is wrong with *value* by a schema of the provider's: field and words."""
    sound = schemas.sound(schema)
    assert sound is not None
    found = schemas.problems(schemas.compiled(sound), value, "input")
    return {error.field: error.message for error in found}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "value", "field", "words"),
    [
        (of(n={"type": "integer", "maximum": 4}), {"n": 5}, "input.n", "Must be at most 4."),
        (of(n={"type": "integer"}), {"n": "5"}, "input.n", "Must be of type integer."),
        (of(size={"enum": ["a", "b"]}), {"size": "c"}, "input.size", "Must be one of a, b."),
        (of(), {"sise": 1}, "input.sise", "Is not an option of this model; remove it."),
        ({**of(prompt={}), "required": ["prompt"]}, {}, "input.prompt", "Is required."),
        (
            of(loras={"type": "array", "items": {"type": "object", "properties": {"scale": {"minimum": 0}}}}),
            {"loras": [{"scale": 1}, {"scale": -1}]},
            "input.loras.1.scale",
            "Must be at least 0.",
        ),
        (
            of(images={"type": "array", "maxItems": 1}),
            {"images": [1, 2]},
            "input.images",
            "Must have at most 1 entries.",
        ),
        (
            of(seed={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            {"seed": "x"},
            "input.seed",
            "Fits none of the forms that the model's schema allows.",
        ),
        (
            of(size={"$ref": "#/$defs/size"}) | {"$defs": {"size": {"type": "string"}}},
            {"size": 7},
            "input.size",
            "Must be of type string.",
        ),
    ],
    ids=["range", "type", "enum", "unknown", "missing", "nested", "too many", "forms", "reference"],
)
def test_an_error_names_the_field_as_the_schema_does(
    schema: dict[str, Any], value: dict[str, Any], field: str, words: str
) -> None:
    """Whoever reads it has the model's documentation open."""
    assert said(schema, value) == {field: words}


def test_a_field_that_may_be_null_may_be_null() -> None:
    """OpenAPI's `nullable` is not JSON Schema's, and the provider's documents mix both."""
    schema = of(size={"type": "string", "enum": ["a"], "nullable": True})
    assert said(schema, {"size": None}) == {}
    assert said(schema, {"size": "b"}) == {"input.size": "Must be one of a, None."}


@pytest.mark.parametrize(
    "odd",
    [
        {"pattern": "(a+)+$"},
        {"pattern": "("},
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "#"},
        {"$ref": "#/properties/x"},
        {"$ref": 5},
        {"$dynamicRef": "#x"},
        {"type": "file"},
        {"type": 5},
        {"minimum": "0"},
        {"maxLength": -1},
        {"enum": []},
        {"required": True},
        {"properties": []},
        {"items": [{"type": "integer"}]},
        {"anyOf": {}},
        {"multipleOf": 0},
        {"not": {}},
        {"if": {}, "then": False},
        {"uniqueItems": True},
    ],
    ids=json.dumps,
)
def test_what_is_broken_or_dangerous_in_a_schema_is_passed_over(odd: dict[str, Any]) -> None:
    """A job is not refused, nor a process stopped, for a slip or a trap in somebody else's document."""
    assert said(of(x=odd, n={"type": "integer"}), {"x": "a" * 40 + "!", "n": 1}) == {}
    assert said(of(x=odd, n={"type": "integer"}), {"x": "a", "n": "1"}) == {"input.n": "Must be of type integer."}


def test_a_schema_that_is_no_schema_checks_nothing() -> None:
    """Nor does one so large that it costs more than it is worth, or that goes round in circles."""
    bomb = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 10, "properties": {"x": {"$ref": "#/$defs/a"}}}}}
    deep: Any = {}
    for _ in range(sys.getrecursionlimit() // 2):
        deep = {"properties": {"x": deep}}
    many: Any = {"properties": {f"p{n}": {} for n in range(5000)}}
    schema: object
    for schema in (None, [], "x", {}, {"properties": {}}, bomb, many, deep):
        sound = schemas.sound(schema)
        assert sound is None or not schemas.problems(schemas.compiled(sound), {"x": {"x": {"x": 1}}}, "input")


KEYWORDS = [
    *("type", "properties", "items", "enum", "anyOf", "oneOf", "allOf", "$ref", "required", "minimum", "maxLength"),
    *("additionalProperties", "const", "nullable", "not", "pattern", "$defs", "prompt", "x"),
]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYWORDS),
            inner | st.sampled_from(["#/properties/x", "#/$defs/x", "string", "object", "array", ["prompt"]]),
            max_size=5,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=100, deadline=None)
@given(JSON, st.dictionaries(st.sampled_from(["x", "prompt", "items"]), JSON, max_size=3))
def test_no_schema_and_no_input_can_make_a_check_raise(properties: Any, value: dict[str, Any]) -> None:
    """Both are written by strangers."""
    sound = schemas.sound({"properties": {"x": properties, "prompt": properties}, "$defs": {"x": properties}})
    assert sound is not None
    assert len(schemas.problems(schemas.compiled(sound), value, "input")) <= schemas.MAX_ERRORS


NUMBERS = st.sampled_from([-1, 0, 1, 2, 0.0, 1.0, 1.5, 1e300])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text("a \n", max_size=3)
NAMES = st.sampled_from("abc")
KINDS = st.sampled_from(["array", "boolean", "integer", "null", "number", "object", "string"])
OF_PLAIN_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "type": KINDS | st.lists(KINDS, min_size=1, max_size=3),
    "enum": st.lists(PLAIN, min_size=1, max_size=4),
    "const": PLAIN,
    "pattern": st.just(r"\S"),
    **dict.fromkeys(["minLength", "maxLength"], st.integers(0, 3)),
    **dict.fromkeys(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"], NUMBERS),
}
SIMPLE = st.one_of([st.fixed_dictionaries({name: wanted}) for name, wanted in OF_PLAIN_VALUES.items()])
SCHEMAS: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | SIMPLE,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            **OF_PLAIN_VALUES,
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "additionalProperties": st.just(False),
            "required": st.lists(NAMES, max_size=2),
            "items": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            **dict.fromkeys(["minItems", "maxItems"], st.integers(0, 3)),
        },
    ),
    max_leaves=8,
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)


@settings(max_examples=500, deadline=None)
@given(SIMPLE, PLAIN)
@example({"enum": [1]}, True)
@example({"const": False}, 0)
@example({"type": "integer"}, 1.0)
def test_a_plain_value_is_judged_as_jsonschema_judges_it(schema: Any, value: Any) -> None:
    """The quick look decides what is paid for: it may not be milder; and were it stricter, it would be in vain."""
    assert fitting.of(schema)(value) == Draft202012Validator(schema).is_valid(value)


@settings(max_examples=500, deadline=None)
@given(SCHEMAS, VALUES)
def test_a_nested_value_is_judged_as_jsonschema_judges_it(schema: Any, value: Any) -> None:
    """However it is nested."""
    assert fitting.of(schema)(value) == Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": [[1], {"a": 1}]}, [True]),
        ({"enum": [[1], {"a": 1}]}, {"a": True}),
        ({"not": {}}, 1),
        ({"additionalProperties": {"type": "string"}}, {"a": 1}),
        ({"properties": {"a": {"multipleOf": 2}}}, {"a": 1}),
        ({"minimum": 1}, float("nan")),
    ],
    ids=["list", "object", "not", "schema of others", "nested", "not a number"],
)
def test_what_is_not_known_is_no_fit(schema: dict[str, Any], value: object) -> None:
    """Then jsonschema is asked."""
    assert not fitting.of(schema)(value)
