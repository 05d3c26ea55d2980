"""The OpenAPI 3.1 document, made from the app: its routes, what stands beside its views, the models of its bodies."""

import inspect
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from flask import Flask
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from pipeline.errors import FAILURES, PipelineError, RateLimited, Unauthorized, Unavailable, UnknownPath, callers_errors
from pipeline.web import problems
from pipeline.web.api.examples import JOB_ID, PROBLEMS
from pipeline.web.api.shapes import Problem
from pipeline.web.openapi import curl
from pipeline.web.openapi.calls import (
    PROBLEM,
    RATE_LIMIT,
    RATE_LIMIT_POLICY,
    RETRY_AFTER,
    WWW_AUTHENTICATE,
    Answer,
    Body,
    Call,
    Header,
    Parameter,
    call_of,
)

ABOUT = """\
Hand in prompts; each becomes exactly one paid generation, and its outcome is told.

Send `Authorization: Bearer <service key>` with every call. A key sees and touches its own service's jobs only; to every
other they do not exist. Operator keys see all.

Every answer has an `X-Request-ID`: your own, if you sent a sane one (up to 128 printable characters, no spaces). It is
in each line that the request wrote to our log. What happens to a job later, in workers and callbacks, is found there by
the job's id, which is in the request's lines too.

Ids, states and codes are stable. A client should ignore fields that it does not know: version 1 may gain some.
"""

TAGS = {
    "Jobs": "Generations, from the request to the result.",
    "Probes": "For platforms and monitors; no key is needed.",
}

ALWAYS = (PipelineError,)
WITH_KEY = (Unauthorized, RateLimited, Unavailable)

IN_PATH: Mapping[str, Parameter] = {
    "job_id": Parameter(
        "job_id",
        "path",
        "The job's id. Whatever is none is an unknown job.",
        {"type": "string", "format": "uuid"},
        JOB_ID,
    ),
    "index": Parameter(
        "index", "path", "The output's number, from 0. Whatever is none is an unknown output.", {"type": "integer"}, 0
    ),
}

REFERENCE = "#/components/schemas/{model}"

_ARGUMENT = re.compile(r"<(?:[^:<>]+:)?(\w+)>")


def build(app: Flask) -> dict[str, Any]:
    """The document of all views of *app* that are described."""
    found = calls(app)
    spec = APISpec(
        title="WaveSpeed job pipeline",
        version=version("wavespeed-pipeline"),
        openapi_version="3.1.1",
        info={"description": ABOUT, "license": {"name": "MIT", "identifier": "MIT"}},
        jsonSchemaDialect="https://json-schema.org/draft/2020-12/schema",
        servers=[{"url": "/", "description": "This server."}],
        tags=[{"name": name, "description": meaning} for name, meaning in TAGS.items()],
    )
    spec.components.security_scheme(
        "service_key", {"type": "http", "scheme": "bearer", "description": "A service's key, or an operator's."}
    )
    for name, schema in _schemas([call for *_, call in found]).items():
        spec.components.schema(name, schema)
    for path, method, view, call in found:
        spec.path(path, operations={method: _operation(path, method, view, call)})
    document: dict[str, Any] = spec.to_dict()
    return document | {
        "x-problems": [
            {
                "status": error.status,
                "code": error.code,
                "title": error.title,
                "meaning": meaning(error),
                "remedy": error.remedy,
            }
            for error in callers_errors()
        ],
        "x-failures": [{"code": code, "meaning": said} for code, said in FAILURES.items()],
    }


