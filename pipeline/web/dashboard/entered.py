"""What a person entered in the playground: as a form keeps it, as a request, and as a job had it."""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from werkzeug.datastructures import MultiDict

from pipeline import forms
from pipeline.errors import FieldError, InvalidInput
from pipeline.forms import Field
from pipeline.models import Catalogue
from pipeline.web.dashboard.words import discreet

PROMPT = "a lighthouse at dawn, watercolour"
"""What stands in the form at first: who only presses Run sees a picture."""

INPUT = "input."
MORE = "more"
"""The field for what the model's schema does not name."""

UNSHOWN = frozenset({"enable_sync_mode"})
"""Inputs that mean nothing here: a job is always waited for by its webhook."""

_NONCE = re.compile(r"[0-9a-f]{16}")
_OPTIONS = ("priority", "deadline_s", "callback_url", "metadata")


@dataclass(frozen=True)
class Entered:
    """The form as it stands: every text as it was typed."""

    model: str
    service: str
    fields: list[Field]
    typed: Mapping[str, str | None]  # of each field of the input
    more: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False  # the model takes nothing else
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def request(self) -> dict[str, Any]:
        """
        The request as `POST /v1/jobs` takes it.

        Raises:
            InvalidInput: Something cannot be read; its `errors` name the fields of the form.
        """
        model_input, wrong = forms.read(self.fields, self.typed)
        errors = [FieldError(INPUT + one.field, one.message) for one in wrong]
        if self.more.strip():
            try:
                further = forms.json_in(self.more)
                if not isinstance(further, dict):
                    raise ValueError('Must be a JSON object, such as {"seed": 7}.')
                model_input = further | model_input
            except ValueError as error:
                errors.append(FieldError(MORE, str(error)))
        found: dict[str, Any] = {"model": self.model, "input": model_input}
        for name, read in (("priority", _whole), ("deadline_s", _seconds), ("metadata", _labels)):
            if text := self.options.get(name, "").strip():
                try:
                    found[name] = read(text)
                except ValueError as error:
                    errors.append(FieldError(name, str(error)))
        if url := self.options.get("callback_url", "").strip():
            found["callback_url"] = url
        if errors:
            raise InvalidInput(errors=errors)
        return found

    def discreet(self) -> "Entered":
        """The same without what addresses in it keep to themselves: for who may run nothing with it."""
        typed = {name: text and discreet(text) for name, text in self.typed.items()}
        options = {name: discreet(text) for name, text in self.options.items()}
        return replace(self, typed=typed, more=discreet(self.more), options=options)

    def key(self, request: Mapping[str, Any]) -> str:
        """An idempotency key: the same form sent again is the same job, and with another word in it another one."""
        said = json.dumps([self.service, request], sort_keys=True)
        return f"playground-{self.nonce}-{sha256(said.encode()).hexdigest()[:16]}"

    def place(self, name: str) -> str:
        """The field of the form beside which an error of this field of a request belongs; '' for none."""
        places = {"model", "service", MORE, *_OPTIONS, *(INPUT + one.name for one in self.fields)}
        while name not in places and "." in name:
            name = name.rpartition(".")[0]
        if name == "input":
            return MORE if self.shows_more else ""
        return name if name in places else ""

    @property
    def shows_more(self) -> bool:
        """Whether there is a field for what the schema does not name."""
        return bool(self.more) or not self.closed


def fresh(catalogue: Catalogue, model: str, service: str) -> Entered:
    """A form in which nothing was entered yet."""
    known = _fields(catalogue, model)
    has_prompt = any(one.name == "prompt" for one in known)
    return Entered(model, service, known, {"prompt": PROMPT} if has_prompt else {}, closed=_closed(catalogue, model))


def sent(catalogue: Catalogue, form: "MultiDict[str, str]") -> Entered:
    """What a browser sent. Browsers end lines as telegraphs did; people meant nothing by it."""
    model = form.get("model", "").strip()
    known = _fields(catalogue, model)
    typed: dict[str, str | None] = {}
    for one in known:
        texts = form.getlist(INPUT + one.name)
        typed[one.name] = _lines(texts[-1]) if texts else None
    nonce = form.get("nonce", "")
    more = {"nonce": nonce} if _NONCE.fullmatch(nonce) else {}
    return Entered(
        model,
        form.get("service", ""),
        known,
        typed,
        _lines(form.get(MORE, "")),
        {name: _lines(form.get(name, "")) for name in _OPTIONS},
        _closed(catalogue, model),
        **more,
    )


def of_job(catalogue: Catalogue, row: Any, *, deadline_s: float) -> Entered:
    """What would have been entered for a job, whatever door it came by; *deadline_s*: what need not be said."""
    model_input = {**row.input, **row.options}
    known = _fields(catalogue, row.model)
    names = {one.name for one in known}
    further = {name: value for name, value in model_input.items() if name not in names and name not in UNSHOWN}
    seconds = (row.deadline_at - row.run_at).total_seconds()
    return Entered(
        row.model,
        row.service,
        known,
        forms.typed(known, model_input),
        json.dumps(further, ensure_ascii=False, indent=2) if further else "",
        {
            "priority": str(row.priority) if row.priority else "",
            "deadline_s": "" if abs(seconds - deadline_s) < 1 else f"{seconds:g}",
            "callback_url": row.callback_url or "",
            "metadata": _spelt(row.caller_data),
        },
        _closed(catalogue, row.model),
    )


def _fields(catalogue: Catalogue, model: str) -> list[Field]:
    return [one for one in forms.fields(catalogue.schema(model)) if one.name not in UNSHOWN]


def _closed(catalogue: Catalogue, model: str) -> bool:
    return catalogue.schema(model).get("additionalProperties") is False


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _whole(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise ValueError("Must be a whole number from -10 to 10.")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise ValueError("Must be a number of seconds, such as 600.")
    return float(text)


def _labels(text: str) -> Any:
    """Lines of NAME=VALUE; or an object, in which values may have lines of their own."""
    if text.startswith("{"):
        return forms.json_in(text)
    found = {}
    for line in filter(None, map(str.strip, text.split("\n"))):
        name, equals, value = line.partition("=")
        if not name.strip() or not equals:
            raise ValueError("Write one NAME=VALUE on each line.")
        found[name.strip()] = value.strip()
    return found


def _spelt(labels: Mapping[str, str]) -> str:
    lines = [f"{name}={value}" for name, value in labels.items()]
    text = "\n".join(lines)
    return text if not labels or _labels_or_none(text) == labels else json.dumps(labels, ensure_ascii=False, indent=2)


def _labels_or_none(text: str) -> Any:
    try:
        return _labels(text)
    except ValueError:
        return None
