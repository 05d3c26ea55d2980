"""
Which models there are, what each takes, and which options are ours to honour.

DALL-E 2 is known at once. Its upstream was withdrawn in May 2026; DEFAULT_MODEL names another one for all callers. What
the others take is known from the provider's catalogue, once that was read.

Source: https://wavespeed.ai/docs/docs-api/openai/openai-dall-e-2
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import nlargest
from typing import Any

from pipeline import schemas
from pipeline.errors import FieldError
from pipeline.schemas import Compiled, Schema

OURS = frozenset({"enable_base64_output", "enable_sync_mode"})
"""
Options that are never sent, and that every model has. The provider cannot combine base64 output with a webhook, so we
convert our copy; and a submit that waits for its result would only tie up a request that the webhook makes needless.
"""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)+", re.ASCII)
_NO_ID = "Must be a model's id, such as openai/dall-e-2."
_RESERVED = frozenset(
    {"predictions", "model", "models", "billings", "balance", "media", "webhook", "user", "account", "upload"}
)
"""The provider's own endpoints: a model's name is pasted into the path, and must not reach them with our key."""

_PROMPT = {"type": "string", "minLength": 1, "maxLength": 32_000, "pattern": r"\S"}

_ANYTHING: Schema = {"type": "object", "properties": {"prompt": _PROMPT}, "required": ["prompt"]}
"""What is asked of the input of a model whose schema nobody knows."""

SCHEMAS: Mapping[str, Schema] = {
    "openai/dall-e-2": {
        "type": "object",
        "properties": {"prompt": {**_PROMPT, "maxLength": 1000}},
        "required": ["prompt"],
        "additionalProperties": False,
    },
}
"""What we promise, whatever the catalogue says of these models."""

_SHAPELESS: Schema = {"type": "object", "properties": {"prompt": _PROMPT}}
"""The same, where the catalogue has the model and says nothing useful of its input: some take no prompt."""

_VALIDATORS = {model: schemas.compiled(schema) for model, schema in SCHEMAS.items()}
_LENIENT = schemas.compiled(_ANYTHING)
_LOOSE = schemas.compiled(_SHAPELESS)


def name_problem(model: str) -> str | None:
    """What is wrong with a model's name, in words; None when it may stand in the path of a paid request."""
    return _NO_ID if len(model) > 200 else _name_problem(model)


@lru_cache(maxsize=1000)
def _name_problem(model: str) -> str | None:
    if not _NAME.fullmatch(model):
        return _NO_ID
    first, *_, last = model.lower().split("/")
    if first in _RESERVED:
        return "Is an endpoint of the provider's, not a model."
    if last == "stream":  # it leaves no record at the provider: a lost answer could never be found
        return "Streaming models leave no task behind, and cannot be run as jobs."
    return None


def split(model_input: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate what is sent to the provider from the options that we honour ourselves."""
    if OURS.isdisjoint(model_input):
        return dict(model_input), {}
    sent = {name: value for name, value in model_input.items() if name not in OURS}
    return sent, {name: value for name, value in model_input.items() if name in OURS}


@dataclass(frozen=True, slots=True)
class Listing:
    """One model as it was last heard of. `schema` is JSON text: most are never used, so it is read when one is."""

    id: str
    schema: str | None = None
    withdrawn: bool = False


_ALIKE = 0.25
"""Names that have less in common, from 0 to 1, are not worth naming."""


class Catalogue:
    """
    The models there are, as this process last knew them. Immutable, and shared by its threads.

    Without any listing nothing is known: then every model may be asked for, and its input is checked leniently.
    """

    def __init__(self, listings: Iterable[Listing] = (), *, allow_unlisted: bool = False) -> None:
        self._listings = {one.id: one for one in listings}
        self._names = tuple(one.id for one in self._listings.values() if not one.withdrawn)
        self._allow_unlisted = allow_unlisted
        self._validators: dict[str, Compiled] = dict(_VALIDATORS)
        self._nearest = lru_cache(maxsize=1000)(self._compare)

    @property
    def known(self) -> bool:
        """Whether the provider's catalogue was ever read."""
        return bool(self._listings)

    def lists(self, model: str) -> bool:
        """Whether the provider offers *model* now, as far as is known."""
        listing = self._listings.get(model)
        return listing is not None and not listing.withdrawn

    def knows(self, model: str) -> bool:
        """Whether the provider ever offered *model*, as far as is known."""
        return model in self._listings

    @property
    def names(self) -> Sequence[str]:
        """The models that the provider offers now, as far as is known."""
        return self._names

    def schema(self, model: str) -> Schema:
        """What is known of the input of *model*, in the provider's own words: to be shown, not to be relied upon."""
        listing = self._listings.get(model)
        if model in SCHEMAS or listing is None:
            return SCHEMAS.get(model, _ANYTHING)
        try:
            found = json.loads(listing.schema or "null")
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) and isinstance(found.get("properties"), dict) else _SHAPELESS

    def problems(self, model: str, model_input: Mapping[str, Any]) -> list[FieldError]:
        """What is wrong with a model and an input for it: one entry a field, named as its schema does."""
        if wrong := name_problem(model):
            return [FieldError("model", wrong)]
        if self.known and not self._allow_unlisted and not self.lists(model):
            return [FieldError("model", self._refusal(model))]
        sent, ours = split(model_input)
        found = [
            FieldError(f"input.{name}", "Must be of type boolean.")
            for name, value in ours.items()
            if not isinstance(value, bool)
        ]
        return found + schemas.problems(self._validator(model), sent, "input")

    def nearest(self, model: str) -> tuple[str, ...]:
        """Up to three names of models there are that are most like *model*."""
        return self._nearest(model)

    def _refusal(self, model: str) -> str:
        withdrawn = model in self._listings
        why = "Was withdrawn by the provider" if withdrawn else "Is not in the provider's catalogue"
        near = self.nearest(model)
        return f"{why}; the nearest are {', '.join(near)}." if near else f"{why}."

    def _compare(self, model: str) -> tuple[str, ...]:
        # By shared trigrams, off an index: difflib takes a quarter of a second for a thousand names.
        wanted = _trigrams(model)
        shared = Counter(name for part in wanted for name in self._by_trigram.get(part, ()))
        likeness = {name: 2 * count / (len(wanted) + len(_trigrams(name))) for name, count in shared.most_common(20)}
        best = nlargest(3, likeness, key=lambda name: (likeness[name], name))
        return tuple(name for name in best if likeness[name] >= _ALIKE)

    @cached_property
    def _by_trigram(self) -> Mapping[str, list[str]]:
        index: dict[str, list[str]] = defaultdict(list)
        for name in self._names:
            for part in _trigrams(name):
                index[part].append(name)
        return index

    def _validator(self, model: str) -> Compiled:
        if found := self._validators.get(model):
            return found
        listing = self._listings.get(model)
        if listing is None or listing.withdrawn:  # not kept: there is no end of names
            return _LENIENT
        # Two threads may both make one: they are equal, and the last stays.
        made = self._validators[model] = _validator_of(listing)
        return made


def _trigrams(name: str) -> set[str]:
    padded = f"  {name.lower()} "
    return {padded[at : at + 3] for at in range(len(padded) - 2)}


def _validator_of(listing: Listing) -> Compiled:
    try:
        schema = schemas.sound(json.loads(listing.schema or "null"))
    except (ValueError, RecursionError):
        schema = None
    if schema is None:
        return _LOOSE
    needed = [name for name in schema.get("required", ()) if name not in OURS]
    return schemas.compiled({**schema, "required": needed})


UNREAD = Catalogue()
"""Before the provider's catalogue was first read."""
