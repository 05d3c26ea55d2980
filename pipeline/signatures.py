"""
Sign and verify webhooks, WaveSpeed's way.

Pure: the clock is an argument, the body is bytes, nothing is read or written.

Source: https://wavespeed.ai/docs/docs-api/verifying_webhook
"""

import hmac
from collections.abc import Iterable, Mapping
from enum import StrEnum

from pipeline.errors import BadSignature

TOLERANCE_S = 300
"""How far the signature's clock may be from ours, either way, for the body to be believed."""

VERSION = "v3"
_TIMESTAMP_DIGITS = 12  # Unix seconds for the next 30,000 years; int() of 400 digits would be work for a stranger
_MAX_ID_LENGTH = 256


class Freshness(StrEnum):
    """An authentic message is either recent enough to be believed, or only a hint to go and ask."""

    FRESH = "fresh"
    STALE = "stale"


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature` for *body*: `v3,` and 64 hex digits."""
    return f"{VERSION},{_digest(secret, webhook_id, str(timestamp), body)}"


def verify(secrets: Iterable[str], headers: Mapping[str, str], body: bytes, *, now: int) -> Freshness:
    """
    Check that the provider signed *body* with one of *secrets*.

    Returns FRESH, or STALE when more than TOLERANCE_S seconds lie between the signature and *now*
    (Unix time): authentic still, but a hint to go and ask, not a fact.

    Raises:
        BadSignature: For any other input whatever, malformed headers included.
    """
    webhook_id, timestamp, given = well_formed(headers)
    for secret in secrets:
        if hmac.compare_digest(_digest(secret, webhook_id, timestamp, body), given):
            return _freshness(timestamp, at=now)
    raise BadSignature("The signature matches none of the webhook secrets.", well_formed=True)


def freshness(headers: Mapping[str, str], *, at: float) -> Freshness:
    """
    How old an authentic message was at that Unix time.

    Raises:
        BadSignature: Its headers are malformed.
    """
    _, timestamp, _ = well_formed(headers)
    return _freshness(timestamp, at=at)


def well_formed(headers: Mapping[str, str]) -> tuple[str, str, str]:
    """
    Read the three signature headers: (webhook id, timestamp, 64 lower-case hex digits).

    Raises:
        BadSignature: One is missing or does not have the documented form.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    webhook_id = lowered.get("webhook-id", "")
    timestamp = lowered.get("webhook-timestamp", "")
    version, _, given = lowered.get("webhook-signature", "").partition(",")
    if not 0 < len(webhook_id) <= _MAX_ID_LENGTH:
        raise BadSignature("The header webhook-id is missing or too long.")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _TIMESTAMP_DIGITS):
        raise BadSignature("The header webhook-timestamp is not a Unix time in seconds.")
    if version != VERSION or len(given) != 64 or not set(given) <= set("0123456789abcdef"):
        raise BadSignature(f"The header webhook-signature is not '{VERSION},' and 64 lower-case hex digits.")
    return webhook_id, timestamp, given


def _freshness(timestamp: str, *, at: float) -> Freshness:
    return Freshness.FRESH if abs(at - int(timestamp)) <= TOLERANCE_S else Freshness.STALE


def _digest(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    # The key is the text after the prefix, not the bytes it would decode to: what the documentation's code does.
    key = secret.removeprefix("whsec_").encode()
    # latin-1 is what a WSGI header is; the rest keeps a stranger's lone surrogate from being an exception.
    signed = f"{webhook_id}.{timestamp}.".encode("latin-1", "replace") + body
    return hmac.digest(key, signed, "sha256").hex()
