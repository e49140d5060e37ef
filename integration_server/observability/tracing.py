"""Traces with OpenTelemetry (extra `traces`): exported over OTLP, and continued from and to other systems by
`traceparent`.

Spans are made where the work is done, and not by instrumentation of the libraries: that records URLs with their
queries, messages of exceptions, and headers (docs/decisions/0017-traces.md).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from integration_server.observability.observed_calls import HEXADECIMAL, TRACEPARENT, current_ids
from integration_server.observability.spans import Attributes, Kind, Span

_KNOWN_TEXTS = 1024

_KINDS: Mapping[Kind, trace.SpanKind] = {
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
    "internal": trace.SpanKind.INTERNAL,
}
_EXPORT_TIMEOUT = 5.0  # seconds for one batch, in a thread of its own: a collector that hangs delays nothing else


class ExporterMissing(Exception):
    """The extra `traces` is not installed."""


class _OpenSpan:
    """A `Span` of the library; `clean` removes secrets from its texts."""

    def __init__(self, span: trace.Span, clean: Callable[[str], str]) -> None:
        self.span = span
        self._clean = clean

    def set(self, name: str, value: str | int) -> None:
        """Add an attribute."""
        self.span.set_attribute(name, self._clean(value) if isinstance(value, str) else value)

    def fail(self, reason: str) -> None:
        """Mark what the span stands for as failed."""
        self.set("error.type", reason)
        self.span.set_status(trace.StatusCode.ERROR)


class OpenTelemetryTracing:
    """`Tracing` over OpenTelemetry. `sample_ratio` is the share of new traces; a caller's trace is sampled as it says.

    `clean` removes secrets from texts; it can be switched off by another function, for negative controls.
    """

    def __init__(
        self, processor: SpanProcessor, clean: Callable[[str], str], *, process: str = "", sample_ratio: float = 1.0
    ) -> None:
        names = {"service.name": "integration-server", **({"service.instance.id": process} if process else {})}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)), resource=Resource(names), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("integration_server")
        cleaned = lru_cache(_KNOWN_TEXTS)(clean)  # most texts are names of methods, tables and hosts
        # Ids are new in each call.
        self._clean: Callable[[str], str] = lambda text: text if HEXADECIMAL.fullmatch(text) else cleaned(text)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Export what has not been exported yet."""
        self._provider.shutdown()

    def root(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of work that nobody asked for, with a trace of its own."""
        return self._opened(name, "internal", attributes, otel_context.Context())

    def client(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of a request to another system, if what asks for it is traced."""
        if not trace.get_current_span().is_recording():
            return nullcontext(_OpenSpan(trace.INVALID_SPAN, self._clean))
        return self._opened(name, "client", attributes, None)

    def begin(self, name: str, attributes: Attributes, traceparent: str) -> str:
        """Begin the span of a call in the call's own task; it continues the caller's trace. Returns its traceparent."""
        span = self._started(name, "server", attributes, self._parent(traceparent)).span
        otel_context.attach(trace.set_span_in_context(span))  # until the task ends
        return _traceparent_of(span)

    def end(self, attributes: Attributes, *, failed: bool) -> None:
        """End the span that `begin` has begun in this task."""
        self._finish(trace.get_current_span(), attributes, failed=failed)

    def add(self, name: str, attributes: Attributes, traceparent: str, seconds: float) -> str:
        """Add the span of a call that has ended now. Returns its traceparent."""
        now = time.time_ns()
        begin = now - int(seconds * 1e9)
        span = self._started(name, "server", attributes, self._parent(traceparent), begin).span
        span.end(now)
        return _traceparent_of(span)

    def _finish(self, span: trace.Span, attributes: Attributes, *, failed: bool) -> None:
        opened = _OpenSpan(span, self._clean)
        for name, value in attributes.items():
            opened.set(name, value)
        if failed:
            span.set_status(trace.StatusCode.ERROR)
        span.end()

    def _parent(self, traceparent: str) -> otel_context.Context:
        return self._propagator.extract({TRACEPARENT: traceparent}, otel_context.Context())

    def _started(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        parent: otel_context.Context | None,
        start_time: int | None = None,
    ) -> _OpenSpan:
        given: Any = {key: self._clean(text) if isinstance(text, str) else text for key, text in attributes.items()}
        span = self._tracer.start_span(name, parent, _KINDS[kind], given, start_time=start_time)
        return _OpenSpan(span, self._clean)

    @contextmanager
    def _opened(
        self, name: str, kind: Kind, attributes: Attributes, parent: otel_context.Context | None
    ) -> Iterator[Span]:
        opened = self._started(name, kind, attributes, parent)
        token = otel_context.attach(trace.set_span_in_context(opened.span))
        ids = current_ids.get()
        ids_token = ids and current_ids.set(replace(ids, traceparent=_traceparent_of(opened.span)))
        try:
            yield opened
        except BaseException as error:
            opened.fail(type(error).__qualname__)  # its message may quote anything
            raise
        finally:
            opened.span.end()
            otel_context.detach(token)
            if ids_token:
                current_ids.reset(ids_token)


def _traceparent_of(span: trace.Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def otlp_tracing(
    endpoint: str, clean: Callable[[str], str], *, process: str, sample_ratio: float
) -> OpenTelemetryTracing:
    """Traces that are exported to an OTLP endpoint over HTTP. Raises `ExporterMissing`."""
    try:
        exporters: Any = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError:
        raise ExporterMissing(
            "TRACES_ENDPOINT needs the extra `traces`: pip install integration-server[traces]"
        ) from None
    exporter = exporters.OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT)
    return OpenTelemetryTracing(BatchSpanProcessor(exporter), clean, process=process, sample_ratio=sample_ratio)
