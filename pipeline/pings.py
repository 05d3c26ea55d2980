"""
A ping to ourselves through our own public address, and its echo. Pure.

Who echoes it right shares our database (the key is made of a secret that only stands there), saw the headers of a
callback, and says which body came. Nothing is stored, so whoever repeats a ping learns and changes nothing.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import BadSignature
from pipeline.signatures import Freshness, sign, verify, well_formed

PATH = "/webhooks/wavespeed/ping"
"""Beside the callbacks: what is put in front of us treats it as it treats them."""

MAX_BODY_BYTES = 4096

BODY = '{"ping":  "\\u00fc as \\u00fc, 1.50 as 1.50",\n "id": "é"}\r\n'.encode()
"""Whoever reads JSON and writes it anew, or changes its encoding or its line ends, makes another text of it."""

NOT_OURS = "This installation did not send the ping."
TOO_OLD = "The ping is minutes away from this server's clock."


@dataclass(frozen=True, slots=True)
class Echo:
    """What came of the body, signed."""

    size: int
    sha256: str
    signature: str


def headers(secret: str, ping_id: str, *, now: int) -> dict[str, str]:
    """Those of a callback. The body is not signed: the echo tells what came of it."""
    return {
        "Content-Type": "application/json",
        "webhook-id": ping_id,
        "webhook-timestamp": str(now),
        "webhook-signature": sign(_key(secret), ping_id, now, b""),
    }


def answer(secrets: Iterable[str], sent: Mapping[str, str], body: bytes, *, now: int) -> Echo:
    """
    Echo a ping of ours.

    Raises:
        BadSignature: It is none of ours, has not arrived whole, or is too old.
    """
    ping_id, _, _ = well_formed(sent)
    for secret in secrets:
        try:
            fresh = verify([_key(secret)], sent, b"", now=now) is Freshness.FRESH
        except BadSignature:
            continue
        if not fresh:
            raise BadSignature(TOO_OLD, well_formed=True)
        digest = hashlib.sha256(body).hexdigest()
        return Echo(len(body), digest, _echoed(secret, ping_id, digest))
    raise BadSignature(NOT_OURS, well_formed=True)


def is_ours(secret: str, ping_id: str, echo: Echo) -> bool:
    """Whether it is the echo of this ping, made by who has *secret*."""
    return hmac.compare_digest(_echoed(secret, ping_id, echo.sha256).encode(), echo.signature.encode())


def _echoed(secret: str, ping_id: str, digest: str) -> str:
    return hmac.new(
        _key(secret).encode(), f"echo.{ping_id}.{digest}".encode("latin-1", "replace"), "sha256"
    ).hexdigest()


def _key(secret: str) -> str:
    """Of *secret*, for pings alone: its other signatures say nothing here, nor ours elsewhere."""
    return hmac.new(secret.encode(), b"pipeline ping", "sha256").hexdigest()
