"""Who comes in at the dashboard, what they may do there, and what strangers get."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from pipeline.errors import ConfigError
from pipeline.runtime import Runtime
from pipeline.settings import load
from pipeline.store import audit
from pipeline.store.sessions import TRIES
from pipeline.web import create_app
from tests.visitors import OPERATORS_PASSWORD, VIEWERS_PASSWORD, Visitor

Visitors = Callable[..., Visitor]


def rules(rt: Runtime) -> list[Any]:
    """Every address of the dashboard."""
    return [rule for rule in create_app(rt).url_map.iter_rules() if rule.endpoint.startswith("dashboard.")]


def filled(rule: Any) -> str:
    return re.sub(r"<(?:int:)?\w+>", "1", rule.rule.replace("<path:filename>", "dashboard.css"))


def test_no_page_opens_and_nothing_is_done_for_who_is_not_signed_in(visitor: Visitors, rt: Runtime) -> None:
    stranger = visitor(password=None)
    stranger.get("/login")
    tried = 0
    for rule in rules(rt):
        if rule.endpoint in {"dashboard.access.sign_in", "dashboard.static"}:
            continue
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            send = stranger.get if method == "GET" else stranger.post
            answer = send(filled(rule), follow_redirects=False)
            assert answer.status_code == 303, (method, rule)
            assert answer.headers["location"].startswith("/login")
            tried += 1
    assert tried > 10


def test_who_has_not_the_password_learns_nothing_but_that(visitor: Visitors) -> None:
    answer = visitor(password=None).sign_in("Ann", "wrong horse battery")
    assert answer.status_code == 401
    assert "The password is wrong." in answer.text


def test_after_too_many_wrong_passwords_the_right_one_is_not_looked_at(visitor: Visitors, rt: Runtime) -> None:
    guesser = visitor(password=None)
    for _ in range(TRIES):
        assert guesser.sign_in("Ann", "wrong").status_code == 401
    answer = guesser.sign_in("Ann", OPERATORS_PASSWORD)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    with rt.db.transaction() as tx:
        tx.execute(text("UPDATE sign_ins SET since = since - interval '11 minutes'"))
    assert guesser.sign_in("Ann", OPERATORS_PASSWORD).url.path == "/"


def test_a_right_password_forgives_the_wrong_ones(visitor: Visitors) -> None:
    ann = visitor(password=None)
    for _ in range(TRIES + 3):
        assert ann.sign_in("Ann", "wrong").status_code == 401
        assert ann.sign_in("Ann", OPERATORS_PASSWORD).url.path == "/"


def test_a_name_is_asked_for_and_may_not_be_odd(visitor: Visitors) -> None:
    stranger = visitor(password=None)
    for name in ("", "  ", "x" * 61, "a\u202eb"):
        answer = stranger.sign_in(name, OPERATORS_PASSWORD)
        assert answer.status_code == 422
        assert "Say who you are" in answer.text


def test_who_signed_out_is_out_though_the_cookie_was_kept(visitor: Visitors) -> None:
    ann = visitor()
    ann.get("/")
    kept = dict(ann.client.cookies)
    ann.post("/logout")
    assert ann.get("/jobs").url.path == "/login"
    thief = visitor(password=None)
    for name, value in kept.items():
        thief.client.cookies.set(name, value)
    assert thief.get("/jobs").url.path == "/login"


def test_a_session_that_was_there_before_signing_in_is_not_the_one_after(visitor: Visitors) -> None:
    """Session fixation: whoever planted a cookie must not be signed in by its victim."""
    attacker, victim = visitor(password=None), visitor(password=None)
    attacker.get("/login")
    for name, value in attacker.client.cookies.items():
        victim.client.cookies.set(name, value)
    victim.sign_in("Ann", OPERATORS_PASSWORD)
    assert attacker.get("/jobs").url.path == "/login"


def test_a_changed_password_ends_the_sessions(visitor: Visitors, rt: Runtime) -> None:
    ann = visitor()
    assert ann.get("/jobs").url.path == "/jobs"
    with rt.db.transaction() as tx:
        tx.execute(text("UPDATE sessions SET password_print = sha256('another')"))
    assert ann.get("/jobs").url.path == "/login"


def test_a_session_ends_by_itself(visitor: Visitors, rt: Runtime) -> None:
    ann = visitor()
    with rt.db.transaction() as tx:
        tx.execute(text("UPDATE sessions SET expires_at = clock_timestamp()"))
    assert ann.get("/jobs").url.path == "/login"


@pytest.mark.parametrize(
    "where", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "\t//evil.example"]
)
def test_signing_in_leads_to_no_other_site(visitor: Visitors, where: str) -> None:
    stranger = visitor(password=None)
    stranger.get("/login", params={"next": where})
    answer = stranger.client.post(
        "/login",
        params={"next": where},
        data={"csrf_token": stranger.token, "name": "Ann", "password": OPERATORS_PASSWORD},
        follow_redirects=False,
    )
    assert answer.headers["location"] == "/"


def test_signing_in_leads_to_the_page_that_was_asked_for(visitor: Visitors) -> None:
    stranger = visitor(password=None)
    answer = stranger.get("/jobs?state=failed")
    assert stranger.post(str(answer.url), {"name": "Ann", "password": OPERATORS_PASSWORD}).url.query == b"state=failed"


def test_a_form_without_its_token_does_nothing(visitor: Visitors) -> None:
    ann = visitor()
    for token in (None, "", "x", "a.b.c"):
        fields = {} if token is None else {"csrf_token": token}
        answer = ann.client.post("/logout", data=fields)
        assert answer.status_code == 400
        assert "out of date" in answer.text
    assert ann.get("/jobs").url.path == "/jobs"


def test_a_form_of_another_session_does_nothing(visitor: Visitors) -> None:
    ann, eve = visitor(), visitor(name="Eve")
    eve.get("/")
    assert ann.client.post("/logout", data={"csrf_token": eve.token}).status_code == 400


def test_who_may_only_look_changes_nothing(visitor: Visitors, rt: Runtime) -> None:
    viewer = visitor(password=VIEWERS_PASSWORD)
    viewer.get("/")
    tried = 0
    for rule in rules(rt):
        if "POST" in rule.methods and rule.endpoint.rpartition(".")[2] not in {"sign_in", "sign_out"}:
            answer = viewer.post(filled(rule), follow_redirects=False)
            assert answer.status_code == 303, rule
            assert "You may look, and change nothing" in viewer.get(answer.headers["location"]).text
            tried += 1
    with rt.db.transaction() as tx:
        assert {row.action for row in audit.newest(tx)} == {"sign_in"}


def test_each_page_binds_the_browser(visitor: Visitors) -> None:
    for path in ("/login", "/", "/jobs", "/nothing-there"):
        answer = visitor().get(path)
        if path == "/nothing-there":
            assert answer.status_code == 404
            continue
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "<script>" not in answer.text
        assert not re.search(r'\son\w+="|style="', answer.text)


def test_the_cookie_is_kept_from_scripts_and_other_sites(visitor: Visitors) -> None:
    answer = visitor(password=None).get("/login")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie  # this is http


def test_behind_a_proxy_with_https_the_cookie_goes_only_that_way(make_rt: Callable[..., Runtime]) -> None:
    app = create_app(make_rt(trusted_proxies=1))
    https = app.test_client().get("/login", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in https.headers["set-cookie"]
    assert "Strict-Transport-Security" in https.headers
    assert "Secure" not in app.test_client().get("/login").headers["set-cookie"]
    assert (
        "Secure"
        in create_app(make_rt(public_url="https://x.example")).test_client().get("/login").headers["set-cookie"]
    )


def test_a_forwarded_address_counts_only_from_a_proxy_of_ours(make_rt: Callable[..., Runtime]) -> None:
    """Else whoever guesses passwords would say another address each time."""
    for proxies, status in ((0, 429), (1, 401)):
        app = create_app(make_rt(trusted_proxies=proxies))
        client = app.test_client()
        answer = None
        for n in range(TRIES + 1):
            page = client.get("/login").text
            found = re.search(r'name="csrf_token" value="([^"]+)"', page)
            assert found
            fields = {"csrf_token": found[1], "name": "Ann", "password": "wrong"}
            answer = client.post("/login", data=fields, headers={"X-Forwarded-For": f"192.0.2.{n}"})
        assert answer is not None
        assert answer.status_code == status


def test_without_a_password_there_is_no_dashboard(make_rt: Callable[..., Runtime]) -> None:
    client = create_app(make_rt(dashboard_password=None)).test_client()
    assert client.get("/").status_code == 404
    assert client.get("/login").status_code == 404


def test_a_password_needs_a_key_to_sign_with() -> None:
    environ = {"DATABASE_URL": "postgres://h/d", "DASHBOARD_PASSWORD": "a long password"}
    with pytest.raises(ConfigError, match="DASHBOARD_PASSWORD: needs SECRET_KEY"):
        load(environ)
    with pytest.raises(ConfigError, match="DASHBOARD_PASSWORD: must have 12"):
        load(environ | {"DASHBOARD_PASSWORD": "short", "SECRET_KEY": "k" * 16})
    with pytest.raises(ConfigError, match="DASHBOARD_VIEWER_PASSWORD: must be another"):
        load(environ | {"SECRET_KEY": "k" * 16, "DASHBOARD_VIEWER_PASSWORD": "a long password"})


def test_signing_in_is_on_the_trail_and_the_password_is_not(visitor: Visitors, rt: Runtime) -> None:
    ann = visitor()
    with rt.db.transaction() as tx:
        (entry,) = audit.newest(tx)
    assert (entry.who, entry.action, entry.outcome, entry.data) == ("Ann", "sign_in", "done", {"role": "operator"})
    assert "sign_in" in ann.get("/audit").text
