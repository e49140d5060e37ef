"""Interceptors: plain functions that wrap the behavior of a method. They are composed once, when the server is built.

The server applies them in this order:

1. `convert_errors` converts what the others raise into a status.
2. `authenticate` (authentication.py) determines the caller's identity.
3. `authorize_method` (authorization.py) checks that the caller has the method's permission.
4. `enforce_quota` limits the caller's calls.
5. `read_request` reads and decodes the request. Nothing that an unknown caller sends is parsed.
6. `enforce_deadline` responds before the caller's deadline when the store does not respond.
7. `authorize_request` (authorization.py) checks the request's user and integration type.
8. `record_audit` (audit.py) records the call.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError
from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from integration_server.domain.errors import InvalidField, QuotaExceeded, StoreUnavailable
from integration_server.rpc.errors import abort_call
from integration_server.rpc.methods import UNKNOWN_METHOD, Method, Permission, describe_method
from integration_server.service.background.detached_tasks import CallBudget

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]

Behavior: TypeAlias = Callable[[Any, Any], Any]
"""Takes a request and its `Context`; returns a response (awaitable), or an async generator of responses if the method
streams them."""

Interceptor: TypeAlias = Callable[[Method, Behavior], Behavior]

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

CallerLookup: TypeAlias = Callable[[Context], str]
"""Returns the name of a call's caller."""

_MAX_DEADLINE_MARGIN = 0.5  # seconds
_DEADLINE_MARGIN_RATIO = 0.2
_SLOW_AFTER = 5.0  # seconds: longer than a busy server takes to notice bytes that have arrived
_MAX_SLOW_REQUESTS = 64  # of all callers together; times the maximum message size, this bounds their memory


# --- composition -----------------------------------------------------------------------------------------------------


def compose(method: Method, behavior: Behavior, interceptors: Sequence[Interceptor]) -> Behavior:
    """Wrap a behavior in interceptors, of which the first is the outermost."""
    for wrap in reversed(interceptors):
        behavior = wrap(method, behavior)
    return behavior


