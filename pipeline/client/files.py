"""A file that is there whole or not at all."""

import hashlib
import re
import secrets
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pipeline.client.answers import Output
from pipeline.client.errors import ConnectionFailed

_ENDINGS = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "video/mp4": ".mp4"}
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,5}")


def place_of(to: str | Path, job_id: str, output: Output) -> Path:
    """Where an output goes: to the file named, or, into a folder, under the job's id and its number."""
    place = Path(to)
    if not place.is_dir() and not str(to).endswith("/"):
        return place
    suffix = PurePosixPath(urlsplit(output.source_url or output.url or "").path).suffix
    ending = _ENDINGS.get(output.content_type or "") or (suffix if _ENDING.fullmatch(suffix) else "")
    return place / f"{job_id}-{output.index}{ending}"


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

    def check(self, sha256: str | None) -> None:
        """
        Compare what was written with what it should be, if that is known.

        Raises:
            ConnectionFailed: It is something else.
        """
        if sha256 is not None and self._digest.hexdigest() != sha256:
            raise ConnectionFailed("The file was damaged on its way: its checksum is another one.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._part.replace(self._place)
        finally:
            self._part.unlink(missing_ok=True)
