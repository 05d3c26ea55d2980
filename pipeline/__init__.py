"""A webhook-driven job pipeline for WaveSpeedAI."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.client import AsyncClient, Client, verify_notification
    from pipeline.transactional import enqueue

__all__ = ["AsyncClient", "Client", "__version__", "enqueue", "verify_notification"]

__version__ = "0.1.0"

_PAGES = {
    "AsyncClient": "pipeline.client",
    "Client": "pipeline.client",
    "enqueue": "pipeline.transactional",
    "verify_notification": "pipeline.client",
}
"""What other services import, and where it lives. Loaded when first used: nobody pays for what they do not use."""


def __getattr__(name: str) -> Any:
    if name not in _PAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PAGES[name]), name)
