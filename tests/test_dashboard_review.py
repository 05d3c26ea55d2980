"""The review queue at the dashboard: flagged outputs are looked at, released or purged, by a person with a name."""

from collections.abc import Callable
from uuid import UUID

import pytest

from pipeline.outputs import Review
from pipeline.runtime import Runtime
from pipeline.store import audit
from pipeline.store.tables import new_id
from tests.conftest import Caller
from tests.factories import execute, happened
from tests.test_cli import run_in
from tests.test_review import asset, kept
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

EVIL = "<script>alert(1)</script>"


def act(one: Visitor, job_id: UUID | str, what: str, index: int = 0) -> str:
    """Press a button of the queue, and give the page that follows."""
    one.get("/review")
    return one.post(f"/review/{job_id}/{index}/{what}", {"back": "/review"}).text


def test_the_queue_shows_what_waits_and_the_picture_once_it_is_asked_for(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    job_id = kept(rt, caller, b"flagged")
    execute(rt, "UPDATE jobs SET input = jsonb_build_object('prompt', CAST(:prompt AS text))", prompt=EVIL)
    ann = visitor()
    text = ann.get("/review").text
    assert str(job_id) in text
    assert "shop" in text
    assert "&lt;script&gt;alert(1)" in text
    assert EVIL not in text
    assert "<details id=" in text
    assert "<details open" not in text
    picture = ann.get(f"/files/{job_id}/0")
    assert f'src="/files/{job_id}/0"' in text
    assert picture.content == b"flagged"


def test_who_may_only_look_does_not_see_the_picture_nor_decide(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = kept(rt, caller, b"flagged")
    viewer = visitor(password=VIEWERS_PASSWORD)
    text = viewer.get("/review").text
    assert "Only operators see it." in text
    assert f"/files/{job_id}" not in text
    assert ">Release<" not in text
    assert viewer.get(f"/files/{job_id}/0").status_code == 404
    for what in ("release", "purge"):
        assert "You may look, and change nothing" in act(viewer, job_id, what)
    assert asset(rt, job_id).review == Review.QUARANTINED


def test_a_release_is_in_the_name_of_who_is_signed_in(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = kept(rt, caller, b"harmless")
    ann = visitor()
    text = act(ann, job_id, "release")
    assert "Output 0 is released" in text
    assert "Nothing waits to be looked at." in text
    assert '<td data-name="Who">Ann</td>' in text
    one = asset(rt, job_id)
    assert (one.review, one.reviewed_by) == (Review.RELEASED, "Ann")
    assert happened(rt, job_id, "output.released") == [{"index": 0, "by": "Ann"}]
    with rt.db.transaction() as tx:
        (entry,) = audit.newest(tx, target=str(job_id))
    assert (entry.who, entry.action, entry.outcome, entry.data) == ("Ann", "output.release", "done", {"output": 0})
    assert visitor(password=VIEWERS_PASSWORD).get(f"/files/{job_id}/0").content == b"harmless"


def test_what_is_purged_is_gone(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = kept(rt, caller, b"not for anybody")
    ann = visitor()
    assert "gone for good" in ann.get("/review").text
    assert "Output 0 is purged." in act(ann, job_id, "purge")
    assert "was purged before" in act(ann, job_id, "purge")
    assert ann.get(f"/files/{job_id}/0").status_code == 404
    assert asset(rt, job_id).review == Review.PURGED
    assert "is not under quarantine" in act(ann, job_id, "release")


@pytest.mark.parametrize(("job", "index"), [("x", 0), (None, 0), (None, 99_999), (None, 10**30)])
def test_an_output_that_is_none_is_not_decided_about(visitor: Visitors, job: str | None, index: int) -> None:
    text = act(visitor(), job or str(new_id()), "release", index)
    assert "no such output" in text or "There is no output" in text


def test_pages_go_on_where_the_last_ended(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    for n in range(26):
        kept(rt, caller, bytes([n]))
    ann = visitor()
    text = ann.get("/review").text
    assert text.count("<article") == 24
    older = text.partition('rel="next" href="')[2].partition('"')[0]
    assert ann.get(older).text.count("<article") == 2
    assert ann.get("/review?after=x").status_code == 404


def test_a_decision_by_the_command_line_is_in_the_audit(rt: Runtime, caller: Caller, environ: dict[str, str]) -> None:
    job_id = kept(rt, caller, b"harmless")
    assert run_in(environ, "review", "release", str(job_id), "--by", "Bea").returncode == 0
    with rt.db.transaction() as tx:
        (entry,) = audit.newest(tx)
    assert (entry.who, entry.door, entry.action) == ("cli:Bea", "command line", "output.release")
    assert asset(rt, job_id).reviewed_by == "Bea"
