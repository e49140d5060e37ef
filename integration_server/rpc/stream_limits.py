"""Interceptors that limit streams: how many are open, and how long a response waits for a client that reads none."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.message import Message

from integration_server.domain.call_quota import CallCounts, LocalCounts
from integration_server.domain.errors import QuotaExceeded
from integration_server.rpc.interceptors import first_request, wrap_in_context_manager
from integration_server.rpc.methods import Behavior, CallerLookup, Context, Interceptor, Method
from integration_server.rpc.request_streams import CANCELLATION_DELAY


def limit_streams(
    caller_of: CallerLookup,
    *,
    per_caller: int,
    per_user: int,
    watched_per_caller: int = sys.maxsize,
    counts: CallCounts | None = None,
) -> Interceptor:
    """Limit each caller's open streams of a method, and among them those that name one user. Raises `QuotaExceeded`.

    The items that all streams of a caller watch together are limited too: each is in memory as long as its stream runs.

    A stream stays open, and gets each event or holds a connection to a provider, so few of them cost as much as many
    calls. The quota is the caller's: what one caller opens for a user takes nothing from another caller for the same
    user. Each method has its own: pages that watch a user's events take nothing from a transfer. `counts` counts them,
    also those of other workers; None for this process only.
    """
    counts = LocalCounts() if counts is None else counts

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        @asynccontextmanager
        async def count(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401  # a message or a stream
            caller, user_id = caller_of(context), first_request(request).user_id
            prefix = f"{method.path}\0{caller}\0"
            numbers = {prefix: 1}  # of all users together
            if counts.in_flight(prefix) >= per_caller:
                raise QuotaExceeded(f"that are streams; at most {per_caller} may be open")
            if user_id:
                numbers[prefix + user_id] = 1
                if counts.in_flight(prefix + user_id) >= per_user:
                    raise QuotaExceeded(f"that are streams for this user; at most {per_user} may be open")
            if method.items_field:
                watched = f"{prefix}\0{method.items_field}"  # no user's name has a control character
                numbers[watched] = len(getattr(request, method.items_field))
                if counts.in_flight(watched) + numbers[watched] > watched_per_caller:
                    raise QuotaExceeded(
                        f"whose {method.items_field} are watched; at most {watched_per_caller} of all streams together "
                        "(CALLER_MAX_WATCHED_INTEGRATIONS)"
                    )
            for key, number in numbers.items():
                counts.change(key, number)
            try:
                yield request
            finally:
                for key, number in numbers.items():
                    counts.change(key, -number)

        names_user = method.streams_responses and "user_id" in method.request_class.DESCRIPTOR.fields_by_name
        return wrap_in_context_manager(method, behavior, count) if names_user else behavior

    return wrap


def write_in_time(timeout: timedelta | None) -> Interceptor:
    """End a stream in both directions whose client takes no response for this long. Raises `QuotaExceeded`.

    It holds a connection to a provider. Streams of events need no such limit: they hold nothing but their events, of
    which a bounded number waits. The client gets the status once it reads. None only for negative controls.
    """

    seconds = None if timeout is None else timeout.total_seconds()

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        async def stream(request: Any, context: Context) -> AsyncGenerator[Message, None]:  # noqa: ANN401
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    try:
                        async with asyncio.timeout(seconds):
                            await context.write(response)
                    except TimeoutError:
                        raise QuotaExceeded("whose responses are not read") from None
                    except grpc.aio.BaseError:  # the client is gone
                        await asyncio.sleep(CANCELLATION_DELAY)  # what is closed after the cancellation is not cut off
                        raise
            for response in ():  # gRPC has all of them
                yield response

        return stream if method.streams_requests and method.streams_responses else behavior

    return wrap
