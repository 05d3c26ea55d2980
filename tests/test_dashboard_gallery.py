"""The gallery: what was made, and nothing that may not be shown."""

import re
from collections.abc import Callable

import pytest

from pipeline.outputs import Review
from pipeline.runtime import Runtime
from pipeline.web.dashboard.gallery import JOBS
from tests.conftest import Caller
from tests.factories import execute, kept, queued
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

EVIL = '"><script>alert("x")</script>'


def leads(html: str) -> list[str]:
    """The jobs that the tiles lead to, in their order."""
    return re.findall(r'<a href="/jobs/([0-9a-f-]{36})">', html)


def test_the_newest_pictures_come_first_and_lead_to_their_jobs(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    first, second = kept(rt, caller.service, b"one"), kept(rt, caller.service, b"two")
    queued(rt, caller.service)
    ann = visitor()
    page = ann.get("/gallery")
    assert leads(page.text) == [str(second), str(first)]
    assert f'<img src="/files/{first}/0" alt="a lighthouse" loading="lazy">' in page.text
    assert ann.get(f"/files/{first}/0").content == b"one"


def test_an_empty_gallery_says_how_it_fills(visitor: Visitors) -> None:
    assert "has a stored output yet" in visitor().get("/gallery").text


@pytest.mark.parametrize("password", [None, VIEWERS_PASSWORD])
def test_what_is_under_quarantine_purged_or_not_stored_is_not_there(
    visitor: Visitors, rt: Runtime, caller: Caller, password: str | None
) -> None:
    kept(rt, caller.service, b"bad", nsfw=True)
    purged, away, fine = (kept(rt, caller.service, word) for word in (b"gone", b"away", b"fine"))
    execute(rt, "UPDATE assets SET review = :review WHERE job_id = :id", review=Review.PURGED, id=purged)
    execute(rt, "UPDATE assets SET state = 'pending' WHERE job_id = :id", id=away)
    ann = visitor() if password is None else visitor(password=password)
    assert leads(ann.get("/gallery").text) == [str(fine)]


@pytest.mark.parametrize(
    ("content_type", "shown"),
    [
        ("video/mp4", "<video "),
        ("audio/mpeg", '<span class="kind">audio'),
        ("application/pdf", '<span class="kind">file'),
        ("image/svg+xml", '<span class="kind">file'),
    ],
)
def test_what_is_no_picture_is_shown_as_what_it_is(
    visitor: Visitors, rt: Runtime, caller: Caller, content_type: str, shown: str
) -> None:
    kept(rt, caller.service)
    execute(rt, "UPDATE assets SET content_type = :type", type=content_type)
    text = visitor().get("/gallery").text
    assert shown in text
    assert "<img" not in text


def test_a_services_pictures_are_chosen_and_an_unknown_service_is_named(
    visitor: Visitors, rt: Runtime, make_caller: Callable[..., Caller]
) -> None:
    shop, blog = make_caller("shop"), make_caller("blog")
    kept(rt, shop.service, b"one")
    theirs = kept(rt, blog.service, b"two")
    ann = visitor()
    assert leads(ann.get("/gallery?service=blog").text) == [str(theirs)]
    answer = ann.get("/gallery?service=nobody")
    assert answer.status_code == 422
    assert "There is no service of this name." in answer.text
    assert ann.get("/gallery?before=odd").status_code == 404


def test_older_leads_to_every_picture_though_many_jobs_have_none(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    made = [kept(rt, caller.service, b"%d" % number) for number in range(JOBS + 3)]
    execute(rt, "UPDATE assets SET state = 'lost' WHERE job_id = ANY(:ids)", ids=made[2:-1])
    ann = visitor()
    found, path = [], "/gallery"
    while path:
        text = ann.get(path).text
        found += leads(text)
        more = re.search(r'rel="next" href="([^"]+)"', text)
        path = more[1].replace("&amp;", "&") if more else ""
    assert found == [str(one) for one in (made[-1], made[1], made[0])]


def test_a_prompt_is_a_text_and_nothing_else(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    kept(rt, caller.service)
    execute(rt, "UPDATE jobs SET input = jsonb_build_object('prompt', CAST(:evil AS text))", evil=EVIL)
    text = visitor().get("/gallery").text
    assert "alert(" in text
    assert "<script>alert" not in text
