"""The body of a request to a provider that arrives in parts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from integration_server.domain.errors import InvalidField, QuotaExceeded
from integration_server.domain.proxy_messages import ApiRequest

_BODIES_ON_DEMAND = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods whose requests have a body only if the caller says so: RFC 9110 §9.3.1 gives it no meaning."""


class RequestBody:
    """The body of a request that arrives in parts, and is sent once. `length` is its length, if it was announced.

    Attributes:
        was_taken: whether a part of it was taken to be sent.
        is_awaited: whether the next part has not arrived from the caller yet.
    """

    def __init__(self, parts: AsyncIterator[bytes], length: int | None = None) -> None:
        self.length = length
        self.was_taken = False
        self.is_awaited = False
        self._on_progress: Callable[[], None] | None = None
        self._parts = parts
        self._first: bytes | None = None

    @classmethod
    async def of(
        cls, request: ApiRequest, parts: AsyncIterator[bytes], length: int | None, timeout: timedelta
    ) -> "RequestBody | None":
        """The body of a request whose first part is `request.body`; None if it has none.

        Whether it has one is known when the first part or the end has arrived, unless the length or the method says so.
        Raises `QuotaExceeded` if neither arrives in time.
        """
        body = cls(parts, length)
        body._first = request.body or None
        if body._first is None:
            if length == 0 or (length is None and request.method in _BODIES_ON_DEMAND):
                return None
            if length is None:
                try:
                    async with asyncio.timeout(timeout.total_seconds()):
                        body._first = await body._next_part()
                except TimeoutError:
                    raise body.stalled_error() from None
                return body if body._first else None
        return body

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The parts. Raises `InvalidField` instead of their end if they do not have the announced length."""
        self.was_taken = True
        size = 0
        while chunk := (self._first or await self._next_part()):
            self._first = None
            size += len(chunk)
            if self.length is not None and size > self.length:
                raise self._wrong_length(f"more than the {self.length} bytes")
            yield chunk
            self._report_progress()
            if size == self.length:
                return  # complete, whether or not the caller has closed its side yet
        if self.length is not None:
            raise self._wrong_length(f"{size} of the {self.length} bytes")

    @contextmanager
    def reporting_progress(self, on_progress: Callable[[], None]) -> Iterator[None]:
        """Call `on_progress` when a part has arrived, and when the provider has taken one."""
        self._on_progress = on_progress
        try:
            yield
        finally:
            self._on_progress = None

    def _report_progress(self) -> None:
        if self._on_progress is not None:
            self._on_progress()

    def stalled_error(self) -> QuotaExceeded:
        """The error for a caller that sends no more parts."""
        return QuotaExceeded("whose bodies come slowly")

    async def _next_part(self) -> bytes | None:
        """The next part that is not empty; None at the end."""
        self.is_awaited = True  # also after a cancellation: it says why
        part = await anext(self._parts, None)
        while part == b"":
            part = await anext(self._parts, None)
        self.is_awaited = False
        self._report_progress()
        return part

    @staticmethod
    def _wrong_length(problem: str) -> InvalidField:
        return InvalidField("content_length", f"is not the length of the body, which has {problem}")
