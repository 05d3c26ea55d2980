"""
What a price hangs on: the model, and those of its inputs that matter.

The words of a prompt, a seed, and which picture is edited change no price, but how many pictures there are may: so one
answer of the provider's prices very many jobs.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

BY_HAND = b""
"""The key of a price that a person set: it holds for whatever the inputs."""

ODD_AMOUNT = "{!r} is not an amount in US dollars, such as 0.12."

_AMOUNT = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)

_NOTHING = hashlib.sha256(b"{}").digest()
_NEVER_MATTER = frozenset({"prompt", "negative_prompt", "seed"})
_PICTURES = frozenset({"image", "images", "mask", "mask_image", "image_url", "image_urls"})


def amount(text: str) -> Decimal | None:
    """The US dollars that *text* spells, as our columns hold them; None when it spells none."""
    return Decimal(text) if _AMOUNT.fullmatch(text) else None


def key(model_input: Mapping[str, Any]) -> bytes:
    """Equal for inputs of one model that cost the same, 32 bytes."""
    matters = _what_matters(model_input)
    if not matters:
        return _NOTHING
    canonical = json.dumps(matters, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


def question(model_input: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs to ask the provider's price for: without the caller's words, which are nobody's business there."""
    asked = {name: value for name, value in model_input.items() if name not in _NEVER_MATTER}
    return asked | ({"prompt": "a picture"} if "prompt" in model_input else {})


def _what_matters(model_input: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _count(value) if name in _PICTURES else value
        for name, value in model_input.items()
        if name not in _NEVER_MATTER
    }


def _count(value: object) -> int:
    return len(value) if isinstance(value, list) else int(value is not None)
