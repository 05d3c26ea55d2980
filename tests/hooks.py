"""Screens of an operator's own, as PROMPT_SCREEN names them."""

import threading
from collections.abc import Mapping
from typing import Any

SLOW = threading.Event()
"""Set: those who wait in `slow` go on."""


def competitors(service: str, model: str, input: dict[str, Any]) -> str | None:
    """Refuse one brand; and spoil what it was handed, as it may not."""
    prompt = str(input.get("prompt"))
    input.clear()
    return "competitors" if "Globex" in prompt else None


def failing(service: str, model: str, input: Mapping[str, Any]) -> str | None:
    """Fail, with the prompt in its words."""
    raise RuntimeError(input["prompt"])


def talkative(service: str, model: str, input: Mapping[str, Any]) -> str | None:
    """Answer something else than a category."""
    return f"because of {input['prompt']}"


def slow(service: str, model: str, input: Mapping[str, Any]) -> str | None:
    """Take for ever."""
    SLOW.wait()
    return None


async def patient(service: str, model: str, input: Mapping[str, Any]) -> str | None:
    """Be awaited, which nobody does."""


def shy() -> None:
    """Take nothing."""
