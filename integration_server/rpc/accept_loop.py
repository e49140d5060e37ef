"""A gRPC server whose accept loop survives every path that a client can send.

`grpc.aio` decodes the path of an accepted call as UTF-8 in the loop that accepts calls. C-core passes on any bytes, so
that one HEADERS frame with another path ends that loop: the process stays, and serves nobody any more. Here all known
paths are registered, and C-core compares their bytes; the paths of other calls are never decoded.

This relies on names that `grpc.aio` keeps private, which is why pyproject.toml bounds the version of grpcio.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, cast

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

_UNKNOWN_PATH = ""  # the path of a call that is not registered, to its handler and in names of tasks


def surviving_server(
    handler: grpc.GenericRpcHandler, paths: Iterable[str], options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Server:
    """As `grpc.aio.server`, for one generic handler. `paths` are those of all methods that it knows.

    For a call of any other method it gets an empty path.
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
        loop = asyncio.get_running_loop()
        behavior = cygrpc._handle_rpc(path, self.resolver, (), call, loop, False)
        task = loop.create_task(cygrpc._schedule_rpc_coro(behavior, call, loop, path))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
