"""Callbacks, notifications and reviews in a real browser: a person looks, decides, and sees what came of it."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.embedded import api
from pipeline.embedded.processes import wait_until
from pipeline.embedded.stack import RunningStack
from tests.browser.happenings import database, ended, job

pytestmark = pytest.mark.browser

Browse = Callable[..., Any]


def test_a_callback_is_read_foretold_and_replayed(browse: Browse, product: RunningStack) -> None:
    job_id = job(product, "a lantern")
    ended(product, job_id)
    page = browse(f"/callbacks?job={job_id}")
    page.locator("#inbox tbody a").first.click()
    page.locator("h1", has_text="applied").wait_for()
    assert job_id[-4:] in page.content()
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Replay").click()
    page.locator("dt", has_text="Replayed").wait_for()
    page.goto(f"/callbacks?job={job_id}")
    page.get_by_role("link", name="What would today's code make of them?").click()
    page.get_by_text("Today's code takes each of them as it was taken").wait_for()


def test_a_dead_letter_is_sent_again_and_arrives(browse: Browse, product: RunningStack) -> None:
    hears = f"{product.sandbox_url}/_sandbox/receiver"
    job_id = job(product, "a letter", callback_url=hears)

    def told() -> list[str]:
        with database(product) as db:
            rows = db.execute("SELECT state FROM notifications WHERE job_id = %s", (job_id,)).fetchall()
        return [row[0] for row in rows]

    assert wait_until(lambda: told() == ["delivered"], 60.0)
    with database(product) as db:
        db.execute("UPDATE notifications SET state = 'dead', error = 'answered 500' WHERE job_id = %s", (job_id,))
    before = api.call("GET", hears)[1]["count"]
    page = browse("/")
    page.get_by_role("link", name="Notifications").first.click()
    page.get_by_role("link", name="Look at the dead letters").click()
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Send 1 again").click()
    page.locator(".said.good").wait_for()
    assert wait_until(lambda: told() == ["delivered"], 60.0)
    assert api.call("GET", hears)[1]["count"] == before + 1


def test_a_flagged_picture_is_looked_at_and_released(browse: Browse, product: RunningStack) -> None:
    service = api.call("GET", f"{product.url}/v1/jobs/{job(product, 'a door')}", key=product.api_key)[1]["service"]
    page = browse(f"/services/{service}")
    page.get_by_label("Files that the provider flags as unsafe").select_option("quarantine")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".said.good").wait_for()
    job_id = job(product, "a secret [sandbox:nsfw]")
    ended(product, job_id)
    assert api.call("GET", f"{product.url}/v1/jobs/{job_id}/outputs/0", key=product.api_key)[0] in {200, 404}
    page.goto("/review")
    page.locator("summary", has_text="Show").first.click()
    page.locator(".flagged img").first.wait_for()
    page.wait_for_function("document.querySelector('.flagged img').naturalWidth > 0")
    page.once("dialog", lambda asked: asked.accept())
    page.get_by_role("button", name="Release").first.click()
    page.locator(".said.good").wait_for()
    page.goto(f"/jobs/{job_id}")
    page.locator("#outputs img.large").wait_for()
    page.locator("#timeline", has_text="Ann").wait_for()
