"""The server of RPCs: it accepts calls, and has a handler with its interceptors for each method."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import Message
from grpc._cython import cygrpc
from grpc.aio import _server

from integration_server.observability.observed_calls import call_metadata
from integration_server.rpc.interceptors import compose
from integration_server.rpc.methods import (
    UNKNOWN_METHOD,
    Behavior,
    Context,
    Interceptor,
    Method,
    describe_method,
)

RpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

WrapHotPath: TypeAlias = Callable[[Method, Behavior], Behavior]
"""Wraps the behavior of a method as all interceptors together do."""

MAX_METADATA_ENTRIES = 128
"""The metadata entries of a call. Proxies and tracing add some thirty; the limit of their bytes allows hundreds."""

_UNKNOWN_PATH = ""  # the path of a call that is not registered, to its handler and in names of tasks


# --- handlers --------------------------------------------------------------------------------------------------------


class ProtectedHandlers(grpc.GenericRpcHandler):
    """The handlers of registered services with their interceptors, and one handler for all unknown methods.

    The generated `add_…_to_server` functions register a service here as at a server. `hot_path` wraps the methods whose
    responses are repeated, in place of the interceptors.
    """

    def __init__(
        self,
        interceptors: Sequence[Interceptor],
        *,
        unknown_method: Sequence[Interceptor],
        hot_path: WrapHotPath | None = None,
        max_metadata_entries: int = MAX_METADATA_ENTRIES,
    ) -> None:
        self._interceptors = interceptors
        self._hot_path = hot_path
        self._max_metadata_entries = max_metadata_entries
        self._handlers: dict[str, RpcHandler] = {}
        self._unknown: RpcHandler = grpc.stream_unary_rpc_method_handler(
            compose(UNKNOWN_METHOD, _reject_unknown_method, unknown_method)
        )

        async def reject_metadata(_requests: object, context: Context) -> None:
            problem = f"the call has more than {max_metadata_entries} metadata entries"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, problem)

        # Nobody is authenticated, because each reading of the metadata copies all of it.
        self._too_much_metadata: RpcHandler = grpc.stream_unary_rpc_method_handler(
            compose(UNKNOWN_METHOD, reject_metadata, unknown_method[:1])
        )

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Ignore these: the generated code registers the same handlers in the next method too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the handlers of a service's methods."""
        for name, handler in handlers.items():
            path = f"/{service}/{name}"
            method = describe_method(path)
            if self._hot_path is not None and method.repeats_responses:
                behavior = self._hot_path(method, handler.unary_unary)
                self._handlers[path] = grpc.stream_unary_rpc_method_handler(behavior)
            else:
                self._handlers[path] = self._protect(method, handler)

    @property
    def paths(self) -> Collection[str]:
        """The paths of all methods."""
        return self._handlers.keys()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> RpcHandler:
        """Return the handler of a call."""
        metadata = handler_call_details.invocation_metadata or ()
        call_metadata.set(metadata)
        if len(metadata) > self._max_metadata_entries:
            return self._too_much_metadata
        return self._handlers.get(handler_call_details.method, self._unknown)

    def _protect(self, method: Method, handler: Any) -> RpcHandler:  # noqa: ANN401
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        # gRPC reads a single request before it calls a handler, also from unauthenticated callers. To gRPC, every
        # method therefore takes a stream of bytes, which `read_request` reads and decodes; clients see no difference.
        make_handler = (
            grpc.stream_stream_rpc_method_handler if method.streams_responses else grpc.stream_unary_rpc_method_handler
        )
        return make_handler(
            compose(method, behavior, self._interceptors),
            response_serializer=partial(_serialize, handler.response_serializer),
        )


def _serialize(serialize: Callable[[Message], bytes], response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else serialize(response)


async def _reject_unknown_method(_requests: object, context: Context) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # gRPC's own message


# --- calls -----------------------------------------------------------------------------------------------------------

# `grpc.aio` decodes the path of an accepted call as UTF-8 in the loop that accepts calls. C-core passes on any bytes,
# so that one HEADERS frame with another path ends that loop: the process stays, and serves nobody any more. Here all
# known paths are registered, and C-core compares their bytes; the paths of other calls are never decoded.
#
# This relies on names that `grpc.aio` keeps private, which is why pyproject.toml bounds the version of grpcio.


def create_server(
    handler: grpc.GenericRpcHandler, paths: Iterable[str], options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Server:
    """Create a server for one generic handler, as `grpc.aio.server` does. No path of a call can stop it.

    `paths` are those of all methods that the handler knows. For a call of any other method it gets an empty path.
    """
    return cast("grpc.aio.Server", _Server(handler, paths, options))


class _Server(_server.Server):
    def __init__(
        self, handler: grpc.GenericRpcHandler, paths: Iterable[str], options: Sequence[tuple[str, Any]]
    ) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _AioServer(self._loop, None, (handler,), (), tuple(options), None)
        self._server.resolver = cygrpc._MethodResolver([handler], {})
        self._server.calls = set()
        # None: C-core knows the path, and the generic handler has the method.
        self._server.add_registered_method_handlers(dict.fromkeys(paths))


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]  # without types
    """Accepts the calls of each method, and all others, in a loop of its own until the server stops.

    gRPC's own loop waits for all methods at once, which costs it as much for each call as there are methods.
    """

    resolver: Any
    calls: set[asyncio.Task[None]]  # the event loop itself keeps only weak references

    async def _request_call(self) -> None:
        while True:
            self._start(await super()._request_call(), _UNKNOWN_PATH)

    async def _request_registered_call(self, path: bytes) -> None:
        name = path.decode()
        while True:
            self._start(await super()._request_registered_call(path), name)

    def _start(self, call: object, path: str) -> None:
        self.calls.add(asyncio.get_running_loop().create_task(self._serve(call, path)))

    async def _serve(self, call: object, path: str) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            behavior = cygrpc._handle_rpc(path, self.resolver, (), call, loop, False)
            await cygrpc._schedule_rpc_coro(behavior, call, loop, path)
        finally:
            self.calls.discard(task)  # a callback of the task would be one more turn of the loop
