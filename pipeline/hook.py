"""
The operator's own screen for prompts: a Python function that PROMPT_SCREEN names, asked before anything is paid.

    def screen(service: str, model: str, input: dict[str, Any]) -> str | None:
        '''Name the category that this is to be refused for (a word such as violence), or give None to let it pass.'''

It is asked of what the lists of terms let pass, once for each job and once again when the job is admitted, if that was
queued unchecked. Several threads ask it at a time. It has WITHIN_S seconds, and of a batch MORE_S more for each further
job. When it raises, takes longer or answers anything else, nothing passes: the request is answered 503, and what was
queued waits. What is logged then is the error's type and place, never its words.
"""

import copy
import importlib
import inspect
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline import telemetry
from pipeline.errors import ConfigError, NotScreened

WITHIN_S = 2.0
"""How long one prompt may take, in seconds."""

MORE_S = 0.001
"""How much more each further one of a batch may take, in seconds."""

MAX_STUCK = 8
"""So many calls that never ended are borne; then nothing is asked until one ends, or threads would pile up."""

_CATEGORY = re.compile(r"[a-z][a-z0-9_]{0,39}")

_failed = telemetry.Tally("screen.failed")

Function = Callable[[str, str, Mapping[str, Any]], str | None]


class Hook:
    """
    A function of the operator's, loaded by its name and kept from doing harm.

    Raises:
        ConfigError: There is none of that name, or it cannot be called as it is to be.
    """

    def __init__(self, path: str, *, within_s: float = WITHIN_S) -> None:
        self._function = _loaded(path)
        self._within_s = within_s
        self._stuck: list[threading.Thread] = []

    def ask(self, service: str, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str | None]:
        """
        The category that each of *asked*, a model and its input, is to be refused for; None lets it pass.

        Raises:
            NotScreened: It failed, or took too long: nothing is known of any.
        """
        self._stuck = [one for one in self._stuck if one.is_alive()]
        if len(self._stuck) >= MAX_STUCK:
            raise _not_screened(why="stuck", calls=len(self._stuck))
        call = _Call(self._function, service, asked)
        thread = threading.Thread(target=call.run, name="screen", daemon=True)  # a process may end without it
        thread.start()
        thread.join(self._within_s + MORE_S * (len(asked) - 1))
        if thread.is_alive():
            call.abandoned = True
            self._stuck.append(thread)
            raise _not_screened(why="took too long", answered=len(call.answers))
        if call.error:
            raise _not_screened(why="failed", **_told(call.error)) from None
        return call.answers


class _Call:
    """One question, asked in a thread of its own."""

    def __init__(self, function: Function, service: str, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._function = function
        self._service = service
        self._asked = asked
        self.answers: list[str | None] = []
        self.error: BaseException | None = None
        self.abandoned = False

    def run(self) -> None:
        try:
            for model, model_input in self._asked:
                if self.abandoned:
                    return
                answer = self._function(self._service, model, copy.deepcopy(dict(model_input)))  # it may change it
                if answer is not None and not (isinstance(answer, str) and _CATEGORY.fullmatch(answer)):
                    raise TypeError  # it is neither None nor a category
                self.answers.append(answer)
        except BaseException as error:
            self.error = error


def _not_screened(**facts: object) -> NotScreened:
    _failed.count(**facts)
    return NotScreened("The operator's own screen for prompts failed, or took too long: nothing was accepted.")


def _told(error: BaseException) -> dict[str, str]:
    """An error without its words and its frames' variables: both show the prompt."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return {"error": type(error).__name__, "raised_at": f"{at.filename}:{at.lineno}"}


def _loaded(path: str) -> Function:
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:  # where a deployment has its own code; the `pipeline` command does not look there
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(f"PROMPT_SCREEN: {path} cannot be imported ({type(error).__name__}: {error}).") from None
    try:
        inspect.signature(function).bind("service", "openai/dall-e-2", {})
    except (TypeError, ValueError):
        raise ConfigError(f"PROMPT_SCREEN: {path} must be a function of service, model and input.") from None
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"PROMPT_SCREEN: {path} must be a plain function, not an async one.")
    return function  # type: ignore[no-any-return]
