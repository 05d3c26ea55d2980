"""The pages for those who run this: the commands they show exist, their links lead somewhere, they are served."""

import fnmatch
import re
import shlex
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer import main as typers

from pipeline.cli import cli
from pipeline.embedded import procfile
from pipeline.settings import Settings
from pipeline.web.openapi import guides
from tests.http import get, request

ROOT = Path(__file__).parents[1]
FILES = {"README": ROOT / "README.md", **{name: guides.FOLDER / f"{name}.md" for name in guides.NAMES}}
TEXTS = {name: file.read_text() for name, file in FILES.items()}

ALERTS = (
    "PipelineDown",
    "PipelineNoWorkers",
    "PipelineSweepLate",
    "PipelineAccountHalted",
    "PipelineProviderFailing",
    "PipelineOldestDueLate",
    "PipelineDoubleCharge",
    "PipelineOutputsUnarchived",
    "PipelineOutputsLost",
    "PipelineNeedsDecision",
    "PipelineWebhookShareFalling",
    "PipelineCallbacksForged",
    "PipelineBudgetNearlySpent",
    "PipelineReceiverOff",
    "PipelineDeadLetters",
)
RULES = ROOT / "pipeline" / "monitoring" / "alerts.yml"

NOT_OURS = {
    *("REDIS_URL", "CLOUDAMQP_URL", "PORT", "WEB_CONCURRENCY", "REMAP_SIGTERM"),  # the platform's
    *("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),  # the bucket's
    *("PIPELINE_URL", "PIPELINE_KEY"),  # the client's
    "MALLOC_ARENA_MAX",  # the C library's
}
"""Variables that are none of `Settings`."""

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """What of a page can be linked to, and where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        if name := given.get("id"):
            self.ids.append(name)
        if tag == "a":
            self.links.append(given.get("href") or "")


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return FENCE.sub("", text)


def inline(text: str) -> list[str]:
    """What stands between backticks, each on one line."""
    return [" ".join(words.split()) for words in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def blocks(name: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return [match["text"] for match in FENCE.finditer(TEXTS[name]) if match["language"] == language]


def commands(name: str) -> Iterator[tuple[str, bool]]:
    """Every `pipeline …` that a page tells to type; and whether it stands there whole, in a block."""
    for text in blocks(name, "sh"):
        for line in text.splitlines():
            for found in re.findall(r"(?:^|python -m |\$\()\s*(?:\w+=\S+ )?\bpipeline ([a-z][^|>&)]*)", line):
                yield found.partition("  #")[0].strip(), True
    for words in inline(TEXTS[name]):
        if match := re.match(r"(?:\w+=\S+ )?(?:python -m )?pipeline ([a-z].*)", words):
            yield match[1], False


def complaint(words: str, *, whole: bool) -> str | None:
    """What the command line says of such a command before it would do anything; None: it is right."""
    given = shlex.split(words.replace("[", "").replace("]", "").replace("…", "").replace("$", ""))
    command, context, name = typers.get_command(cli), None, "pipeline"
    try:
        while True:
            context = command.make_context(name, given, parent=context)
            rest = [*getattr(context, "_protected_args", ()), *context.args]
            if not hasattr(context.command, "resolve_command") or not rest:
                return None
            name, command, given = context.command.resolve_command(context, rest)
    except Exception as error:  # typer's own errors have no common public class
        kind = type(error).__name__
        missing = kind in {"MissingParameter", "NoArgsIsHelpError"} or "requires an argument" in str(error)
        return None if missing and not whole else f"{kind}: {error}"


SAID = sorted({(name, words, whole) for name in TEXTS for words, whole in commands(name)})


@pytest.mark.parametrize(("name", "words", "whole"), SAID, ids=[f"{name}: {words}" for name, words, _ in SAID])
def test_every_command_shown_exists_with_its_options(name: str, words: str, whole: bool) -> None:
    """At night nobody wants to find out what was meant."""
    assert complaint(words, whole=whole) is None


@pytest.mark.parametrize(
    "words", ["jobs --nope", "jobs --state nope", "services nope", "nope", "review purge A B", "jobs 1"]
)
def test_a_command_that_does_not_exist_is_found_out(words: str) -> None:
    """Or the test above would promise nothing."""
    assert complaint(words, whole=False)


def test_the_pages_show_commands_at_all() -> None:
    """A pattern that finds none would find them all right."""
    shown = {(name, words.split()[0]) for name, words, _ in SAID}
    assert {("deploy", "migrate"), ("operate", "decide"), ("backup", "reconcile"), ("upgrade", "doctor")} <= shown
    assert len(SAID) > 60


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_between_the_pages_resolves(name: str) -> None:
    """On GitHub, where the files lie in folders."""
    for address in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if address.startswith(("http://", "https://")):
            continue
        path, _, anchor = address.partition("#")
        target = (FILES[name].parent / path).resolve() if path else FILES[name]
        assert target.is_file(), address
        if anchor:
            found = [guides.anchor_of(words.replace("`", "")) for words in headings(target.read_text())]
            assert anchor in found, address


def headings(text: str) -> list[str]:
    """What stands over the parts of a page."""
    return re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)


@pytest.mark.parametrize("name", TEXTS)
def test_every_variable_named_exists(name: str) -> None:
    """A setting that is not read changes nothing, and nobody is told."""
    known = {field.upper() for field in Settings.model_fields} | NOT_OURS
    told = {words for words in inline(TEXTS[name]) if re.fullmatch(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+(=\S*)?", words)}
    told |= {found for text in blocks(name, "ini") for found in re.findall(r"^([A-Z][A-Z_]*)=", text, re.MULTILINE)}
    told |= {
        found
        for text in blocks(name, "sh")
        for line in re.findall(r"config:set (.*)", text)
        for found in re.findall(r"\b([A-Z_]+)=", line)
    }
    assert {words.partition("=")[0] for words in told} - known == set()
    assert {"DATABASE_URL", "PUBLIC_URL"} <= {words.partition("=")[0] for words in told} or name not in {
        "README",
        "deploy",
    }


def test_every_alert_has_its_heading() -> None:
    """Alerts link to it; their names are agreed on with the rules."""
    over = [
        words for words in re.findall(r"^## (\w+)$", TEXTS["operate"], re.MULTILINE) if words.startswith("Pipeline")
    ]
    assert tuple(over) == ALERTS
    listed = re.findall(r"^\| \[(Pipeline\w+)\]\(#(\w+)\)", TEXTS["operate"], re.MULTILINE)
    assert listed == [(name, name.lower()) for name in ALERTS]
    if RULES.exists():
        rules = set(re.findall(r"^\s*-?\s*alert:\s*['\"]?(\w+)", RULES.read_text(), re.MULTILINE))
        assert rules == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_what_it_means_how_bad_it_is_and_what_to_do(alert: str) -> None:
    """Somebody who was just woken reads one part, from its top."""
    part = TEXTS["operate"].partition(f"\n## {alert}\n")[2].partition("\n## ")[0]
    for word in ("**Means:**", "**How bad:**", "**Look", "`pipeline "):
        assert word in part.replace("```sh\npipeline ", "`pipeline "), word


# The units of systemd


def units() -> dict[str, dict[str, str]]:
    """The units by name, each with its settings."""
    found = {}
    for text in blocks("deploy", "ini"):
        first, _, rest = text.partition("\n")
        if first.startswith("# "):
            found[first[2:]] = dict(re.findall(r"^(\w+)=(.*)$", rest, re.MULTILINE))
    return found


@pytest.mark.parametrize(
    ("unit", "line"),
    [
        ("pipeline-release.service", "release"),
        ("pipeline-web.service", "web"),
        ("pipeline-worker@.service", "worker"),
        ("pipeline-beat.service", "beat"),
    ],
)
def test_the_units_of_systemd_start_what_the_procfile_does(unit: str, line: str) -> None:
    """They would fall behind it, one option at a time."""
    bin_dir = "/opt/pipeline/.venv/bin/"
    command = units()[unit]["ExecStart"].removeprefix(bin_dir)
    command = command.replace("--host 127.0.0.1", "--host 0.0.0.0")  # a proxy is before it
    expected = re.sub(r"\$\{(\w+):-\d+\}", r"${\1}", procfile.read()[line])  # systemd has no defaults
    if variables := units()[unit].get("Environment"):  # where the shell has `env`
        command = f"env {variables} {command}"
    expected = expected.replace("%", "%%").replace("$$", "%i")  # its own signs; the instance instead of the shell's pid
    assert command == expected
    assert units()[unit]["ExecStart"].startswith(bin_dir)


def test_the_units_know_one_another_and_their_variables() -> None:
    """A name mistyped there is found when the machine starts, at the earliest."""
    found = units()
    assert set(found["pipeline.target"]["Wants"].split()) == {
        name.replace("@.", "@1.") for name in found if name not in {"pipeline.target", "pipeline-release.service"}
    }
    (environment,) = (text for text in blocks("deploy", "ini") if not text.startswith("#"))
    given = set(re.findall(r"^(\w+)=", environment, re.MULTILINE))
    for name, unit in found.items():
        assert set(re.findall(r"\$\{(\w+)\}", unit.get("ExecStart", ""))) <= given, name
        if name not in {"pipeline.target", "pipeline-release.service"}:
            assert (unit["PartOf"], unit["After"]) == ("pipeline.target", "pipeline-release.service")


# As they are served


@pytest.mark.parametrize("name", guides.NAMES)
def test_a_page_is_served_with_anchors_and_links_that_lead_somewhere(name: str, web: str) -> None:
    """It is read where the product runs, when nothing else can be reached."""
    answer = get(f"{web}/docs/{name}")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in answer.headers["content-security-policy"]
    page = Page(answer.body.decode())
    assert not page.tags & {"script", "link", "img", "iframe", "form"}
    assert len(page.ids) == len(set(page.ids))
    assert f"/docs/{name}" in Page(get(f"{web}/docs").body.decode()).links
    for link in page.links:
        path, _, anchor = link.partition("#")
        if path.startswith("/"):
            there = Page(get(f"{web}{path}").body.decode())
        else:
            assert path == "", link
            there = page
        assert there.tags
        assert not anchor or anchor in there.ids, link


def test_an_alert_is_found_by_its_name_as_it_is_written(web: str) -> None:
    """What links to it may not know how anchors are made."""
    ids = Page(get(f"{web}/docs/operate").body.decode()).ids
    assert {*ALERTS, *(name.lower() for name in ALERTS)} <= {*ids}


def test_an_unchanged_page_is_not_sent_again(web: str) -> None:
    """As all that is read here."""
    first = get(f"{web}/docs/operate")
    assert first.headers["cache-control"] == "public, max-age=300"
    again = request("GET", f"{web}/docs/operate", None, {"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("name", ["nope", "operate.md", "..%2f..%2fREADME", "Operate", "operate/"])
def test_there_are_no_other_pages(name: str, web: str) -> None:
    """The name comes from a stranger: it opens no file."""
    answer = get(f"{web}/docs/{name}")
    assert (answer.status, answer.json["code"]) == (404, "not_found")


def test_html_in_a_page_is_shown_and_not_obeyed() -> None:
    """Whoever mends a page shall not be able to break it, nor what it shows to run."""
    page = guides.render("x", "# Title\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1)) <b>bold</b>\n")
    assert Page(str(page.html)).tags == {"h1", "p"}
    assert "&lt;script&gt;" in page.html


def test_the_pages_are_part_of_the_package() -> None:
    """Installed without its checkout, a release still shows them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["pipeline"]
    for name in guides.NAMES:
        assert any(fnmatch.fnmatch(f"docs/{name}.md", pattern) for pattern in patterns)
    assert {file.stem for file in guides.FOLDER.glob("*.md")} == set(guides.NAMES)
