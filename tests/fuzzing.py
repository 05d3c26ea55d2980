"""What schemathesis is told beside the document: it loads this page by SCHEMATHESIS_HOOKS."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.check
def the_code_is_documented(ctx: Any, response: Any, case: Any) -> None:
    """Every problem's code stands among the examples of its status, of its call."""
    if response.headers.get("content-type", [""])[0] != "application/problem+json":
        return
    code = response.json()["code"]
    if (response.status_code, code) == (405, "method_not_allowed"):  # the address is documented, the method is not
        return
    answers = case.operation.definition.raw["responses"]
    problems = answers.get(str(response.status_code), {}).get("content", {}).get("application/problem+json", {})
    assert code in problems.get("examples", {}), f"{response.status_code} {code} is not documented"


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: Any, value: Any) -> bytes:
    """Write each item as a line."""
    lines = value if isinstance(value, list) else [value]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
