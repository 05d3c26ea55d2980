"""
What goes wrong, how often: one frozen dial, checked field by field.

A share from 0 to 1 says how many tasks (or downloads) are hit; a span is seconds or [min, max]. What
befalls a task is drawn once, when it arrives, from its prompt and the seed: with the same seed the same
prompts meet the same fate, whatever order they arrive in.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_type_hints

from pipeline.sandbox.limits import LEVELS, Limits


class BadFault(ValueError):
    """A fault that is not on the dial, or a value it cannot take; the message names the field."""


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise ValueError("a number from 0")
    return float(value)


def _share(value: object) -> float:
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("a share from 0 to 1")
    return float(value)


def _span(value: object) -> tuple[float, float]:
    low, high = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    try:
        span = (_number(low), _number(high))
    except ValueError:
        span = (1, 0)
    if span[0] > span[1]:
        raise ValueError("seconds, or [min, max]")
    return span


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _flag_or_name(value: object) -> bool | str:
    if not isinstance(value, bool | str):
        raise ValueError("true, false or a model id")
    return value


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 2**63:
        raise ValueError("a whole number from 0")
    return value


def _kilobytes(value: object) -> int:
    size = _count(value)
    if size > 102_400:
        raise ValueError("a whole number up to 102400")
    return size


def _seed(value: object) -> int | None:
    return None if value is None else _count(value)


def _limits(value: object) -> Limits | None:
    if value is None or isinstance(value, Limits):
        return value
    try:
        if not isinstance(value, Mapping):
            raise TypeError
        return Limits(**{name: None if n is None else _count(n) for name, n in value.items()})
    except (TypeError, ValueError):
        raise ValueError('{"per_window": n, "concurrent": n}') from None


def _one_of(*choices: str | None) -> Callable[[object], str | None]:
    def parse(value: object) -> str | None:
        for choice in choices:
            if value == choice:
                return choice
        raise ValueError("one of " + ", ".join(json.dumps(choice) for choice in choices))

    return parse


Share = Annotated[float, _share]
Span = Annotated[tuple[float, float], _span]
Flag = Annotated[bool, _flag]


@dataclass(frozen=True, slots=True)
class Fate:
    """What befalls one task, drawn when it arrives."""

    generation_s: float
    latency_s: float
    lose_answer: bool
    gateway_504: bool
    redirect_307: bool
    status_429: bool
    status_500: bool
    keeps_task: bool  # of a 500: half of them leave a task behind
    fail: bool
    nsfw: bool
    list_lag_s: float
    webhook_drop: bool
    webhook_duplicate: bool
    copies: int  # of a duplicated webhook: 2 to 4
    spread_s: tuple[float, ...]  # when each copy comes, after the first
    webhook_delay_s: float
    webhook_early: bool
    webhook_forge: bool
    webhook_stale: bool


@dataclass(frozen=True, slots=True)
class Faults:
    """The dial. What is not said about a value is in its type: shares, spans, flags."""

    # Time
    generation_s: Span = (0.5, 0.5)
    latency_s: Span = (0.0, 0.0)  # before each answer of the API; the task exists already
    sync_window_s: Annotated[float, _number] = 90.0
    retention_s: Annotated[float, _number] = 7 * 86_400.0

    # The answer to a submit
    lose_answer: Share = 0.0
    gateway_504: Share = 0.0
    redirect_307: Share = 0.0
    status_429: Share = 0.0
    retry_after_s: Annotated[float | None, _number_or_none] = None  # header of every 429; none by default
    status_500: Share = 0.0
    first_status: Annotated[str, _one_of("created", "processing", "pending")] = "created"

    # The account
    revoked: Flag = False
    forbidden: Annotated[bool | str, _flag_or_name] = False  # a model id: that model only
    no_credit: Flag = False
    credit_402: Flag = False  # 402 instead of 400
    level: Annotated[str | None, _one_of(None, *LEVELS)] = None
    limits: Annotated[Limits | None, _limits] = None  # instead of the level's
    level_window_s: Annotated[float, _number] = 60.0
    queue_instead_of_429: Flag = False  # a task beyond the concurrency limit waits; the docs and the field disagree

    # How a task ends
    fail: Share = 0.0
    nsfw: Share = 0.0
    ends_as: Annotated[str, _one_of("completed", "failed", "cancelled", "timeout", "deleted")] = "completed"
    missing_prompt_fails: Flag = False  # accepted, then failed with 1400, instead of a 400

    # Reading
    read_500: Share = 0.0  # result and list answer 500
    result_input: Flag = False
    list_input: Flag = True
    list_lag_s: Span = (0.0, 0.0)
    purged_as_deleted: Flag = False  # after retention_s: a task "deleted" instead of a 404

    # Webhooks
    webhook_drop: Share = 0.0
    webhook_duplicate: Share = 0.0
    webhook_delay_s: Span = (0.0, 0.0)
    webhook_spread_s: Span = (0.0, 0.0)  # each copy of a duplicated webhook comes so much later
    webhook_early: Share = 0.0
    webhook_forge: Share = 0.0
    webhook_stale: Share = 0.0
    webhook_input: Flag = False
    webhook_cancelled: Flag = False  # also for cancelled, timeout and deleted
    webhook_retry_s: Annotated[float, _number] = 1.0  # retries come after 1, 2 and 4 times this
    webhook_renew_timestamp: Flag = False  # on each retry
    webhook_timeout_s: Annotated[float, _number] = 10.0

    # Files
    file_expired: Share = 0.0
    file_expired_404: Flag = False  # 404 instead of 403
    file_cut: Share = 0.0
    file_kb: Annotated[int, _kilobytes] = 0  # padded to this size

    seed: Annotated[int | None, _seed] = None

    def merged(self, changes: Mapping[str, object]) -> "Faults":
        """
        The dial with *changes* made.

        Raises:
            BadFault: One of them is unknown or out of range; nothing was changed.
        """
        return replace(self, **{name: _parsed(name, value) for name, value in changes.items()})

    def roll(self, dice: random.Random) -> Fate:
        """Draw what befalls one task. Always the same number of throws, so that one fault never shifts another."""
        drawn: dict[str, Any] = {name: _throw(getattr(self, name), dice) for name in _ROLLED}
        keeps_task, copies = dice.random() < 0.5, dice.randint(2, 4)
        low, high = self.webhook_spread_s
        spread_s = tuple(low + (high - low) * dice.random() for _ in range(3))
        return Fate(**drawn, keeps_task=keeps_task, copies=copies, spread_s=spread_s)

    def allowance(self) -> Limits:
        """The limits in force."""
        return self.limits or LEVELS.get(self.level or "", Limits())

    def as_json(self) -> dict[str, object]:
        """The dial as it can be sent back."""
        return {field.name: _shown(getattr(self, field.name)) for field in fields(self)}


def in_prompt(prompt: object) -> dict[str, object]:
    """
    The faults a prompt carries, as test cards do: `[sandbox:fail]`, `[sandbox:generation_s=2]`.

    A share without a value is certain, a flag is set.

    Raises:
        BadFault: It names a fault that does not exist or belongs to the whole account.
    """
    if not isinstance(prompt, str) or "[sandbox:" not in prompt:
        return {}
    found: dict[str, object] = {}
    for name, text in _IN_PROMPT.findall(prompt):
        if name in _WHOLE_ACCOUNT:
            raise BadFault(f"{name}: not for one task, it belongs to the whole account")
        found[name] = _parsed(name, True if text == "" else _value(text))
    return found


_IN_PROMPT = re.compile(r"\[sandbox:([^\]=]*)(?:=(\[[^\]]*\]|[^\]]*))?\]")
_WHOLE_ACCOUNT = {
    *("revoked", "level", "limits", "level_window_s", "queue_instead_of_429"),
    *("read_500", "list_input", "retention_s", "purged_as_deleted", "seed"),
}
_PARSERS: Mapping[str, Callable[[object], object]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Faults, include_extras=True).items()
}
_ROLLED = tuple(field.name for field in fields(Fate) if field.name in _PARSERS)


def _parsed(name: str, value: object) -> Any:
    parser = _PARSERS.get(name)
    if parser is None:
        raise BadFault(f"{name}: there is no such fault; there are {', '.join(sorted(_PARSERS))}")
    try:
        return parser(value)
    except ValueError as error:
        raise BadFault(f"{name}: must be {error}, not {json.dumps(value, default=str)[:80]}") from None


def _throw(value: float | tuple[float, float], dice: random.Random) -> float | bool:
    chance = dice.random()
    if isinstance(value, tuple):
        return value[0] + (value[1] - value[0]) * chance
    return chance < value


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(value: object) -> object:
    if isinstance(value, Limits):
        return {"per_window": value.per_window, "concurrent": value.concurrent}
    if isinstance(value, tuple):
        return value[0] if value[0] == value[1] else list(value)
    return value
