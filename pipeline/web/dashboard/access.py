"""
Who may come in: a password, a session that is signed and can be ended, a token in each form, headers for browsers.

The cookie holds nothing but a session's id and the forms' token. What it may do stands in the database.
"""

import hashlib
import hmac
from uuid import UUID

from flask import Blueprint, Flask, Response, current_app, flash, g, redirect, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix

from pipeline import telemetry
from pipeline.errors import FieldError, InvalidInput, NotAllowedNow, PipelineError, RateLimited, Unauthorized
from pipeline.lifecycle.trail import trail
from pipeline.runtime import Runtime
from pipeline.settings import Settings
from pipeline.store import sessions
from pipeline.store.people import Role
from pipeline.store.sessions import Person
from pipeline.web.dashboard import page

log = telemetry.get(__name__)

bp = Blueprint("access", __name__)
csrf = CSRFProtect()

_OPEN = frozenset({"dashboard.access.sign_in", "dashboard.static"})
"""What is there for everybody."""

_MAX_NAME = 60

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


class ReadOnly(NotAllowedNow):
    """Who is signed in may look, and change nothing."""

    status = 403
    code = "read_only"
    title = "You may look, and change nothing: sign in with the operator's password for that"


class _Sessions(SecureCookieSessionInterface):
    """Cookies that leave a browser only encrypted, wherever the dashboard is reached so."""

    def get_cookie_secure(self, app: Flask) -> bool:
        rt: Runtime = app.extensions["runtime"]
        return request.is_secure or (rt.settings.public_url or "").startswith("https:")


def register(app: Flask, dashboard: Blueprint, settings: Settings) -> None:
    """Guard every page of *dashboard*."""
    assert settings.secret_key
    app.secret_key = settings.secret_key.get_secret_value()
    app.session_interface = _Sessions()
    app.config |= {
        "SESSION_COOKIE_NAME": "pipeline",
        "SESSION_COOKIE_SAMESITE": "Lax",
        "WTF_CSRF_CHECK_DEFAULT": False,  # the API has keys; each page of the dashboard is asked below
        "WTF_CSRF_TIME_LIMIT": None,  # as long as the session
    }
    csrf.init_app(app)
    if settings.proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=settings.proxies, x_proto=settings.proxies, x_host=0
        )
    dashboard.before_request(_guard)
    dashboard.after_request(_bind)
    dashboard.register_blueprint(bp)


def person() -> Person:
    """Who asks; every page but that for signing in has one."""
    found: Person = g.person
    return found


def _guard() -> ResponseReturnValue | None:
    """Let through who is signed in; and to what changes anything, only who may, with a form of ours."""
    changes = request.method not in {"GET", "HEAD"}
    if request.endpoint in _OPEN:
        if changes:
            csrf.protect()
        return None
    found = _signed_in()
    if found is None:
        if page.is_refresh():
            raise Unauthorized("You are signed out.")
        where = request.full_path.rstrip("?") if not changes else None
        return redirect(url_for("dashboard.access.sign_in", next=where if where != "/" else None), 303)
    g.person = found
    if changes:
        csrf.protect()
        if not found.may_act and request.endpoint != "dashboard.access.sign_out":
            raise ReadOnly
    return None


def _signed_in() -> Person | None:
    try:
        session_id = UUID(session["session"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    rt = page.runtime()
    with rt.db.transaction() as tx:
        found = sessions.find(tx, session_id)
    if found is None:
        return None
    one, password_print = found
    known = _passwords(rt.settings).get(one.role)
    return one if known is not None and hmac.compare_digest(password_print, _print(rt.settings, known)) else None


def _bind(answer: Response) -> Response:
    """Tell browsers what a page of ours never does."""
    for name, value in {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }.items():
        answer.headers.setdefault(name, value)
    if request.endpoint == "dashboard.static":
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"  # the address names the content
    else:
        answer.headers.setdefault("Cache-Control", "no-store")
    if request.is_secure:
        answer.headers["Strict-Transport-Security"] = "max-age=31536000"
    return answer


@bp.route("/login", methods=["GET", "POST"])
def sign_in() -> ResponseReturnValue:
    """Ask for the password, and for a name to write down what is done under it."""
    if request.method == "GET":
        return page.show("sign_in.html", form={}, errors={})
    rt = page.runtime()
    name = " ".join(request.form.get("name", "").split())
    try:
        role = _role(rt, name, request.form.get("password", ""))
    except PipelineError as error:
        errors = {one.field: one.message for one in error.errors} or {"password": error.detail}
        answer = current_app.make_response(page.show("sign_in.html", form={"name": name[:_MAX_NAME]}, errors=errors))
        answer.status_code = error.status
        if error.retry_after_s:
            answer.headers["Retry-After"] = str(round(error.retry_after_s))
        return answer
    with trail(rt, name, "dashboard", "sign_in", role=role), rt.db.transaction() as tx:
        one = sessions.begin(tx, name, role, _print(rt.settings, _passwords(rt.settings)[role]))
        sessions.forgive(tx, _address())
    session.clear()  # nothing that was there before, and may be known to others, goes on
    session["session"] = str(one.session_id)
    return redirect(page.way_on(request.args.get("next")), 303)


@bp.post("/logout")
def sign_out() -> ResponseReturnValue:
    """End the session: the cookie is worth nothing any more, in whatever hands."""
    with page.runtime().db.transaction() as tx:
        sessions.end(tx, person().session_id)
    session.clear()
    flash("You are signed out.", "good")
    return redirect(url_for("dashboard.access.sign_in"), 303)


def _role(rt: Runtime, name: str, password: str) -> Role:
    """Say as what somebody comes in who gives that password."""
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        message = f"Say who you are, in 1 to {_MAX_NAME} characters: what you do is written down under it."
        raise InvalidInput(errors=[FieldError("name", message)])
    with rt.db.transaction() as tx:
        wait_s = sessions.try_from(tx, _address())
    if wait_s is not None:
        raise RateLimited(f"Too many wrong passwords: try again in {wait_s // 60 + 1} minutes.", retry_after_s=wait_s)
    given = password.encode("utf-8", "surrogatepass")
    # Each is compared, so that the time it takes tells nothing of which was nearly right.
    fits = [role for role, known in _passwords(rt.settings).items() if _same(given, known)]
    if not fits:
        log.warning("dashboard.sign_in_refused")
        raise Unauthorized("The password is wrong.")
    return fits[0]


def _passwords(settings: Settings) -> dict[Role, bytes]:
    chosen = {Role.OPERATOR: settings.dashboard_password, Role.VIEWER: settings.dashboard_viewer_password}
    return {role: secret.get_secret_value().encode() for role, secret in chosen.items() if secret}


def _same(given: bytes, known: bytes) -> bool:
    """Compare in a time that hangs on neither, nor on their lengths."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(known).digest())


def _print(settings: Settings, password: bytes) -> bytes:
    """Give what a session remembers of its password: with another password, or another key, it is over."""
    assert settings.secret_key
    return hmac.digest(settings.secret_key.get_secret_value().encode(), b"session:" + password, "sha256")


def _address() -> str:
    """From where somebody tries: the network of an IPv6 address, since one household has millions of those."""
    address = request.remote_addr or "unknown"
    return ":".join(address.split(":")[:4]) + "::/64" if address.count(":") > 1 else address[:64]
