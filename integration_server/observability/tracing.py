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
from functools import lru_cache
from types import TracebackType

from integration_server.observability.observed_calls import HEXADECIMAL, CallIds, current_ids
from integration_server.observability.spans import Attributes, Kind, Span

_KNOWN_TEXTS = 1024
_SAMPLED = 1  # the flag of a trace that is recorded: www.w3.org/TR/trace-context, §3.2.2.5


@dataclass(slots=True, eq=False)
class RecordedSpan:
    """A span. Ids are numbers, 0 for no parent; times are nanoseconds since 1970, `end` is 0 while it is open.

    A trace that is not recorded (`is_sampled`) has spans too, whose ids continue it in further calls.
    """

    name: str
    kind: Kind
    trace_id: int
    span_id: int
    parent_id: int
    has_remote_parent: bool
    is_sampled: bool
    attributes: dict[str, str | int]
    begin: int
    end: int = 0
    has_failed: bool = False

    @property
    def traceparent(self) -> str:
        """What continues the trace in another system."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.is_sampled:02x}"

    def set(self, name: str, value: str | int) -> None:
        """Add an attribute."""
        self.attributes[name] = value

    def fail(self, reason: str) -> None:
        """Mark what the span stands for as failed."""
        self.attributes["error.type"] = reason
        self.has_failed = True


_current: ContextVar[RecordedSpan | None] = ContextVar("span", default=None)


class _UnrecordedSpan:
    def set(self, name: str, value: str | int) -> None:
        """Nobody asks."""

    def fail(self, reason: str) -> None:
        """Nobody asks."""


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

    `sample_ratio` is the share of new traces that are recorded; a caller's trace is recorded as its flags say. `clean`
    removes secrets from texts; it can be switched off by another function, for negative controls.
    """

    def __init__(
        self, export: Callable[[RecordedSpan], object], clean: Callable[[str], str], *, sample_ratio: float = 1.0
    ) -> None:
        self._export = export
        self._clean = lru_cache(_KNOWN_TEXTS)(clean)  # most texts are names of methods, tables and hosts
        self._sampled_ids = round(sample_ratio * 2**64)

    def root(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of work that nobody asked for, with a trace of its own."""
        return _SpanScope(self._first(name, "internal", attributes), self._record)

    def client(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of a request to another system, if what asks for it is traced."""
        parent = _current.get()
        if parent is None or parent.end or not parent.is_sampled:
            return _UNRECORDED
        span = RecordedSpan(
            name,
            "client",
            parent.trace_id,
            _new_span_id(),
            parent.span_id,
            has_remote_parent=False,
            is_sampled=True,
            attributes=dict(attributes),
            begin=time.time_ns(),
        )
        return _SpanScope(span, self._record)

    def begin(self, name: str, attributes: Attributes, traceparent: str) -> str:
        """Begin the span of a call in the call's own task; it continues the caller's trace. Returns its traceparent."""
        span = self._continued(name, attributes, traceparent)
        _current.set(span)  # until the task ends
        return span.traceparent

    def end(self, attributes: Attributes, *, failed: bool) -> None:
        """End the span that `begin` has begun in this task."""
        if span := _current.get():
            span.attributes.update(attributes)
            span.has_failed |= failed
            self._record(span)

    def add(self, name: str, attributes: Attributes, traceparent: str, seconds: float) -> str:
        """Add the span of a call that has ended now. Returns its traceparent."""
        span = self._continued(name, attributes, traceparent)
        span.begin -= int(seconds * 1e9)
        self._record(span)
        return span.traceparent

    def _first(self, name: str, kind: Kind, attributes: Attributes) -> RecordedSpan:
        """The first span of a new trace."""
        trace_id = random.getrandbits(128) or 1  # nosec B311  # ids prove nothing
        return RecordedSpan(
            name,
            kind,
            trace_id,
            _new_span_id(),
            parent_id=0,
            has_remote_parent=False,
            is_sampled=(trace_id & (2**64 - 1)) < self._sampled_ids,
            attributes=dict(attributes),
            begin=time.time_ns(),
        )

    def _continued(self, name: str, attributes: Attributes, traceparent: str) -> RecordedSpan:
        """A span of the caller's trace; the first one of a new trace if the caller has none."""
        if not traceparent:
            return self._first(name, "server", attributes)
        _, trace_id, parent_id, flags = traceparent.split("-")
        return RecordedSpan(
            name,
            "server",
            int(trace_id, 16),
            _new_span_id(),
            int(parent_id, 16),
            has_remote_parent=True,
            is_sampled=bool(int(flags, 16) & _SAMPLED),
            attributes=dict(attributes),
            begin=time.time_ns(),
        )

    def _record(self, span: RecordedSpan) -> None:
        span.end = time.time_ns()
        if not span.is_sampled:
            return
        for name, value in span.attributes.items():
            # Ids are new in each call, and would replace the known texts.
            if isinstance(value, str) and not HEXADECIMAL.fullmatch(value):
                span.attributes[name] = self._clean(value)
        self._export(span)


def _new_span_id() -> int:
    return random.getrandbits(64) or 1  # nosec B311
