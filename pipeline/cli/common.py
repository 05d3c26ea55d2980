"""What the commands share: where they print, whom they act for, how they read their arguments."""

import getpass
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipeline import prices, telemetry, times
from pipeline.cli import at_the_end
from pipeline.deployment import COMMAND_POOL
from pipeline.errors import InvalidInput, UnknownJob
from pipeline.lifecycle.trail import Entry, trail
from pipeline.nudges import Nudger
from pipeline.runtime import Runtime, from_environment
from pipeline.store import reading
from pipeline.store import services as registry

NUDGES_S = 2.0
"""How long a command that has ended waits for its nudges to leave, where the broker does not take them."""

WIDE = 10_000
"""Columns of what is no terminal: a pipe or a file gets every line whole."""

out = Console(width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True)

_BREAKS = re.compile(r"[\t\n\v\f\r]+")

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, one JSON value on stdout.")]
Rotate = Annotated[bool, typer.Option("--rotate", help="Make a new one; the former signs beside it for a day.")]


def runtime(name: str = "cli") -> Runtime:
    """Equip this process; only errors are logged, unless it is to work."""
    rt = from_environment(name, pool_size=COMMAND_POOL)
    if isinstance(rt.nudge, Nudger):
        at_the_end.callback(rt.nudge.flush, NUDGES_S)
    telemetry.configure(rt.settings.log_level if name == "sweep" else "error")
    return rt


@contextmanager
def in_one_line(options: Mapping[str, str] | None = None) -> Iterator[None]:
    """Say what is wrong with what was typed in one line, by the *options* that were given for the fields."""
    try:
        yield
    except InvalidInput as error:
        if not error.errors:
            raise
        names = options or {}
        said = (f"{names[one.field]}: {one.message}" if one.field in names else one.message for one in error.errors)
        raise InvalidInput(" ".join(said)) from None


def service_named(rt: Runtime, name: str, *, revoked: bool = False) -> registry.Service:
    """
    The named service, if need be a *revoked* one.

    `operator`, the command line's own, is made when first needed, its key never shown.
    """
    with rt.db.transaction() as tx:
        found = registry.by_name(tx, service_name(name), revoked=revoked)
        if found is None and name == registry.OPERATOR:
            found = registry.operators_own(tx)
    if found is None:
        raise InvalidInput(f"There is no service named {name}; `pipeline services create {name}` adds it.")
    return found


def service_name(name: str) -> str:
    """*name*, if a service may be called so; else InvalidInput."""
    if not registry.NAME.fullmatch(name):
        raise InvalidInput(registry.NAME_RULE)
    return name


def job_id_of(text: str) -> UUID:
    """The id that *text* spells; else InvalidInput."""
    return id_of(text, "job")


def id_of(text: str, what: str) -> UUID:
    """The id of a *what* that *text* spells; else InvalidInput."""
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a {what}'s id.") from None


def time_of(rt: Runtime, option: str, text: str | None) -> datetime | None:
    """The time, or the age, that is given by *option*, if any."""
    return None if text is None else times.read(text, option, now=datetime.fromtimestamp(rt.unix_time(), UTC))


def user() -> str | None:
    """Who types: the name of this machine's user, unless it has none, as in many a container."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


@contextmanager
def acting(
    rt: Runtime, action: str, target: object = None, *, by: str | None = None, **data: str | int | float | bool | None
) -> Iterator[Entry]:
    """Do one thing in the name of who types, or of *by*; it stands in the audit as what is done at the dashboard."""
    with trail(rt, f"cli:{by or user() or '?'}", "command line", action, target, **data) as entry:
        yield entry


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in *text*; else InvalidInput."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidInput(f"{text!r} is not a JSON object.")
    return value


def labels(texts: Sequence[str] | None) -> dict[str, str]:
    """The metadata in NAME=VALUE texts; else wrong usage."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals or "\x00" in text:
            raise typer.BadParameter("metadata is given as NAME=VALUE")
        found[name] = value
    return found


def job_row(rt: Runtime, job_id: UUID) -> Any:
    """A job as it is now; else UnknownJob."""
    with rt.db.transaction() as tx:
        row = reading.job(tx, job_id)
    if row is None:
        raise UnknownJob(f"There is no job {job_id}.")
    return row


def folding_table(title: str, *names: str) -> Table:
    """Make a table that breaks long words instead of cutting them off."""
    return Table(*(Column(name, overflow="fold") for name in names), title=title, title_justify="left")


def plain(value: object) -> Text:
    """A text on one line: what a stranger wrote is no markup of ours, and no control code of the terminal's."""
    text = _BREAKS.sub(" ", "" if value is None else str(value).rstrip())
    return Text("".join(char if char.isprintable() else "\ufffd" for char in text))


def dollars(text: str) -> Decimal:
    """The amount in US dollars that *text* spells; else InvalidInput."""
    amount = prices.amount(text)
    if amount is None:
        raise InvalidInput(prices.ODD_AMOUNT.format(text))
    return amount


def usd_shown(amount: Decimal) -> str:
    """An amount in US dollars as people read it: in cents, or as exactly as it is."""
    return f"{amount:.2f}" if amount == round(amount, 2) else f"{amount.normalize():f}"
