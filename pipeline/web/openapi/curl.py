"""Calls as cURL commands, to be copied: the address and the key come from PIPELINE_URL and PIPELINE_KEY."""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from pipeline.web.openapi.calls import IDEMPOTENCY_KEY, JSON, Body, Call, Parameter

LONG_LINE = 80


def samples(path: str, method: str, parameters: Sequence[Parameter], call: Call) -> list[dict[str, str]]:
    """
    One command for each example of the body, or the only one. Each has an Idempotency-Key of its own.

    None of a call that cannot succeed yet.
    """
    if not call.answers:
        return []
    if not call.body:
        return [_sample("cURL", _command(path, method, parameters, call))]
    return [
        _sample(name, [*_command(path, method, parameters, call, nth), *_body(call.body, example)])
        for nth, (name, example) in enumerate(call.body.examples.items(), 1)
    ]


def _sample(label: str, lines: Sequence[str]) -> dict[str, str]:
    return {"lang": "Shell", "label": label, "source": " \\\n  ".join(lines)}


def _command(path: str, method: str, parameters: Sequence[Parameter], call: Call, nth: int = 1) -> list[str]:
    sent: dict[str, dict[str, Any]] = {one.place: {} for one in parameters}
    for one in parameters:
        if one.example is not None:
            if isinstance(one.example, Mapping):  # each entry is a parameter
                sent[one.place] |= one.example
                continue
            again = one.name == IDEMPOTENCY_KEY.name and nth > 1
            sent[one.place][one.name] = f"{one.example}-{nth}" if again else one.example
    for name, value in sent.get("path", {}).items():
        path = path.replace(f"{{{name}}}", str(value))
    query = f"?{urlencode(sent['query'])}" if sent.get("query") else ""
    lines = [f'curl -sS --fail-with-body "$PIPELINE_URL{path}{query}"']
    if method == "post" and not call.body:
        lines.append("-X POST")
    if call.needs_key:
        lines.append('-H "Authorization: Bearer $PIPELINE_KEY"')
    return lines + [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in sent.get("header", {}).items()]


def _body(body: Body, example: Any) -> list[str]:
    text = str(example)
    if body.media_type == JSON:
        text = json.dumps(example)
        if len(text) > LONG_LINE:
            text = json.dumps(example, indent=2)
    return [f"-H {shlex.quote(f'Content-Type: {body.media_type}')}", f"--data-binary {shlex.quote(text)}"]
