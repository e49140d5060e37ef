"""The transports: unary calls and streams over gRPC, with deadlines, tokens, hooks and the errors of the client.

`Transport` blocks its thread; `AsyncTransport` is for asyncio. Both open their channel at the first call.
"""

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

import grpc
import grpc.aio

from integration_server.client.configuration import Configuration, SecretText
from integration_server.client.connection import (
    AsyncUseGuard,
    TlsContents,
    TokenSource,
    UseGuard,
    watch_tls_files,
)
from integration_server.client.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    FieldViolation,
    IntegrationsError,
    InvalidField,
    Unauthenticated,
    Unavailable,
    error_of_call,
)
from integration_server.client.hooks import CallHook, End, Metadata, begin_all
from integration_server.client.rpcs import RequestT, ResponseT, Rpc

logger = logging.getLogger("integration_server.client")

Timeout = float | timedelta | None
"""A deadline in seconds or as a duration. None: the default of the RPC."""

_ItemT = TypeVar("_ItemT")
_ItemT_co = TypeVar("_ItemT_co", covariant=True)

_MAX_TIMEOUT = 1e8  # seconds, three years; gRPC takes a deadline that its clock cannot express for one that is over
_CLOSE_GRACE = 60.0  # seconds for the calls on a replaced channel; as long as the longest default deadline


class ResponseStream(Protocol[_ItemT_co]):
    """The responses of a stream."""

    def __iter__(self) -> Iterator[_ItemT_co]:
        """Iterate over the responses; raises `IntegrationsError` if the stream fails."""
        ...

    def cancel(self) -> None:
        """End the stream. Other threads may call this."""
        ...


class AsyncResponseStream(Protocol[_ItemT_co]):
    """The responses of a stream."""

    def __aiter__(self) -> AsyncIterator[_ItemT_co]:
        """Iterate over the responses; raises `IntegrationsError` if the stream fails."""
        ...

    def cancel(self) -> None:
        """End the stream."""
        ...


class Caller(Protocol):
    """What calls RPCs: `Transport`, or a fake in tests."""

    def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout: Timeout = None) -> ResponseT:
        """Call an RPC. Raises `IntegrationsError`."""
        ...

    def stream(
        self, rpc: Rpc[RequestT, ResponseT], requests: RequestT | Iterable[RequestT], timeout: Timeout = None
    ) -> ResponseStream[ResponseT]:
        """Begin a stream of responses, with one request or a stream of them."""
        ...

    def close(self) -> None:
        """Close the channel, and cancel its calls."""
        ...


class AsyncCaller(Protocol):
    """What calls RPCs: `AsyncTransport`, or a fake in tests."""

    async def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout: Timeout = None) -> ResponseT:
        """Call an RPC. Raises `IntegrationsError`."""
        ...

    async def stream(
        self, rpc: Rpc[RequestT, ResponseT], requests: RequestT | AsyncIterable[RequestT], timeout: Timeout = None
    ) -> AsyncResponseStream[ResponseT]:
        """Begin a stream of responses, with one request or a stream of them."""
        ...

    async def close(self) -> None:
        """Close the channel, and cancel its calls."""
        ...


def _seconds(timeout: Timeout, rpc: Rpc[Any, Any]) -> float | None:
    if timeout is None:
        return rpc.timeout
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if math.isnan(seconds):
        raise InvalidField("timeout: is not a number", fields=[FieldViolation("timeout", "is not a number")])
    if seconds <= 0:  # gRPC sends it nevertheless, and a quick server completes it
        raise _deadline_exceeded(rpc.name, 0)
    return min(seconds, _MAX_TIMEOUT)


def _deadline_exceeded(name: str, seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"{name}: was not completed within {seconds:g} s")


def _metadata(token: str | None) -> Metadata:
    return [] if token is None else [("authorization", SecretText(f"Bearer {token}"))]


class _CallErrors:
    """Converts the errors of one call."""

    def __init__(self, name: str, seconds: float | None, guard: UseGuard, configuration: Configuration) -> None:
        self._name = name
        self._configuration = configuration
        self._seconds = seconds
        self._guard = guard

    @property
    def is_closed(self) -> bool:
        """Whether the client is closed."""
        return self._guard.is_closed

    def convert(self, error: grpc.RpcError | grpc.aio.AioRpcError) -> IntegrationsError:
        """Return the error of a call that has failed."""
        call: Any = error  # the errors of calls are calls as well
        converted = error_of_call(call.code(), call.details(), call.trailing_metadata() or ())
        if isinstance(converted, Cancelled) and self._guard.is_closed:
            return self.cancelled()
        if isinstance(converted, DeadlineExceeded) and not converted.reason and self._seconds is not None:
            # gRPC's own message names neither the RPC nor the time.
            return _deadline_exceeded(self._name, self._seconds)
        if isinstance(converted, Unavailable) and not converted.reason:
            # gRPC's own message does not say whether TLS was tried, and the host only if it has an address.
            tls = "with TLS" if self._configuration.uses_tls else "without TLS"
            return Unavailable(f"{self._configuration.address} ({tls}) is not available: {converted.message}")
        return converted

    def cancelled(self) -> IntegrationsError:
        """Return the error of a call that this process has cancelled."""
        if self._guard.is_closed:
            return ClientClosed(f"{self._name}: the client was closed")
        return Cancelled(f"{self._name}: the call was cancelled")

    def of_asyncio(self, error: asyncio.CancelledError) -> IntegrationsError | asyncio.CancelledError:
        """Return what to raise: gRPC raises this too if not the task, but the call is cancelled."""
        task = asyncio.current_task()
        return error if task is not None and task.cancelling() else self.cancelled()


