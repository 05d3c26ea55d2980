"""`python -m pipeline.embedded dev|demo`: the two commands without the rest of the command line."""

import sys

import typer

from pipeline.embedded.demo import demo
from pipeline.embedded.dev import dev
from pipeline.errors import PipelineError


def main() -> None:
    """Run one of them."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(dev)
    app.command()(demo)
    try:
        app()
    except PipelineError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
