"""Exports spans to a collector, over OTLP with HTTP (opentelemetry.io/docs/specs/otlp; extra `traces`).

The exporter of OpenTelemetry's SDK takes five times the CPU for a span, three quarters of what a read takes without
traces (docs/decisions/0017-traces.md).
"""

import http.client
import math
import os
import re
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import structlog
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2 as pb

from integration_server.observability.spans import REQUEST_ID_ATTRIBUTE, SpanKind
from integration_server.observability.tracing import RecordedSpan

MAX_WAITING: Final = 2048
"""Spans. What ends while as many wait is dropped."""

_BATCH = 512  # spans
_INTERVAL = 5.0  # seconds
_TIMEOUT = 5.0  # seconds for one batch
_CLOSING_TIMEOUT = 10.0  # seconds for all that wait at the end
_RETRY_DELAY = 1.0  # seconds
# Seconds. A collector that restarts is back by then, and one that asks for hours is asked again.
_MAX_RETRY_AFTER = 60.0
_MAX_RETRY_AFTER_LENGTH = 40  # characters; a date has 29
_ACCEPTED = 2  # hundred
_RETRYABLE = frozenset({429, 502, 503, 504})  # opentelemetry.io/docs/specs/otlp/#otlphttp-response
_KNOWN_TEXTS = 1024  # names, attributes and lengths that are kept as they were encoded
_HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"  # opentelemetry.io/docs/specs/otel/protocol/exporter
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5

_KINDS: "Mapping[SpanKind, pb.Span.SpanKind.ValueType]" = {
    "server": pb.Span.SPAN_KIND_SERVER,
    "client": pb.Span.SPAN_KIND_CLIENT,
    "internal": pb.Span.SPAN_KIND_INTERNAL,
}
_HAS_IS_REMOTE = pb.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_IS_REMOTE = pb.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


@dataclass(frozen=True, slots=True)
class Response:
    """The status of a collector's response, and its `Retry-After`; empty without one."""

    status: int
    retry_after: str = ""


Post: TypeAlias = Callable[[bytes], Response]
"""Sends a message to the collector.

Raises `OSError`, `HTTPException`, or `ValueError` for what cannot be sent, such as a host with an empty label.
"""

