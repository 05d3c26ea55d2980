"""A sandbox in a process of its own, so that it does not share an interpreter with what it tests."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

_direct = build_opener(ProxyHandler({}))  # the address is on this machine: no proxy of the environment


class Sandbox:
    """A sandbox that runs elsewhere, and the handles by which a test turns it."""

    def __init__(self, url: str) -> None:
        """*url* as it was printed: what `WAVESPEED_BASE_URL` wants."""
        self.url = url

    def faults(self, **changes: object) -> dict[str, Any]:
        """
        Turn the dial; returns all of it.

        Raises:
            ValueError: A fault is unknown or out of range; the message names it.
        """
        return self._call("POST" if changes else "GET", "faults", changes or None)

    def ledger(self) -> list[dict[str, Any]]:
        """Every task that was accepted and charged, newest last."""
        charges: list[dict[str, Any]] = self._call("GET", "ledger")["charges"]
        return charges

    def deliveries(self, prediction_id: str | None = None) -> list[dict[str, Any]]:
        """The webhook log, oldest first: all, or those of one task."""
        path = "deliveries" if prediction_id is None else f"deliveries?prediction_id={prediction_id}"
        rows: list[dict[str, Any]] = self._call("GET", path)["deliveries"]
        return rows

    def delivery(self, delivery_id: str) -> dict[str, Any]:
        """One line of that log, with the `body` that was sent."""
        return self._call("GET", f"deliveries/{delivery_id}")

    def resend(self, delivery_id: str) -> dict[str, Any]:
        """Send it once more, now; returns the new line of the log."""
        return self._call("POST", f"deliveries/{delivery_id}/resend")

    def arrivals(self) -> dict[str, Any]:
        """When submits arrived, how many tasks ran at once, which calls were made."""
        return self._call("GET", "arrivals")

    def set_balance(self, dollars: float) -> None:
        """As after a top-up."""
        self._call("POST", "balance", {"balance": dollars})

    def rotate_secret(self) -> str:
        """Make a new webhook secret, and return it."""
        return str(self._call("POST", "rotate-secret")["secret"])

    def reset(self) -> None:
        """Back to how it started: no tasks, no log, the faults, the balance and the secret of the start."""
        self._call("POST", "reset")

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/_sandbox/{path}", data, method=method)  # noqa: S310 - our own http URL
        try:
            with _direct.open(request, timeout=30) as answer:
                value: dict[str, Any] = json.load(answer)
        except HTTPError as error:
            with error:
                raise ValueError(json.load(error)["message"]) from None
        return value


@contextmanager
def running(
    *,
    faults: Mapping[str, object] | None = None,
    api_key: str | None = None,
    webhook_secret: str | None = None,
    balance: float | None = None,
    seed: int | None = None,
    public_url: str | None = None,
    port: int = 0,
) -> Iterator[Sandbox]:
    """
    Start a sandbox on loopback, wait until it listens, stop it in the end.

    It also ends when this process does, however that happens: it reads a pipe that nobody else holds.

    Raises:
        RuntimeError: It did not start; why is on the standard error it shares with us.
    """
    options: dict[str, object] = {
        "port": port,
        "faults": json.dumps(dict(faults)) if faults else None,
        "api-key": api_key,
        "webhook-secret": webhook_secret,
        "balance": balance,
        "seed": seed,
        "public-url": public_url,
    }
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, "-m", "pipeline.sandbox", "--until-stdin-ends", *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"The sandbox ended with exit code {process.wait()} before it listened.")
            yield Sandbox(line.split()[-1])
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
