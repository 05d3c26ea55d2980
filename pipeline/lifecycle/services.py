"""Services: who may hand in jobs, by which key, with what share of the account, and whom they may have told."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.broker import QUEUE
from pipeline.errors import FieldError, InvalidInput
from pipeline.outputs import Policy
from pipeline.runtime import Runtime
from pipeline.store import keys
from pipeline.store import services as registry
from pipeline.store.database import Transaction
from pipeline.store.services import Service

NONE = "none"
"""What people type to take a limit or an address away."""

MAX_WEIGHT = 1000
CELERYS_QUEUE = "celery"
"""Where an app listens that was told nothing else."""

_WORD = re.compile(r"[A-Za-z0-9_][\w.:-]{0,199}", re.ASCII)
_LIMIT = re.compile(r"[1-9][0-9]{0,8}")

Said = Mapping[str, str | Sequence[str] | None]
"""What a person typed, by the column it is for; None: as NONE."""

Facts = Mapping[str, Any]
"""The same, as the columns take it."""


@dataclass(frozen=True, slots=True)
class Made:
    """A new service's key, which is kept nowhere, and the secret that signs what it is told."""

    key: str
    secret: str


def name_of(text: str) -> str:
    """
    *text*, if a service may be called so.

    Raises:
        InvalidInput: It may not.
    """
    if not registry.NAME.fullmatch(text):
        raise InvalidInput(errors=[FieldError("name", registry.NAME_RULE)])
    return text


def create(rt: Runtime, name: str, *, operator: bool = False) -> Made:
    """
    Add a service. An *operator*'s key sees and acts on every service's jobs.

    Raises:
        InvalidInput: The name cannot be one, or is taken.
    """
    with rt.db.transaction() as tx:
        key = registry.create(tx, name_of(name), operator=operator)
        if key is None:
            taken = f"There is a service named {name} already; `pipeline services rotate {name}` makes a new key."
            raise InvalidInput(errors=[FieldError("name", taken)])
        return Made(key, keys.of(tx, _known(tx, name).id)[0])


def rotate(rt: Runtime, name: str) -> str:
    """Give a service a new key, and return it; the old one, or a revocation, ends at once."""
    with rt.db.transaction() as tx:
        key = registry.rotate(tx, name)
    if key is None:
        raise _unknown(name)
    return key


def revoke(rt: Runtime, name: str) -> None:
    """Refuse a service's key from now on. Its jobs go on."""
    with rt.db.transaction() as tx:
        if not registry.revoke(tx, name):
            raise _unknown(name)


def secret(rt: Runtime, name: str, *, rotate: bool = False) -> str:
    """Give the secret that signs what a service is told; *rotate*: a new one, beside the former for a day."""
    with rt.db.transaction() as tx:
        service_id = _known(tx, name).id
        return keys.rotate(tx, service_id) if rotate else keys.of(tx, service_id)[0]


def read(rt: Runtime, said: Said) -> Facts:
    """
    Read what was said of a service, as its columns take it.

    Raises:
        InvalidInput: Its `errors` name every wrong field.
    """
    found: dict[str, Any] = {}
    wrong = []
    for field, text in said.items():
        try:
            found[field] = _fact(rt, field, None if text in (NONE, [NONE]) else text)
        except ValueError as error:
            wrong.append(FieldError(field, str(error)))
    if wrong:
        raise InvalidInput(errors=wrong)
    return found


def change(rt: Runtime, name: str, facts: Facts) -> None:
    """Change a service's share, its limits, and whom it may have told, see `read`. What is not named stays."""
    _change(rt, name, **facts)


def told(facts: Facts) -> dict[str, str | int | None]:
    """The facts as the trail keeps them: an address may hold what is nobody's business."""
    kept = dict(facts)
    if kept.get("callback_url"):
        kept["callback_url"] = "another"
    if "callback_tasks" in kept:
        kept["callback_tasks"] = ", ".join(f"{one['task']}@{one['queue']}" for one in kept["callback_tasks"])
    return kept


def pause(rt: Runtime, name: str) -> None:
    """Begin no job of a service until it is resumed. New ones wait; what runs goes on, and so do deadlines."""
    _change(rt, name, paused=True)


def resume(rt: Runtime, name: str) -> None:
    """Let the jobs of a paused service go on."""
    _change(rt, name, paused=False)
    rt.nudge("submit")


def _change(rt: Runtime, name: str, **facts: Any) -> None:
    with rt.db.transaction() as tx:
        if not registry.change(tx, name, **facts):
            raise _unknown(name)


def _known(tx: Transaction, name: str) -> Service:
    service = registry.by_name(tx, name, revoked=True)
    if service is None:
        raise _unknown(name)
    return service


def _unknown(name: str) -> InvalidInput:
    return InvalidInput(f"There is no service named {name}.")


def _fact(rt: Runtime, field: str, said: str | Sequence[str] | None) -> Any:
    if field == "callback_tasks":
        return [_task(one) for one in said or ()]
    text = None if said is None else str(said)
    if field == "weight":
        return _weight(text)
    if text is None:
        return None
    return {"callback_url": _url, "nsfw_policy": _policy}.get(field, _limit)(rt, text)


def _weight(text: str | None) -> int:
    if text is None or not _LIMIT.fullmatch(text) or int(text) > MAX_WEIGHT:
        raise ValueError(f"{text!r} is no whole number from 1 to {MAX_WEIGHT}.")
    return int(text)


def _limit(_: Runtime, text: str) -> int:
    if not _LIMIT.fullmatch(text):
        raise ValueError(f"{text!r} is neither a whole number above 0 nor 'none'.")
    return int(text)


def _policy(_: Runtime, text: str) -> str:
    if text not in list(Policy):
        raise ValueError(f"{text!r} is none of {', '.join(Policy)} and 'none'.")
    return text


def _url(rt: Runtime, text: str) -> str:
    from pipeline.lifecycle.accept import callback_problem  # noqa: PLC0415 - spares the other commands its imports

    if problem := callback_problem(rt, text):
        raise ValueError(problem.message)
    return text


def _task(text: str) -> dict[str, str]:
    task, _, queue = text.partition("@")
    queue = queue or CELERYS_QUEUE
    if not _WORD.fullmatch(task) or not _WORD.fullmatch(queue):
        raise ValueError(f"{text!r} is no task's name, such as shop.done or shop.done@shop.")
    if task.startswith("pipeline.") or queue == QUEUE:
        raise ValueError(f"{text!r} is of this product's own, which it would call in a circle.")
    return {"task": task, "queue": queue}