def before_behavior(
    method: Method,
    behavior: Behavior,
    prepare: Callable[[Any, Context], Awaitable[Any]],
    check_response: Callable[[], None] | None = None,
) -> Behavior:
    """Pass each request through `prepare`, and call `check_response` before each response of a stream."""

    async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
        return await behavior(await prepare(request, context), context)

    async def stream(request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
        async with aclosing(behavior(await prepare(request, context), context)) as responses:
            async for response in responses:
                if check_response is not None:
                    check_response()
                yield response

    return stream if method.streams_responses else respond


def around_behavior(
    method: Method, behavior: Behavior, around: Callable[[Context], AbstractAsyncContextManager[None]]
) -> Behavior:
    """Run each call inside a context manager."""

    async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
        async with around(context):
            return await behavior(request, context)

    async def stream(request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
        async with around(context), aclosing(behavior(request, context)) as responses:
            async for response in responses:
                yield response

    return stream if method.streams_responses else respond


class HandlerRecorder:
    """Collects the handlers that the generated `add_…_to_server` functions register, by path."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Ignore these: the generated code registers the same handlers in the next method too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Record the handlers of a service's methods."""
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


class ProtectedHandlers(grpc.GenericRpcHandler):
    """The recorded handlers with their interceptors, and one handler for all unknown methods."""

    def __init__(
        self, recorder: HandlerRecorder, interceptors: Sequence[Interceptor], *, unknown_method: Sequence[Interceptor]
    ) -> None:
        self._handlers = {path: _protect(path, handler, interceptors) for path, handler in recorder.handlers.items()}
        self._unknown: RpcHandler = grpc.stream_unary_rpc_method_handler(
            compose(UNKNOWN_METHOD, _reject_unknown_method, unknown_method)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcHandler:
        """Return the handler of a call."""
        return self._handlers.get(handler_call_details.method, self._unknown)


def _protect(path: str, handler: Any, interceptors: Sequence[Interceptor]) -> RpcHandler:  # noqa: ANN401
    method = describe_method(path)
    behavior = compose(
        method,
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream,
        interceptors,
    )
    # gRPC reads a single request before it calls a handler, also from unauthenticated callers. To gRPC, every method
    # therefore takes a stream, which `read_request` reads; clients see no difference.
    make_handler = (
        grpc.stream_stream_rpc_method_handler if method.streams_responses else grpc.stream_unary_rpc_method_handler
    )
    return make_handler(
        behavior,
        request_deserializer=handler.request_deserializer if method.streams_requests else None,
        response_serializer=handler.response_serializer,
    )


async def _reject_unknown_method(_requests: object, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # gRPC's own message


# --- interceptors ----------------------------------------------------------------------------------------------------


def convert_errors(caller_of: CallerLookup | None = None) -> Interceptor:
    """End calls that raise an error with its status. `caller_of` adds the caller to the log."""

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        @asynccontextmanager
        async def abort_on_error(context: Context) -> AsyncIterator[None]:
            try:
                yield
            except Exception as error:
                await abort_call(error, method.path, context, caller_of(context) if caller_of else "")

        return around_behavior(method, behavior, abort_on_error)

    return wrap


def peer_address(context: Context) -> str:
    """Return the address of a call's peer without its port: the caller, where callers are not authenticated."""
    return context.peer().rpartition(":")[0]


def enforce_quota(caller_of: CallerLookup, *, concurrency: int, per_second: int) -> Interceptor:
    """Limit each caller's concurrent calls and its calls per second, in this process. Raises `QuotaExceeded`.

    A stream counts as a concurrent call until it ends. Unary health checks are exempt: a busy server is not dead.
    """
    rate, window = RateLimitItemPerSecond(per_second), FixedWindowRateLimiter(MemoryStorage())
    in_flight: Counter[str] = Counter()

    @asynccontextmanager
    async def slot(context: Context) -> AsyncIterator[None]:
        caller = caller_of(context)
        if in_flight[caller] >= concurrency:
            raise QuotaExceeded("under way")
        if not await window.hit(rate, caller):
            raise QuotaExceeded("in this second")
        in_flight[caller] += 1
        try:
            yield
        finally:
            in_flight[caller] -= 1
            if not in_flight[caller]:
                del in_flight[caller]

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        is_exempt = method.permission is Permission.HEALTH and not method.streams_responses
        return behavior if is_exempt else around_behavior(method, behavior, slot)

    return wrap


def read_request(
    timeout: timedelta, *, slow_after: float = _SLOW_AFTER, max_slow_requests: int = _MAX_SLOW_REQUESTS
) -> Interceptor:
    """Read a call's single request within `timeout`, and decode it. Raises `QuotaExceeded` or `InvalidField`.

    gRPC buffers 64 KiB of a message that nobody reads yet. At most `max_slow_requests` requests at a time may take
    longer than `slow_after` seconds to arrive: otherwise clients could fill the memory with unfinished messages.
    """
    slow_slots = max_slow_requests

    @contextmanager
    def limit_slow_reads(read_timeout: asyncio.Timeout) -> Iterator[None]:
        has_slot = False

        def take_slot_or_abort() -> None:
            nonlocal slow_slots, has_slot
            has_slot = slow_slots > 0
            if has_slot:
                slow_slots -= 1
            else:
                read_timeout.reschedule(asyncio.get_running_loop().time())

        nonlocal slow_slots
        timer = asyncio.get_running_loop().call_later(slow_after, take_slot_or_abort)
        try:
            yield
        finally:
            timer.cancel()
            slow_slots += has_slot

    async def read(context: Context) -> bytes:
        try:
            async with asyncio.timeout(timeout.total_seconds()) as read_timeout:
                with limit_slow_reads(read_timeout):
                    request = await context.read()
        except TimeoutError:
            raise QuotaExceeded("whose requests come slowly") from None
        if request is grpc.aio.EOF:
            raise InvalidField("request", "is missing")
        return cast("bytes", request)

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        async def prepare(_requests: object, context: Context) -> Any:  # noqa: ANN401  # a message
            raw = await read(context)
            try:
                return method.request_class.FromString(raw)
            except DecodeError:
                raise InvalidField("request", "cannot be decoded") from None

        return behavior if method.streams_requests else before_behavior(method, behavior, prepare)

    return wrap


def enforce_deadline() -> Interceptor:
    """Raise `StoreUnavailable` shortly before a unary call's deadline, if the call is then waiting for the store.

    The call is cancelled, and so is its database connection. The response does not wait for the cancellation, which
    takes time too when a database hangs. At deadlines with any other cause, gRPC itself ends the call.
    """
    tasks: set[asyncio.Task[Any]] = set()  # the event loop itself keeps only weak references

    def on_done(task: asyncio.Task[Any]) -> None:
        tasks.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller got it, or is gone

    async def run(call: Coroutine[Any, Any, Any], remaining: float) -> Any:  # noqa: ANN401  # a message
        # The margin is for the status to reach the caller while both machines are busy.
        timeout = remaining - min(remaining * _DEADLINE_MARGIN_RATIO, _MAX_DEADLINE_MARGIN)
        loop = asyncio.get_running_loop()
        call_budget = CallBudget(loop.time() + timeout)
        task = loop.create_task(call, context=call_budget.context())
        tasks.add(task)
        task.add_done_callback(on_done)
        try:
            await asyncio.wait({task}, timeout=timeout)
            if not task.done() and call_budget.pending_store_calls:
                raise StoreUnavailable
            return await task
        finally:
            task.cancel()

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
            remaining = cast("float | None", context.time_remaining())  # None without a deadline, unlike its type says
            call = behavior(request, context)
            return await (call if remaining is None else run(call, remaining))

        return behavior if method.streams_requests or method.streams_responses else respond

    return wrap
