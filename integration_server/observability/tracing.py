"""Traces, continued from and to other systems by `traceparent`, whose spans are handed to an exporter.

Spans are made where the work is done, and not by instrumentation of the libraries: that records URLs with their
queries, messages of exceptions, and headers (docs/decisions/0017-traces.md).
"""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import TracebackType

from integration_server.observability.observed_calls import CallIds, current_ids
from integration_server.observability.spans import Attributes, Span, SpanKind

_SAMPLED = 1  # the flag of a trace that is recorded: www.w3.org/TR/trace-context, §3.2.2.5


@dataclass(slots=True, eq=False)
class RecordedSpan:
    """A span. `traceparent` has its ids, and continues the trace in another system; `parent_id` is empty without a
    parent. Times are nanoseconds since 1970, `end` is 0 while it is open. Its attributes are replaced, never changed.

    A trace that is not recorded (`is_sampled`) has spans too, whose ids continue it in further calls.
    """

    name: str
    kind: SpanKind
    traceparent: str
    parent_id: str
    has_remote_parent: bool
    is_sampled: bool
    attributes: Attributes
    begin: int
    end: int = 0
    has_failed: bool = False

    @property
    def trace_id(self) -> str:
        """The id of its trace, in hexadecimal digits as all ids."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """Its own id."""
        return self.traceparent[36:52]

    def set(self, name: str, value: str | int) -> None:
        """Add an attribute."""
        self.attributes = {**self.attributes, name: value}

    def fail(self, reason: str) -> None:
        """Mark what the span stands for as failed."""
        self.set("error.type", reason)
        self.has_failed = True


_current: ContextVar[RecordedSpan | None] = ContextVar("span", default=None)


class _UnrecordedSpan:
    def set(self, name: str, value: str | int) -> None:
        """Do nothing: no span is recorded."""

    def fail(self, reason: str) -> None:
        """Do nothing: no span is recorded."""


_UNRECORDED = nullcontext(_UnrecordedSpan())


@dataclass(slots=True, eq=False)
class _SpanScope:
    """Opens a span for a block. A generator as a context manager takes twice the time."""

    span: RecordedSpan
    record: Callable[[RecordedSpan], None]
    _token: Token[RecordedSpan | None] = field(init=False)
    _ids_token: Token[CallIds | None] | None = field(init=False, default=None)

    def __enter__(self) -> RecordedSpan:
        self._token = _current.set(self.span)
        if ids := current_ids.get():
            self._ids_token = current_ids.set(CallIds(ids.request_id, self.span.traceparent))
        return self.span

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.span.fail(type(error).__qualname__)  # its message may quote anything
        self.record(self.span)
        _current.reset(self._token)
        if self._ids_token is not None:
            current_ids.reset(self._ids_token)


class SpanTracing:
    """`Tracing` whose spans go to `export` when they end.

    `sample_ratio` is the share of new traces that are recorded; a caller's trace is recorded as its flags say.

    A span costs four times as much on the path of a call, whose code and data are in no cache of the processor, as in a
    loop over many. Therefore little is done here, and the rest by the exporter, for a batch of spans at a time.
    """

    def __init__(self, export: Callable[[RecordedSpan], object], *, sample_ratio: float = 1.0) -> None:
        self._export = export
        self._sampled_ids = round(sample_ratio * 2**64)

    def root(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of background work, with a trace of its own."""
        return _SpanScope(self._first(name, "internal", attributes), self._record)

    def client(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of a request to another system, if what asks for it is traced."""
        parent = _current.get()
        if parent is None or parent.end or not parent.is_sampled:
            return _UNRECORDED
        return _SpanScope(_child(parent, name, attributes, time.time_ns()), self._record)

    def add_request(self, name: str, attributes: Attributes, begin: int, error: BaseException | None) -> None:
        """Add the span of a request to another system that ends now, if what asks for it is traced."""
        parent = _current.get()
        if parent is None or parent.end or not parent.is_sampled:
            return
        span = _child(parent, name, attributes, begin)
        if error is not None:
            span.fail(type(error).__qualname__)
        span.end = time.time_ns()
        self._export(span)

    def begin(self, name: str, attributes: Attributes, traceparent: str) -> str:
        """Begin the span of a call in the call's own task; it continues the caller's trace. Returns its traceparent."""
        span = _continued(name, attributes, traceparent) if traceparent else self._first(name, "server", attributes)
        _current.set(span)  # until the task ends
        return span.traceparent

    def end(self, attributes: Attributes, *, failed: bool) -> None:
        """End the span that `begin` has begun in this task."""
        if span := _current.get():
            span.attributes = {**span.attributes, **attributes}
            span.has_failed = failed
            self._record(span)

    def add(self, name: str, attributes: Attributes, traceparent: str, seconds: float) -> str:
        """Add the span of a call that has ended now. Returns its traceparent."""
        span = _continued(name, attributes, traceparent) if traceparent else self._first(name, "server", attributes)
        span.begin -= int(seconds * 1e9)
        self._record(span)
        return span.traceparent

    def _first(self, name: str, kind: SpanKind, attributes: Attributes) -> RecordedSpan:
        """The first span of a new trace."""
        number = random.getrandbits(192)  # nosec B311  # ids prove nothing
        is_sampled = (number & (2**64 - 1)) < self._sampled_ids
        ids = f"{number:048x}"
        traceparent = f"00-{ids[16:]}-{ids[:16]}-{'01' if is_sampled else '00'}"
        return RecordedSpan(name, kind, traceparent, "", False, is_sampled, attributes, time.time_ns())

    def _record(self, span: RecordedSpan) -> None:
        span.end = time.time_ns()
        if span.is_sampled:
            self._export(span)


def _continued(name: str, attributes: Attributes, traceparent: str) -> RecordedSpan:
    """A span of a call that continues its caller's trace."""
    _, trace_id, parent_id, flags = traceparent.split("-")
    is_sampled = bool(int(flags, 16) & _SAMPLED)
    own = f"00-{trace_id}-{_new_span_id()}-{'01' if is_sampled else '00'}"
    return RecordedSpan(
        name,
        "server",
        own,
        parent_id,
        has_remote_parent=True,
        is_sampled=is_sampled,
        attributes=attributes,
        begin=time.time_ns(),
    )


def _child(parent: RecordedSpan, name: str, attributes: Attributes, begin: int) -> RecordedSpan:
    """A span of a request that the work of another span makes."""
    traceparent = f"{parent.traceparent[:36]}{_new_span_id()}-01"
    return RecordedSpan(name, "client", traceparent, parent.traceparent[36:52], False, True, attributes, begin)


def _new_span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"  # nosec B311
