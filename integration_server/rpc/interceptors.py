"""Interceptors: plain functions that wrap the behavior of a method. They are composed once, when the server is built.

This module has their composition, and the interceptors that every call passes.

The server applies them in this order:

1. `convert_errors` converts what the others raise into a status, and `write_in_time`
   (stream_limits.py) ends a transfer that nobody reads.
2. `authenticate` (authentication.py) determines the caller's identity.
3. `authorize_method` (authorization.py) checks that the caller has the method's permission.
4. `enforce_quota` limits the caller's calls.
5. `read_request` reads the request, checks its size and decodes it. Nothing that an unknown caller sends is parsed.
   `count_items` then counts the items of a batch as calls; a stream of credentials does so once it has begun.
6. `enforce_deadline` responds before the caller's deadline when the store does not respond.
7. `authorize_request` (authorization.py) checks the request's user and integration type.
8. `limit_streams` (stream_limits.py) limits each caller's open streams, and those about one user.
9. `record_audit` (call_audit.py) records the call in the audit trail. Calls that are rejected earlier are logged,
   not recorded: otherwise anybody could fill the trail.
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message

from integration_server.domain.call_budget import CallBudget
from integration_server.domain.call_quota import CallQuota, CallRate, ItemCharge, item_charge
from integration_server.domain.callers import Permission
from integration_server.domain.errors import InvalidField, QuotaExceeded, StoreUnavailable
from integration_server.domain.peers import peer_key
from integration_server.domain.request_limits import REQUEST
from integration_server.observability.observed_calls import CallIdReader, ObservedCalls, ObservedMethod
from integration_server.rpc.authentication import peer_address
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.errors import abort_call, outcome_of
from integration_server.rpc.methods import Behavior, CallerLookup, Context, Interceptor, Method, request_meter
from integration_server.rpc.request_streams import (
    EndConfirmation,
    RequestStream,
    settle_before_responses,
    with_further_requests,
)

RecordCall: TypeAlias = Callable[[Method, str, str, float], object]
"""Records a call: its method, the name of its status, the reason of its error or "", and the seconds that it took."""

_MAX_DEADLINE_MARGIN = 0.5  # seconds
_DEADLINE_MARGIN_RATIO = 0.2
_SLOW_AFTER = 5.0  # seconds: longer than a busy server takes to notice bytes that have arrived
_LARGE_REQUEST = 16 * 1024  # bytes; decoding it takes about a millisecond
_MAX_SLOW_REQUESTS = 64  # of all callers together; times the maximum message size, this bounds their memory


# --- composition -----------------------------------------------------------------------------------------------------


def compose(method: Method, behavior: Behavior, interceptors: Sequence[Interceptor]) -> Behavior:
    """Wrap a behavior in interceptors, of which the first is the outermost."""
    for wrap in reversed(interceptors):
        behavior = wrap(method, behavior)
    return behavior


def wrap_in_context_manager(
    method: Method,
    behavior: Behavior,
    context_manager: Callable[[Any, Context], AbstractAsyncContextManager[Any]],
) -> Behavior:
    """Run each call inside a context manager, which gets the request and returns the request that is passed on."""

    async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
        async with context_manager(request, context) as prepared:
            return await behavior(prepared, context)

    async def stream(request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
        async with context_manager(request, context) as prepared, aclosing(behavior(prepared, context)) as responses:
            async for response in responses:
                yield response

    return stream if method.streams_responses else respond


def wrap_in_check(
    method: Method,
    behavior: Behavior,
    check: Callable[[Any, Context], Awaitable[object]],
    check_response: Callable[[], None] = lambda: None,
) -> Behavior:
    """Await a check of the request before each call. `check_response` is called before each response of a stream."""

    async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
        await check(request, context)
        return await behavior(request, context)

    async def stream(request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: ANN401
        await check(request, context)
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                check_response()
                yield response

    return stream if method.streams_responses else respond


def first_request(request: Any) -> Any:  # noqa: ANN401  # a message
    """Return the request of a call, or the first one of a stream: it says what the call is about."""
    return request.first if isinstance(request, RequestStream) else request


# --- interceptors ----------------------------------------------------------------------------------------------------


def convert_errors(
    caller_of: CallerLookup | None = None,
    log: CallLog | None = None,
    address_of: CallerLookup = peer_address,
    record: RecordCall = lambda *_: None,
    calls: ObservedCalls | None = None,
) -> Interceptor:
    """End calls that raise an error with its status. `caller_of` adds the caller to the log.

    A call whose client is gone raises no error: it is only counted. Each call is recorded, and gets its ids.
    """
    call_log, observed = log or CallLog(), calls or ObservedCalls(CallIdReader(str, str))

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        observed_method = ObservedMethod(method.path, is_probe=method.permission is Permission.HEALTH)

        def convert(request: Any, context: Context) -> _ConvertedCall:  # noqa: ANN401  # a message
            return _ConvertedCall(
                method, observed_method, request, context, address_of(context), caller_of, call_log, record, observed
            )

        return wrap_in_context_manager(method, behavior, convert)

    return wrap


class _ConvertedCall:
    """A call whose errors end it with their status. It is not a generator, which would cost every call more."""

    def __init__(
        self,
        method: Method,
        observed_method: ObservedMethod,
        request: Any,  # noqa: ANN401  # a message
        context: Context,
        address: str,
        caller_of: CallerLookup | None,
        log: CallLog,
        record: RecordCall,
        calls: ObservedCalls,
    ) -> None:
        self._method = method
        self._observed_method = observed_method
        self._request = request
        self._context = context
        # Read before: gRPC's core ends the process when it is asked for the peer of a call that is gone, and a stream
        # can end later than its call.
        self._address = address
        self._caller_of = caller_of
        self._log = log
        self._record = record
        self._calls = calls

    async def __aenter__(self) -> Any:  # noqa: ANN401  # the request
        self._begin = time.perf_counter()
        self._ids = self._calls.begin(self._observed_method, self._context)
        return self._request

    async def __aexit__(self, _type: object, error: BaseException | None, _traceback: object) -> bool:
        del _traceback  # the error that ends the call keeps this frame (`abort_call`)
        outcome = "OK", ""
        try:
            if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                outcome = "CANCELLED", ""
                self._log.client_gone()
            elif isinstance(error, Exception):
                outcome = outcome_of(error, self._context)
                await self._abort(error)
                return True  # the client is gone
            return False
        finally:
            seconds = time.perf_counter() - self._begin
            self._record(self._method, *outcome, seconds)
            self._calls.end(self._observed_method, *outcome, seconds, self._context, self._ids, self._address)

    async def _abort(self, error: Exception) -> None:
        caller = self._caller_of(self._context) if self._caller_of else ""
        peer, request_id = peer_key(self._address), self._ids.request_id
        await abort_call(
            error, self._method.path, self._context, self._log, caller=caller, peer=peer, request_id=request_id
        )


def enforce_quota(caller_of: CallerLookup, rate: CallRate, *, concurrency: int) -> Interceptor:
    """Limit each caller's concurrent calls and its calls per second. Raises `QuotaExceeded`.

    A stream counts as a concurrent call until it ends. Unary health checks are exempt, so that
    probes do not fail because the server is busy.
    """
    quota = CallQuota(rate, concurrency=concurrency)

    def slot(request: Any, context: Context) -> _QuotaSlot:  # noqa: ANN401  # a message or a stream
        return _QuotaSlot(quota, caller_of(context), request)

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        is_exempt = method.permission is Permission.HEALTH and not method.streams_responses
        return behavior if is_exempt else wrap_in_context_manager(method, behavior, slot)

    return wrap


class _QuotaSlot:
    """A call of a caller within its quota."""

    def __init__(self, quota: CallQuota, caller: str, request: Any) -> None:  # noqa: ANN401  # as `slot`
        self._quota = quota
        self._caller = caller
        self._request = request

    async def __aenter__(self) -> Any:  # noqa: ANN401  # the request
        self._quota.begin(self._caller)
        return self._request

    async def __aexit__(self, *_: object) -> None:
        self._quota.end(self._caller)


def count_items(caller_of: CallerLookup, rate: CallRate) -> Interceptor:
    """Count each item of a request as a call of its caller. Raises `QuotaExceeded`.

    A stream counts them by itself (`item_charge`). All of them count if it ends before it has done so.
    """

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        @asynccontextmanager
        async def counting(request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: ANN401  # a message
            charge = ItemCharge(rate, caller_of(context), len(getattr(request, method.items_field)))
            if not method.streams_responses:
                charge.count()
            item_charge.set(charge)
            try:
                yield request
            finally:
                with suppress(QuotaExceeded):  # the call has its outcome
                    charge.count()

        return wrap_in_context_manager(method, behavior, counting) if method.items_field else behavior

    return wrap


def read_request(
    reader: "RequestReader", *, enforce_limits: bool = True, confirm_end: bool = True, settle_end: bool = True
) -> Interceptor:
    """Read a call's single request, and decode it. Raises `QuotaExceeded` or `InvalidField`.

    A stream of requests becomes a `RequestStream`: its first request is read in the same way, and each further one when
    the method takes it. If the method has a bulk field, further requests have nothing else, and the end of the stream
    is that of a client that has sent everything, unless `confirm_end` is False. The method's `request_limits` apply to
    every request, before it is parsed, unless `enforce_limits` is False. No response is sent while gRPC is asked for
    the end, unless `settle_end` is False (for negative controls only).
    """

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        decode = _decoder(method, enforce_limits=enforce_limits)

        @asynccontextmanager
        async def decode_requests(_requests: object, context: Context) -> AsyncIterator[Any]:
            raw = await reader.read(context)
            request = await decode(raw)
            if not method.streams_requests:
                yield request
                return
            # A stream without a bulk field commits nothing at its end.
            confirms = confirm_end and bool(method.request_limits.bulk_field)
            confirmation = EndConfirmation(context, settles=settle_end) if confirms else None
            async with with_further_requests(request, method, decode, context, confirmation) as requests:
                yield requests

        async def respond(_requests: object, context: Context) -> Message:
            return cast("Message", await behavior(await decode(await reader.read(context)), context))

        if not method.streams_requests and not method.streams_responses:
            return respond
        streams_both = method.streams_requests and method.streams_responses
        return wrap_in_context_manager(
            method, settle_before_responses(behavior) if streams_both else behavior, decode_requests
        )

    return wrap


def decode_request(method: Method, behavior: Behavior) -> Behavior:
    """Decode the bytes of a single request. Raises `InvalidField`."""
    decode = _decoder(method)

    async def respond(raw: bytes, context: Context) -> Message:
        return cast("Message", await behavior(await decode(raw), context))

    return respond


def _decoder(method: Method, *, enforce_limits: bool = True) -> Callable[[bytes], Coroutine[Any, Any, Message]]:
    meter = request_meter(method.request_class.DESCRIPTOR, method.request_limits)

    async def decode(raw: bytes) -> Message:
        if enforce_limits and len(raw) > meter.harmless_size:
            for _ in meter.measure(raw):
                await asyncio.sleep(0)  # other calls proceed while a large request is measured
        try:
            request = method.request_class.FromString(raw)
        except DecodeError:
            raise InvalidField(REQUEST, "cannot be decoded") from None
        if len(raw) > _LARGE_REQUEST:
            await asyncio.sleep(0)  # other calls proceed before the request is converted
        return request

    return decode


class _PendingRead:
    """A read under way, of the current task. Its `end` works as `asyncio.timeout`, which costs more than most reads."""

    __slots__ = ("_cancelling", "_task", "begin", "is_ended", "timer")

    def __init__(self, begin: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a request is read outside a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.begin = begin  # on the clock of the event loop
        self.is_ended = False
        self.timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Cancel the read."""
        self.is_ended = True
        self._task.cancel()

    def has_timed_out(self) -> bool:
        """Whether the cancellation that the read has raised is that of `end` alone."""
        return self.is_ended and self._task.uncancel() <= self._cancelling


