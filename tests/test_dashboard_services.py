"""The page of services: who may hand in jobs, what they may, and what they have told."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.jobs import State
from pipeline.runtime import Runtime
from pipeline.store import audit, keys, services
from tests.commands import command
from tests.conftest import Caller
from tests.factories import execute, placed, queued, scalar
from tests.http import get
from tests.visitors import VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]

KEY = re.compile(r"pk_[\w-]{43}")
SECRET = re.compile(r"whsec_[\w+/=]{44}")


def service(rt: Runtime, name: str = "shop") -> services.Service:
    with rt.db.transaction() as tx:
        found = services.by_name(tx, name, revoked=True)
    assert found
    return found


def acts(rt: Runtime) -> list[tuple[str, str | None, str | None]]:
    """What people did, but for signing in, oldest first."""
    with rt.db.transaction() as tx:
        rows = audit.newest(tx)
    return [(row.action, row.target, row.outcome) for row in reversed(rows) if row.action != "sign_in"]


def admits(web: str, key: str) -> bool:
    return get(f"{web}/v1/jobs", key=key).status == 200


def test_a_new_services_key_and_secret_are_shown_in_that_answer_and_never_again(
    visitor: Visitors, rt: Runtime, web: str
) -> None:
    ann = visitor()
    ann.get("/services")
    answer = ann.post("/services", {"name": " shop "})
    (key,) = set(KEY.findall(answer.text))
    (secret,) = set(SECRET.findall(answer.text))
    assert admits(web, key)
    with rt.db.transaction() as tx:
        assert keys.of(tx, service(rt).id) == [secret]
        told = str([row.data for row in audit.newest(tx)])
    assert acts(rt) == [("service.create", "shop", "done")]
    for page in (told, ann.get("/services").text, ann.get("/services/shop").text, ann.get("/audit").text):
        assert key not in page
        assert secret not in page


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop", "There is a service named shop already"),
        ("No Capitals", "up to 63 lower-case letters"),
        ("a\x00", "up"),
    ],
    ids=ascii,
)
def test_a_name_that_cannot_be_is_said_beside_it_and_kept(
    visitor: Visitors, rt: Runtime, caller: Caller, name: str, said: str
) -> None:
    ann = visitor()
    ann.get("/services")
    answer = ann.post("/services", {"name": name, "operator": "on"})
    assert answer.status_code == 422
    assert re.search(rf'class="wrong" id="d-name">[^<]*{said}', answer.text)
    assert f'name="name" type="text" value="{name}"' in answer.text or "\x00" in name
    assert 'name="operator" checked' in answer.text
    assert scalar(rt, "SELECT count(*) FROM services") == 1


def test_a_service_is_changed_as_the_form_says_and_what_is_empty_ends(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    ann = visitor()
    ann.get("/services/shop")
    said = {
        "do": "set",
        "weight": "3",
        "max_in_flight": "20",
        "requests_per_minute": "600",
        "callback_url": "https://shop.example.com/done?token=hush",
        "callback_tasks": "shop.done@shop\r\nshop.told",
        "nsfw_policy": "quarantine",
    }
    answer = ann.post("/services/shop", said)
    assert "shop is changed." in answer.text
    now = service(rt)
    assert (now.weight, now.max_in_flight, now.requests_per_minute, now.nsfw_policy) == (3, 20, 600, "quarantine")
    assert now.callback_url == said["callback_url"]
    assert now.callback_tasks == [{"task": "shop.done", "queue": "shop"}, {"task": "shop.told", "queue": "celery"}]
    with rt.db.transaction() as tx:
        (entry, *_) = audit.newest(tx)
    assert (entry.action, entry.data["weight"], "hush" in str(entry.data)) == ("service.change", 3, False)

    ann.post("/services/shop", {"do": "set", **dict.fromkeys([*said][2:], "")})
    now = service(rt)
    assert (now.max_in_flight, now.requests_per_minute, now.callback_url, now.nsfw_policy) == (None,) * 4
    assert (now.callback_tasks, now.weight) == ([], 3)


def test_what_is_wrong_stands_beside_its_field_and_nothing_is_changed_or_lost(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    ann = visitor()
    ann.get("/services/shop")
    wrong = {
        "weight": ("0", "no whole number from 1 to 1000"),
        "max_in_flight": ("many", "neither a whole number above 0"),
        "callback_url": ('ftp://x/"><script>alert(1)</script>', "Must be an http"),
        "callback_tasks": ("two words pipeline.enqueue", "call in a circle"),
        "nsfw_policy": ("hide", "is none of allow, flag, quarantine"),
    }
    answer = ann.post("/services/shop", {"do": "set", "requests_per_minute": "5"} | {k: v[0] for k, v in wrong.items()})
    assert answer.status_code == 422
    for name, (_, said) in wrong.items():
        assert re.search(rf'class="wrong" id="d-{name}">[^<]*{said}', answer.text), name
    assert 'value="many"' in answer.text
    assert 'value="5"' in answer.text
    assert "<script>alert" not in answer.text
    assert service(rt).requests_per_minute is None
    assert acts(rt) == []


def test_a_service_is_paused_and_goes_on(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    ann = visitor()
    ann.get("/services/shop")
    assert "is paused" in ann.post("/services/shop", {"do": "pause", "back": "/services/shop"}).text
    assert service(rt).paused_at
    assert "paused" in ann.get("/services").text
    ann.get("/services/shop")
    assert "goes on" in ann.post("/services/shop", {"do": "resume", "back": "/services/shop"}).text
    assert service(rt).paused_at is None
    assert [action for action, *_ in acts(rt)] == ["service.pause", "service.resume"]


def test_a_new_key_ends_the_old_one_and_revoked_it_ends_too(
    visitor: Visitors, rt: Runtime, web: str, caller: Caller
) -> None:
    ann = visitor()
    ann.get("/services/shop")
    answer = ann.post("/services/shop", {"do": "rotate-key"})
    (key,) = set(KEY.findall(answer.text))
    assert (admits(web, caller.key), admits(web, key)) == (False, True)
    assert key not in ann.get("/services/shop").text
    ann.post("/services/shop", {"do": "revoke", "back": "/services/shop"})
    assert not admits(web, key)
    assert "revoked" in ann.get("/services").text
    assert [action for action, *_ in acts(rt)] == ["service.rotate_key", "service.revoke"]


def test_the_secret_is_shown_to_who_asks_for_it_and_that_is_written_down(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    with rt.db.transaction() as tx:
        (secret,) = keys.of(tx, caller.service.id)
    ann = visitor()
    assert secret not in ann.get("/services/shop").text
    assert secret in ann.post("/services/shop", {"do": "show-secret"}).text
    answer = ann.post("/services/shop", {"do": "rotate-secret"})
    (fresh,) = set(SECRET.findall(answer.text))
    with rt.db.transaction() as tx:
        assert keys.of(tx, caller.service.id) == [fresh, secret]
        assert fresh not in str([row.data for row in audit.newest(tx)])
    assert [action for action, *_ in acts(rt)] == ["service.show_secret", "service.rotate_secret"]


def test_budgets_are_set_shown_with_what_is_used_and_ended(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    ann = visitor()
    ann.get("/services/shop")
    ann.post("/services/shop", {"do": "budgets", "day": "1.50", "month": "$20"})
    ann.post("/services", {"do": "budgets", "day": "", "month": "100"})
    queued(rt, caller.service)
    for path in ("/services", "/services/shop"):
        assert "$0.12 of $1.50, $0.12 of it reserved" in ann.get(path).text
    assert "$0.12 of $100.00" in ann.get("/services").text
    assert 'value="1.5"' in ann.get("/services/shop").text

    before = acts(rt)
    assert "as they were" in ann.post("/services/shop", {"do": "budgets", "day": "1.5", "month": "20"}).text
    assert acts(rt) == before
    ann.post("/services/shop", {"do": "budgets", "day": "", "month": "20"})
    assert scalar(rt, "SELECT string_agg(period || limit_usd, ' ' ORDER BY limit_usd DESC) FROM budgets") == (
        "month100.000000 month20.000000"
    )


@pytest.mark.parametrize("path", ["/services", "/services/shop"])
def test_an_odd_amount_is_said_beside_it_and_no_budget_is_changed(
    visitor: Visitors, rt: Runtime, caller: Caller, path: str
) -> None:
    ann = visitor()
    ann.get(path)
    answer = ann.post(path, {"do": "budgets", "day": "5", "month": "much"})
    assert answer.status_code == 422
    assert re.search(r'class="wrong" id="d-month">[^<]*not an amount in US dollars', answer.text)
    assert 'value="much"' in answer.text
    assert scalar(rt, "SELECT count(*) FROM budgets") == 0


def test_the_list_says_what_each_has_waiting_and_running(
    visitor: Visitors, rt: Runtime, make_caller: Callable[..., Caller]
) -> None:
    shop, idle = make_caller("shop").service, make_caller("idle", operator=True).service
    for state in (*[State.QUEUED] * 2, State.SUBMITTING, State.PROCESSING, State.UNKNOWN, *[State.COMPLETED] * 3):
        placed(rt, shop, state)
    with rt.db.transaction() as tx:
        found = services.loads(tx)
        assert services.loads(tx, shop.id) == {shop.id: services.Load(2, 3)}
    assert found == {shop.id: services.Load(2, 3), idle.id: services.Load(0, 0)}
    text = visitor().get("/services").text
    assert re.search(r'state=queued">2</a>', text)
    assert re.search(r'data-name="In flight">3', text)
    assert "operator" in text


def test_a_crowd_is_counted_only_so_far(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    """A million waiting jobs must not be read to say that there are many."""
    for state in (*[State.QUEUED] * 4, *[State.PROCESSING] * 2, *[State.UNKNOWN] * 2):
        placed(rt, caller.service, state)
    with rt.db.transaction() as tx:
        assert services.loads(tx, at_most=3) == {caller.service.id: services.Load(3, 3)}


def test_a_viewer_sees_what_there_is_and_no_way_to_change_it(visitor: Visitors, rt: Runtime, caller: Caller) -> None:
    viewer = visitor(password=VIEWERS_PASSWORD)
    for path in ("/services", "/services/shop"):
        text = viewer.get(path).text
        assert "shop" in text
        assert re.findall(r"<form[^>]*action=\"([^\"]*)", text) == ["/logout"]
    for fields in ({"do": "show-secret"}, {"do": "rotate-key"}, {"do": "pause"}):
        answer = viewer.post("/services/shop", fields)
        assert not SECRET.search(answer.text)
        assert not KEY.search(answer.text)
        assert "You may look, and change nothing" in answer.text
    assert acts(rt) == []


@pytest.mark.parametrize("name", ["nobody", "No%20Capitals", "%00", "a" * 100, "x%2fy"])
def test_a_service_that_is_not_there_is_not_found(visitor: Visitors, name: str) -> None:
    ann = visitor()
    assert ann.get(f"/services/{name}").status_code == 404


def test_what_nobody_can_do_is_refused(visitor: Visitors, caller: Caller) -> None:
    ann = visitor()
    ann.get("/services/shop")
    for do in ("", "explode"):
        answer: Any = ann.post("/services/shop", {"do": do, "back": "/services/shop"})
        assert "Nothing of the sort" in answer.text


def test_the_command_line_is_on_the_same_trail_without_key_or_secret(
    rt: Runtime, environ: dict[str, str], caller: Caller
) -> None:
    home = {**environ, "PATH": "/usr/bin:/bin", "USER": "ann", "LOGNAME": "ann"}
    for words in (
        ("services", "create", "mail"),
        ("services", "set", "shop", "--weight", "3", "--callback-url", "https://shop.example.com/?token=hush"),
        ("services", "rotate", "shop"),
        ("services", "secret", "shop"),
        ("services", "revoke", "shop"),
        ("budgets", "set", "--service", "shop", "--daily", "2"),
        ("models", "pause", "openai/dall-e-2"),
    ):
        assert command(home, *words).returncode == 0, words
    with rt.db.transaction() as tx:
        rows = audit.newest(tx)
    assert {(row.who, row.door) for row in rows} == {("cli:ann", "command line")}
    assert acts(rt) == [
        ("service.create", "mail", "done"),
        ("service.change", "shop", "done"),
        ("service.rotate_key", "shop", "done"),
        ("service.show_secret", "shop", "done"),
        ("service.revoke", "shop", "done"),
        ("budget.change", "shop", "done"),
        ("model.pause", "openai/dall-e-2", "done"),
    ]
    told = str([row.data for row in rows])
    assert not re.search(r"pk_|whsec_|hush", told)


def test_what_an_address_keeps_to_itself_is_read_by_nobody_who_may_only_look(
    visitor: Visitors, rt: Runtime, caller: Caller
) -> None:
    execute(rt, "UPDATE services SET callback_url = 'https://shop.example.com/done?token=hush'")
    job_id = queued(rt, caller.service)
    execute(
        rt,
        "UPDATE jobs SET callback_url = 'https://shop.example.com/one?token=hush',"
        """ input = '{"prompt": "a fox", "image": "https://cdn.example.com/a.png?token=hush"}'""",
    )
    viewer = visitor(password=VIEWERS_PASSWORD)
    for path in ("/services", "/services/shop", f"/jobs/{job_id}", f"/playground?job={job_id}"):
        text = viewer.get(path).text
        assert "shop" in text
        assert "hush" not in text, path
    assert "token=hush" in visitor().get("/services/shop").text  # who may change it sees what there is to change
