"""Discard: remove files from storage that no output needs any more. Equal content is one file: it may be shared."""

from collections.abc import Collection
from uuid import UUID

from pipeline import telemetry
from pipeline.errors import StorageFailed
from pipeline.runtime import Runtime
from pipeline.store import reviews

log = telemetry.get(__name__)


def discard(rt: Runtime, keys: Collection[str], *, but_for: Collection[UUID] = ()) -> int:
    """
    Remove the files of these storage keys, each unless an output has it that is neither purged nor one of *but_for*.

    The key stays locked while its file is removed: an output that comes to share it meanwhile waits, and then sees
    that the file is gone. Callable any number of times. Returns how many files nobody has any more.

    Raises:
        StorageFailed: The storage is away, or there is none; what is left can be removed later.
    """
    storage = rt.storage
    if storage is None:
        raise StorageFailed(rt.storage_problem or "")
    removed = 0
    for key in sorted(set(keys)):
        with rt.db.transaction() as tx:
            reviews.lock_file(tx, key)
            if not reviews.shares(tx, key, but_for=but_for):
                storage.delete_now(key)
                removed += 1
            reviews.forget_key(tx, key)
    log.info("files.discarded", files=removed, shared=len(set(keys)) - removed)
    return removed