def calls(app: Flask) -> list[tuple[str, str, str, Call]]:
    """Path, method and name of each described view of *app*, and what is said of it, in the order of reading."""
    found = []
    for rule in app.url_map.iter_rules():
        call = call_of(app.view_functions[rule.endpoint])
        if call:
            (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
            found.append((_ARGUMENT.sub(r"{\1}", rule.rule), method.lower(), rule.endpoint.rpartition(".")[2], call))
    tags = list(TAGS)
    return sorted(found, key=lambda item: (tags.index(item[3].tag), item[3].place))


def meaning(error: type[PipelineError]) -> str:
    """The first line of an error's docstring."""
    return (inspect.getdoc(error) or "").partition("\n")[0]


def _operation(path: str, method: str, name: str, call: Call) -> dict[str, Any]:
    parameters = [IN_PATH[argument] for argument in re.findall(r"{(\w+)}", path)] + list(call.parameters)
    operation: dict[str, Any] = {
        "operationId": name,
        "tags": [call.tag],
        "summary": call.summary,
        "description": call.meaning,
        "parameters": [_parameter(parameter) for parameter in parameters],
        "responses": {str(answer.status): _answer(answer, call) for answer in call.answers} | _problems(path, call),
        "x-codeSamples": curl.samples(path, method, parameters, call),
    }
    if call.body:
        operation["requestBody"] = {"required": True, "content": _content([call.body])}
    if call.needs_key:
        operation["security"] = [{"service_key": []}]
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    shown = {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.meaning,
        "required": parameter.place == "path",
        "schema": dict(parameter.schema),
        **parameter.style,
    }
    return shown if parameter.example is None else shown | {"example": parameter.example}


def _answer(answer: Answer, call: Call) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": answer.meaning}
    if headers := _headers([*answer.headers, *_everywhere(call)]):
        shown["headers"] = headers
    return shown | ({"content": _content(answer.bodies)} if answer.bodies else {})


def _content(bodies: Sequence[Body]) -> dict[str, Any]:
    return {
        body.media_type: {
            "schema": _schema(body),
            "examples": {name: {"value": value} for name, value in body.examples.items()},
        }
        for body in bodies
    }


def _schema(body: Body) -> Any:
    if not isinstance(body.shape, Mapping):
        return body.shape.__name__  # apispec makes a reference of a name
    item = {"x-itemSchema": {"$ref": REFERENCE.format(model=body.item.__name__)}} if body.item else {}
    return {**body.shape, **item}


def _headers(headers: Sequence[Header]) -> dict[str, Any]:
    return {header.name: {"description": header.meaning, "schema": dict(header.schema)} for header in headers}


def _everywhere(call: Call) -> Sequence[Header]:
    return (RATE_LIMIT, RATE_LIMIT_POLICY) if call.needs_key else ()


def _problems(path: str, call: Call) -> dict[str, Any]:
    """What may go wrong, by status."""
    by_status: dict[int, list[type[PipelineError]]] = defaultdict(list)
    for error in dict.fromkeys([*call.errors, *(WITH_KEY if call.needs_key else ()), *ALWAYS]):
        by_status[error.status].append(error)
    if "{" in path:
        by_status[404].append(UnknownPath)  # an argument may be such that no path is left
    shown = {}
    for status, errors in sorted(by_status.items()):
        headers = [
            *([RETRY_AFTER] if any(_example(error).retry_after_s is not None for error in errors) else []),
            *([WWW_AUTHENTICATE] if Unauthorized in errors else []),
            *_everywhere(call),
        ]
        problem = {
            "schema": Problem.__name__,
            "examples": {
                error.code: {"summary": meaning(error), "value": problems.content(_example(error))} for error in errors
            },
        }
        shown[str(status)] = {
            "description": " ".join(meaning(error) for error in errors),
            "content": {PROBLEM: problem},
        }
        if headers:
            shown[str(status)]["headers"] = _headers(headers)
    return shown


class _Untitled(GenerateJsonSchema):
    """Without a title such as "Run At" for each field: its name stands there already."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _example(error: type[PipelineError]) -> PipelineError:
    return PROBLEMS.get(error) or error()


def _schemas(described: Sequence[Call]) -> dict[str, Any]:
    """The JSON Schemas of all models, by name."""
    bodies = [body for call in described for answer in call.answers for body in answer.bodies]
    bodies += [call.body for call in described if call.body]
    models = {body.shape for body in bodies if not isinstance(body.shape, Mapping)} | {Problem}
    models |= {body.item for body in bodies if body.item}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, found = models_json_schema(
        [(model, "validation") for model in ordered],
        ref_template=REFERENCE,
        schema_generator=_Untitled,
    )
    schemas: dict[str, Any] = found["$defs"]
    return schemas
