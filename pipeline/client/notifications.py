"""
The receiving side of notifications: was this sent by the pipeline, and lately?

Written from the specification alone, as the sandbox is, so that who signs and who verifies cannot share a mistake.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

from pipeline.client.errors import BadNotification

TOLERANCE_S = 300
"""How far the sender's clock may be from ours, either way."""

_TIMESTAMP_DIGITS = 12  # Unix seconds for the next 30,000 years
_MAX_ID_LENGTH = 256
_MAX_SIGNATURES = 16  # one for each secret in use while they are rotated: a stranger's thousands are not compared


def verify_notification(
    secret: str, headers: Mapping[str, str], body: bytes, *, tolerance_s: float = TOLERANCE_S, now: float | None = None
) -> dict[str, Any]:
    """
    Check that the pipeline signed *body*, the bytes as they came, and give the notification in it.

    The *secret* is the service's: `whsec_` and Base64. The *headers* are the request's: `webhook-id`,
    `webhook-timestamp`, `webhook-signature`, in any case. Its time may be *tolerance_s* seconds from *now* (Unix time;
    this machine's unless given).

    The `webhook-id` is the same when a notification is sent again: remember it to do nothing twice.

    Raises:
        BadNotification: For any other input whatever. Answer 401; the body is not to be believed.
        ValueError: The secret is not one.
    """
    key = _key(secret)
    lowered = {name.lower(): value for name, value in headers.items()}
    webhook_id, timestamp = lowered.get("webhook-id", ""), lowered.get("webhook-timestamp", "")
    if not 0 < len(webhook_id) <= _MAX_ID_LENGTH:
        raise BadNotification("The header webhook-id is missing or too long.")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _TIMESTAMP_DIGITS):
        raise BadNotification("The header webhook-timestamp is not a Unix time in seconds.")
    signed = f"{webhook_id}.{timestamp}.".encode("latin-1", "replace") + body
    expected = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    given = lowered.get("webhook-signature", "").split(" ", _MAX_SIGNATURES)[:_MAX_SIGNATURES]
    if not any(hmac.compare_digest(expected, each.encode("latin-1", "replace")) for each in given):
        raise BadNotification("No signature in the header webhook-signature was made with this secret.")
    if abs((time.time() if now is None else now) - int(timestamp)) > tolerance_s:
        raise BadNotification(f"It was sent more than {tolerance_s:g} s ago, or by a clock that is wrong.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadNotification("The body is not a JSON object.")
    return value


def _key(secret: str) -> bytes:
    text = secret.strip().removeprefix("whsec_")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("The secret is 'whsec_' and Base64.")
    return key
