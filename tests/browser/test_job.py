"""One job in a real browser: it is followed to its end, and people act on it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from pipeline.embedded.stack import RunningStack
from tests.browser.conftest import PHONE, PICTURES
from tests.browser.happenings import database, ended, job

pytestmark = pytest.mark.browser

Browse = Callable[..., Any]


def later(product: RunningStack, prompt: str) -> str:
    """A job that nobody submits today."""
    return job(product, prompt, run_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())


def held(product: RunningStack, prompt: str) -> str:
    """A job that waits for a person."""
    job_id, attempt = later(product, prompt), uuid4()
    with database(product) as db:
        db.execute(
            "INSERT INTO attempts (id, job_id, service_id, number, token, worker_id, outcome, ended_at, http_status)"
            " SELECT %s, id, service_id, 1, %s, %s, 'lost', now(), 504 FROM jobs WHERE id = %s",
            (attempt, str(attempt), attempt, job_id),
        )
        db.execute(
            "UPDATE jobs SET state = 'unknown', attempts = 1, current_attempt = %s, held_at = now(), last_seq = 3,"
            " held_reason = '2 tasks in the provider''s list may be it' WHERE id = %s",
            (attempt, job_id),
        )
        db.execute(
            "INSERT INTO events (job_id, seq, kind, data) VALUES (%s, 2, 'attempt.looked_for',"
            """ '{"listed": 2, "candidates": ["5f0c2b", "77aa01"], "absent": false, "complete": true}')""",
            (job_id,),
        )
    return job_id


def test_a_job_is_followed_to_its_picture_without_a_reload(browse: Browse, product: RunningStack) -> None:
    job_id = later(product, "a slow boat")
    page = browse(f"/jobs/{job_id}")
    assert page.locator("#standing .badge").text_content() == "queued"
    with database(product) as db:
        db.execute("UPDATE jobs SET run_at = now(), due_at = now() WHERE id = %s", (job_id,))
    page.locator("#standing .badge", has_text="completed").wait_for(timeout=60_000)
    page.locator("#outputs img.large").wait_for()
    page.locator("#timeline strong", has_text="Output stored").wait_for()


def test_what_was_unfolded_stays_so_while_the_page_is_kept_fresh(browse: Browse, product: RunningStack) -> None:
    nowhere = f"{product.sandbox_url}/nobody-listens-here"
    job_id = job(product, "a castle", callback_url=nowhere)
    ended(product, job_id)
    page = browse(f"/jobs/{job_id}")
    assert page.locator("body").get_attribute("data-every"), "it is still to be told, so the page is kept fresh"
    body = page.locator("#timeline summary", has_text="Its body").first
    body.click()
    page.evaluate("document.querySelector('#timeline ol').dataset.old = '1'")
    page.locator("#timeline strong", has_text="try 2").wait_for(timeout=60_000)
    assert page.locator("#timeline ol[data-old]").count() == 0, "it was put in anew"
    assert page.locator("#timeline details[open] summary", has_text="Its body").count() == 1


def test_nothing_is_cancelled_without_a_question(browse: Browse, product: RunningStack) -> None:
    page = browse(f"/jobs/{later(product, 'a mill tomorrow')}")
    asked: list[str] = []

    def refuse(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", refuse)
    page.get_by_role("button", name="Cancel").click()
    assert len(asked) == 1
    assert page.locator("#standing .badge").text_content() == "queued"
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    page.locator("#standing .badge", has_text="cancelled").wait_for()


def test_a_held_job_is_decided(browse: Browse, product: RunningStack) -> None:
    from axe_playwright_python.sync_playwright import Axe

    job_id = held(product, "a bridge in doubt")
    PICTURES.mkdir(exist_ok=True)
    browse(f"/jobs/{job_id}", size=PHONE, scheme="dark").screenshot(
        path=PICTURES / "job-held-phone-dark.png", full_page=True
    )
    page = browse("/jobs?held=1")
    page.locator(f'a[href="/jobs/{job_id}"]').click()
    page.get_by_role("heading", name="Decide what became of it").wait_for()
    page.screenshot(path=PICTURES / "job-held-desktop-light.png", full_page=True)
    violations = Axe().run(page).response["violations"]
    assert [one["id"] for one in violations if one["impact"] in {"serious", "critical"}] == []
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Give it up").click()
    page.locator("#standing .badge", has_text="failed").wait_for()


def test_a_job_is_found_by_its_id(browse: Browse, product: RunningStack) -> None:
    job_id = later(product, "a needle in a haystack")
    page = browse("/jobs")
    page.get_by_label("Find by id").fill(job_id)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{job_id}")
