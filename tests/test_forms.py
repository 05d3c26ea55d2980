"""A model's schema as a form, and what was typed in it as an input."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import forms
from pipeline.forms import Kind
from pipeline.sandbox.catalogue import MODELS

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "seed": {"type": "integer", "minimum": -1, "maximum": 7, "default": 0},
        "prompt": {"type": "string", "description": "What to\n make.", "maxLength": 1000},
        "size": {"enum": ["small", 2, None]},
        "hd": {"type": ["boolean", "null"], "default": True},
        "raw": {"type": "boolean"},
        "strength": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}], "title": "How strong"},
        "lora": {"$ref": "#/$defs/lora"},
        "images": {"type": "array", "items": {"type": "string"}},
        "style": {"type": "string"},
    },
    "required": ["prompt"],
    "x-order-properties": ["prompt", "size", 3, "nowhere"],
    "$defs": {"lora": {"type": "object"}},
}


def test_fields_come_in_the_models_order_each_as_it_is_filled_in() -> None:
    found = forms.fields(SCHEMA)
    assert [(one.name, one.kind) for one in found] == [
        ("prompt", Kind.TEXT),
        ("size", Kind.CHOICE),
        ("seed", Kind.WHOLE),
        ("hd", Kind.SWITCH),
        ("raw", Kind.SWITCH),
        ("strength", Kind.NUMBER),
        ("lora", Kind.JSON),
        ("images", Kind.JSON),
        ("style", Kind.LINE),
    ]
    prompt, size, seed, *_, strength, _, _, _ = found
    assert (prompt.required, prompt.hint, prompt.max_length) == (True, "What to make.", 1000)
    assert size.choices == ("small", "2")
    assert (seed.least, seed.most, seed.hint) == (-1, 7, "Unless given: 0.")
    assert (strength.title, strength.least) == ("How strong", 0)


def test_what_was_typed_is_read_as_the_schema_means_it_and_what_was_not_is_not_said() -> None:
    typed = {
        "prompt": " a fox ",
        "size": "2",
        "seed": "-1",
        "hd": "",
        "raw": "on",
        "strength": "0.5",
        "lora": '{"path": "x"}',
        "images": "",
        "style": None,
    }
    found, wrong = forms.read(forms.fields(SCHEMA), typed)
    assert found == {
        "prompt": " a fox ",
        "size": 2,
        "seed": -1,
        "hd": False,
        "raw": True,
        "strength": 0.5,
        "lora": {"path": "x"},
    }
    assert wrong == []
    assert forms.read(forms.fields(SCHEMA), {}) == ({}, [])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("seed", "1.5", "Must be a whole number."),
        ("seed", "٣", "Must be a whole number."),
        ("strength", "nan", "Must be a number."),
        ("strength", "1e999", "Must be a number."),
        ("lora", "{", "Is not JSON: line 1, column 2."),
        ("lora", "NaN", "Is not JSON."),
        ("lora", "9" * 5000, "Is not JSON."),
        ("lora", "[" * 100_000, "Is nested too deep."),
    ],
    ids=lambda text: text[:8],
)
def test_what_cannot_be_read_is_named(name: str, text: str, said: str) -> None:
    found, wrong = forms.read(forms.fields(SCHEMA), {name: text})
    assert found == {}
    assert [(one.field, one.message) for one in wrong] == [(name, said)]


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_the_input_of_a_job_comes_back_from_its_form(model: Any) -> None:
    """The form that shows a job, sent again as it stands, asks for the same."""
    values: dict[str, Any] = {"string": "a fox\nin snow", "integer": 2, "number": 1.5, "boolean": True}
    asked = {
        name: property_.get("enum", [values.get(property_["type"], [{"path": "x"}])])[0]
        for name, property_ in model.schema["properties"].items()
    }
    known = forms.fields(model.schema)
    assert len(known) == len(asked)
    assert forms.read(known, forms.typed(known, asked)) == (asked, [])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    ["type", "enum", "anyOf", "allOf", "$ref", "default", "title", "minimum", "maxLength", "const", "description"]
)
ODD = st.sampled_from(["#/properties/a", "integer", "string", "null", [], ["string", "null"], [{}], {}, -1, True])


@given(
    st.dictionaries(st.sampled_from("ab"), ANYTHING | st.dictionaries(WORDS, ODD | ANYTHING)),
    ANYTHING,
    ANYTHING,
    st.text(max_size=8),
)
def test_no_schema_of_a_strangers_and_no_text_makes_a_form_break(
    properties: Any, required: Any, order: Any, text: str
) -> None:
    known = forms.fields({"properties": properties, "required": required, "x-order-properties": order})
    found, wrong = forms.read(known, dict.fromkeys("ab", text))
    assert {*found, *(one.field for one in wrong)} <= {*"ab"}
    json.dumps([repr(one) for one in known])


@pytest.mark.parametrize("bound", [10**400, float("nan"), float("-inf"), "1", True], ids=lambda bound: str(bound)[:5])
def test_a_bound_beyond_all_measure_is_none(bound: Any) -> None:
    (field,) = forms.fields({"properties": {"a": {"type": "number", "minimum": bound}}})
    assert field.least is None


@pytest.mark.parametrize(
    "schema", [None, [], "x", {}, {"properties": []}, {"properties": {"a": {"$ref": "#/properties/a"}}}]
)
def test_a_schema_that_says_nothing_makes_no_field_that_lies(schema: Any) -> None:
    assert [one.kind for one in forms.fields(schema)] in ([], [Kind.JSON])
