"""
Temporary directories that are locked while in use, so that what a killed process left is known as such, and removed.

The lock is an flock: it vanishes with its process, however that ended.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "wavespeed-"
LOCK = "lock"


def lock(directory: Path) -> int | None:
    """
    Lock a directory for this process.

    Returns the descriptor to close in the end; None when another process has the lock.
    """
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def remove(path: Path) -> None:
    """Remove a directory with all that is in it."""
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def directory(purpose: str) -> Iterator[Path]:
    """Make a temporary directory, locked, and remove it afterwards with all that is in it."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-"))
    held = lock(path)
    try:
        yield path
    finally:
        remove(path)
        if held is not None:
            os.close(held)


def abandoned() -> Iterator[Path]:
    """Find the directories of ours whose process is gone. Each is locked until the next is asked for."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        with contextlib.suppress(OSError):  # just removed, or not for us to read
            facts = path.lstat()
            young = time.time() - facts.st_mtime < 10  # made a moment ago: its maker may not have locked it yet
            if young or facts.st_uid != os.geteuid() or not path.is_dir() or path.is_symlink():
                continue
            held = lock(path)
            if held is not None:
                try:
                    yield path
                finally:
                    os.close(held)
