"""Reads a request when its caller is let in and has calls left, and not for ever.

gRPC by itself takes every message into memory as a whole before anybody is asked, and waits for the rest of it without
end: thousands of messages of megabytes whose last byte never comes. Of a message that nobody reads yet it takes 64 KiB.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import grpc
from google.protobuf.message import DecodeError

from integration_server.domain.errors import InvalidField, QuotaExceeded
from integration_server.rpc.handlers import Context, Handler, Payload, answer_of, answers_of, doing

_PROMPTLY = 5.0  # seconds: longer than a busy server takes to see what has come
_SLOW_AT_ONCE = 64  # of all callers together: this times the largest size is what they can take of the memory


class ReadingInterceptor(grpc.aio.ServerInterceptor):
    """Has a call's one request read here: whole `within` a time, and only so many that are slow at a time."""

    def __init__(self, *, within: timedelta, promptly: float = _PROMPTLY, slow_at_once: int = _SLOW_AT_ONCE) -> None:
        self._within = within.total_seconds()
        self._promptly = promptly
        self._places = slow_at_once

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler

        decode = handler.request_deserializer

        async def answer(_requests: Payload, context: Context) -> Payload:
            return await answer_of(handler)(_decoded(await self._read(context), decode), context)

        async def answers(_requests: Payload, context: Context) -> AsyncGenerator[Payload, None]:
            async for response in answers_of(handler)(_decoded(await self._read(context), decode), context):
                yield response

        # To gRPC a request that is read here is a stream of one; clients see no difference.
        return doing(handler, answer, answers, streams_bytes=True)

    async def _read(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._within) as end:
                with self._ended_when_slow(end):
                    request = await context.read()
        except TimeoutError:
            raise QuotaExceeded("whose requests come slowly") from None
        if request is grpc.aio.EOF:
            raise InvalidField("request", "is missing")
        return cast("bytes", request)

    @contextmanager
    def _ended_when_slow(self, end: asyncio.Timeout) -> Iterator[None]:
        """End what takes longer than promptly, unless it finds one of the places for such."""
        has_place = False

        def look() -> None:
            nonlocal has_place
            has_place = self._places > 0
            if has_place:
                self._places -= 1
            else:
                end.reschedule(asyncio.get_running_loop().time())

        timer = asyncio.get_running_loop().call_later(self._promptly, look)
        try:
            yield
        finally:
            timer.cancel()
            self._places += has_place


def _decoded(raw: bytes, decode: Callable[[bytes], Payload] | None) -> Payload:
    try:
        return raw if decode is None else decode(raw)
    except DecodeError:
        raise InvalidField("request", "cannot be decoded") from None
