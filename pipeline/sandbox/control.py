"""The `/_sandbox` routes: what a test turns and reads. No key is asked for."""

from aiohttp import web

from pipeline.sandbox.faults import BadFault
from pipeline.sandbox.provider import Provider
from pipeline.sandbox.wire import Refusal, money, read_object, refusing, reply


class Control:
    """The handlers, around one provider."""

    def __init__(self, provider: Provider) -> None:
        """They share the provider with the API's routes."""
        self._provider = provider

    def table(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.get("/_sandbox/faults", refusing(self._faults)),
            web.post("/_sandbox/faults", refusing(self._change_faults)),
            web.get("/_sandbox/ledger", refusing(self._ledger)),
            web.get("/_sandbox/arrivals", refusing(self._arrivals)),
            web.get("/_sandbox/deliveries", refusing(self._deliveries)),
            web.get("/_sandbox/deliveries/{id}", refusing(self._delivery)),
            web.post("/_sandbox/deliveries/{id}/resend", refusing(self._resend)),
            web.post("/_sandbox/rotate-secret", refusing(self._rotate_secret)),
            web.post("/_sandbox/balance", refusing(self._set_balance)),
            web.post("/_sandbox/reset", refusing(self._reset)),
        ]

    async def _faults(self, _: web.Request) -> web.Response:
        return reply(self._provider.faults.as_json())

    async def _change_faults(self, request: web.Request) -> web.Response:
        try:
            self._provider.change_faults(await read_object(request))
        except BadFault as error:
            return reply({"code": 400, "message": str(error)}, 400)
        return reply(self._provider.faults.as_json())

    async def _ledger(self, _: web.Request) -> web.Response:
        return reply(
            {"count": len(self._provider.ledger), "charges": [task.charge() for task in self._provider.ledger]}
        )

    async def _arrivals(self, _: web.Request) -> web.Response:
        return reply(self._provider.activity())

    async def _deliveries(self, request: web.Request) -> web.Response:
        rows = self._provider.courier.log(request.query.get("prediction_id"))
        return reply({"count": len(rows), "deliveries": rows})

    async def _delivery(self, request: web.Request) -> web.Response:
        delivery = self._provider.courier.find(request.match_info["id"])
        with_input = self._provider.faults_of(delivery.task).webhook_input
        return reply(delivery.row() | {"body": delivery.body(with_input=with_input).decode()})

    async def _resend(self, request: web.Request) -> web.Response:
        return reply((await self._provider.courier.resend(request.match_info["id"])).row())

    async def _rotate_secret(self, _: web.Request) -> web.Response:
        return reply({"secret": self._provider.rotate_secret()})

    async def _set_balance(self, request: web.Request) -> web.Response:
        balance = (await read_object(request)).get("balance")
        if isinstance(balance, bool) or not isinstance(balance, int | float):
            raise Refusal(400, "balance: must be a number")
        self._provider.set_balance(float(balance))
        return reply({"balance": money(self._provider.balance())})

    async def _reset(self, _: web.Request) -> web.Response:
        await self._provider.reset()
        return reply({"reset": True})
