"""Whatever stands in an address or a form of the dashboard: an answer that says something, and never a crash."""

import inspect
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes, urlencode, urlsplit

import pytest

from pipeline.runtime import Runtime
from pipeline.web import create_app
from tests.conftest import Caller
from tests.factories import kept, queued, unknown
from tests.visitors import Visitor

Visitors = Callable[..., Visitor]

ODD = {
    "nothing": "",
    "a space": " ",
    "NUL": "%00",
    "half a character": "%ED%A0%80",
    "no UTF-8": "%FF%FE",
    "a line break": "a%0D%0ASet-Cookie:%20x=1",
    "turned round": "%E2%80%AE",
    "a quote": "%27%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
    "10 kB": "x" * 10_000,
    "a huge number": "9" * 400,
    "a number that is none": "NaN",
    "below zero": "-1",
    "other digits": "%D9%A1%D9%A2",
    "an id of nothing": "00000000-0000-0000-0000-000000000000",
    "a time before time": "0000-00-00",
    "the last time": "9999-12-31T23:59:59-23:59",
    "half an address": "//[",
    "up": "../../../../etc/passwd",
    "a wildcard": "%25_%5C",
}
"""Texts that programs trip over, as an address has them."""

EVERY_DAY = ("NUL", "half a character", "a quote", "half an address")
CASES = [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow) for name in ODD]

COMMON = {"event", "prediction", "service", "state", "verdict"}
"""Filters that a list looks for by a name it has from elsewhere."""

_READS = re.compile(r".*(?:args|form|values|words\(|number\(|_in\(|FILTERS =).*")
_QUOTED = re.compile(r'"([a-z_]+)"')

ACTIONS = ("", "limits", "rotate-key", "show-secret", "budgets", "run", "adopt", "nothing-like-it")
"""What the buttons of a form send, where it has several."""


@pytest.fixture
def known(rt: Runtime, caller: Caller) -> dict[str, str]:
    """Something behind each kind of address."""
    service = caller.service
    unknown(rt, service)
    queued(rt, service)
    return {"name": service.name, "index": "0", "job_id": str(kept(rt, service))}


def doors(rt: Runtime, method: str, known: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Every address of the dashboard that takes *method*, with all that its page may look for in a query or a form."""
    app = create_app(rt)
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("dashboard.") and method in (rule.methods or ()):
            path = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: known.get(match[1], known["job_id"]), rule.rule)
            page = inspect.getmodule(app.view_functions[rule.endpoint])
            assert page is not None
            reads = _READS.findall(inspect.getsource(page)) if rule.endpoint != "dashboard.static" else ()
            names = {name for line in reads for name in _QUOTED.findall(line)}
            yield path, sorted(names | COMMON if names else names)


@pytest.mark.parametrize("odd", CASES)
def test_no_page_falls_over_what_stands_in_its_address(
    visitor: Visitors, rt: Runtime, known: dict[str, str], odd: str
) -> None:
    ann, value = visitor(), ODD[odd]
    for path, names in doors(rt, "GET", known):
        for name in names:
            query = f"{name}={value}&{name}={value}&{name}[]={value}"
            answer = ann.client.get(f"{path}?{query}", follow_redirects=False)
            assert answer.status_code < 500, (path, name)
            assert "<script>alert" not in answer.text, (path, name)
            assert "x" not in answer.cookies, (path, name)


@pytest.mark.parametrize("odd", CASES)
def test_no_action_falls_over_what_stands_in_its_form(
    visitor: Visitors, rt: Runtime, known: dict[str, str], odd: str
) -> None:
    ann = visitor()
    value = unquote_to_bytes(ODD[odd])
    for path, names in doors(rt, "POST", known):
        if path in {"/login", "/logout"}:
            continue
        ann.get("/services")
        for action in ACTIONS if "do" in names else ("",):
            fields = {name.encode(): value for name in (*names, "back", "input.prompt", "input.seed", "input.n")}
            fields |= {b"csrf_token": ann.token.encode(), b"do": action.encode()}
            answer = ann.client.post(
                path,
                content=urlencode(fields),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                follow_redirects=False,
            )
            assert answer.status_code < 500, (path, action)
            assert "<script>alert" not in answer.text, (path, action)
            where = urlsplit(answer.headers.get("location", "/"))
            assert (where.scheme, where.netloc) == ("", ""), (path, action)


@pytest.mark.parametrize("odd", CASES)
def test_no_address_is_too_odd_to_be_answered(visitor: Visitors, rt: Runtime, known: dict[str, str], odd: str) -> None:
    """What stands in place of an id or a name."""
    ann, value = visitor(), ODD[odd]
    for method in ("GET", "POST"):
        for path, _ in doors(rt, method, dict.fromkeys(("name", "job_id", "index", "filename"), value)):
            answer = ann.client.request(
                method,
                path,
                data={"csrf_token": ann.token},
                headers={"Connection": "close"},  # a server that has no such page reads no form
                follow_redirects=False,
            )
            assert answer.status_code < 500, (method, path[:100])
            assert "<script>alert" not in answer.text, (method, path[:100])