class RequestReader:
    """Reads the single or first request of each call, within `timeout`.

    gRPC buffers 64 KiB of a message that nobody reads yet. At most `max_slow_requests` requests at a time may take
    longer than `slow_after` seconds to arrive: otherwise clients could fill the memory with unfinished messages.
    """

    def __init__(
        self,
        timeout: timedelta,
        *,
        slow_after: float = _SLOW_AFTER,
        max_slow_requests: int = _MAX_SLOW_REQUESTS,
    ) -> None:
        self._timeout = timeout.total_seconds()
        self._slow_after = min(slow_after, self._timeout)
        self._slow_slots = max_slow_requests
        # The reads under way that are not slow yet, in the order of their beginning. One timer serves all of them: a
        # timer for each would cost more than most reads.
        self._reads: dict[_PendingRead, None] = {}
        self._slow: set[_PendingRead] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: Context) -> bytes:
        """Return the bytes of the request. Raises `QuotaExceeded` or `InvalidField`."""
        pending = self._begin()
        try:
            request = await context.read()
        except asyncio.CancelledError:
            if pending.has_timed_out():
                raise QuotaExceeded("whose requests come slowly") from None
            raise
        finally:
            self._end(pending)
        if request is grpc.aio.EOF:
            # The end of a call that its client has cancelled looks like this too. The cancellation is then due in the
            # loop.
            await asyncio.sleep(0)
            raise InvalidField(REQUEST, "is missing")
        return cast("bytes", request)

    def _begin(self) -> _PendingRead:
        loop = asyncio.get_running_loop()
        pending = _PendingRead(loop.time())
        self._reads[pending] = None
        if self._timer is None:
            self._timer = loop.call_later(self._slow_after, self._limit_slow_reads)
        return pending

    def _end(self, pending: _PendingRead) -> None:
        if pending in self._reads:
            del self._reads[pending]
            return
        if pending.timer is not None:
            pending.timer.cancel()
        if pending in self._slow:
            self._slow.remove(pending)
            self._slow_slots += 1

    def _limit_slow_reads(self) -> None:
        """Give the reads that have become slow a slot, or end them. The timer runs on while there are others."""
        loop, self._timer = asyncio.get_running_loop(), None
        now = loop.time()
        for pending in list(self._reads):
            if pending.begin + self._slow_after > now:
                self._timer = loop.call_at(pending.begin + self._slow_after, self._limit_slow_reads)
                break
            del self._reads[pending]
            if self._slow_slots > 0 and pending.begin + self._timeout > now:
                self._slow_slots -= 1
                self._slow.add(pending)
                pending.timer = loop.call_at(pending.begin + self._timeout, pending.end)
            else:
                pending.end()


