"""Outputs: can they be kept, which of them only the provider has, and did callers hear of them."""

from collections.abc import Iterator

from pipeline.errors import StorageFailed
from pipeline.lifecycle.examine.findings import Finding, fail, ok, warn
from pipeline.outputs import SOURCE_DAYS
from pipeline.runtime import Runtime
from pipeline.settings import OFF
from pipeline.store import endpoints
from pipeline.store.custody import LOST_SINCE_DAYS, custody

_LAST_DAY_S = 86_400
_BUCKET = "set ARCHIVE_URL to a bucket (s3://, gs://, az://), and its maker's variables"


def archive(rt: Runtime) -> Finding:
    """Whether files can be written, read and cleared."""
    if rt.settings.archive_url == OFF:
        return ok("archive", f"off by choice: the provider deletes outputs after {SOURCE_DAYS} days")
    storage = rt.storage
    if storage is None:
        words = f"outputs are not kept, and the provider deletes them after {SOURCE_DAYS} days: {rt.storage_problem}"
        if rt.settings.dyno:  # a folder, likely: nobody has chosen yet
            return warn("archive", "archive_on_dyno", words, _BUCKET)
        return fail("archive", "archive_not_writable", words, "make it writable, or set ARCHIVE_URL to another place")
    try:
        storage.try_now()
    except StorageFailed as error:
        todo = "see ARCHIVE_URL: the bucket's keys and rights, or the folder's owner"
        return fail("archive", "archive_not_writable", error.detail, todo)
    where = storage.folder or rt.settings.archives_to
    return ok("archive", f"{where} can be written, read and cleared")


def outputs(rt: Runtime) -> Iterator[Finding]:
    """What is at risk, lost, under review, or was not told."""
    with rt.db.transaction() as tx:
        now = custody(tx)
        off = [one.name for one in endpoints.troubled(tx) if one.off_at]
    waiting = sum(now.unarchived.values())
    if now.oldest_s is None:
        yield ok("outputs", "there is none that only the provider has")
    else:
        left_s = max(SOURCE_DAYS * 86_400 - now.oldest_s, 0)
        words = f"{waiting} that only the provider has; it deletes the oldest in {left_s / 3600:.0f} h"
        if not now.at_risk or rt.settings.archive_url == OFF:
            yield ok("outputs", words)
        else:
            finding = warn if left_s > _LAST_DAY_S else fail
            yield finding("outputs", "outputs_at_risk", words, "mend the archive; the log's output.postponed says why")
    if now.lost:
        words = f"lost in the last {LOST_SINCE_DAYS} days: {now.lost}"
        yield warn("lost", "outputs_lost", words, "`pipeline show JOB`: their jobs' histories say why")
    if now.quarantined:
        yield ok("review", f"flagged outputs that wait for a person: {now.quarantined}; see `pipeline review list`")
    if now.dead:
        words = f"notifications given up: {now.dead}"
        yield warn("told", "notifications_dead", words, "pipeline notifications list --state dead")
    if off:
        words = f"switched off because nothing got through for days: {len(off)}"
        yield warn("receivers", "receivers_off", words, "pipeline notifications endpoints")
