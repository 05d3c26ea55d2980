"""The list of jobs: what is shown of each, how it is narrowed down, and how one job is found."""

import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import lists
from pipeline.web.dashboard.jobs import LIMIT
from tests.conftest import Caller
from tests.factories import execute, placed, processing, queued
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

EVIL = '<script>alert("x")</script>'


def listed(html: str) -> list[str]:
    """The ids of the jobs that a page shows, in its order."""
    return re.findall(r'href="/jobs/([0-9a-f-]{36})"', html)


def test_jobs_are_listed_the_newest_first_with_how_they_stand(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    first = processing(rt, caller.service, "a mill").job_id
    second = queued(rt, caller.service, "a lighthouse at dawn")
    answer = visitor().get("/jobs")
    assert answer.status_code == 200
    assert listed(answer.text) == [str(second), str(first)]
    for words in ("a lighthouse at dawn", "a mill", "queued", "processing", "shop", "$0.12"):
        assert words in answer.text
    assert 'data-every="3"' in answer.text


def test_where_there_are_no_jobs_the_page_says_how_to_make_one(visitor: Visitors) -> None:
    assert "There are no jobs yet" in visitor().get("/jobs").text


def test_each_filter_chooses_the_jobs_that_fit_it(
    visitor: Visitors, rt: Runtime, make_caller: Callable[..., Caller]
) -> None:
    shop, blog = make_caller("shop"), make_caller("blog")
    waiting = queued(rt, shop.service, metadata={"order": "4711"})
    other = placed(rt, blog.service, State.PROCESSING)
    held, doubtful = placed(rt, shop.service, State.UNKNOWN), placed(rt, shop.service, State.UNKNOWN)
    execute(rt, "UPDATE jobs SET held_at = now(), held_reason = 'none' WHERE id = :id", id=held)
    execute(rt, "UPDATE jobs SET model = 'acme/other' WHERE id = :id", id=doubtful)
    ann = visitor()
    for query, wanted in (
        ("service=blog", [other]),
        ("state=queued", [waiting]),
        ("model=acme/other", [doubtful]),
        ("metadata=order%3D4711", [waiting]),
        ("held=1", [held]),
        ("held=1&service=blog", []),
        ("service=shop&state=unknown", [doubtful, held]),
        ("metadata=order%3D4712", []),
    ):
        answer = ann.get(f"/jobs?{query}")
        assert answer.status_code == 200, query
        assert listed(answer.text) == [str(one) for one in wanted], query


def test_older_leads_through_every_job_once(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    made = [placed(rt, caller.service, State.PROCESSING) for _ in range(LIMIT + 2)]
    ann = visitor()
    newest = ann.get("/jobs?state=processing&service=shop")
    (older,) = re.findall(r'rel="next" href="([^"]+)"', newest.text)
    oldest = ann.get(older.replace("&amp;", "&"))
    assert listed(newest.text) + listed(oldest.text) == [str(one) for one in reversed(made)]
    assert 'rel="next"' not in oldest.text
    assert "data-every" not in oldest.text, "a page of the past does not change under its reader"
    assert '<a href="/jobs?service=shop&amp;state=processing">Newest</a>' in oldest.text


def test_a_page_without_a_job_leads_on_where_older_ones_may_fit(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    """A rare filter is not looked for through the whole of the past at once."""
    held = placed(rt, caller.service, State.UNKNOWN)
    execute(rt, "UPDATE jobs SET held_at = now(), held_reason = 'none'")
    execute(
        rt,
        "INSERT INTO jobs (id, service_id, model, input, state, due_at, deadline_at, current_attempt)"
        " SELECT CAST('ff' || substr(md5(CAST(n AS text)), 3) AS uuid), service_id, model, input, state, due_at,"
        " deadline_at, current_attempt FROM jobs, generate_series(1, :count) n",
        count=lists.AT_MOST,
    )
    ann = visitor()
    newest = ann.get("/jobs?held=1")
    assert listed(newest.text) == []
    assert "There are older ones" in newest.text
    (older,) = re.findall(r'rel="next" href="([^"]+)"', newest.text)
    assert listed(ann.get(older.replace("&amp;", "&")).text) == [str(held)]


def test_a_job_is_found_by_its_id_and_by_its_tasks(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job = processing(rt, caller.service)
    ann = visitor()
    for text in (str(job.job_id), f" {job.job_id} ", job.job_id.hex, job.prediction_id):
        assert ann.get("/jobs", params={"find": text}).url.path == f"/jobs/{job.job_id}"
    for text in (str(uuid4()), "0" * 32, "nothing", "\x00", "x" * 400, EVIL):
        answer = ann.get("/jobs", params={"find": text})
        assert (answer.status_code, answer.url.path) == (422, "/jobs")
        assert "No job has this id" in answer.text
        assert EVIL not in answer.text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"state": "odd"}, "Must be one of queued"),
        ({"service": "nobody"}, "There is no service of this name."),
        ({"metadata": "order"}, "Write it as name=value"),
        ({"metadata": "=x"}, "Write it as name=value"),
        ({"model": "a\x00b"}, "printable characters"),
        ({"metadata": "a=" + "x" * 400}, "printable characters"),
        ({"state": "queued", "held": "1"}, "Only an unknown job can wait for a decision"),
    ],
)
def test_a_filter_that_cannot_be_understood_is_named(visitor: Visitors, query: dict[str, str], words: str) -> None:
    answer = visitor().get("/jobs", params=query)
    assert answer.status_code == 422
    assert words in answer.text


@pytest.mark.parametrize("before", ["odd", "\x00", "0" * 33, EVIL])
def test_an_odd_cursor_is_no_fault_of_ours(visitor: Visitors, before: str) -> None:
    answer = visitor().get("/jobs", params={"before": before})
    assert answer.status_code == 404
    assert EVIL not in answer.text


def test_what_strangers_wrote_runs_nowhere(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    queued(rt, caller.service, EVIL, metadata={EVIL: EVIL})
    ann = visitor()
    queries: list[dict[str, Any]] = [{}, {"metadata": f"{EVIL}={EVIL}"}, {"model": EVIL}]
    for query in queries:
        text = ann.get("/jobs", params=query).text
        assert "alert(" in text
        assert EVIL not in text


def test_a_prompt_that_is_no_text_or_very_long_does_not_break_the_list(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    odd, long = placed(rt, caller.service, State.PROCESSING), placed(rt, caller.service, State.PROCESSING)
    execute(rt, """UPDATE jobs SET input = '{"prompt": {"a": [1]}}' WHERE id = :id""", id=odd)
    execute(rt, "UPDATE jobs SET input = jsonb_build_object('prompt', repeat('w ', 9000)) WHERE id = :id", id=long)
    text = visitor().get("/jobs").text
    assert listed(text) == [str(long), str(odd)]
    assert "no prompt" in text
    assert "w " * 70 not in text


def test_a_viewer_sees_the_jobs(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    job_id = queued(rt, caller.service)
    assert listed(visitor(password=VIEWERS_PASSWORD).get("/jobs").text) == [str(job_id)]
