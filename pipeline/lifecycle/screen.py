"""Screen: what models are asked is looked through before anything is paid, by lists of terms and the operator's own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import telemetry
from pipeline.errors import FieldError, NotScreened, PromptRefused
from pipeline.runtime import Runtime
from pipeline.store.services import Service

_refused = telemetry.Tally("screen.refused")

Asked = tuple[str, Mapping[str, Any]]
"""A model, and the input for it."""


def is_on(rt: Runtime, service: Service) -> bool:
    """Whether anything of this service's could be refused."""
    return bool(rt.hook or rt.screens().of(service.id))


def judged(
    rt: Runtime, service: Service, asked: Sequence[Asked], *, one_by_one: bool = False
) -> list[PromptRefused | NotScreened | None]:
    """
    Whether each of *asked* is refused, and why: by the lists; what they let pass, by the operator's own function.

    Where one refusal refuses all, that is not asked any more once there is one; unless they are judged *one_by_one*:
    then its failure is said of each that it was to be asked about.

    Raises:
        Unavailable: The database is away.
        NotScreened: That function failed, or took too long; not when *one_by_one*.
    """
    screen = rt.screens().of(service.id)
    found = [screen.problems(model_input) for _, model_input in asked]
    passed = [place for place, one in enumerate(found) if not one]
    failure: NotScreened | None = None
    if rt.hook and passed and (one_by_one or len(passed) == len(asked)):
        try:
            answers = rt.hook.ask(service.name, [asked[place] for place in passed])
        except NotScreened as error:
            if not one_by_one:
                raise
            failure = error
        else:
            for place, category in zip(passed, answers, strict=True):
                if category:
                    found[place] = {"input": {category}}
    refusals = [_refusal(one) if one else None for one in found]
    if counts := Counter(category for one in refusals if one for category in one.categories):
        _refused.count(service=service.name, categories=dict(counts))
    return [one or failure for one in refusals]


def check(rt: Runtime, service: Service, model: str, model_input: Mapping[str, Any]) -> None:
    """
    Look one prompt through.

    Raises:
        PromptRefused: It names the categories, and says nothing of the prompt.
        Unavailable, NotScreened: As `judged` does.
    """
    if is_on(rt, service) and (refusal := judged(rt, service, [(model, model_input)])[0]):
        raise refusal


def may_be_kept(rt: Runtime, service: Service | None, value: Any) -> bool:
    """Whether *value*, JSON of any shape, may be kept for people to read: no list has anything against it."""
    return not rt.screens().of(service and service.id).minds(value)


def _refusal(found: Mapping[str, set[str]]) -> PromptRefused:
    errors = [FieldError(field, f"Is refused: {', '.join(sorted(why))}.") for field, why in found.items()]
    return PromptRefused(errors=errors, categories=sorted(set().union(*found.values())))
