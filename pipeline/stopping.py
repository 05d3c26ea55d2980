"""SIGINT and SIGTERM as a condition to wait for."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Stop:
    """Within the block, either signal ends `wait` instead of the process."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a signal came: then True."""
        return self._event.wait(seconds)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._event.set()
