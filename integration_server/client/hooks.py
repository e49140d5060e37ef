"""Hooks around the calls of the client: the interface, the log, and spans of OpenTelemetry."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from integration_server.client.errors import IntegrationsError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Metadata = list[tuple[str, str]]
End = Callable[[IntegrationsError | None], None]


class CallHook(Protocol):
    """Observes the calls of the client."""

    def begin(self, method: str, metadata: Metadata) -> End:
        """Observe the beginning of a call, and return a function that observes its end.

        `method` is the name of the RPC. Entries can be added to `metadata`, which are sent with the call. A stream ends
        when it is closed.
        """
        ...


def begin_all(hooks: Sequence[CallHook], method: str, metadata: Metadata) -> End:
    """Begin all hooks; the returned function ends them, the last one first."""
    ends = [hook.begin(method, metadata) for hook in hooks]

    def end(error: IntegrationsError | None) -> None:
        for each in reversed(ends):
            each(error)

    return end


class OpenTelemetryHook:
    """A span for each call, and its context (`traceparent`) in the call's metadata. Needs the extra `otel`.

    Attributes are those of OpenTelemetry's conventions for gRPC, and `error.type`, the reason.
    """

    def __init__(self, tracer_provider: "TracerProvider | None" = None) -> None:
        try:
            from opentelemetry import propagate, trace  # noqa: PLC0415 - an extra, and its import takes a while
        except ImportError as error:
            raise ImportError("OpenTelemetry is not installed: pip install 'integration-server[otel]'") from error
        self._trace = trace
        self._propagate = propagate
        self._tracer = trace.get_tracer("integration_server.client", tracer_provider=tracer_provider)

    def begin(self, method: str, metadata: Metadata) -> End:
        """Start a span, as a child of the current one."""
        trace = self._trace
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": "integrations.v1.IntegrationService",
            "rpc.method": method,
        }
        span = self._tracer.start_span(
            f"integrations.v1.IntegrationService/{method}", kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        carrier: dict[str, str] = {}
        self._propagate.inject(carrier, context=trace.set_span_in_context(span))
        metadata += [(name.lower(), value) for name, value in carrier.items()]

        def end(error: IntegrationsError | None) -> None:
            code: Any = 0 if error is None else error.code.value[0]
            span.set_attribute("rpc.grpc.status_code", code)
            if error is not None:
                span.set_attribute("error.type", error.reason or error.code.name)
                span.set_status(trace.Status(trace.StatusCode.ERROR, error.message))
            span.end()

        return end
