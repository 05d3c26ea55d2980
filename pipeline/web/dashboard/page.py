"""What every page has: how it is shown, how it goes on after something was done, how errors look."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from flask import Blueprint, current_app, flash, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from pipeline import telemetry, times
from pipeline.errors import FieldError, InvalidInput, PipelineError, UnknownPath
from pipeline.lifecycle.trail import Entry, trail
from pipeline.runtime import Runtime
from pipeline.store import attention
from pipeline.web.dashboard.words import FILTERS

log = telemetry.get(__name__)

MENU = (
    ("overview.show", "Overview"),
    ("jobs.show", "Jobs"),
    ("gallery.show", "Gallery"),
    ("playground.show", "Playground"),
    ("models.show", "Models"),
    ("callbacks.show", "Callbacks"),
    ("notifications.show", "Notifications"),
    ("review.show", "Review"),
    ("services.show", "Services"),
    ("trail.show", "Audit"),
)

_ASSETS = Path(__file__).parent / "assets"


def register(dashboard: Blueprint) -> None:
    """Teach *dashboard*'s templates our words, and its errors to be pages."""

    @dashboard.record_once
    def teach(state: Any) -> None:
        state.app.jinja_env.filters |= FILTERS
        state.app.jinja_env.trim_blocks = True
        state.app.jinja_env.lstrip_blocks = True

    dashboard.register_error_handler(PipelineError, _ours)
    dashboard.register_error_handler(CSRFError, _expired)
    dashboard.register_error_handler(HTTPException, _http)
    dashboard.register_error_handler(Exception, _unexpected)


def runtime() -> Runtime:
    """The runtime of this process."""
    rt: Runtime = current_app.extensions["runtime"]
    return rt


def is_refresh() -> bool:
    """Whether the script asks, to keep a page fresh."""
    return "X-Refresh" in request.headers


def show(template: str, **facts: Any) -> str:
    """One page, from its template in `templates/dashboard`."""
    known = g.get("person")
    if known is not None:
        with runtime().db.transaction() as tx:
            facts["attention"] = attention.needed(tx)
        facts["person"] = known
    return render_template(
        f"dashboard/{template}", menu=MENU, asset=_asset, here=request.full_path.rstrip("?"), **facts
    )


def answer(template: str, status: int, **facts: Any) -> ResponseReturnValue:
    """One page that says by its *status*, too, whether what was asked for can be understood."""
    return show(template, **facts), status


@contextmanager
def act(action: str, target: object = None, **data: str | int | float | bool | None) -> Iterator[Entry]:
    """Do one thing in the name of who is signed in; it is written down before and after. *data* holds no secret."""
    with trail(runtime(), g.person.name, "dashboard", action, target, **data) as entry:
        yield entry


def done(message: str, *, to: str | None = None) -> ResponseReturnValue:
    """After something was done: say so, on the page where it was asked for, or at *to*."""
    flash(message, "good")
    return redirect(to or _back(), 303)


def id_of(text: str, error: type[PipelineError] = UnknownPath) -> UUID:
    """The id in an address; else *error*."""
    try:
        return UUID(text)
    except ValueError:
        raise error from None


def number(name: str, least: int, most: int, default: int | None = None) -> int | None:
    """
    A whole number in a form or a query; *default* when it is absent or empty.

    Raises:
        InvalidInput: It is none, or too small or large.
    """
    said = request.values.get(name, "").strip()
    if not said:
        return default
    if not said.isascii() or not said.isdigit() or len(said) > 9 or not least <= int(said) <= most:
        raise InvalidInput(errors=[FieldError(name, f"Must be a whole number from {least:,} to {most:,}.")])
    return int(said)


def words(name: str) -> str | None:
    """
    A text in a form or a query, without the spaces around it; None when it is absent or empty.

    Raises:
        InvalidInput: It is longer than anything that is asked for, or has control characters.
    """
    said = request.values.get(name, "").strip()
    if len(said) > 500 or not said.isprintable():
        raise InvalidInput(errors=[FieldError(name, "Must be a text of one line, of 500 characters at most.")])
    return said or None


def id_in(name: str, said: str | None) -> UUID | None:
    """The id that stands in a field, if any; else InvalidInput."""
    try:
        return UUID(said) if said else None
    except ValueError:
        raise InvalidInput(
            errors=[FieldError(name, "Must be a whole id, such as stands in a job's address.")]
        ) from None


def time_in(name: str, said: str | None) -> datetime | None:
    """The time, or the age, that stands in a field, if any; else InvalidInput."""
    return times.read(said, name, now=datetime.fromtimestamp(runtime().unix_time(), UTC)) if said else None


@cache
def _asset(name: str) -> str:
    """Give a file's address, which names its content: it may be kept for good."""
    digest = hashlib.sha256((_ASSETS / name).read_bytes()).hexdigest()
    return url_for("dashboard.static", filename=name, v=digest[:12])


def _back() -> str:
    """Lead back to the page that has the form, and to nothing that is not ours."""
    return way_on(request.form.get("back"))


def way_on(wanted: str | None) -> str:
    """Lead on to a page of ours, and to nothing else."""
    home = url_for("dashboard.overview.show")
    if not wanted or not wanted.startswith("/") or not wanted.isprintable() or "\\" in wanted:
        return home
    try:
        parts = urlsplit(wanted)
    except ValueError:  # half an address
        return home
    # What begins with two strokes names another server; so would what is left of three.
    return home if parts.netloc or parts.path.startswith("//") else parts._replace(fragment="").geturl()


def words_of(error: PipelineError) -> str:
    """What went wrong, in a line."""
    fields = " ".join(f"{one.field}: {one.message}" if one.field else one.message for one in error.errors)
    return f"{error.detail}{'' if error.detail.endswith('.') else '.'} {fields}".strip()


def sentence(text: str) -> str:
    """What is said of a field, standing by itself."""
    return text[:1].upper() + text[1:]


def _ours(error: PipelineError) -> ResponseReturnValue:
    if error.status >= 500:
        log.warning("request.failed", code=error.code, why=error.detail, route=_route())
    if request.method == "POST" and error.status in range(400, 500) and g.get("person") is not None:
        flash(words_of(error), "bad")
        return redirect(_back(), 303)
    return _page(error.title, words_of(error), error.status)


def _expired(error: CSRFError) -> ResponseReturnValue:
    """A form that is not ours, or of a session that is over."""
    return _page("The form is out of date", f"{error.description} Load the page again, and repeat it.", 400)


def _http(error: HTTPException) -> ResponseReturnValue:
    return _page(error.name, error.description or "", error.code or 500)


def _unexpected(error: Exception) -> ResponseReturnValue:
    log.error("request.crashed", exc_info=error, route=_route())
    return _page("Something went wrong on our side", "This is a fault of ours; it is in the log.", 500)


def _route() -> str | None:
    return request.url_rule.rule if request.url_rule else None


def _page(title: str, said: str, status: int) -> ResponseReturnValue:
    """Show an error. It must work while the database is away, so it asks nothing."""
    return render_template("dashboard/error.html", menu=(), asset=_asset, title=title, said=said, status=status), status
