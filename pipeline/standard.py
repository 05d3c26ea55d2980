"""
Standard Webhooks, the sending side: the headers that let a receiver believe a notification.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from standardwebhooks.webhooks import Webhook

from pipeline import __version__


def headers(secrets: Sequence[str], notification_id: UUID, body: str, *, now: int) -> dict[str, str]:
    """
    The headers of one POST, signed with each of *secrets*: while one is rotated, a receiver knows the one or the other.

    *now* is in Unix seconds. The id is the same each time that a notification is sent.
    """
    at = datetime.fromtimestamp(now, UTC)
    signatures = [Webhook(secret).sign(str(notification_id), at, body) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": f"wavespeed-pipeline/{__version__}",
        "webhook-id": str(notification_id),
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
    }
