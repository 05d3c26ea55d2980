"""`Prefer: wait=N`: an answer that waits for the end of a job (RFC 7240)."""

import re

from flask import Response, request

LONGEST_S = 25
"""Heroku's router gives up a request that has not begun to answer within 30 s."""

_ITEMS = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_WAIT = re.compile(r'\s*wait\s*=\s*(?:"([0-9]+)"|([0-9]+))\s*(?:;.*)?', re.IGNORECASE | re.DOTALL)


def preferred() -> int | None:
    """How many seconds the caller would wait, at most LONGEST_S; None when it says nothing that we understand."""
    for item in _ITEMS.findall(request.headers.get("Prefer", "")):
        if said := _WAIT.fullmatch(item):
            digits = (said[1] or said[2]).lstrip("0") or "0"
            return LONGEST_S if len(digits) > len(str(LONGEST_S)) else min(int(digits), LONGEST_S)
    return None


def applied(answer: Response, seconds: int) -> None:
    """Say that the wish was granted."""
    answer.headers["Preference-Applied"] = f"wait={seconds}"