class LogHook:
    """Logs each call that fails, without what it has sent."""

    def begin(self, method: str, metadata: Metadata) -> End:
        """Observe a call."""

        def end(error: IntegrationsError | None) -> None:
            if error is not None:
                logger.debug("%s failed: %s %s: %s", method, error.code.name, error.reason, error.message)

        return end


@contextmanager
def _ending(end: End, errors: _CallErrors) -> Iterator[None]:
    """Around a call: convert the error that it fails with, and end the hooks."""
    try:
        yield
    except grpc.RpcError as error:  # also those of asyncio
        converted = errors.convert(error)
        end(converted)
        raise converted from error.with_traceback(None)  # whose frames hold the request
    except asyncio.CancelledError as error:
        end(None)
        raise errors.of_asyncio(error) from None
    except (ValueError, grpc.aio.UsageError):
        end(None)
        if not errors.is_closed:
            raise
        raise errors.cancelled() from None  # gRPC's errors if another thread or task has closed the channel
    except BaseException:
        end(None)
        raise


class Transport:
    """Calls over gRPC that block their thread. Threads share it.

    Raises `ConfigurationError` if a file cannot be used.
    """

    def __init__(
        self, configuration: Configuration, hooks: Sequence[CallHook] = (), guard: UseGuard | None = None
    ) -> None:
        self._configuration = configuration
        self._hooks = [LogHook(), *hooks]
        self._token = TokenSource(configuration)
        self._tls = watch_tls_files(configuration)
        self._guard = UseGuard() if guard is None else guard
        self._lock = threading.RLock()  # a signal's handler may call `close` in a thread that holds it
        self._channel: grpc.Channel | None = None
        self._contents: TlsContents | None = None

    def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout: Timeout = None) -> ResponseT:
        """Call an RPC. If the server rejects the token, and there is a newer one, the call is repeated with it."""
        token = self._token.get()
        try:
            return self._call(rpc, request, timeout, token)
        except Unauthenticated:
            renewed = self._token.get(renewed=True)
            if renewed == token:
                raise
        return self._call(rpc, request, timeout, renewed)

    def stream(
        self, rpc: Rpc[RequestT, ResponseT], requests: RequestT | Iterable[RequestT], timeout: Timeout = None
    ) -> ResponseStream[ResponseT]:
        """Begin a stream of responses."""
        seconds = _seconds(timeout, rpc)
        errors = _CallErrors(rpc.name, seconds, self._guard, self._configuration)
        metadata = _metadata(self._token.get())
        channel: Any = self._open_channel()
        end = begin_all(self._hooks, rpc.name, metadata)
        kind = channel.unary_stream if isinstance(requests, rpc.request) else channel.stream_stream
        method = kind(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        with _ending(end, errors):
            call = method(requests, timeout=seconds, metadata=metadata)
        return _Responses[ResponseT](call, end, errors)

    def close(self) -> None:
        """Close the channel, and cancel its calls."""
        if self._guard.is_inherited:
            return
        with self._lock:
            self._guard.is_closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout: Timeout, token: str | None) -> ResponseT:
        seconds = _seconds(timeout, rpc)
        metadata = _metadata(token)
        channel: Any = self._open_channel()
        end = begin_all(self._hooks, rpc.name, metadata)
        method = channel.unary_unary(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        with _ending(end, _CallErrors(rpc.name, seconds, self._guard, self._configuration)):
            response: ResponseT = method(request, timeout=seconds, metadata=metadata)
        end(None)
        return response

    def _open_channel(self) -> grpc.Channel:
        self._guard.check()
        with self._lock:
            contents = self._tls.poll()
            if self._channel is None or contents != self._contents:
                # The calls on a channel that is replaced keep it open until they end.
                self._channel, self._contents = self._new_channel(contents), contents
            channel = self._channel
        if (
            self._guard.is_closed
        ):  # meanwhile, by another thread or a signal's handler, which has not seen a new channel
            self.close()
        self._guard.check()
        return channel

    def _new_channel(self, contents: TlsContents | None) -> grpc.Channel:
        target, options = self._configuration.target, self._configuration.options
        if contents is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, contents.credentials(), options=options)


