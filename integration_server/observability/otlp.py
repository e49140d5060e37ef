"""Exports spans to a collector, over OTLP with HTTP (opentelemetry.io/docs/specs/otlp; extra `traces`).

The exporter of OpenTelemetry's SDK takes five times the CPU for a span, three quarters of what a read takes without
traces (docs/decisions/0017-traces.md).
"""

import http.client
import os
import re
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from integration_server.observability.spans import Kind
from integration_server.observability.tracing import RecordedSpan

MAX_WAITING: Final = 2048
"""Spans. What ends while as many wait is dropped."""

_BATCH = 512  # spans
_INTERVAL = 5.0  # seconds
_TIMEOUT = 5.0  # seconds for one batch
_CLOSING_TIMEOUT = 10.0  # seconds for all that wait at the end
_RETRY_DELAY = 1.0  # seconds
_ACCEPTED = 2  # hundred
_RETRYABLE = frozenset({429, 502, 503, 504})  # opentelemetry.io/docs/specs/otlp/#otlphttp-response
_KNOWN_ATTRIBUTES = 1024
_HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"  # opentelemetry.io/docs/specs/otel/protocol/exporter
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5

_KINDS: "Mapping[Kind, pb.Span.SpanKind.ValueType]" = {
    "server": pb.Span.SPAN_KIND_SERVER,
    "client": pb.Span.SPAN_KIND_CLIENT,
    "internal": pb.Span.SPAN_KIND_INTERNAL,
}
_HAS_IS_REMOTE = pb.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE = pb.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK

Post: TypeAlias = Callable[[bytes], int]
"""Sends a message to the collector, and returns the status of its response.

Raises `OSError`, `HTTPException`, or `ValueError` for what cannot be sent, such as a host with an empty label.
"""

log = structlog.get_logger()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is the response: what it names would get the headers, which have keys, in a GET without the spans."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # as urllib declares it
        """Follow no redirect."""


def post_to(endpoint: str, *, follows_redirects: bool = False) -> Post:
    """Posts messages to an endpoint, from any thread. `follows_redirects` is for negative controls."""
    headers = {"content-type": "application/x-protobuf", **_given_headers(os.environ.get(_HEADERS_VARIABLE, ""))}
    opener = urllib.request.build_opener(*(() if follows_redirects else (_NoRedirects,)))
    return partial(_post, opener, endpoint, headers)


def _post(opener: urllib.request.OpenerDirector, endpoint: str, headers: Mapping[str, str], content: bytes) -> int:
    # One connection for up to 512 spans. The settings take http and https only.
    request = urllib.request.Request(endpoint, content, dict(headers))  # noqa: S310
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


class OtlpExporter:
    """Collects the spans of a process, and sends them from a thread: a collector that hangs delays no call.

    `interval` and `retry_delay`, in seconds, are replaced in tests.
    """

    def __init__(
        self, post: Post, process: str, *, interval: float = _INTERVAL, retry_delay: float = _RETRY_DELAY
    ) -> None:
        names = {"service.name": "integration-server", **({"service.instance.id": process} if process else {})}
        self._resource = Resource(attributes=[_attribute(name, value) for name, value in names.items()])
        self._interval = interval
        self._retry_delay = retry_delay
        self._post = post
        self._waiting: deque[RecordedSpan] = deque()
        self._dropped = 0
        self._is_failing = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def add(self, span: RecordedSpan) -> None:
        """Export a span that has ended."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(span)
        if len(self._waiting) == _BATCH:
            self._wake.set()

    def close(self) -> None:
        """Export what has not been exported yet; what takes longer than ten seconds is dropped."""
        self._closed.set()
        self._wake.set()
        self._thread.join(_CLOSING_TIMEOUT)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_full = self._wake.wait(self._interval)
            self._wake.clear()
            is_last = self._closed.is_set()
            least = _BATCH if is_full and not is_last else 1
            while len(self._waiting) >= least:
                self._send([self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))])

    def _send(self, spans: list[RecordedSpan]) -> None:
        problem = self._problem_of(content := self._encode(spans))
        if problem in _RETRYABLE or isinstance(problem, str):
            self._closed.wait(self._retry_delay)
            problem = self._problem_of(content)
        if problem is not None:
            self._dropped += len(spans)
        if (problem is not None) is not self._is_failing:
            self._is_failing = problem is not None
            if self._is_failing:
                log.warning("traces_not_exported", problem=problem)
            else:
                log.info("traces_exported", dropped_spans=self._dropped)
                self._dropped = 0

    def _problem_of(self, content: bytes) -> int | str | None:
        """Post a message. Returns the status, or the class of the error; None if the collector has accepted it."""
        try:
            status = self._post(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return type(error).__name__
        return None if status // 100 == _ACCEPTED else status

    def _encode(self, spans: list[RecordedSpan]) -> bytes:
        of_scope = pb.ScopeSpans(
            scope=InstrumentationScope(name="integration_server"), spans=[_message(span) for span in spans]
        )
        of_process = pb.ResourceSpans(resource=self._resource, scope_spans=[of_scope])
        return ExportTraceServiceRequest(resource_spans=[of_process]).SerializeToString()


def _message(span: RecordedSpan) -> pb.Span:
    return pb.Span(
        trace_id=span.trace_id.to_bytes(16, "big"),
        span_id=span.span_id.to_bytes(8, "big"),
        parent_span_id=span.parent_id.to_bytes(8, "big") if span.parent_id else b"",
        flags=span.is_sampled | _HAS_IS_REMOTE | (_IS_REMOTE if span.has_remote_parent else 0),
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.begin,
        end_time_unix_nano=span.end,
        attributes=[_attribute(name, value) for name, value in span.attributes.items()],
        status=_FAILED if span.has_failed else None,
    )


_FAILED = pb.Status(code=pb.Status.STATUS_CODE_ERROR)


@lru_cache(_KNOWN_ATTRIBUTES)  # most are the same in many spans
def _attribute(name: str, value: str | int) -> KeyValue:
    given = AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
    return KeyValue(key=name, value=given)


def _given_headers(text: str) -> Mapping[str, str]:
    """The headers of the usual variable: `name=value,name=value`, percent-encoded, without those that HTTP forbids."""
    entries = (entry.partition("=") for entry in text.split(",") if "=" in entry)
    headers = {unquote(name).strip().lower(): unquote(value).strip() for name, _, value in entries}
    valid = {name: value for name, value in headers.items() if _NAME.fullmatch(name) and _VALUE.fullmatch(value)}
    if len(valid) < len(headers):  # not which ones: their values are keys
        log.warning("traces_headers_invalid", variable=_HEADERS_VARIABLE, headers=len(headers) - len(valid))
    return valid
