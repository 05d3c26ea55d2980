"""The documented API, route by route, but for the submit, which has a page of its own."""

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from aiohttp import web

from pipeline.sandbox.catalogue import MODELS, Model
from pipeline.sandbox.provider import Provider
from pipeline.sandbox.submission import CUT, LATENCY, Submission
from pipeline.sandbox.tasks import Task
from pipeline.sandbox.wire import Handler, Refusal, money, nanoseconds, read_object, refusing, success, timestamp


class Routes:
    """The handlers, around one provider."""

    def __init__(self, provider: Provider, *, api_key: str | None, public_url: str | None) -> None:
        """Any key is accepted when *api_key* is None; links lead to *public_url*, else to the host asked for."""
        self._provider = provider
        self._api_key = api_key
        self._public_url = public_url.rstrip("/") if public_url else None

    def table(self) -> list[web.RouteDef]:
        """All routes. The submit comes last: its path matches nearly any."""
        api = "/api/v3"
        submission = Submission(self._provider, base=self._base)
        return [
            web.get(api + "/predictions/{id}/result", self._call("result", self._result)),
            web.get(api + "/predictions/{id}", self._call("result", self._result)),
            web.delete(api + "/predictions/{id}", self._call("delete", self._delete)),
            web.post(api + "/predictions", self._call("list", self._list)),
            web.get(api + "/predictions", self._call("list", self._list)),
            web.post(api + "/predictions/delete", self._call("delete", self._delete_many)),
            web.get(api + "/models", self._call("models", self._models)),
            web.get(api + "/balance", self._call("balance", self._balance)),
            web.post(api + "/model/price", self._call("price", self._price)),
            web.post(api + "/model/pricing", self._call("price", self._pricing)),
            web.post(api + "/billings/search", self._call("billings", self._billings)),
            web.get(api + "/webhook/secret", self._call("secret", self._secret)),
            web.post(api + "/{model:.+}", self._call("submit", submission.answer)),
        ]

    def _call(self, kind: str, answer: Handler) -> Handler:
        """What all calls have in common: the key, the counts, the delay, the cut."""
        provider = self._provider

        async def authorised(request: web.Request) -> web.StreamResponse:
            self._authorise(request)
            return await answer(request)

        answered = refusing(authorised)

        async def handle(request: web.Request) -> web.StreamResponse:
            if kind == "submit":
                provider.arrivals.append(time.time())
            response = await answered(request)
            (provider.calls if response.status < 300 else provider.refused)[kind] += 1
            await asyncio.sleep(request[LATENCY] if LATENCY in request else provider.draw(provider.faults.latency_s))
            if CUT in request and request.transport is not None:
                request.transport.abort()
            return response

        return handle

    def _authorise(self, request: web.Request) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        known = scheme.lower() == "bearer" and key.strip() and self._api_key in (None, key.strip())
        if not known or self._provider.faults.revoked:
            raise Refusal(401, "invalid authentication")

    def _base(self, request: web.Request) -> str:
        return self._public_url or f"{request.scheme}://{request.host}"

    # Result, list, delete

    async def _result(self, request: web.Request) -> web.Response:
        self._read_fault()
        task = self._provider.find(request.match_info["id"])
        return success(task.prediction(with_input=self._provider.faults_of(task).result_input))

    async def _list(self, request: web.Request) -> web.Response:
        self._read_fault()
        wanted = await read_object(request) if request.method == "POST" else dict(request.query)
        page, size = _page(wanted)
        tasks = list(self._matching(wanted))
        with_input = self._provider.faults.list_input
        items = [task.prediction(with_input=with_input) for task in islice(tasks, (page - 1) * size, page * size)]
        return success({"page": page, "total": len(tasks), "items": items})

    def _matching(self, wanted: dict[str, Any]) -> Iterator[Task]:
        model, status = wanted.get("model") or None, wanted.get("status") or None
        after, before = _time(wanted, "created_after"), _time(wanted, "created_before")
        for task in self._provider.listed(after):
            if model not in (None, task.model.id) or status not in (None, task.status):
                continue
            if before is None or task.created_ns <= before:
                yield task

    def _read_fault(self) -> None:
        if self._provider.hit(self._provider.faults.read_500):
            raise Refusal(500, "internal server error")

    async def _delete(self, request: web.Request) -> web.Response:
        task = self._provider.find(request.match_info["id"])
        self._provider.delete(task.id)
        return success({"id": task.id, "status": "deleted"})

    async def _delete_many(self, request: web.Request) -> web.Response:
        ids = (await read_object(request)).get("ids")
        if not isinstance(ids, list) or not ids:
            raise Refusal(400, "ids is required")
        return success({"deleted_count": sum(self._provider.delete(str(task_id)) for task_id in ids)})

    # Catalogue, money, secret

    async def _models(self, request: web.Request) -> web.Response:
        server = self._base(request)
        return success([model.listing(server, order) for order, model in enumerate(MODELS.values(), 1)])

    async def _balance(self, _: web.Request) -> web.Response:
        return success({"balance": money(self._provider.balance())})

    async def _price(self, request: web.Request) -> web.Response:
        model, price = await _priced(request)
        prices = {"price": price, "discounted_price": price, "discount_rate": 0}
        return success({"model_id": model.id} | prices | {"currency": "USD"})

    async def _pricing(self, request: web.Request) -> web.Response:
        model, price = await _priced(request)
        return success({"model_id": model.id, "unit_price": price, "currency": "USD"})

    async def _billings(self, request: web.Request) -> web.Response:
        wanted = await read_object(request)
        page, size = _page(wanted)
        ids, kind = wanted.get("prediction_uuids"), wanted.get("billing_type")
        start, end = _epoch_ms(wanted, "start_time"), _epoch_ms(wanted, "end_time")
        rows = [
            _billing(task, refund=refund)
            for task in reversed(self._provider.ledger)
            if not ids or task.id in ids
            if (start is None or task.created_ns >= start) and (end is None or task.created_ns <= end)
            for refund in ((True, False) if task.refunded else (False,))
        ]
        rows = [row for row in rows if kind in (None, "", row["billing_type"])]
        return success({"page": page, "total": len(rows), "items": rows[(page - 1) * size : page * size]})

    async def _secret(self, _: web.Request) -> web.Response:
        return success({"secret": self._provider.secret})


