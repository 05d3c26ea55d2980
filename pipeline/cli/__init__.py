"""The operator's door. Commands talk to Postgres themselves: they work while web and workers are down."""

import sys

import typer

from pipeline.cli import account, jobs, money, processes
from pipeline.cli.doctor import doctor
from pipeline.cli.models import models
from pipeline.cli.services import services
from pipeline.embedded.demo import demo
from pipeline.embedded.dev import dev
from pipeline.errors import PipelineError

cli = typer.Typer(
    name="pipeline",
    help="A webhook-driven job pipeline for WaveSpeedAI.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with variables would show secrets and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    demo,
    dev,
    doctor,
    jobs.enqueue,
    jobs.jobs,
    jobs.show,
    jobs.decide,
    jobs.cancel,
    jobs.retry,
    account.account,
    money.reconcile,
    processes.migrate,
    processes.sweep,
    processes.sandbox,
):
    cli.command()(command)
cli.add_typer(services, name="services")
cli.add_typer(money.budgets, name="budgets")
cli.add_typer(models, name="models")


def main() -> None:
    """Run the command line. A PipelineError is said in words, with exit status 1; wrong usage is 2."""
    try:
        cli()
    except PipelineError as error:
        print(f"pipeline: {error.detail}", file=sys.stderr)
        for problem in error.errors:
            print(f"  {problem.field}: {problem.message}", file=sys.stderr)
        sys.exit(1)
