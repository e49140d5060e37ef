"""How much one caller may ask at a time, so that none of them leaves nothing for the others.

Whether a call is one too many is decided before its handler runs. Both limits are this process's own.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import grpc
import structlog
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from integration_server.domain.errors import QuotaExceeded
from integration_server.rpc.errors import status_of
from integration_server.rpc.interceptors import (
    Context,
    Handler,
    Payload,
    RpcHandler,
    stream_behaviour,
    unary_behaviour,
    wrap_handler,
)

QuotaKey: TypeAlias = Callable[[Context], str]

_HEALTH = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"


def peer_address(context: Context) -> str:
    """The address that a call comes from, without its port: who calls, where callers have no names."""
    return context.peer().rpartition(":")[0]


class Quotas(grpc.aio.ServerInterceptor):
    """Refuses calls of a caller who has `concurrency` of them under way, or made `per_second` in this second.

    A stream is under way until it ends. Health checks are not counted, lest a busy server pass for a dead one; streams
    of them are, since they last.
    """

    def __init__(self, caller_of: QuotaKey, *, concurrency: int, per_second: int) -> None:
        self._caller_of = caller_of
        self._concurrency = concurrency
        self._rate = RateLimitItemPerSecond(per_second)
        self._calls = FixedWindowRateLimiter(MemoryStorage())
        self._in_flight: Counter[str] = Counter()
        self._log = structlog.get_logger(__name__)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or (method.startswith(_HEALTH) and not handler.response_streaming):
            return handler
        return self._wrap(handler, method)

    def _wrap(self, handler: RpcHandler, method: str) -> Handler:
        async def respond(request: Payload, context: Context) -> Payload:
            with self._slot(await self._enforce_quota(context, method)):
                return await unary_behaviour(handler)(request, context)

        async def respond_stream(request: Payload, context: Context) -> AsyncGenerator[Payload, None]:
            with self._slot(await self._enforce_quota(context, method)):
                async for response in stream_behaviour(handler)(request, context):
                    yield response

        return wrap_handler(handler, respond, respond_stream)

    async def _enforce_quota(self, context: Context, method: str) -> str:
        """The caller, unless it is at a limit: then the call ends."""
        caller = self._caller_of(context)
        if self._in_flight[caller] >= self._concurrency:
            error = QuotaExceeded("under way")
        elif not await self._calls.hit(self._rate, caller):
            error = QuotaExceeded("in this second")
        else:
            return caller
        self._log.info("rpc_rejected", method=method, reason=error.reason)
        status = rpc_status.to_status(status_of(error))
        return await context.abort(status.code, status.details, status.trailing_metadata)

    @contextmanager
    def _slot(self, caller: str) -> Iterator[None]:
        self._in_flight[caller] += 1
        try:
            yield
        finally:
            self._in_flight[caller] -= 1
            if not self._in_flight[caller]:
                del self._in_flight[caller]
