"""How facts read on a page: times, durations, sizes, amounts, states."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from markupsafe import Markup

from pipeline.addresses import shown
from pipeline.jobs import State
from pipeline.standing import HALTS

TONES: Mapping[str, str] = {
    State.QUEUED: "idle",
    State.SUBMITTING: "busy",
    State.PROCESSING: "busy",
    State.UNKNOWN: "warn",
    State.COMPLETED: "good",
    State.FAILED: "bad",
    State.EXPIRED: "bad",
    State.CANCELLED: "idle",
    # of callbacks
    "applied": "good",
    "duplicate": "idle",
    "late": "idle",
    "stale": "warn",
    "orphan": "warn",
    "suspicious": "bad",
    "unreadable": "bad",
    # of notifications
    "pending": "busy",
    "delivered": "good",
    "dead": "bad",
    "unaddressed": "idle",
    # of attempts, outputs and what people did
    "accepted": "good",
    "done": "good",
    "stored": "good",
    "released": "good",
    "lost": "bad",
    "quarantined": "warn",
    "flagged": "warn",
    "purged": "idle",
    "paused": "warn",
    "revoked": "bad",
    "operator": "busy",
}
"""The colour of a word; what is not named is plain. The word itself is always there: colour alone tells nobody."""


def badge(word: object) -> Markup:
    """A state, in its colour."""
    return Markup('<span class="badge {}">{}</span>').format(TONES.get(str(word), "plain"), word)


def when(at: datetime | None) -> Markup:
    """A time, in UTC; the script adds how long ago that was."""
    if at is None:
        return Markup('<span class="faint">–</span>')
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), f"{at:%Y-%m-%d %H:%M:%S}"
    )


def duration(seconds: float | None) -> str:
    """A length of time, as exactly as anybody wants it: 240 ms, 3.4 s, 2 min 5 s, 3 h 20 min, 4 d 6 h."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, name, smaller, its_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name} {rest} {its_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def size(count: int | None) -> str:
    """A number of bytes."""
    if count is None:
        return "–"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:,.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:,.1f} {unit}"
        amount /= 1024
    raise AssertionError


def usd(amount: Decimal | float | None) -> str:
    """An amount in US dollars: in cents, or as exactly as it is."""
    if amount is None:
        return "–"
    exact = Decimal(str(amount))
    return f"${exact:,.2f}" if exact == round(exact, 2) else f"${exact.normalize():f}"


def count(number: int | None, at_most: int | None = None) -> str:
    """A count, which may have stopped at a limit."""
    if number is None:
        return "–"
    return f"{number:,}+" if at_most is not None and number >= at_most else f"{number:,}"


def pretty(value: Any) -> str:
    """JSON as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def raw(body: bytes | str | None) -> str:
    """What came over the wire, byte for byte where it is text; JSON is not put in order."""
    if body is None:
        return ""
    return body.decode("utf-8", "replace") if isinstance(body, bytes | memoryview) else str(body)


_QUERY = re.compile(r"""(https?:\\?/\\?/[^\s"'<>?]++)\?[^\s"'<>]+""", re.IGNORECASE)
_TOKEN = re.compile(r"""(webhooks\\?/wavespeed\\?/)[^\s"'<>?/\\]+""", re.IGNORECASE)


def discreet(text: str) -> str:
    """A text without what addresses in it keep to themselves: the queries that sign them, the tokens of our own."""
    return _TOKEN.sub(r"\1…", _QUERY.sub(r"\1?…", text))


def breakable(text: object) -> Markup:
    """A long id or address, which may be broken between its parts."""
    pieces = str(text).replace("/", "/\0").replace("-", "-\0").split("\0")
    return Markup("<wbr>").join(pieces)


def beginning(text: object, length: int = 120) -> str:
    """How a text that may be long begins, on one line; nothing of what is no text."""
    if not isinstance(text, str):
        return ""
    line = " ".join(text[: length * 4].split())
    return line if len(line) <= length else f"{line[:length].rstrip()}…"


def halted(reason: str) -> str:
    """Why the account is halted."""
    return HALTS.get(reason, reason)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "badge": badge,
    "when": when,
    "duration": duration,
    "size": size,
    "usd": usd,
    "count": count,
    "pretty": pretty,
    "raw": raw,
    "breakable": breakable,
    "discreet": discreet,
    "address": shown,
    "beginning": beginning,
    "halted": halted,
}
