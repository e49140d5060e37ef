"""The loop that accepts calls survives every path, with the negative control of gRPC's own server."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from integration_server.rpc.server import ProtectedHandlers, create_server
from tests import http2_frames as http2

DEADLINE = 60.0  # seconds; the machine may be busy
CHECK = "/grpc.health.v1.Health/Check"
PATHS = {
    "not UTF-8": "/\udcff\udcfe/x",
    "a surrogate": "/\udced\udca0\udc80/x",
    "an overlong slash": "\udcc0\udcaf",
    "a cut character": "/x/\udce2\udc82",
    "the start of a known path": f"{CHECK}\udcff",
    "NUL": "/a\0b",
    "empty": "",
    "no slash": "x",
    "a line": "/a\r\nb",
    "long": f"/{'x' * 7_000}",
    "a known path in capitals": CHECK.upper(),
}


class Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse()


@asynccontextmanager
async def serving(*, survives: bool = True) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
    handlers = ProtectedHandlers([], unknown_method=[])
    health_pb2_grpc.add_HealthServicer_to_server(Servicer(), handlers)
    if survives:
        server = create_server(handlers, handlers.paths)
    else:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield server, port
    finally:
        with suppress(UnicodeDecodeError):
            await server.stop(grace=None)


async def call(port: int, path: str, calls: int = 1) -> bytes:
    """What the server sends in response to anonymous calls on one connection; a server that ends cancels them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(http2.opening())
        block = http2.call_headers(path)
        writer.write(b"".join(http2.headers(1 + 2 * number, block, end_stream=True) for number in range(calls)))
        received = b""
        async with asyncio.timeout(DEADLINE):
            while received.count(b"Method not found!") < calls and b"CANCELLED" not in received:
                received += await reader.read(65_536)
        return received
    finally:
        writer.transport.abort()


async def check(port: int, method: str = "Check") -> grpc.StatusCode:
    """The status of a usual call."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        try:
            call: Any = channel.unary_unary(f"/grpc.health.v1.Health/{method}")
            await call(b"", timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
async def test_a_call_with_any_path_is_answered_and_ends_nothing(path: str) -> None:
    async with serving() as (_, port):
        assert b"Method not found!" in await call(port, path)
        assert await check(port) is grpc.StatusCode.OK


async def test_many_calls_with_unknown_paths_are_answered_beside_known_ones() -> None:
    async with serving() as (_, port):
        async with asyncio.TaskGroup() as group:
            flood = group.create_task(call(port, "/\udcff", calls=90))
            known = [group.create_task(check(port)) for _ in range(10)]
        assert flood.result().count(b"Method not found!") == 90
        assert {status.result() for status in known} == {grpc.StatusCode.OK}
        assert await check(port, "NoSuchMethod") is grpc.StatusCode.UNIMPLEMENTED


async def test_negative_control_one_path_ends_the_server_of_grpc() -> None:
    async with serving(survives=False) as (server, port):
        assert await check(port) is grpc.StatusCode.OK
        assert b"Method not found!" not in await call(port, PATHS["not UTF-8"])
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(UnicodeDecodeError):
                await server.wait_for_termination()


VULNERABLE_PROGRAM = """
import asyncio
from datetime import timedelta

import grpc

from integration_server.lifecycle import serving


async def main() -> None:
    async with serving(grpc.aio.server(), "127.0.0.1:0", timedelta(0)) as port:
        print(port, flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
"""


async def test_a_process_whose_server_has_ended_by_itself_ends() -> None:
    """The supervisor starts it again. With gRPC's own server alone it would stay, and serve nobody."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", VULNERABLE_PROGRAM, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE):
            await call(int(await process.stdout.readline()), PATHS["not UTF-8"])
            output, _ = await process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert b"grpc_server_failed" in output
    finally:
        if process.returncode is None:
            process.kill()
