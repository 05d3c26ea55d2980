"""One request as cURL, Python and JavaScript, to be copied; the key comes from the environment."""

import json
import pprint
import re
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WIDTH = 80
_ODD = re.compile(r"[^\x20-\x7e\n]")
_OPTIONS = ("model", "priority", "deadline_s", "callback_url", "metadata")


@dataclass(frozen=True, slots=True)
class Sample:
    """A program in one language; `name` is what people call it, `word` stands in addresses."""

    name: str
    word: str
    program: str


def samples(url: str, request: Mapping[str, Any], key: str) -> list[Sample]:
    """*request* as `POST /v1/jobs` takes it, for the pipeline at *url*; each with an idempotency key from *key*."""
    return [
        Sample("cURL", "curl", curl(url, request, f"{key}-1")),
        Sample("Python", "python", python(url, request, f"{key}-2")),
        Sample("JavaScript", "javascript", javascript(url, request, f"{key}-3")),
    ]


def curl(url: str, request: Mapping[str, Any], key: str) -> str:
    """For a POSIX shell: between its single quotes nothing means anything."""
    lines = [
        f"curl -sS --fail-with-body {shlex.quote(f'{url}/v1/jobs')}",
        '-H "Authorization: Bearer $PIPELINE_KEY"',
        "-H 'Content-Type: application/json'",
        f"-H {shlex.quote(f'Idempotency-Key: {key}')}",
        "-H 'Prefer: wait=25'",
        f"--data-binary {shlex.quote(_json(request))}",
    ]
    return " \\\n  ".join(lines)


def python(url: str, request: Mapping[str, Any], key: str) -> str:
    """With our own client, which takes the key from PIPELINE_KEY."""
    said = [_python(request["input"])]
    said += [f"{name}={_python(request[name])}" for name in _OPTIONS if name in request]
    said.append(f"idempotency_key={_python(key)}")
    asked = "".join(textwrap.indent(f"{one},\n", " " * 8) for one in said)
    return (
        "from pipeline import Client\n\n"
        f"with Client({_python(url)}) as client:\n"
        f"    job = client.enqueue(\n{asked}    )\n"
        "    job = client.wait(job)\n"
        "    print(job.state, [output.source_url for output in job.outputs])"
    )


def javascript(url: str, request: Mapping[str, Any], key: str) -> str:
    """For Node, or any other that has `fetch`."""
    body = textwrap.indent(_json(request, indent=2), "  ").strip()
    return (
        f"const answer = await fetch({_json(f'{url}/v1/jobs')}, {{\n"
        "  method: 'POST',\n"
        "  headers: {\n"
        "    Authorization: `Bearer ${process.env.PIPELINE_KEY}`,\n"
        "    'Content-Type': 'application/json',\n"
        f"    'Idempotency-Key': {_json(key)},\n"
        "    Prefer: 'wait=25',\n"
        "  },\n"
        f"  body: JSON.stringify({body}),\n"
        "})\n"
        "if (!answer.ok) throw new Error(await answer.text())\n"
        "const job = await answer.json()\n"
        "console.log(job.state, job.outputs.map((output) => output.source_url))"
    )


def _json(value: Any, indent: int | None = None) -> str:
    """JSON in which people read their own letters, and what cannot be seen is spelt out."""
    if indent is None and len(json.dumps(value)) > _WIDTH:
        indent = 2
    return _ODD.sub(_seen, json.dumps(value, ensure_ascii=False, indent=indent))


def _seen(found: re.Match[str]) -> str:
    """A character as it is, if it can be seen; else as JSON escapes it."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def _python(value: Any) -> str:
    short = repr(value)
    return short if len(short) <= _WIDTH else pprint.pformat(value, width=_WIDTH, sort_dicts=False)
