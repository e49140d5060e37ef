"""Answers before the caller's deadline where the database does not answer us."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import Message

from integration_server.domain.errors import StoreUnavailable
from integration_server.rpc.interceptors import Handler
from integration_server.service.proxy.call_deadline import CallBudget

T = TypeVar("T")

_MARGIN_SHARE, _LONGEST_MARGIN = 0.2, 0.5
"""What is kept of the caller's time (in seconds, at most) for the status to arrive: both machines may be busy."""


class DeadlineInterceptor(grpc.aio.ServerInterceptor):
    """Has a call raise `StoreUnavailable` if its time is nearly up and it waits for the store.

    The call is then cancelled, and its connection with it. That is not waited for: winding up takes time too, above all
    with a database that hangs.
    """

    def __init__(self) -> None:
        self._cancelling: set[asyncio.Task[Any]] = set()

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

        async def respond(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
            remaining = cast("float | None", context.time_remaining())  # the types know no calls without a deadline
            call: Coroutine[Any, Any, Message] = behaviour(request, context)
            return await (call if remaining is None else self._run_with_deadline(call, remaining))

        return grpc.unary_unary_rpc_method_handler(
            respond,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _run_with_deadline(self, call: Coroutine[Any, Any, T], remaining: float) -> T:
        timeout = remaining - min(remaining * _MARGIN_SHARE, _LONGEST_MARGIN)
        loop = asyncio.get_running_loop()
        call_budget = CallBudget(loop.time() + timeout)
        task = loop.create_task(call, context=call_budget.context())
        self._cancelling.add(task)
        task.add_done_callback(self._on_done)
        try:
            await asyncio.wait({task}, timeout=timeout)
            if not task.done() and call_budget.pending_store_calls:
                raise StoreUnavailable
            return await task
        finally:
            task.cancel()

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._cancelling.discard(task)
        if not task.cancelled():
            task.exception()  # who asked has either got it or gone
