"""The pages for those who run this: Markdown in the package (pipeline/docs), made into HTML without any of its own."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

FOLDER = Path(__file__).parents[2] / "docs"

NAMES = ("deploy", "operate", "upgrade", "backup", "speed")
"""The pages, in the order they are read."""

_PAGE = re.compile(r"(?P<name>[a-z]+)\.md(?P<anchor>#.*)?")
_NAME = re.compile(r"(?:[A-Z][a-z]+){2,}")
_NOT_IN_AN_ANCHOR = re.compile(r"[^\w\- ]")


@dataclass(frozen=True, slots=True)
class Heading:
    """One heading: how deep it is, what it says, and the anchor that leads there."""

    depth: int
    words: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Guide:
    """One page."""

    name: str
    title: str
    html: Markup
    headings: Sequence[Heading]


@cache
def everything() -> dict[str, Guide]:
    """Read and render all pages, once: they do not change under a process."""
    return {name: render(name, (FOLDER / f"{name}.md").read_text(encoding="utf-8")) for name in NAMES}


def render(name: str, source: str) -> Guide:
    """Make a page of Markdown: tables, no raw HTML, an anchor at each heading, links to the other pages."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(source)
    headings = list(_anchored(tokens))
    for token in tokens:
        for child in token.children or ():
            if child.type == "link_open":
                child.attrs["href"] = served(str(child.attrs["href"]))
    tokens = list(_scrollable(tokens))
    html = Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704  # a file of ours, html=False
    return Guide(name, headings[0].words, html, headings[1:])


def anchor_of(words: str) -> str:
    """The anchor of a heading, as GitHub makes it: a link works there and here."""
    return _NOT_IN_AN_ANCHOR.sub("", words.lower()).replace(" ", "-")


def served(address: str) -> str:
    """Where a link between the files leads to when they are served."""
    match = _PAGE.fullmatch(address)
    return f"/docs/{match['name']}{match['anchor'] or ''}" if match else address


def _anchored(tokens: Sequence[Token]) -> Iterator[Heading]:
    """Give each heading its anchor; an alert's name leads there as it is written, too."""
    for opening, inline in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        words = "".join(child.content for child in inline.children or ())
        found = Heading(int(opening.tag[1:]), words, anchor_of(words))
        opening.attrs["id"] = found.anchor
        if _NAME.fullmatch(words) and inline.children is not None:
            inline.children.insert(0, Token("html_inline", "", 0, content=f'<span id="{escape(words)}"></span>'))
        yield found


def _scrollable(tokens: Sequence[Token]) -> Iterator[Token]:
    """A wide table scrolls by itself, not the page with it."""
    for token in tokens:
        if token.type == "table_open":
            yield Token("html_block", "", 0, content='<div class="wide">')
        yield token
        if token.type == "table_close":
            yield Token("html_block", "", 0, content="</div>\n")
