"""
What may become of an output, as data: our own copy of it, and what is done about one that is flagged as unsafe.

The CHECK constraints, the settings and the statements are read off these.
"""

from enum import StrEnum


class Kept(StrEnum):
    """Whether we have a copy of our own."""

    PENDING = "pending"
    STORED = "stored"
    LOST = "lost"  # there is none, and there will be none


class Policy(StrEnum):
    """What is done about an output that the provider flags as unsafe."""

    ALLOW = "allow"  # nothing
    FLAG = "flag"  # it is served, and marked
    QUARANTINE = "quarantine"  # it is not served, and its address not told, until a person releases it


class Review(StrEnum):
    """How a flagged output stands; an output that is not flagged, or that the policy allows, has none."""

    FLAGGED = "flagged"
    QUARANTINED = "quarantined"
    RELEASED = "released"
    PURGED = "purged"


HIDDEN = frozenset({Review.QUARANTINED, Review.PURGED})
"""Outputs that callers get neither the bytes nor an address of."""

SOURCE_DAYS = 7
"""How long the provider keeps results and files. Source: https://wavespeed.ai/docs/what-are-predictions"""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

GRACE_S = 60.0
"""How long a caller's notification waits for the copies of a job's outputs, in seconds."""
