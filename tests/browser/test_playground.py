"""The playground as a newcomer meets it: run, see the picture, find the callback and the notification, copy."""

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser

Browse = Callable[..., Any]


def test_a_newcomer_runs_a_prompt_and_finds_all_that_came_of_it(browse: Browse) -> None:
    """Without reading anything: the page opens with a prompt and a price, and Run does the rest."""
    page = browse("/playground")
    assert page.locator("#price").inner_text() == "Price: $0.12, paid when it completes."
    page.get_by_label(re.compile("Prompt")).fill('a fox, "quoted", in the snow')
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url("**/playground?job=*")
    picture = page.locator("#result img.large")  # it comes by itself
    picture.wait_for()
    page.wait_for_function("document.querySelector('#result img.large').naturalWidth > 0")
    assert page.get_by_label(re.compile("Prompt")).input_value() == 'a fox, "quoted", in the snow'
    for name in ("The job, with its whole history", "Its callback", "Its notification"):
        page.get_by_role("link", name=name).click()
        page.locator("h1").wait_for()
        page.go_back()


def test_another_model_brings_its_own_fields_and_another_choice_its_own_price(browse: Browse) -> None:
    page = browse("/playground")
    page.get_by_label("Model", exact=True).fill("wavespeed-ai/flux-dev-lora")
    page.keyboard.press("Tab")
    images = page.get_by_label("Num images")
    images.wait_for()
    before = page.locator("#code-curl").inner_text()
    images.fill("3")
    page.keyboard.press("Tab")
    page.get_by_text("$0.045").wait_for()
    assert '"num_images": 3' in page.locator("#code-curl").inner_text() != before


def test_who_leaves_a_field_for_run_means_run(browse: Browse) -> None:
    """The field left would have the form looked at; the press of Run must not be lost to that."""
    page = browse("/playground?model=wavespeed-ai/flux-dev-lora")
    page.get_by_label("Num images").fill("2")
    page.get_by_role("button", name="Run", exact=True).click()
    page.wait_for_url("**/playground?job=*")
    page.locator("#result img.large").nth(1).wait_for()


def test_a_program_is_copied_as_it_stands(browse: Browse) -> None:
    page = browse("/playground", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy cURL").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#code-curl").text_content()


def test_a_new_services_key_is_shown_and_gone_with_the_page(browse: Browse) -> None:
    page = browse("/services")
    page.get_by_label("Name").fill("browser-shop")
    page.get_by_role("button", name="Add it, and show its key").click()
    key = page.locator("#key").text_content()
    assert key.startswith("pk_")
    page.get_by_role("link", name="Go on to browser-shop").click()
    page.locator("h1", has_text="browser-shop").wait_for()
    assert key not in page.content()
    page.on("dialog", lambda asked: asked.dismiss())
    page.get_by_role("button", name="Make a new key").click()
    assert page.locator("#key").count() == 0  # asked first, and no was said
