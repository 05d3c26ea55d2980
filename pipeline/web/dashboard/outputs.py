"""How a job's outputs are shown: as what they are, from our own copy, and only what may be shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from pipeline import sniffing, views
from pipeline.addresses import shown
from pipeline.outputs import HIDDEN, Kept, Review
from pipeline.web.dashboard import access
from pipeline.web.dashboard.words import pretty

LONGEST_TEXT = 20_000

WITHHELD = "Withheld: it may name the address of an output that was taken out of sight."
"""What stands in place of a body."""


@dataclass(frozen=True, slots=True)
class Output:
    """
    One output. `kind` says how: image, video, audio, text or file of our own copy; else why there is none to show.

    Those are hidden (under quarantine), purged, lost, coming (it is being fetched) and elsewhere (nobody fetches it).
    """

    index: int
    kind: str
    facts: Mapping[str, Any]
    text: str | None = None
    source: str | None = None  # the provider's own address, where that may be told and opened
    source_shown: str | None = None
    error: str | None = None
    due_at: datetime | None = None


def of(job: Any, kept: Sequence[Any] = ()) -> list[Output]:
    """The outputs of a *job* as `store` reads it; with those of its rows that are at hand, what became of each."""
    return list(_each(job, {one.index: one for one in kept}))


def withheld(job: Any) -> bool:
    """Whether who asks may read no body that tells of *job*: it may name the address of what is out of sight."""
    return not access.person().may_act and job is not None and any(one["review"] in HIDDEN for one in job.assets or ())


def _each(job: Any, kept: Mapping[int, Any]) -> Iterator[Output]:
    known = {one["index"]: one for one in job.assets or ()}
    for facts in views.job(job)["outputs"]:
        index, row = facts["index"], kept.get(facts["index"])
        source = facts["source_url"] if _opens(facts["source_url"]) else None
        yield Output(
            index,
            _kind(facts, known.get(index, {}).get("state")),
            facts,
            text=_text(facts),
            source=source,
            source_shown=source and shown(source),
            error=row.error if row else None,
            due_at=row.due_at if row else None,
        )


def _kind(facts: Mapping[str, Any], state: str | None) -> str:
    if facts["review"] == Review.PURGED:
        return "purged"
    if facts["review"] == Review.QUARANTINED:
        return "hidden"
    if "value" in facts:
        return "text"
    if facts["lost"]:
        return "lost"
    if not facts["stored"]:
        return "coming" if state == Kept.PENDING else "elsewhere"
    content_type = facts["content_type"]
    if sniffing.is_shown(content_type):
        return str(content_type.partition("/")[0])
    return "file"


def _text(facts: Mapping[str, Any]) -> str | None:
    if "value" not in facts:
        return None
    value = facts["value"]
    text = value if isinstance(value, str) else pretty(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}\n… cut here; the file has all of it."


def _opens(address: Any) -> bool:
    """Whether it is an address that a browser may be sent to, and no script."""
    if not isinstance(address, str):
        return False
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.netloc)
