"""The operator's door. Commands talk to Postgres themselves: they work while web and workers are down."""

import sys
from contextlib import ExitStack

import typer

from pipeline.cli.menu import Menu
from pipeline.errors import PipelineError


def _pipeline() -> None:
    """A webhook-driven job pipeline for WaveSpeedAI."""


cli = typer.Typer(
    name="pipeline",
    cls=Menu,
    callback=_pipeline,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with variables would show secrets and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)


at_the_end = ExitStack()
"""What a command leaves to be done when it has ended, however it ended."""


def main() -> None:
    """Run the command line. A PipelineError is said in words, with exit status 1; wrong usage is 2."""
    try:
        with at_the_end:
            cli()
    except PipelineError as error:
        print(f"pipeline: {error.detail}", file=sys.stderr)
        for problem in error.errors:
            where = problem.field if problem.line is None else f"line {problem.line}: {problem.field}"
            print(f"  {where}: {problem.message}", file=sys.stderr)
        sys.exit(1)
