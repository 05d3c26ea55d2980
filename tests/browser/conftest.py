"""
One stack and one Chromium for all of these tests; a fresh browser profile for each.

Whatever a page says on its console, or fails to load, fails the test that opened it.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.embedded import stack
from pipeline.embedded.stack import RunningStack

PICTURES = Path(__file__).resolve().parents[2] / ".screenshots"

_OPTIONS = [  # nothing of a browser's own leaves this machine
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",  # of root, who needs it
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def product() -> Iterator[RunningStack]:
    """Run everything, as `make dev` does."""
    with stack.running() as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "Chromium is needed: make test-browser installs it where it may"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any, product: RunningStack) -> Iterator[Callable[..., Any]]:
    """Open a page of a person who has signed in: `browse()`, `browse("/jobs", size=PHONE, scheme="dark")`."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_(
        path: str = "/", *, size: dict[str, int] = DESKTOP, scheme: str = "light", signed_in: bool = True, **more: Any
    ) -> Any:
        context = chromium.new_context(
            base_url=product.url, viewport=size, color_scheme=scheme, reduced_motion="reduce", **more
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda got: complaints.append(f"{got.status} {got.url}") if got.status >= 500 else None)
        if signed_in:
            sign_in(page, product)
        page.goto(path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def sign_in(page: Any, product: RunningStack, name: str = "Ann") -> None:
    """Come in by the door."""
    page.goto("/login")
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Password").fill(product.dashboard_password)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/")