async def _priced(request: web.Request) -> tuple[Model, float]:
    wanted = await read_object(request)
    model = MODELS.get(str(wanted.get("model_id")))
    if model is None:
        raise Refusal(400, "model not found")
    inputs = wanted.get("inputs")
    return model, model.price(inputs if isinstance(inputs, dict) else {})


def _page(wanted: dict[str, Any]) -> tuple[int, int]:
    try:
        page, size = int(wanted.get("page", 1)), int(wanted.get("page_size", 100))
    except (TypeError, ValueError, OverflowError):
        raise Refusal(400, "page and page_size must be integers") from None
    if not 1 <= page <= 10**9 or not 1 <= size <= 100:
        raise Refusal(400, "page must be at least 1, page_size between 1 and 100")
    return page, size


def _time(wanted: dict[str, Any], name: str) -> int | None:
    try:
        return nanoseconds(wanted[name]) if wanted.get(name) else None
    except ValueError as error:
        raise Refusal(400, f"{name}: {error}") from None


def _epoch_ms(wanted: dict[str, Any], name: str) -> int | None:
    try:
        return int(wanted[name]) * 1_000_000 if wanted.get(name) else None
    except (TypeError, ValueError, OverflowError):
        raise Refusal(400, f"{name}: not milliseconds since 1970") from None


def _billing(task: Task, *, refund: bool) -> dict[str, object]:
    at = timestamp(task.created_ns)
    state = "refunded" if refund else "paid"
    return {
        "uuid": f"{task.id}-{state}",
        "billing_type": "refund" if refund else "deduct",
        "price": task.price,
        "created_at": at,
        "updated_at": at,
        "access_key_id": task.key_id,
        "access_key_name": "sandbox",
        "order": {"uuid": task.id, "state": state, "price": task.price, "origin_price": task.price},
        "prediction": {"uuid": task.id, "model_uuid": task.model.id, "status": task.status},
    }
