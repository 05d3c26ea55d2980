"""
What is read about this product: by programs at /openapi.json, by people at /docs. Neither needs a key.

Below /docs are the pages for those who run it.
"""

import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, render_template, request
from flask.typing import ResponseReturnValue
from markupsafe import Markup

from pipeline.errors import UnknownPath
from pipeline.web.openapi import document, guides, words

bp = Blueprint("openapi", __name__, template_folder="templates")

STYLE = (Path(__file__).parent / "templates" / "docs.css").read_text()
_STYLE_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

_NOWHERE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
POLICY = f"{_NOWHERE}; style-src 'sha256-{_STYLE_HASH}'"
"""What the page may do: be styled, by this one sheet. It has no script, and loads nothing."""

FRESH_S = 300


@bp.get("/openapi.json")
def openapi() -> ResponseReturnValue:
    """Give the OpenAPI 3.1 document of this release."""
    return _cacheable(_pages().json, "application/json")


@bp.get("/docs")
def docs() -> ResponseReturnValue:
    """Give the same as a page: made here, without a script, without anything from elsewhere."""
    return _page(_pages().html)


@bp.get("/docs/<name>")
def guide(name: str) -> ResponseReturnValue:
    """Give one of the pages for those who run this."""
    known = guides.everything()
    if name not in known:
        raise UnknownPath
    return _page(render_template("guide.html", guide=known[name], guides=known.values(), style=_style()))


@dataclass(frozen=True)
class _Pages:
    json: str
    html: str


def _pages() -> _Pages:
    return _made(current_app._get_current_object())  # type: ignore[attr-defined]


@cache
def _made(app: Flask) -> _Pages:
    """Made at the first request, and the same until the process ends: the code does not change under it."""
    described: dict[str, Any] = document.build(app)
    order = [(path, method) for path, method, *_ in document.calls(app)]
    known = guides.everything().values()
    html = render_template("docs.html", document=described, order=order, style=_style(), words=words, guides=known)
    return _Pages(json.dumps(described, ensure_ascii=False), html)


def _style() -> Markup:
    return Markup(STYLE)  # noqa: S704  # a file of ours


def _page(html: str) -> Response:
    answer = _cacheable(html, "text/html; charset=utf-8")
    answer.headers["Content-Security-Policy"] = POLICY
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def _cacheable(text: str, content_type: str) -> Response:
    answer = Response(text, content_type=content_type)
    answer.headers["Cache-Control"] = f"public, max-age={FRESH_S}"
    answer.add_etag()
    answer.make_conditional(request)
    return answer
