"""The list of commands, each with where it lives: its page is imported when it is called, not when it is listed."""

import inspect
import re
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "demo": (
        "pipeline.embedded.demo",
        "Run a dozen jobs through everything, started on this machine for it: servers, web, worker and beat.",
    ),
    "dev": (
        "pipeline.embedded.dev",
        "Run everything on this machine: Postgres, Valkey, the sandbox, web, worker and beat, until Ctrl-C.",
    ),
    "bench": (
        "pipeline.cli.bench",
        "Measure this product on this machine: its own stack, started for it, never the real provider.",
    ),
    "doctor": (
        "pipeline.cli.doctor",
        "Examine the installation. Exit status 1 when something is not as it should be.",
    ),
    "enqueue": ("pipeline.cli.enqueue", "Hand in jobs: one prompt, or those of a file or of standard input."),
    "jobs": ("pipeline.cli.jobs", "List the newest jobs."),
    "show": ("pipeline.cli.jobs", "Show one job: its attempts, and what happened to it in order."),
    "decide": (
        "pipeline.cli.jobs",
        "Say what became of a job that nothing could prove (`pipeline jobs --needs-decision` lists them).",
    ),
    "cancel": ("pipeline.cli.actions", "Take a queued job back: it is never submitted."),
    "retry": ("pipeline.cli.actions", "Hand in a new job like one that has ended."),
    "evidence": ("pipeline.cli.actions", "Give everything that is known of a job, as one JSON value."),
    "replay": (
        "pipeline.cli.replay",
        "Have callbacks that were kept judged again, by today's code: each moves its job if it brings news.",
    ),
    "account": (
        "pipeline.cli.account",
        "Show how the provider account is: halted, backing off, on trial, and what it may do at once.",
    ),
    "reconcile": (
        "pipeline.cli.money",
        "Compare our ledger with the provider's bill: charged twice, charged but not ours, ours and never charged.",
    ),
    "migrate": (
        "pipeline.cli.processes",
        "Bring the database's schema up to this code. Safe to run twice, and while the previous release runs.",
    ),
    "sweep": (
        "pipeline.cli.processes",
        "Find the rows whose time has come and look after them, in this process, without a broker.",
    ),
    "sandbox": (
        "pipeline.cli.processes",
        "Imitate the provider, for development and tests: the API, signed webhooks, and every way it can go wrong.",
    ),
    "services": ("pipeline.cli.services", "The services that may hand in jobs, and their keys."),
    "notifications": (
        "pipeline.cli.notifications",
        "What callers and operators are told: deliveries, dead letters, endpoints that fail.",
    ),
    "budgets": ("pipeline.cli.money", "What may be spent in a day or a month (of UTC)."),
    "models": ("pipeline.cli.models", "The models: what there is, what it takes and costs."),
    "review": ("pipeline.cli.review", "Outputs that were flagged as unsafe: look at them, release or purge them."),
    "screens": ("pipeline.cli.screens", "What prompts are screened for before anything is paid: lists of terms."),
    "retention": ("pipeline.cli.retention", "How long things are kept: listed, unless a command is given."),
    "prune": (
        "pipeline.cli.retention",
        "Remove what is older than `pipeline retention` says it is kept. Workers do so by themselves, more slowly.",
    ),
    "refusals": (
        "pipeline.cli.refusals",
        "Messages from other apps that could not become jobs: listed, unless a command is given.",
    ),
}
"""Its page, which has a function or a group of that name, and the first line of what that says of itself."""


class Later(TyperCommand):
    """A command, or a group of them, of which only the name and a line are known until it is called."""

    def __init__(self, name: str, page: str, line: str) -> None:
        super().__init__(name=name, help=line)
        self._page = page

    def load(self) -> Any:
        """Import it: the function, or the group, of that name in its page."""
        assert self.name is not None
        found = getattr(import_module(self._page), self.name)
        app = typer.Typer()
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=self.name)
        else:
            flowing = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(found) or "")  # a terminal breaks lines itself
            app.command(self.name, help=flowing)(found)
        return typer.main.get_group(app).commands[self.name]

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Become what is called."""
        return self.load().make_context(*args, **options)


class Menu(TyperGroup):
    """`pipeline` itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {name: Later(name, *where) for name, where in COMMANDS.items()}
