"""The files a job made."""

import base64
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue

from pipeline import sniffing
from pipeline.errors import (
    FieldError,
    InvalidInput,
    NotInRange,
    NotStoredYet,
    StorageFailed,
    UnknownJob,
    UnknownOutput,
)
from pipeline.files import CACHED, name_of
from pipeline.jobs import FINAL, State
from pipeline.outputs import Kept, Review
from pipeline.runtime import Runtime
from pipeline.store import reading, reviews
from pipeline.store.services import Service
from pipeline.web.api.jobs import id_of
from pipeline.web.callers import caller
from pipeline.web.openapi.calls import Answer, Body, Call, Header, Parameter, described

if TYPE_CHECKING:
    from pipeline.storage import Storage

bp = Blueprint("outputs", __name__, url_prefix="/v1")

_INDEX = re.compile("[0-9]{1,4}")
_PIECE_BYTES = 3 * 64 * 1024  # in base64 a multiple of three has no end of its own

_TEXT = {"type": "string"}
ETAG = Header("ETag", "Names the content: its SHA-256.", _TEXT)
FILE = Body({}, {"a picture": "(its bytes)"}, "*/*")
DISPOSITION = Header("Content-Disposition", "Whether a browser may show it, and a name to save it under.", _TEXT)


@bp.get("/jobs/<job:job_id>/outputs/<index>")
@described(
    Call(
        "Download an output",
        "The file itself, from our own storage: our copy stays when the provider deletes its own. Parts of it can be"
        " asked for (`Range`), and whether it is still the same (`If-None-Match`). It is an attachment unless it is a"
        " picture, a video or a sound. Where the files are in a bucket, the answer leads to the bucket for some"
        " minutes.",
        place=9,
        parameters=[
            Parameter(
                "format",
                "query",
                "`base64` gives the content as a text in base64.",
                {"type": "string", "enum": ["base64"]},
                "base64",
            )
        ],
        answers=[
            Answer(200, "The file.", [FILE], [ETAG, DISPOSITION]),
            Answer(206, "The part of it that was asked for.", [FILE], [ETAG, DISPOSITION]),
            Answer(
                302,
                "It is in a bucket; without the key of ours, for some minutes.",
                [],
                [Header("Location", "There.", _TEXT)],
            ),
            Answer(304, "It has not changed."),
        ],
        errors=[UnknownJob, UnknownOutput, NotStoredYet, NotInRange, InvalidInput, StorageFailed],
    )
)
def get_output(job_id: str, index: str) -> ResponseReturnValue:
    """One output's bytes from our own storage; 409 while it is not there."""
    rt, service = caller()
    form = request.args.get("format")
    if form not in {None, "base64"}:
        raise InvalidInput(errors=[FieldError("format", "Must be base64, or absent.")])
    asset = _stored(rt, service, id_of(job_id), index)
    storage = rt.storage
    if storage is None:
        raise StorageFailed(f"The file is stored, but not where this server looks: {rt.storage_problem}.")
    if form is None and rt.settings.archive_redirect and asset.review != Review.QUARANTINED and request.method == "GET":
        address = storage.signed_now(asset.storage_key)
        if address:
            return Response(status=302, headers={"Location": address, "Cache-Control": "no-store"})
    return served(storage, asset, encoded=form == "base64")


def _stored(rt: Runtime, service: Service, job_id: UUID, index: str) -> Any:
    """The output's row, if its file is there and this service may have it."""
    with rt.db.transaction() as tx:
        row = reading.job(tx, job_id, service_id=None if service.operator else service.id)
        found = reviews.output(tx, job_id, int(index)) if row and _INDEX.fullmatch(index) else None
    if row is None:
        raise UnknownJob
    may_come = row.state not in FINAL and not (row.state == State.EXPIRED and row.due_at is None)
    if not _INDEX.fullmatch(index) or not (may_come or int(index) < len(row.outputs or ())):
        raise UnknownOutput
    if may_come:
        raise NotStoredYet("The job has not ended.")
    if found is not None and found.review == Review.PURGED:
        raise UnknownOutput("It was flagged as unsafe, and a person removed it.")
    if found is not None and found.review == Review.QUARANTINED and not service.operator:
        raise UnknownOutput("It was flagged as unsafe: a person has to release it.")
    if found is not None and found.state == Kept.LOST:
        raise UnknownOutput(f"It is lost. {found.error}")
    if found is None or found.state != Kept.STORED:
        why = f": {found.error}" if found is not None and found.error else "."
        raise NotStoredYet(f"Its file is not in our storage{why}")
    return found


def served(storage: "Storage", asset: Any, *, encoded: bool = False) -> Response:
    """The file as HTTP has it; a browser is kept from taking it for anything else than it is."""
    size = (asset.bytes + 2) // 3 * 4 if encoded else asset.bytes
    answer = Response(content_type="text/plain; charset=us-ascii" if encoded else asset.content_type)
    shown = encoded or sniffing.is_shown(asset.content_type)
    name = name_of(str(asset.job_id), asset.index, asset.source_url, asset.content_type)
    answer.headers["Content-Disposition"] = f'{"inline" if shown else "attachment"}; filename="{name}"'
    answer.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Cache-Control"] = CACHED
    answer.vary.add("Authorization")
    answer.set_etag(f"{asset.sha256}.base64" if encoded else asset.sha256)
    answer.last_modified = asset.stored_at
    answer.content_length = size
    one_part = request.range is None or len(request.range.ranges) == 1  # of several the whole may be sent instead
    answer.make_conditional(request.environ, accept_ranges=one_part and not encoded, complete_length=size)
    if request.method == "HEAD" or answer.status_code == 304:
        return answer
    start, stop = 0, asset.bytes
    if answer.status_code == 206:
        part = answer.content_range
        start, stop = part.start or 0, part.stop or 0
    file = storage.open_now(asset.storage_key)
    if file is None:
        raise StorageFailed("The file is not where it was stored.")
    answer.response = _encoded(file, stop) if encoded else _pieces(file, start, stop)
    answer.call_on_close(file.close)
    return answer


def _pieces(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    file.seek(start)
    while start < stop and (piece := bytes(file.read(min(_PIECE_BYTES, stop - start)))):
        start += len(piece)
        yield piece


def _encoded(file: BinaryIO, size: int) -> Iterator[bytes]:
    left = b""
    for piece in _pieces(file, 0, size):  # of any length, from a bucket
        whole = left + piece
        cut = len(whole) - len(whole) % 3
        left = whole[cut:]
        yield base64.b64encode(whole[:cut])
    yield base64.b64encode(left)
