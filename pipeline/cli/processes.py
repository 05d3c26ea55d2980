"""What a process is started for: bring the schema up to date, sweep without a broker, imitate the provider."""

from typing import Annotated

import typer

from pipeline.cli.common import err, json_object, runtime
from pipeline.errors import InvalidInput, PipelineError
from pipeline.settings import load
from pipeline.store import schema


def migrate() -> None:
    """Bring the database's schema up to this code. Safe to run twice, and while the previous release runs."""
    schema.upgrade(load().database_url)
    err.print(f"the schema is at [bold]{schema.known()[-1]}[/bold]")


def sweep(
    *,
    loop: Annotated[bool, typer.Option("--loop", help="Keep sweeping, and do the work: no broker needed.")] = False,
) -> None:
    """Find the rows whose time has come and look after them, in this process, without a broker."""
    from pipeline.broker import SWEEP_S  # noqa: PLC0415
    from pipeline.stopping import Stop  # noqa: PLC0415
    from pipeline.worker import Worker  # noqa: PLC0415

    worker = Worker(runtime("sweep"))
    if not loop:
        worker.look_once()
        worker.stop()
        return
    with Stop() as stop:
        worker.start(stop.wait)
        while not stop.wait(SWEEP_S):
            worker.sweep()
        worker.stop()


def sandbox(
    *,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8787,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    generation_s: Annotated[float | None, typer.Option(help="How long a task runs, in seconds.")] = None,
    faults: Annotated[str, typer.Option(help="What goes wrong, such as '{\"lose_answer\": 0.1}'.")] = "{}",
    api_key: Annotated[str | None, typer.Option(help="The one key accepted; any, by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the faults repeatable.")] = None,
) -> None:
    """Imitate the provider, for development and tests: the API, signed webhooks, and every way it can go wrong."""
    from pipeline.sandbox import BadFault, serve  # noqa: PLC0415 - needs the extra `sandbox`

    dial = json_object(faults) | ({} if generation_s is None else {"generation_s": generation_s})
    try:
        serve(host=host, port=port, faults=dial, api_key=api_key, seed=seed)
    except BadFault as error:
        raise InvalidInput(str(error)) from None
    except (OSError, OverflowError) as error:  # the port is taken, or there is none of that number
        why = str(error).rpartition(": ")[2].rstrip(".")
        raise PipelineError(f"The sandbox cannot listen on {host}, port {port}: {why}.") from None
