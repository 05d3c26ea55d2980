"""
What each model takes, as JSON Schema, and which options are ours to honour.

DALL-E 2 is known at once. Its upstream was withdrawn in May 2026; DEFAULT_MODEL names another one for all callers.

Source: https://wavespeed.ai/docs/docs-api/openai/openai-dall-e-2
"""

import re
from collections.abc import Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from pipeline.errors import FieldError

OURS = frozenset({"enable_base64_output", "enable_sync_mode"})
"""
Options that are never sent. The provider cannot combine base64 output with a webhook, so we convert our copy; and
a submit that waits for its result would only tie up a request that the webhook makes needless.
"""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)+", re.ASCII)
_RESERVED = frozenset(
    {"predictions", "model", "models", "billings", "balance", "media", "webhook", "user", "account", "upload"}
)
"""The provider's own endpoints: a model's name is pasted into the path, and must not reach them with our key."""

_ANYTHING = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "minLength": 1, "maxLength": 32_000, "pattern": r"\S"}},
    "required": ["prompt"],
}

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "openai/dall-e-2": {
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1, "maxLength": 1000, "pattern": r"\S"},
            "enable_base64_output": {"type": "boolean", "default": False},
        },
        "required": ["prompt"],
        "additionalProperties": False,
    },
}

_VALIDATORS = {model: Draft202012Validator(schema) for model, schema in SCHEMAS.items()}
_LENIENT = Draft202012Validator(_ANYTHING)


def name_problem(model: str) -> str | None:
    """What is wrong with a model's name, in words; None when it may stand in the path of a paid request."""
    if len(model) > 200 or not _NAME.fullmatch(model):
        return "Must be a model's id, such as openai/dall-e-2."
    first, *_, last = model.lower().split("/")
    if first in _RESERVED:
        return "Is an endpoint of the provider's, not a model."
    if last == "stream":  # it leaves no record at the provider: a lost answer could never be found
        return "Streaming models leave no task behind, and cannot be run as jobs."
    return None


def check(model: str, model_input: Mapping[str, Any]) -> list[FieldError]:
    """What is wrong with an input for *model*: one entry a field, named as the schema does. Shows no value."""
    validator = _VALIDATORS.get(model, _LENIENT)
    return [error for found in validator.iter_errors(model_input) for error in _field_errors(found)]


def split(model_input: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate what is sent to the provider from the options that we honour ourselves."""
    sent = {name: value for name, value in model_input.items() if name not in OURS}
    return sent, {name: value for name, value in model_input.items() if name in OURS}


def _field_errors(error: ValidationError) -> list[FieldError]:
    path = ["input", *(str(part) for part in error.absolute_path)]
    if error.validator == "required":
        names = cast("list[str]", error.validator_value)
        instance = cast("dict[str, Any]", error.instance)
        missing = [name for name in names if name not in instance]
        # jsonschema reports each missing name by itself, the name only in its message
        return [FieldError(".".join([*path, name]), "Is required.") for name in missing if repr(name) in error.message]
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        extra = [name for name in cast("dict[str, Any]", error.instance) if name not in known]
        return [FieldError(".".join([*path, name]), "Is not an option of this model; remove it.") for name in extra]
    return [FieldError(".".join(path), _advice(error))]


_ADVICE = {
    "type": "Must be of type {}.",
    "minLength": "Must have at least {} characters.",
    "maxLength": "Must have at most {} characters.",
    "minimum": "Must be at least {}.",
    "maximum": "Must be at most {}.",
    "exclusiveMinimum": "Must be more than {}.",
    "exclusiveMaximum": "Must be less than {}.",
    "enum": "Must be one of {}.",
}


def _advice(error: ValidationError) -> str:
    if error.validator == "minLength" and error.validator_value == 1:
        return "Must not be empty."
    if error.validator == "pattern":
        return "Must not be blank." if error.validator_value == r"\S" else f"Must match {error.validator_value}."
    if error.validator in _ADVICE:
        return _ADVICE[str(error.validator)].format(error.validator_value)
    return f"Does not fit the model's schema ({error.validator})."