def enforce_deadline() -> Interceptor:
    """Raise `StoreUnavailable` shortly before a unary call's deadline, if the call is then waiting for the store.

    The call is cancelled, and so is its database connection. The response does not wait for the cancellation, which
    takes time too when a database hangs. At deadlines with any other cause, gRPC itself ends the call.
    """
    tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps only weak references

    async def complete(call: Callable[[], Awaitable[Any]], outcome: asyncio.Future[Any]) -> None:
        # Not by a callback of the task, which would be one more turn of the loop.
        try:
            response = await call()
        except asyncio.CancelledError:
            outcome.cancel()
            raise
        except Exception as error:
            if not outcome.done():  # else the caller is gone, or has its error already
                outcome.set_exception(error)
        else:
            if not outcome.done():
                outcome.set_result(response)

    async def run(call: Callable[[], Awaitable[Any]], remaining: float) -> Any:  # noqa: ANN401  # a message
        # The margin is for the status to reach the caller while both machines are busy.
        timeout = remaining - min(remaining * _DEADLINE_MARGIN_RATIO, _MAX_DEADLINE_MARGIN)
        loop = asyncio.get_running_loop()
        call_budget = CallBudget(loop.time() + timeout)
        outcome: asyncio.Future[Any] = loop.create_future()

        def on_timeout() -> None:
            if call_budget.pending_store_calls and not outcome.done():
                outcome.set_exception(StoreUnavailable())

        task = loop.create_task(complete(call, outcome), context=call_budget.context())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        timer = loop.call_later(timeout, on_timeout)
        try:
            return await outcome
        finally:
            timer.cancel()
            task.cancel()

    def wrap(method: Method, behavior: Behavior) -> Behavior:
        async def respond(request: Any, context: Context) -> Any:  # noqa: ANN401  # a message
            remaining = cast("float | None", context.time_remaining())  # None without a deadline, unlike its type says
            if remaining is None:
                return await behavior(request, context)
            return await run(partial(behavior, request, context), remaining)

        return behavior if method.streams_requests or method.streams_responses else respond

    return wrap
