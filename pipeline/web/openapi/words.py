"""OpenAPI in words: what the page says of schemas, texts and examples."""

import json
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

_CODE = re.compile("`([^`]+)`")

_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "{} or more characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "maxProperties": "at most {} entries",
}


def prose(text: str) -> Markup:
    """A description as HTML: paragraphs, and what stands between backticks as code."""
    paragraphs = (str(escape(part.replace("\n", " "))) for part in text.strip().split("\n\n"))
    marked = (_CODE.sub(r"<code>\1</code>", part) for part in paragraphs)
    return Markup("".join(f"<p>{part}</p>" for part in marked))  # noqa: S704  # escaped above


def kind(schema: Mapping[str, Any]) -> str:
    """What a value is, in a few words: `text`, `list of Output`, `whole number or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(kind(one) for one in schema["anyOf"])
    if "const" in schema:
        return json.dumps(schema["const"])
    match schema.get("type"):
        case "array":
            return f"list of {kind(schema.get('items', {}))}"
        case "object":
            inner = schema.get("additionalProperties")
            return f"object of {kind(inner)}" if isinstance(inner, Mapping) and inner else "object"
        case "string":
            return {"date-time": "time", "uuid": "UUID", "uri": "address"}.get(schema.get("format", ""), "text")
        case "integer":
            return "whole number"
        case "boolean":
            return "true or false"
        case None:
            return "anything"
        case other:
            return str(other)


def limits(schema: Mapping[str, Any]) -> str:
    """The bounds of a value, in words."""
    bounds = {name: value for one in (schema, *schema.get("anyOf", ())) for name, value in one.items()}
    found = [said.format(f"{bounds[name]:,}") for name, said in _LIMITS.items() if name in bounds]
    if schema.get("default") not in (None, {}):
        found.append(f"default {json.dumps(schema['default'])}")
    return "; ".join(found)


def choices(schema: Mapping[str, Any]) -> list[str]:
    """The values that an enumeration allows."""
    return [str(value) for value in schema.get("enum", ())]


def example(value: Any) -> str:
    """An example as it is read: JSON with room, anything else as it is."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
