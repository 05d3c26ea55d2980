"""The menu of commands: it shows what there is without loading it, and helps to type it."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.menu import COMMANDS, Later

PIPELINE = Path(sys.executable).with_name("pipeline")
ENVIRON = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_where_the_menu_says_and_says_the_same_of_itself(name: str) -> None:
    """The list is read before the page is."""
    page, line = COMMANDS[name]
    command = Later(name, page, line).load()
    assert command.name == name
    assert inspect.cleandoc(command.help).splitlines()[0] == line


def test_the_menu_loads_no_page_of_it() -> None:
    """Help and completion are wanted at once; the libraries behind all commands take seconds."""
    program = """
import sys
from pipeline.cli import cli
try:
    cli(["--help"])
except SystemExit:
    pass
print(sorted({"aiohttp", "alembic", "celery", "pydantic", "psycopg", "sqlalchemy"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
    assert "enqueue" in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pipeline enq", ["enqueue"]),
        ("pipeline services ", ["create", "list", "revoke", "rotate"]),
        ("pipeline enqueue --prio", ["--priority"]),
        ("pipeline jobs --state c", ["cancelled", "completed"]),
    ],
)
def test_a_shell_completes_commands_options_and_states(typed: str, offered: list[str]) -> None:
    """As bash asks, once `pipeline --install-completion` was said."""
    word = str(typed.count(" "))
    asked = {"_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": word}
    done = subprocess.run([PIPELINE], env=ENVIRON | asked, capture_output=True, text=True, check=False)
    assert (sorted(set(done.stdout.split()) & set(offered)), done.stderr) == (offered, "")