log = structlog.get_logger()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is the response: what it names would get the headers, which have keys, in a GET without the spans."""

    def redirect_request(self, *_: Any, **__: Any) -> None:  # noqa: ANN401  # as urllib declares it
        """Follow no redirect."""


def post_to(endpoint: str, *, follows_redirects: bool = False) -> Post:
    """Posts messages to an endpoint, from any thread. `follows_redirects` is for negative controls."""
    headers = {"content-type": "application/x-protobuf", **_parse_headers(os.environ.get(_HEADERS_VARIABLE, ""))}
    opener = urllib.request.build_opener(*(() if follows_redirects else (_NoRedirects,)))
    return partial(_post, opener, endpoint, headers)


def _post(opener: urllib.request.OpenerDirector, endpoint: str, headers: Mapping[str, str], content: bytes) -> Response:
    # One connection for up to 512 spans. The settings take http and https only.
    request = urllib.request.Request(endpoint, content, dict(headers))  # noqa: S310
    try:
        with opener.open(request, timeout=_TIMEOUT) as response:
            return Response(int(response.status))
    except urllib.error.HTTPError as error:
        error.close()
        return Response(error.code, error.headers.get("retry-after", ""))


class OtlpExporter:
    """Collects the spans of a process, and sends them from a thread: a collector that hangs delays no call.

    A collector that asks for a pause (`Retry-After`) gets nothing until it is over. Spans wait meanwhile, as many as
    the queue has room for; at the end of the process they are dropped.

    `interval` and `retry_delay`, in seconds, are replaced in tests. `max_pause` is the longest pause in seconds; 0 is
    for negative controls. `wait` waits for so many seconds or until the exporter is closed, and returns whether it is.
    """

    def __init__(
        self,
        post: Post,
        process: str,
        clean: Callable[[str], str],
        *,
        interval: float = _INTERVAL,
        retry_delay: float = _RETRY_DELAY,
        max_pause: float = _MAX_RETRY_AFTER,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._log = structlog.get_logger()
        self._encode = SpanEncoder(process, clean).encode
        self._interval = interval
        self._retry_delay = retry_delay
        self._post = post
        self._waiting: deque[RecordedSpan] = deque()
        self._dropped = 0
        self._is_failing = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._max_pause = max_pause
        self._monotonic = monotonic
        self._pause_end = -math.inf  # the collector wants the next message after it
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
            self._wait(self._retry_delay)
            problem = self._problem_of(content)
        if problem is not None:
            self._dropped += len(spans)
        if (problem is not None) is not self._is_failing:
            self._is_failing = problem is not None
            if self._is_failing:
                self._log.warning("traces_not_exported", problem=problem)
            else:
                self._log.info("traces_exported", dropped_spans=self._dropped)
                self._dropped = 0

    def _problem_of(self, content: bytes) -> int | str | None:
        """Post a message, after the pause that the collector has asked for.

        Returns the status, or the class of the error; None if the collector has accepted it.
        """
        pause = self._pause_end - self._monotonic()
        if pause > 0 and self._wait(pause):
            return "RetryAfter"  # the pause outlasts the process
        try:
            response = self._post(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return type(error).__name__
        if response.status // 100 == _ACCEPTED:
            return None
        if response.status in _RETRYABLE:
            self._pause_end = self._monotonic() + min(_seconds_of(response.retry_after), self._max_pause)
        return response.status


def _seconds_of(retry_after: str) -> float:
    """The seconds of a `Retry-After` (RFC 9110 §10.2.3); 0 for anything else."""
    text = retry_after.strip()
    if len(text) > _MAX_RETRY_AFTER_LENGTH:
        return 0.0
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        # The oldest of the three forms of a date has no zone, and is in UTC.
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except (ArithmeticError, LookupError, TypeError, ValueError):  # all that the parser raises for what is no date
        return 0.0


class SpanEncoder:
    """Encodes spans as a message of OTLP. `clean` removes secrets from texts; it can be switched off by another
    function, for negative controls.

    What many spans have in common is encoded once, by protobuf; the ids and times of a span are put before it. Messages
    of protobuf take four times as long. A field may have any place in a message
    (protobuf.dev/programming-guides/encoding, "Field order").
    """

    def __init__(self, process: str, clean: Callable[[str], str]) -> None:
        names = {"service.name": "integration-server", **({"service.instance.id": process} if process else {})}
        resource = Resource(attributes=[_key_value(name, value) for name, value in names.items()])
        self._process = pb.ResourceSpans(resource=resource).SerializeToString()
        self._clean = clean
        self._attribute = lru_cache(_KNOWN_TEXTS)(self._encode_attribute)

    def encode(self, spans: Iterable[RecordedSpan]) -> bytes:
        """The message with these spans, which have ended."""
        of_scope = _SCOPE + b"".join([_field(_SPANS, self._span(span)) for span in spans])
        return _field(_RESOURCE_SPANS, self._process + _field(_SCOPE_SPANS, of_scope))

    def _span(self, span: RecordedSpan) -> bytes:
        flags = span.is_sampled | _HAS_IS_REMOTE | (_IS_REMOTE if span.has_remote_parent else 0)
        parts = [
            _fixed_fields(bytes.fromhex(span.trace_id), bytes.fromhex(span.span_id), flags, span.begin, span.end),
            _kind_of(span.name, span.kind),
        ]
        if span.parent_id:
            parts.append(_PARENT_ID + bytes.fromhex(span.parent_id))
        if span.has_failed:
            parts.append(_FAILED)
        for name, value in span.attributes.items():
            # Request ids are new in each call, and would replace the known texts. Those that look like a secret are
            # never taken (`CallIdReader`).
            is_new = name == REQUEST_ID_ATTRIBUTE
            parts.append(_encode_text(name, str(value)) if is_new else self._attribute(name, value))
        return b"".join(parts)

    def _encode_attribute(self, name: str, value: str | int) -> bytes:
        cleaned = self._clean(value) if isinstance(value, str) else value
        return pb.Span(attributes=[_key_value(name, cleaned)]).SerializeToString()


# Fields of the messages, by number: opentelemetry/proto/trace/v1/trace.proto.
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2
_SCOPE = pb.ScopeSpans(scope=InstrumentationScope(name="integration_server")).SerializeToString()
_FAILED = pb.Span(status=pb.Status(code=pb.Status.STATUS_CODE_ERROR)).SerializeToString()
_PARENT_ID = pb.Span(parent_span_id=b"8 octets").SerializeToString()[:-8]
_TRACE_ID, _SPAN_ID = b"\x0a\x10", b"\x12\x08"
_FLAGS, _START, _END = b"\x85\x01", b"\x39", b"\x41"
_FIXED_FIELDS = struct.Struct("<2s16s 2s8s 2sI cQ cQ")


def _fixed_fields(trace_id: bytes, span_id: bytes, flags: int, begin: int, end: int) -> bytes:
    """The fields that each span has, with values of a fixed length."""
    return _FIXED_FIELDS.pack(_TRACE_ID, trace_id, _SPAN_ID, span_id, _FLAGS, flags, _START, begin, _END, end)


@lru_cache(_KNOWN_TEXTS)
def _kind_of(name: str, kind: SpanKind) -> bytes:
    return pb.Span(name=name, kind=_KINDS[kind]).SerializeToString()


def _encode_text(name: str, value: str) -> bytes:
    """An attribute whose text is new."""
    text = value.encode()
    return _text_header(name, len(text)) + text


@lru_cache(_KNOWN_TEXTS)
def _text_header(name: str, length: int) -> bytes:
    """What comes before the text of an attribute, which is at its end."""
    return pb.Span(attributes=[_key_value(name, "x" * length)]).SerializeToString().removesuffix(b"x" * length)


def _field(number: int, content: bytes) -> bytes:
    """A field with a message."""
    return _field_header(number, len(content)) + content


@lru_cache(_KNOWN_TEXTS)
def _field_header(number: int, length: int) -> bytes:
    """The tag and the length of a field with a message: protobuf.dev/programming-guides/encoding."""
    header = bytearray([number << 3 | 2])
    while length > 0x7F:  # seven bits in an octet, the lowest first
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header)


def _key_value(name: str, value: str | int) -> KeyValue:
    any_value = AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value)
    return KeyValue(key=name, value=any_value)


def _parse_headers(text: str) -> Mapping[str, str]:
    """The headers of the usual variable: `name=value,name=value`, percent-encoded, without those that HTTP forbids."""
    entries = (entry.partition("=") for entry in text.split(",") if "=" in entry)
    headers = {unquote(name).strip().lower(): unquote(value).strip() for name, _, value in entries}
    valid = {name: value for name, value in headers.items() if _NAME.fullmatch(name) and _VALUE.fullmatch(value)}
    if len(valid) < len(headers):  # not which ones: their values are keys
        log.warning("traces_headers_invalid", variable=_HEADERS_VARIABLE, headers=len(headers) - len(valid))
    return valid
