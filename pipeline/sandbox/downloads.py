"""The files that outputs link to: plain public GETs, as at the provider's CDN."""

import asyncio

from aiohttp import web

from pipeline.sandbox.pictures import padded
from pipeline.sandbox.provider import Provider
from pipeline.sandbox.tasks import Task
from pipeline.sandbox.wire import Refusal

DENIED = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
)


class Downloads:
    """The handler, around one provider."""

    def __init__(self, provider: Provider) -> None:
        """It reads tasks and faults."""
        self._provider = provider

    def table(self) -> list[web.RouteDef]:
        """The one route; HEAD is answered too."""
        return [web.get("/files/predictions/{id}/{file}", self._file)]

    async def _file(self, request: web.Request) -> web.StreamResponse:
        try:
            task = self._provider.find(request.match_info["id"])
        except Refusal:
            return _denied(403)
        faults = self._provider.faults_of(task)
        name, _, extension = request.match_info["file"].partition(".")
        number = _output(task, name)
        if number is None or extension != task.model.extension:
            return _denied(403)
        if self._provider.hit(faults.file_expired):
            return _denied(404 if faults.file_expired_404 else 403)
        # In a thread: drawing takes milliseconds, which everybody else would wait for.
        data = padded(await asyncio.to_thread(task.file, number), faults.file_kb * 1024)
        kind = "video/mp4" if extension == "mp4" else "image/png"
        if request.method == "GET" and self._provider.hit(faults.file_cut):
            return await _half(request, data, kind)
        return web.Response(body=data, content_type=kind)


def _output(task: Task, name: str) -> int | None:
    """The number in a file's name, when the task has made such a file."""
    made = task.model.outputs(task.input) if task.status == "completed" else 0
    return next((number for number in range(1, made + 1) if name == str(number)), None)


async def _half(request: web.Request, data: bytes, content_type: str) -> web.StreamResponse:
    """Promise all of *data*, send half, hang up."""
    response = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": content_type})
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.close()  # unlike abort, this sends what was written
    return response


def _denied(status: int) -> web.Response:
    return web.Response(status=status, text=DENIED, content_type="application/xml")
