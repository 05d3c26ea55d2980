"""`python -m pipeline.sandbox`: the sandbox without the rest of the command line."""

import argparse
import json
import os
import signal
import sys
import threading

from pipeline.sandbox.faults import BadFault
from pipeline.sandbox.server import START_BALANCE, serve


def main() -> None:
    """Read the flags and serve."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.sandbox", description="WaveSpeedAI imitated.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8787, help="0 takes a free one")
    parser.add_argument("--faults", type=json.loads, default={}, metavar="JSON", help='such as {"lose_answer": 0.1}')
    parser.add_argument("--api-key", help="the one key accepted; any, by default")
    parser.add_argument("--webhook-secret", help="made up by default")
    parser.add_argument("--balance", type=float, default=START_BALANCE, help="dollars")
    parser.add_argument("--seed", type=int, help="makes the faults repeatable")
    parser.add_argument("--public-url", help="where links lead; by default to the host a request asked for")
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when the standard input is closed")
    options = vars(parser.parse_args())
    if options.pop("until_stdin_ends"):
        threading.Thread(target=_stop_with_stdin, daemon=True).start()
    try:
        serve(**options)
    except (BadFault, OSError, OverflowError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _stop_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin.read(): its lock would be held when Python ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
