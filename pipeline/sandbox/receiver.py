"""
Where a caller of the pipeline would be told: it takes whatever comes, and shows it. The provider has no such thing.

`POST /_sandbox/receiver` answers 204, `GET` gives the newest: in development somebody hears the notifications.
"""

from collections import deque
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from pipeline.sandbox.wire import refusing, reply

KEPT = 200
"""So many of the newest are kept."""


class Receiver:
    """What was told, newest last."""

    def __init__(self) -> None:
        """Nothing was, yet."""
        self._heard: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def table(self) -> list[web.RouteDef]:
        """Both routes."""
        return [
            web.post("/_sandbox/receiver", refusing(self._hear)),
            web.get("/_sandbox/receiver", refusing(self._show)),
        ]

    async def _hear(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode("utf-8", "replace")
        headers = {name.lower(): value for name, value in request.headers.items()}
        self._heard.append({"at": datetime.now(UTC).isoformat(), "headers": headers, "body": body})
        return web.Response(status=204)

    async def _show(self, _: web.Request) -> web.Response:
        return reply({"count": len(self._heard), "heard": list(self._heard)})
