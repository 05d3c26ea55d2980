"""A file that is there whole or not at all, what it is called, and how long who has it may take it for granted."""

import hashlib
import re
import secrets
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CACHED = "private, max-age=3600"
"""How long a caller may take a file for granted: it never changes, but may be put under quarantine."""

_ENDINGS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/avif": ".avif",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "text/plain": ".txt",
    "application/json": ".json",
}
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}")


def name_of(job_id: str, index: int, url: str | None, content_type: str | None = None) -> str:
    """What a job's output is called: after the job and its number, with the ending that it should have."""
    suffix = PurePosixPath(urlsplit(url or "").path).suffix
    ending = _ENDINGS.get((content_type or "").partition(";")[0]) or (suffix if _ENDING.fullmatch(suffix) else "")
    return f"{job_id}-{index}{ending}"


class WholeFile:
    """Write beside the file's place under another name, and take its place only when the block ends well."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._part = self._place.with_name(f".{secrets.token_hex(8)}.part")
        self._file = self._part.open("xb")
        return self

    def write(self, data: bytes) -> None:
        """Add to the file."""
        self._digest.update(data)
        self._file.write(data)

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._digest.hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._part.replace(self._place)
        finally:
            self._part.unlink(missing_ok=True)
