"""The little HTTP that the stack itself speaks: to see whether its servers answer, and to hand in the demo's jobs."""

import json
import urllib.error
import urllib.request
from typing import Any

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the user's knows no loopback


def call(
    method: str, url: str, body: object = None, *, key: str = "", idempotency_key: str = "", timeout_s: float = 10.0
) -> tuple[int, Any]:
    """
    Make one request, and give the answer's status and its JSON (None when it is none).

    Raises:
        OSError: There was no answer.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if idempotency_key:
        headers["Idempotency-Key"] = idempotency_key
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310  # our own addresses
    try:
        with _DIRECT.open(request, timeout=timeout_s) as answer:
            return answer.status, _parsed(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read())


def answers(url: str) -> bool:
    """Tell whether a GET is answered with a success."""
    try:
        return 200 <= call("GET", url, timeout_s=2.0)[0] < 300
    except OSError:
        return False


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
