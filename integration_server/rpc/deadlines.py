"""Answers before the caller's deadline where the database does not answer us."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from integration_server.domain.errors import StoreUnavailable
from integration_server.rpc.handlers import Handler
from integration_server.service.deadlines import Effort

T = TypeVar("T")

_MARGIN_SHARE, _LONGEST_MARGIN = 0.2, 0.5
"""What is kept of the caller's time (in seconds, at most) for the status to arrive: both machines may be busy."""


class DeadlineInterceptor(grpc.aio.ServerInterceptor):
    """Has a call raise `StoreUnavailable` if its time is nearly up and it waits for the store.

    The call is then cancelled, and its connection with it. That is not waited for: winding up takes time too, above all
    with a database that hangs.
    """

    def __init__(self) -> None:
        self._winding_up: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behaviour: Any = handler.unary_unary  # typed for threads only

        async def answer(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            remaining = cast("float | None", context.time_remaining())  # the types know no calls without a deadline
            work: Coroutine[Any, Any, Message] = behaviour(request, context)
            return await (work if remaining is None else self._in_time(work, remaining))

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _in_time(self, work: Coroutine[Any, Any, T], remaining: float) -> T:
        timeout = remaining - min(remaining * _MARGIN_SHARE, _LONGEST_MARGIN)
        loop = asyncio.get_running_loop()
        effort = Effort(loop.time() + timeout)
        task = loop.create_task(work, context=effort.context())
        self._winding_up.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait({task}, timeout=timeout)
            if not task.done() and effort.store_waits:
                raise StoreUnavailable
            return await task
        finally:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._winding_up.discard(task)
        if not task.cancelled():
            task.exception()  # who asked has either got it or gone
