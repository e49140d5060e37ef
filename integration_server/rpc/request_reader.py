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
from integration_server.rpc.interceptors import (
    Context,
    Handler,
    Payload,
    stream_behaviour,
    unary_behaviour,
    wrap_handler,
)

_SLOW_AFTER = 5.0  # seconds: longer than a busy server takes to see what has come
_MAX_SLOW_REQUESTS = 64  # of all callers together: this times the largest size is what they can take of the memory


class RequestReader(grpc.aio.ServerInterceptor):
    """Has a call's one request read here: whole `timeout` a time, and only so many that are slow at a time."""

    def __init__(
        self, *, timeout: timedelta, slow_after: float = _SLOW_AFTER, max_slow_requests: int = _MAX_SLOW_REQUESTS
    ) -> None:
        self._timeout = timeout.total_seconds()
        self._slow_after = slow_after
        self._slow_slots = max_slow_requests

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

        async def respond(_requests: Payload, context: Context) -> Payload:
            return await unary_behaviour(handler)(_decode(await self._read(context), decode), context)

        async def respond_stream(_requests: Payload, context: Context) -> AsyncGenerator[Payload, None]:
            async for response in stream_behaviour(handler)(_decode(await self._read(context), decode), context):
                yield response

        # To gRPC a request that is read here is a stream of one; clients see no difference.
        return wrap_handler(handler, respond, respond_stream, streams_bytes=True)

    async def _read(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._timeout) as end:
                with self._limit_slow_reads(end):
                    request = await context.read()
        except TimeoutError:
            raise QuotaExceeded("whose requests come slowly") from None
        if request is grpc.aio.EOF:
            raise InvalidField("request", "is missing")
        return cast("bytes", request)

    @contextmanager
    def _limit_slow_reads(self, end: asyncio.Timeout) -> Iterator[None]:
        """End what takes longer than promptly, unless it finds one of the places for such."""
        has_slot = False

        def abort_without_slot() -> None:
            nonlocal has_slot
            has_slot = self._slow_slots > 0
            if has_slot:
                self._slow_slots -= 1
            else:
                end.reschedule(asyncio.get_running_loop().time())

        timer = asyncio.get_running_loop().call_later(self._slow_after, abort_without_slot)
        try:
            yield
        finally:
            timer.cancel()
            self._slow_slots += has_slot


def _decode(raw: bytes, decode: Callable[[bytes], Payload] | None) -> Payload:
    try:
        return raw if decode is None else decode(raw)
    except DecodeError:
        raise InvalidField("request", "cannot be decoded") from None