class _GrpcResponses(Protocol[_ItemT_co]):
    def __iter__(self) -> Iterator[_ItemT_co]: ...

    def cancel(self) -> object: ...


class _Responses(Generic[_ItemT]):
    def __init__(self, call: "_GrpcResponses[_ItemT]", end: End, errors: _CallErrors) -> None:
        self._call = call
        self._end = end
        self._errors = errors

    def __iter__(self) -> Iterator[_ItemT]:
        failure: IntegrationsError | None = None
        try:
            yield from self._call
        except grpc.RpcError as error:
            failure = self._errors.convert(error)
            raise failure from error.with_traceback(None)  # whose frames hold the request
        finally:
            self._call.cancel()
            self._end(failure)

    def cancel(self) -> None:
        self._call.cancel()


class AsyncTransport:
    """Calls over gRPC for asyncio. It belongs to the event loop of its first call.

    Raises `ConfigurationError` if a file cannot be used.
    """

    def __init__(
        self, configuration: Configuration, hooks: Sequence[CallHook] = (), guard: UseGuard | None = None
    ) -> None:
        self._configuration = configuration
        self._hooks = [LogHook(), *hooks]
        self._token = TokenSource(configuration)
        self._tls = watch_tls_files(configuration)
        self._guard = AsyncUseGuard() if guard is None else guard
        self._channel: grpc.aio.Channel | None = None
        self._contents: TlsContents | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def call(self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout: Timeout = None) -> ResponseT:
        """Call an RPC. If the server rejects the token, and there is a newer one, the call is repeated with it."""
        token = await self._token.get_async()
        try:
            return await self._call(rpc, request, timeout, token)
        except Unauthenticated:
            renewed = await self._token.get_async(renewed=True)
            if renewed == token:
                raise
        return await self._call(rpc, request, timeout, renewed)

    async def stream(
        self, rpc: Rpc[RequestT, ResponseT], requests: RequestT | AsyncIterable[RequestT], timeout: Timeout = None
    ) -> AsyncResponseStream[ResponseT]:
        """Begin a stream of responses."""
        seconds = _seconds(timeout, rpc)
        errors = _CallErrors(rpc.name, seconds, self._guard, self._configuration)
        metadata = _metadata(await self._token.get_async())
        channel: Any = self._open_channel()
        end = begin_all(self._hooks, rpc.name, metadata)
        kind = channel.unary_stream if isinstance(requests, rpc.request) else channel.stream_stream
        method = kind(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        with _ending(end, errors):
            call = method(requests, timeout=seconds, metadata=metadata)
        return _AsyncResponses[ResponseT](call, end, errors)

    async def close(self) -> None:
        """Close the channel, and cancel its calls."""
        self._guard.is_closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        for task in self._closing:
            task.cancel()

    async def _call(
        self, rpc: Rpc[RequestT, ResponseT], request: RequestT, timeout: Timeout, token: str | None
    ) -> ResponseT:
        seconds = _seconds(timeout, rpc)
        metadata = _metadata(token)
        channel: Any = self._open_channel()
        end = begin_all(self._hooks, rpc.name, metadata)
        method = channel.unary_unary(rpc.path, rpc.request.SerializeToString, rpc.response.FromString)
        with _ending(end, _CallErrors(rpc.name, seconds, self._guard, self._configuration)):
            response: ResponseT = await method(request, timeout=seconds, metadata=metadata)
        end(None)
        return response

    def _open_channel(self) -> grpc.aio.Channel:
        self._guard.check()
        contents = self._tls.poll()
        if self._channel is None or contents != self._contents:
            if self._channel is not None:
                task = asyncio.get_running_loop().create_task(self._channel.close(_CLOSE_GRACE))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            self._channel, self._contents = self._new_channel(contents), contents
        return self._channel

    def _new_channel(self, contents: TlsContents | None) -> grpc.aio.Channel:
        target, options = self._configuration.target, self._configuration.options
        if contents is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, contents.credentials(), options=options)


class _AsyncResponses(Generic[_ItemT]):
    def __init__(self, call: "grpc.aio.UnaryStreamCall[Any, _ItemT]", end: End, errors: _CallErrors) -> None:
        self._call = call
        self._end = end
        self._errors = errors

    async def __aiter__(self) -> AsyncIterator[_ItemT]:
        failure: IntegrationsError | None = None
        try:
            async for response in self._call:
                yield response
        except grpc.aio.AioRpcError as error:
            failure = self._errors.convert(error)
            raise failure from error.with_traceback(None)  # whose frames hold the request
        except asyncio.CancelledError as error:
            raise self._errors.of_asyncio(error) from None
        finally:
            self._call.cancel()
            self._end(failure)

    def cancel(self) -> None:
        self._call.cancel()
