"""The provider's catalogue of models, read from the answer to `GET /models`. One odd entry does not lose the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.models import name_problem
from pipeline.predictions import cut

_MAX_WORDS = 2000
_RUN = "model_run"


@dataclass(frozen=True, slots=True)
class Offer:
    """One model the provider offers; `schema` is the JSON Schema of its input, if there is one."""

    id: str
    kind: str | None = None  # as the provider calls it, such as text-to-image
    description: str | None = None
    schema: dict[str, Any] | None = None


def read(items: Sequence[object]) -> list[Offer]:
    """
    The models among *items*, by id. What has no usable id is left out, and so is what no task can be made of.

    Source: https://wavespeed.ai/docs/docs-common-api/list-models
    """
    found = {offer.id: offer for offer in map(_offer, items) if offer}
    return [found[name] for name in sorted(found)]


def _offer(item: object) -> Offer | None:
    entry: dict[str, Any] = item if isinstance(item, dict) else {}
    name = entry.get("model_id")
    if not isinstance(name, str) or name_problem(name):
        return None
    return Offer(name, _words(entry.get("type")), _words(entry.get("description")), _schema(entry))


def _schema(entry: dict[str, Any]) -> dict[str, Any] | None:
    holder = entry.get("api_schema")
    calls = holder.get("api_schemas") if isinstance(holder, dict) else None
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and call.get("type") == _RUN and isinstance(call.get("request_schema"), dict):
            return dict(call["request_schema"])
    return None


def _words(value: object) -> str | None:
    return cut(value, _MAX_WORDS) or None if isinstance(value, str) else None
