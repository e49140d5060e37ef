"""Spans, as the parts of the server see them: functions that open one, which are passed on where traces are on.

`tracing.py` makes them and `otlp.py` exports them. Both are imported only where traces are on.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TypeAlias

Attributes: TypeAlias = Mapping[str, str | int]
"""What a span says. No attribute has a value of a request, a user or a secret. A span keeps the mapping itself, so that
one that many spans share is made once; nobody changes it."""

REQUEST_ID_ATTRIBUTE = "request_id"
"""The attribute with the request id, the only one whose text is a new one in each call."""

SpanKind = Literal["server", "client", "internal"]


class Span(Protocol):
    """A span that is open."""

    def set(self, name: str, value: str | int) -> None:
        """Add an attribute."""

    def fail(self, reason: str) -> None:
        """Mark what the span stands for as failed."""


OpenSpan: TypeAlias = Callable[[str, Attributes], AbstractContextManager[Span]]
"""Opens a span with a name and attributes. An exception fails it with the name of its class."""


AddSpan: TypeAlias = Callable[[str, Attributes, int, BaseException | None], None]
"""Adds a span that has a name and attributes, began at a time (nanoseconds since 1970) and ends now, perhaps with an
exception. What runs meanwhile has no spans of its own."""


class Tracing(Protocol):
    """Opens spans. Each is the parent of those that are opened inside it."""

    def root(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of background work, with a trace of its own."""

    def client(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A span of a request to another system, if what asks for it is traced."""

    def add_request(self, name: str, attributes: Attributes, begin: int, error: BaseException | None) -> None:
        """As `AddSpan`: the span of a request to another system, if what asks for it is traced."""

    def begin(self, name: str, attributes: Attributes, traceparent: str) -> str:
        """Begin the span of a call in the call's own task; it continues the caller's trace. Returns its traceparent."""

    def end(self, attributes: Attributes, *, failed: bool) -> None:
        """End the span that `begin` has begun in this task."""

    def add(self, name: str, attributes: Attributes, traceparent: str, seconds: float) -> str:
        """Add the span of a call that has ended now. Returns its traceparent."""
