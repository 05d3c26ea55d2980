"""The submit: what is refused, what is created, and what the caller gets to hear of it."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from aiohttp import web
from yarl import URL

from pipeline.sandbox.catalogue import MODELS, Model
from pipeline.sandbox.faults import BadFault, Fate, Faults, in_prompt
from pipeline.sandbox.provider import Provider, retry_after
from pipeline.sandbox.tasks import Task
from pipeline.sandbox.wire import Refusal, read_object, success

LATENCY = web.RequestKey("latency", float)
"""Seconds before the answer of this request; else the dial decides."""

CUT = web.RequestKey("cut", bool)
"""Present: the connection is cut instead of answering."""

NO_BASE64 = "webhook callback does not support base64 output, please use the normal API to use base64 output"
GATEWAY_PAGE = "<html><head><title>504 Gateway Time-out</title></head><body><h1>504 Gateway Time-out</h1></body></html>"


class Submission:
    """The handler of `POST /api/v3/{model}`. The task is created first; whatever happens to the answer, it runs."""

    def __init__(self, provider: Provider, *, base: Callable[[web.Request], str]) -> None:
        """*base* tells where the task's links shall lead."""
        self._provider = provider
        self._base = base

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Refuse, or create a task."""
        given = await read_object(request)
        try:
            own = in_prompt(given.get("prompt"))
        except BadFault as error:
            raise Refusal(400, f"sandbox: {error}") from None
        faults = self._provider.faults.merged(own) if own else self._provider.faults
        fate = self._provider.fate(faults, given.get("prompt"))
        request[LATENCY] = fate.latency_s
        model_id = request.match_info["model"]
        _refuse_by_fault(request, faults, fate, model_id)
        webhook = request.query.get("webhook") or None
        model = _check(model_id, given, webhook, faults)
        key = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        task = self._provider.create(
            model,
            given,
            base=self._base(request),
            webhook=webhook,
            own_faults=own,
            faults=faults,
            fate=fate,
            key_id=hashlib.sha256(key).hexdigest()[:16],
        )
        return await _first_answer(request, task, faults)


def _refuse_by_fault(request: web.Request, faults: Faults, fate: Fate, model_id: str) -> None:
    """The faults that leave no task behind."""
    if faults.forbidden in (True, model_id):
        raise Refusal(403, "account suspended", error_code="ACCOUNT_SUSPENDED")
    if fate.redirect_307:
        raise Refusal(307, "temporary redirect", headers={"Location": str(request.rel_url)})
    if fate.status_429:
        raise Refusal(429, "You have reached your concurrency limit", headers=retry_after(faults))
    if fate.status_500 and not fate.keeps_task:
        raise Refusal(500, "internal server error")


def _check(model_id: str, given: dict[str, Any], webhook: str | None, faults: Faults) -> Model:
    """The model asked for, when it can do what is asked; else a Refusal (400)."""
    model = MODELS.get(model_id)
    if model is None:
        raise Refusal(400, "model not found")
    if webhook and given.get("enable_base64_output") is True:
        refusal = Refusal(400, NO_BASE64)
        refusal.body = {"error": NO_BASE64}  # the one error that is documented without an envelope
        raise refusal
    if webhook and not _is_http(webhook):
        raise Refusal(400, "webhook must be an http or https URL")
    if "prompt" not in given or given["prompt"] == "":
        if not faults.missing_prompt_fails:
            raise Refusal(400, "prompt is required")
        given = given | {"prompt": ""}
    complaint = model.complaint(given)
    if complaint is not None:
        raise Refusal(400, complaint)
    return model


def _is_http(url: str) -> bool:
    """Plain http and private addresses are fine: this is a sandbox."""
    try:
        parsed = URL(url, encoded=True)
        return parsed.scheme in ("http", "https") and bool(parsed.host) and url.isprintable() and parsed.port != 0
    except ValueError:
        return False


async def _first_answer(request: web.Request, task: Task, faults: Faults) -> web.StreamResponse:
    fate = task.fate
    first_status = task.first_status if task.status == "processing" else task.status
    if task.announced is not None:  # the webhook is to be early
        await task.announced.wait()
    if fate.lose_answer:
        request[CUT] = True
    if fate.gateway_504:
        return web.Response(status=504, text=GATEWAY_PAGE, content_type="text/html")
    if fate.status_500:
        raise Refusal(500, "internal server error")
    if task.finished is not None and not fate.lose_answer:  # sync mode
        return success(await _end(task, task.finished, faults))
    return success(task.prediction(with_input=faults.result_input, status=first_status))


async def _end(task: Task, finished: asyncio.Event, faults: Faults) -> dict[str, object]:
    """How the task ended, or that it takes longer than the sync mode waits."""
    try:
        async with asyncio.timeout(faults.sync_window_s):
            await finished.wait()
    except TimeoutError:
        waited = f"{faults.sync_window_s:g} seconds"
        message = f"Sync mode timed out after {waited}. The prediction is still processing asynchronously."
        late = task.prediction(with_input=faults.result_input, status="processing")
        return late | {"error": message, "code": 5004}
    return task.prediction(with_input=faults.result_input)
