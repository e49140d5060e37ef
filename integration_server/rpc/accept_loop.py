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
        self._server.handler = handler
        # None: C-core knows the path, and the generic handler has the method.
        self._server.add_registered_method_handlers(dict.fromkeys(paths))


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]  # without types
    handler: grpc.GenericRpcHandler

    async def _request_call(self) -> None:
        """Accept the calls that are not registered, here instead of in gRPC's loop, until the server stops."""
        loop = asyncio.get_running_loop()
        resolver = cygrpc._MethodResolver([self.handler], {})
        tasks = set[asyncio.Task[None]]()  # the loop itself keeps only weak references
        while True:
            call = await super()._request_call()
            behavior = cygrpc._handle_rpc(_UNKNOWN_PATH, resolver, (), call, loop, False)
            task = loop.create_task(cygrpc._schedule_rpc_coro(behavior, call, loop, _UNKNOWN_PATH))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
