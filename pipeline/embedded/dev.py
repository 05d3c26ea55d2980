"""`pipeline dev`: the whole stack on this machine, kept running until Ctrl-C."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import ConfigError

BANNER = """
  {title}

  dashboard    {url}/playground     password: {dashboard_password}
  API          {url}/v1/jobs     key: {api_key}
  provider     {provider}
  data, logs   {data}

  Try it:        curl -s {url}/v1/jobs -H 'Authorization: Bearer {api_key}' \\
                   -H 'Content-Type: application/json' -d '{{"input": {{"prompt": "a lighthouse at dawn"}}}}'
  The CLI:       . {data}/env          (in a second terminal; then `pipeline jobs`)
  An outage:     mkdir -p {data}/hold && touch {data}/hold/valkey          (over when you remove it)

  Ctrl-C stops everything.
"""


def dev(
    *,
    data: Annotated[Path | None, typer.Option(help="Keep data and keys here; temporary by default.")] = None,
    port: Annotated[int | None, typer.Option(help="The web server's; 8000 or any free one by default.")] = None,
    sandbox_port: Annotated[int | None, typer.Option(help="8787 or any free one by default.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=32, help="How many worker processes.")] = 1,
    public_url: Annotated[bool, typer.Option(help="Let the provider call us back, or poll every job.")] = True,
    without: Annotated[list[str] | None, typer.Option(help="A line of the Procfile to leave out; repeatable.")] = None,
    via: Annotated[
        list[str] | None, typer.Option(help="NAME=PORT: reach postgres, valkey or sandbox through a proxy; repeatable.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One line of JSON on stdout, once ready.")] = False,
) -> None:
    """Run everything on this machine: Postgres, Valkey, the sandbox, web, worker and beat, until Ctrl-C."""
    try:
        from pipeline.embedded.foreground import Options, running  # noqa: PLC0415  # needs the extra `embedded`
        from pipeline.embedded.supervisor import Stopped, StopSignals  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed here: run `make setup`.") from None

    options = Options(
        data=data,
        port=port,
        sandbox_port=sandbox_port,
        workers=workers,
        public_url=public_url,
        without=tuple(without or ()),
        via=_ports(via or ()),
        receiver=not json_,  # a person wants to see a notification arrive; programs bring receivers of their own
    )
    with (
        StopSignals().caught() as signals,
        contextlib.suppress(Stopped),
        running(options, signals, say=_say) as stack,
    ):
        facts = asdict(stack.facts)
        print(json.dumps(facts) if json_ else banner(facts), flush=True)
        while True:
            stack.wait(3600.0)


def _ports(words: Iterable[str]) -> dict[str, int]:
    found = dict(word.partition("=")[::2] for word in words)
    if not {*found} <= {"postgres", "valkey", "sandbox"} or not all(port.isdecimal() for port in found.values()):
        raise ConfigError("--via: write postgres=PORT, valkey=PORT or sandbox=PORT.")
    return {name: int(port) for name, port in found.items()}


def banner(facts: Mapping[str, object]) -> str:
    """Say where everything is, and what to try."""
    provider = facts["sandbox_url"] or "the real WaveSpeedAI: jobs cost money"
    return BANNER.format(title="Everything is running.", provider=provider, **facts)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
