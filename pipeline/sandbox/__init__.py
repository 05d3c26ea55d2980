"""
WaveSpeedAI imitated, for development and tests: the API, signed webhooks, files, and every way it can go wrong.

It is written from the provider's documentation alone and shares no code with our client, so that the
two cannot share a mistake (`pipeline.signatures` is the exception: it has the documentation's own vectors).

    pipeline.sandbox.serve(port=8787)            blocks until SIGINT or SIGTERM
    with pipeline.sandbox.running() as sandbox:  a process of its own, for tests: sandbox.url, sandbox.faults(fail=1)
    python -m pipeline.sandbox --port 0          the same from a shell

Where things are: `faults` what goes wrong and how often; `provider` tasks, ledger and balance; `submission` and
`routes` the documented API; `downloads` the files; `webhooks` the deliveries; `control` the `/_sandbox` routes;
`receiver` one who is told by the pipeline.
"""

from pipeline.sandbox.faults import BadFault, Faults
from pipeline.sandbox.process import Sandbox, running
from pipeline.sandbox.server import serve

__all__ = ["BadFault", "Faults", "Sandbox", "running", "serve"]
