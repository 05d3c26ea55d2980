"""Each page for everybody: axe finds nothing serious, light and dark, on a desktop and a phone; pictures are kept."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.embedded.stack import RunningStack
from pipeline.web.dashboard.page import MENU
from tests.browser.conftest import DESKTOP, PHONE, PICTURES
from tests.browser.happenings import Happenings, happen

pytestmark = pytest.mark.browser

Browse = Callable[..., Any]

LOOKS = [(size, scheme) for size in ("desktop", "phone") for scheme in ("light", "dark")]
SIZES = {"desktop": DESKTOP, "phone": PHONE}


@pytest.fixture(scope="session")
def happenings(product: RunningStack) -> Happenings:
    """Have something happen, of everything that the pages show."""
    return happen(product)


def pages(happenings: Happenings) -> dict[str, str]:
    """Every page by its name, with something on it."""
    found = {name.lower(): "/" if name == "Overview" else f"/{name.lower()}" for _, name in MENU}
    return found | happenings.pages


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_no_page_has_a_serious_obstacle(browse: Browse, happenings: Happenings, size: str, scheme: str) -> None:
    """By axe-core's rules for WCAG 2.2 AA and best practices."""
    from axe_playwright_python.sync_playwright import Axe

    page = browse("/", size=SIZES[size], scheme=scheme)
    found: dict[str, list[str]] = {}
    PICTURES.mkdir(exist_ok=True)
    for name, path in pages(happenings).items():
        page.goto(path)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=PICTURES / f"{name}-{size}-{scheme}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        troubles = [f"{wide} px wider than the screen"] if wide > 0 else []
        result = Axe().run(page)
        for violation in result.response["violations"]:
            if violation["impact"] in {"serious", "critical"}:
                where = [node["html"][:160] for node in violation["nodes"][:3]]
                troubles.append(f"{violation['id']}: {violation['help']} {where}")
        if troubles:
            found[name] = troubles
    assert found == {}


def test_the_door_has_no_serious_obstacle(browse: Browse) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browse("/login", signed_in=False)
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / "login-desktop-light.png")
    result = Axe().run(page)
    assert [one["id"] for one in result.response["violations"] if one["impact"] in {"serious", "critical"}] == []


def test_the_pages_can_be_walked_by_keyboard(browse: Browse) -> None:
    page = browse("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_role("link", name="Jobs", exact=True).first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs")
