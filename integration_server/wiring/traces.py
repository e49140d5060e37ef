"""Opens the traces of a process, where they are on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from integration_server.observability.spans import AddSpan, OpenSpan, Tracing
from integration_server.redaction import redact_text
from integration_server.sidecar_settings import SidecarSettings


@asynccontextmanager
async def opened_tracing(
    settings: SidecarSettings, process: str, tracing: Tracing | None = None
) -> AsyncIterator[Tracing | None]:
    """The traces of this process: those that are passed, or those of the settings; None if they are off.

    At the end, what has not been exported yet is exported.
    """
    if tracing is not None or settings.traces_endpoint is None:
        yield tracing
        return
    # Where traces are off, nothing of the library is imported.
    from integration_server.observability.otlp import OtlpExporter, post_to  # noqa: PLC0415
    from integration_server.observability.tracing import SpanTracing  # noqa: PLC0415

    exporter = OtlpExporter(post_to(settings.traces_endpoint), process, redact_text)
    try:
        yield SpanTracing(exporter.add, sample_ratio=settings.traces_sample_ratio)
    finally:
        await asyncio.to_thread(exporter.close)


def span_functions(tracing: Tracing | None) -> tuple[OpenSpan | None, AddSpan | None, OpenSpan | None]:
    """What opens the spans of HTTP requests, adds those of SQL statements, and opens those of background work; None
    without traces."""
    return (None, None, None) if tracing is None else (tracing.client, tracing.add_request, tracing.root)
