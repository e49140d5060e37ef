"""A request that is cheap to send and expensive to convert does not hold the event loop; without the limits it does.

The times are CPU time of the loop's thread, so that a busy machine does not change them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.interceptors import RequestReader, convert_errors, read_request
from integration_server.rpc.server import ProtectedHandlers
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.end_to_end.rpc_errors import RpcError, expect_rpc_error, invalid
from tests.fakes.system import FakeSystem
from tests.loop_hold.meter import MAX_HOLD, LoopHolds

SERVICE = "/integrations.v1.IntegrationService"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DEADLINE = 60.0

USER = pb.ConnectRequest(user_id="ada", integration_type="fake").SerializeToString()


def delimited(number: int, content: bytes) -> bytes:
    """A field with this content of at most 2 MiB."""
    size = len(content)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + content


def config_of(values: bytes) -> bytes:
    """A `Connect` request whose config has a list with these encoded values."""
    return USER + delimited(7, delimited(1, b"\x0a\x01a" + delimited(2, delimited(6, values))))


ATTACKS = {
    # Within the 256 KiB of the RPC.
    "empty structs": ("Connect", config_of(b"\x0a\x02\x2a\x00" * 60_000), "config"),
    "empty lists": ("Connect", config_of(b"\x0a\x02\x32\x00" * 60_000), "config"),
    # More.
    "empty values": ("Connect", config_of(b"\x0a\x00" * 1_000_000), "request"),
    "numbers": ("Connect", config_of(b"\x0a\x09\x11\x00\x00\x00\x00\x00\x00\xf0\x3f" * 150_000), "request"),
    "entries": (
        "Connect",
        USER + b"".join(b"\x3a\x0c\x0a\x0a\x0a\x06%06x\x12\x00" % key for key in range(150_000)),
        "request",
    ),
}
"""The RPC, the request, and the field that its error names."""


@asynccontextmanager
async def serving(*, enforce_limits: bool) -> AsyncIterator[grpc.aio.Channel]:
    """A client of a server over fakes, with gRPC's own limit of 4 MiB."""
    system = FakeSystem()
    handlers: Any = ProtectedHandlers(
        [convert_errors(), read_request(RequestReader(timedelta(seconds=DEADLINE)), enforce_limits=enforce_limits)],
        unknown_method=[],
    )
    pb_grpc.add_IntegrationServiceServicer_to_server(IntegrationService(system.use_cases, system.clock), handlers)
    names = ["integrations.v1.IntegrationService"]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), handlers)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handlers])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    try:
        async with system.tasks, grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            yield channel
    finally:
        await server.stop(None)


async def send_attack(channel: grpc.aio.Channel, holds: LoopHolds, method: str, raw: bytes) -> tuple[RpcError, float]:
    """Send the request compressed; the error, and the longest hold in seconds."""
    call: Any = channel.unary_unary(f"{SERVICE}/{method}")
    send = partial(call, timeout=DEADLINE, compression=grpc.Compression.Gzip)
    await expect_rpc_error(send(b"\x08"))  # what the first call of a process initializes
    holds.take()
    error = await expect_rpc_error(send(raw))
    return error, holds.take().seconds


@pytest.mark.parametrize(("method", "raw", "field"), ATTACKS.values(), ids=ATTACKS)
async def test_an_expensive_request_is_refused_before_it_is_parsed(
    method: str, raw: bytes, field: str, holds: LoopHolds
) -> None:
    async with serving(enforce_limits=True) as channel:
        error, held = await send_attack(channel, holds, method, raw)
    assert error == invalid(field)
    assert held < MAX_HOLD


@pytest.mark.parametrize(("method", "raw"), [attack[:2] for attack in ATTACKS.values()], ids=ATTACKS)
async def test_negative_control_without_the_limits_it_holds_the_loop(method: str, raw: bytes, holds: LoopHolds) -> None:
    async with serving(enforce_limits=False) as channel:
        error, held = await send_attack(channel, holds, method, raw)
    assert error != invalid("request")
    assert held > MAX_HOLD


async def test_each_request_of_a_stream_is_measured() -> None:
    listing = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    large = reflection_pb2.ServerReflectionRequest(file_by_filename="x" * 20_000).SerializeToString()
    async with serving(enforce_limits=True) as channel:
        stream: Any = channel.stream_stream(REFLECTION)
        call = stream(iter([listing, large]), timeout=DEADLINE)
        response = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        assert response.list_services_response.service
        assert await expect_rpc_error(call.read()) == invalid("request")
    async with serving(enforce_limits=False) as channel:  # the negative control
        stream = channel.stream_stream(REFLECTION)
        call = stream(iter([large, listing]), timeout=DEADLINE)
        assert reflection_pb2.ServerReflectionResponse.FromString(await call.read()).error_response.error_code
        assert reflection_pb2.ServerReflectionResponse.FromString(await call.read()).list_services_response.service
