"""
Where files are kept: a folder, or a bucket (S3, Google, Azure), through one library.

A file is there whole or not at all, and by the time `keep` returns it is on the disk. Equal content has equal keys:
what is kept already is not written again.

    s3://bucket/prefix    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for other makes
    gs://bucket/prefix    GOOGLE_SERVICE_ACCOUNT_KEY, or the machine's own account
    az://bucket/prefix    AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY

These are the variables of the makers' own tools; each library class of `obstore.store` lists all that it reads.
"""

import asyncio
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

from pipeline.errors import ConfigError, StorageFailed
from pipeline.files import CACHED
from pipeline.sniffing import is_shown

PIECE_BYTES = 5 * 1024 * 1024
"""The least that S3 takes as a part of an upload."""

UPLOADS = 3
"""How many files are written at a time, each with two pieces in memory; in a folder, each by a thread."""

SIGNED_FOR = timedelta(minutes=5)

_LEFT_S = 3600.0
_READ_BYTES = 1 << 20
_UNFINISHED = re.compile(r".*#\d+")


class Storage:
    """One archive. Methods named `…_now` block, and are for threads; the others belong on an event loop."""

    def __init__(self, url: str) -> None:
        """
        *url* as in `ARCHIVE_URL`.

        Raises:
            ConfigError: It cannot be used as it is; nothing was asked over the network yet.
        """
        options = {
            "allow_http": True,
            "connect_timeout": "5s",
            "timeout": "60s",
        }  # http: only where the endpoint says so
        try:
            if url.startswith("file:"):
                self._store = from_url(url, mkdir=True)
            else:
                self._store = from_url(url, client_options=options, retry_config={"max_retries": 2})  # type: ignore[call-overload]
        except (BaseError, OSError, ValueError) as error:
            raise ConfigError(f"ARCHIVE_URL: {_words(error)}") from None
        prefix = self._store.prefix if isinstance(self._store, LocalStore) else None
        self.folder = Path(prefix) if prefix else None
        if self.folder and not os.access(self.folder, os.W_OK | os.X_OK):
            raise ConfigError(f"ARCHIVE_URL: {self.folder} cannot be written to")
        self._room = asyncio.Semaphore(UPLOADS)
        # A folder may hang, as disks over a network do: then these threads do, and none of those that find addresses.
        self._writers = ThreadPoolExecutor(UPLOADS, "folder")
        self._lookers = ThreadPoolExecutor(1, "folder")

    async def keep(self, key: str, file: BinaryIO, content_type: str) -> None:
        """
        Keep *file*, whose content the key names, unless it is there already.

        Raises:
            StorageFailed: It is not kept, for all we know; nothing of it can be seen.
        """
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if self.folder:
            keep = partial(self._keep_now, self.folder / key, key, file, size)
            await asyncio.get_running_loop().run_in_executor(self._writers, keep)
            return
        if await self.size(key) == size:
            return
        shown = "inline" if is_shown(content_type) else "attachment"  # who follows a signed address hears of it there
        attributes = {"Content-Type": content_type, "Content-Disposition": shown, "Cache-Control": CACHED}
        async with self._room:
            with _explained():
                await obstore.put_async(
                    self._store, key, file, attributes=attributes, chunk_size=PIECE_BYTES, max_concurrency=2
                )

    async def size(self, key: str) -> int | None:
        """How many bytes are kept under a key; None: nothing."""
        with _explained():
            try:
                return (await obstore.head_async(self._store, key))["size"]
            except FileNotFoundError:
                return None

    async def missing(self, keys: Sequence[str]) -> set[str]:
        """Those of *keys* under which surely nothing is kept."""
        if self.folder:  # in one go: a file is looked up in microseconds, a change of threads takes longer
            return await asyncio.get_running_loop().run_in_executor(self._lookers, self._missing_now, keys)
        sizes = await asyncio.gather(*map(self.size, keys), return_exceptions=True)
        return {key for key, size in zip(keys, sizes, strict=True) if size is None}

    def _missing_now(self, keys: Sequence[str]) -> set[str]:
        missing = set()
        for key in keys:
            with suppress(BaseError, OSError):  # then nothing is known of it
                if self._size_now(key) is None:
                    missing.add(key)
        return missing

    def _size_now(self, key: str) -> int | None:
        try:
            return obstore.head(self._store, key)["size"]
        except FileNotFoundError:
            return None

    def _keep_now(self, place: Path, key: str, file: BinaryIO, size: int) -> None:
        """In a folder all of it is one thread's work, without a change of threads between its steps."""
        with _explained():
            if self._size_now(key) == size:
                return
            obstore.put(self._store, key, file, chunk_size=PIECE_BYTES // 5, max_concurrency=2)
            _settle(place)

    def open_now(self, key: str) -> BinaryIO | None:
        """The bytes of a key, to be read from anywhere; None when there are none."""
        with _explained():
            try:
                if self.folder:
                    return (self.folder / key).open("rb")
                return cast("BinaryIO", obstore.open_reader(self._store, key, buffer_size=1024 * 1024))
            except FileNotFoundError:
                return None

    def read_now(self, key: str) -> Iterator[bytes]:
        """
        Give the bytes of a key, piece by piece.

        Raises:
            StorageFailed: There are none, or they cannot all be read.
        """
        file = self.open_now(key)
        if file is None:
            raise StorageFailed("The archive has no such file.")
        with file, _explained():
            while piece := bytes(file.read(_READ_BYTES)):
                yield piece

    def signed_now(self, key: str) -> str | None:
        """An address where anybody can read it for some minutes; None where there is no such thing."""
        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            return None
        try:
            return obstore.sign(self._store, "GET", key, SIGNED_FOR)
        except (BaseError, OSError, ValueError):  # the account of a machine cannot sign, only a key can
            return None

    def copy_now(self, source: str, target: str) -> None:
        """
        Have the same bytes under another key too.

        Raises:
            StorageFailed: Also when there are none.
        """
        with _explained():
            obstore.copy(self._store, source, target)
            if self.folder:
                _settle(self.folder / target)

    def delete_now(self, key: str) -> None:
        """Remove what is kept under a key; that there is nothing is fine."""
        with _explained():
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                return

    def try_now(self) -> None:
        """
        Write, read and remove a small file.

        Raises:
            StorageFailed: One of these failed; `detail` says why.
        """
        key, content = f"trial/{secrets.token_hex(8)}", secrets.token_bytes(16)
        with _explained():
            obstore.put(self._store, key, content)
            try:
                same = bytes(obstore.get(self._store, key).bytes()) == content
            finally:
                obstore.delete(self._store, key)
        if not same:
            raise StorageFailed("It gives back other bytes than it was given.")

    def tidy_now(self) -> int:
        """Remove what writers left that were killed on their way. Nobody could see it, but it fills the disk."""
        if self.folder is None:
            return 0  # buckets have rules of their own for parts of uploads
        left = [path for path in self.folder.rglob("*#*") if _UNFINISHED.fullmatch(path.name)]
        old = [path for path in left if path.stat().st_mtime < time.time() - _LEFT_S]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


def _settle(path: Path) -> None:
    """Have a file and its name on the disk: what the database then says of it must outlast a power cut."""
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise StorageFailed(f"The archive has no such file ({_words(error)}).") from None
    except (BaseError, OSError, ValueError, NotImplementedError) as error:
        raise StorageFailed(f"The archive does not answer as it should: {_words(error)}") from None


def _words(error: Exception) -> str:
    """The library's first line: the rest is made for its own programmers, and long."""
    line = (str(error).splitlines() or [""])[0]
    line = re.sub(r"https?://\S+", "…", line)  # it may be signed
    return f"{type(error).__name__}: {line[:200]}"
