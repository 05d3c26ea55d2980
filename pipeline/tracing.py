"""
Traces, for who wants them: what takes time, as spans, told to a collector by OpenTelemetry's own SDK (extra `otel`).

Without OTEL_EXPORTER_OTLP_ENDPOINT nothing of it is imported, and a span is nothing. A span has names, numbers and ids
of ours: never a prompt, a body, a token, or an address beyond its host. Those within another have its job and attempt.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from pipeline import __version__, telemetry

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Span as OtelSpan

log = telemetry.get(__name__)

Fact = str | int | float | bool | None
Kind = Literal["internal", "server", "client"]

_STANDARD = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "address": "server.address",
}
"""Facts that OpenTelemetry has a name for; those of our own begin with `pipeline.`. Of an address the host is told."""

_INHERITED = ("job_id", "attempt")


class Span(Protocol):
    """A piece of work that takes time: `with span("submit", job_id=…) as it: …; it.set(status=200)`."""

    def __enter__(self) -> "Span":
        """Begin it; what begins within it in this thread, or task, is part of it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End it; an exception shows as the name of its class."""

    def set(self, **facts: Fact) -> None:
        """Say what is known by now."""


class _Nothing:
    """A span while nobody traces."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Nothing."""

    def set(self, **facts: Fact) -> None:
        """Nothing."""


NOTHING: Span = _Nothing()

_make: Callable[[str, Kind, Mapping[str, Fact]], Span] | None = None


def span(name: str, *, kind: Kind = "internal", **facts: Fact) -> Span:
    """A span of that name, to be entered."""
    return NOTHING if _make is None else _make(name, kind, facts)


def begin(process: str) -> None:
    """Trace this process, which calls itself *process*, from now on. Without the extra: a warning, and nothing else."""
    global _make  # noqa: PLW0603 - one exporter a process, as there is one log
    if _make is not None:
        return
    try:
        from opentelemetry import context, trace  # noqa: PLC0415 - some megabytes, for who asked for them
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        log.warning(
            "tracing.unavailable",
            why=f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and the extra `otel` is missing: {error.name}",
        )
        return
    named = {"service.name": "wavespeed-pipeline", "service.version": __version__, "pipeline.process": process}
    provider = TracerProvider(resource=Resource(named).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("pipeline", __version__)
    kinds = {"internal": trace.SpanKind.INTERNAL, "server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}
    failed = trace.Status(trace.StatusCode.ERROR)

    class Open:
        """A span that is told to the collector."""

        _span: "OtelSpan"
        _whose: "Token[Mapping[str, Fact]]"
        _within: "Token[Context]"

        def __init__(self, name: str, kind: Kind, facts: Mapping[str, Fact]) -> None:
            self._name, self._kind, self._facts = name, kind, facts

        def __enter__(self) -> Span:
            facts = {**_whose.get(), **self._facts}
            self._span = tracer.start_span(self._name, kind=kinds[self._kind], attributes=_attributes(facts))
            self._whose = _whose.set({name: facts[name] for name in _INHERITED if name in facts})
            self._within = context.attach(trace.set_span_in_context(self._span))
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
        ) -> None:
            context.detach(self._within)
            _whose.reset(self._whose)
            if kind is not None:  # its message may hold what must not be told
                self._span.set_attribute("error.type", kind.__name__)
                self._span.set_status(failed)
            self._span.end()

        def set(self, **facts: Fact) -> None:
            self._span.set_attributes(_attributes(facts))
            status = facts.get("status")
            if isinstance(status, int) and status >= 500:
                self._span.set_status(failed)

    _make = Open


_whose: ContextVar[Mapping[str, Fact]] = ContextVar("pipeline.tracing", default={})  # noqa: B039 - nobody changes it


def _attributes(facts: Mapping[str, Fact]) -> dict[str, str | int | float | bool]:
    told = {**facts, "address": _host(facts.get("address"))}
    return {_STANDARD.get(name, f"pipeline.{name}"): value for name, value in told.items() if value is not None}


def _host(address: Fact) -> str | None:
    """All that is told of an address: its path and query may hold a token."""
    try:
        return urlsplit(str(address or "")).hostname
    except ValueError:
        return None
