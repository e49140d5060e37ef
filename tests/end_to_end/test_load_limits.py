"""A server process with few file descriptors, and clients that try to exhaust these or its memory.

The negative control of each test is the same attack on `server_without_limits.py`.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from integration_server.rpc.health import LIVENESS
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import Command
from tests.end_to_end.processes import server_environment, serving
from tests.end_to_end.system import clients_of

pytestmark = pytest.mark.slow

FILES = 200
SILENT = 400  # twice the limit
DEADLINE = 60.0  # seconds; the machine may be busy
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
MIB = 1 << 20


@asynccontextmanager
async def server(directory: Path, database_url: str, **settings: str) -> AsyncIterator[Command]:
    """The server, with a limit of open files."""
    environment = server_environment(database_url, **settings)
    async with serving(directory, environment, open_files=FILES) as command:
        yield command


@asynccontextmanager
async def server_without_limits(directory: Path) -> AsyncIterator[Command]:
    """The libraries alone, with the same limit."""
    async with serving(directory, {}, module="tests.end_to_end.server_without_limits", open_files=FILES) as command:
        yield command


def open_files(command: Command, name: str) -> int:
    """The open files of a process of the server. Only root may list those of a process that protects its memory."""
    path = Path(f"/proc/{command.pid(name)}/fd")
    return path.stat().st_size or len(list(path.iterdir()))  # Linux 6.2 has the number as the size


def resident(command: Command) -> int:
    """Resident memory of the sidecar's process in bytes."""
    pages = int(Path(f"/proc/{command.pid('sidecar')}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def open_connections(address: str, first_bytes: Iterable[bytes]) -> AsyncIterator[None]:
    """Connections that send these bytes each and then nothing. The kernel accepts them for the server."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    opened: list[socket.socket] = []
    try:
        for sent_bytes in first_bytes:
            connection = socket.create_connection((host, int(port)), timeout=DEADLINE)
            opened.append(connection)
            with suppress(OSError):  # the server may have closed it
                connection.sendall(sent_bytes)
            await asyncio.sleep(0)
        yield
    finally:
        for connection in opened:
            connection.close()


async def is_serving(address: str, within: float) -> bool:
    """Whether a new client receives a response in time."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.enable_http_proxy", 0),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        check = HealthStub(channel).Check
        try:
            response = await check(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=within, wait_for_ready=True)
        except grpc.aio.AioRpcError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def is_sidecar_responding(sidecar: str, within: float, path: str = "/healthz") -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=within) as client:
        try:
            return (await client.get(f"{sidecar}{path}")).status_code == 200
        except httpx.TransportError:
            return False


# --- connections that use file descriptors -------------------------------------------------------------------------

SILENCES = {
    "nothing": b"",
    "preface": PREFACE,
    "preface-and-settings": PREFACE + EMPTY_SETTINGS,
}
each_silence = pytest.mark.parametrize(
    "sent_bytes",
    [
        pytest.param(sent_bytes, id=name, marks=[] if name == "preface-and-settings" else [pytest.mark.slow])
        for name, sent_bytes in SILENCES.items()
    ],
)
each_http_silence = pytest.mark.parametrize(
    "sent_bytes",
    [
        pytest.param(b"", id="nothing", marks=pytest.mark.slow),
        pytest.param(b"GET /healthz HTTP/1.1\r\nHost: ", id="half-a-head"),
    ],
)


@each_silence
async def test_silent_grpc_clients_do_not_exhaust_file_descriptors(
    sent_bytes: bytes, sqlite_url: str, tmp_path: Path
) -> None:
    limits = {"GRPC_HANDSHAKE_SECONDS": "1", "GRPC_CONNECTION_IDLE_SECONDS": "1"}
    async with server(tmp_path, sqlite_url, **limits) as command:
        grpc_address = command.serving["grpc"]
        assert await is_serving(grpc_address, DEADLINE)
        async with open_connections(grpc_address, SILENT * [sent_bytes]):
            assert await is_serving(grpc_address, DEADLINE)
            assert open_files(command, "server") < FILES * 0.75
            assert await is_sidecar_responding(command.serving["sidecar"], DEADLINE, "/readyz")  # it asks the server


@each_silence
async def test_negative_control_without_limits_silent_grpc_clients_exhaust_file_descriptors(
    sent_bytes: bytes, tmp_path: Path
) -> None:
    async with server_without_limits(tmp_path) as command:
        assert await is_serving(command.serving["grpc"], DEADLINE)
        async with open_connections(command.serving["grpc"], SILENT * [sent_bytes]):
            assert not await is_serving(command.serving["grpc"], 3)
            assert open_files(command, "server") >= FILES * 0.95


async def test_an_established_connection_works_beside_silent_clients(sqlite_url: str, tmp_path: Path) -> None:
    async with (
        server(tmp_path, sqlite_url) as command,
        clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
    ):
        request = pb.ListIntegrationsRequest(user_id="ada")
        await clients.service.ListIntegrations(request)
        async with open_connections(clients.grpc_address, SILENT * [b""]):
            for _ in range(20):
                response = await clients.service.ListIntegrations(request, timeout=DEADLINE)
                assert response.integrations == []


@each_http_silence
async def test_silent_sidecar_clients_do_not_exhaust_file_descriptors(
    sent_bytes: bytes, sqlite_url: str, tmp_path: Path
) -> None:
    async with (
        server(tmp_path, sqlite_url) as command,
        open_connections(command.serving["sidecar"], SILENT * [sent_bytes]),
    ):
        assert await is_sidecar_responding(command.serving["sidecar"], DEADLINE)
        assert open_files(command, "sidecar") < FILES * 0.75
        assert await is_serving(command.serving["grpc"], DEADLINE)


@each_http_silence
async def test_negative_control_without_limits_silent_sidecar_clients_exhaust_file_descriptors(
    sent_bytes: bytes, tmp_path: Path
) -> None:
    async with server_without_limits(tmp_path) as command:
        assert await is_sidecar_responding(command.serving["sidecar"], DEADLINE)
        async with open_connections(command.serving["sidecar"], SILENT * [sent_bytes]):
            assert not await is_sidecar_responding(command.serving["sidecar"], 3)
            assert open_files(command, "sidecar") >= FILES * 0.95


# --- requests that use memory --------------------------------------------------------------------------------------

LARGE = 100 * MIB
HEAD = b"POST /api/v1/webhooks/sandbox/app HTTP/1.1\r\nHost: sidecar\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"100000\r\n" + b"x" * MIB + b"\r\n"


async def send_large_body(sidecar: str) -> bytes:
    """Send a large body in chunks until the server closes; the status line of the response."""
    host, _, port = sidecar.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        with suppress(OSError):
            writer.write(HEAD)
            for _ in range(LARGE // MIB):
                writer.write(CHUNK)
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        with suppress(OSError):
            async with asyncio.timeout(DEADLINE):
                return await reader.readline()
        return b""
    finally:
        writer.transport.abort()


async def peak_memory_growth(command: Command, work: asyncio.Future[Any]) -> int:
    """The largest increase of the process's memory until the work is completed."""
    before = peak = resident(command)
    while not work.done():
        peak = max(peak, resident(command))
        await asyncio.sleep(0.005)
    return peak - before


async def test_large_bodies_do_not_use_memory(sqlite_url: str, tmp_path: Path) -> None:
    async with server(tmp_path, sqlite_url) as command:
        sidecar = command.serving["sidecar"]
        assert await is_sidecar_responding(sidecar, DEADLINE)
        uploads = asyncio.gather(*(send_large_body(sidecar) for _ in range(8)))
        assert await peak_memory_growth(command, uploads) < LARGE // 2
        assert all(status in {b"", b"HTTP/1.1 413 \r\n"} or b" 413 " in status for status in await uploads)
        assert await is_sidecar_responding(sidecar, DEADLINE)


async def test_negative_control_without_the_limit_a_large_body_uses_memory(tmp_path: Path) -> None:
    async with server_without_limits(tmp_path) as command:
        uploads = asyncio.ensure_future(send_large_body(command.serving["sidecar"]))
        assert await peak_memory_growth(command, uploads) > LARGE * 0.9
        assert b" 200 " in await uploads


async def test_ten_thousand_headers_and_huge_urls_do_not_use_memory(sqlite_url: str, tmp_path: Path) -> None:
    headers = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n"
    huge = b"GET /" + b"x" * (5 * MIB)
    async with server(tmp_path, sqlite_url) as command:
        sidecar = command.serving["sidecar"]
        assert await is_sidecar_responding(sidecar, DEADLINE)
        before = resident(command)
        for sent_bytes in (headers, huge):
            async with open_connections(sidecar, 100 * [sent_bytes]):
                assert await is_sidecar_responding(sidecar, DEADLINE)
        assert resident(command) - before < 50 * MIB


# --- calls ---------------------------------------------------------------------------------------------------------


async def test_oversized_messages_and_metadata_are_rejected(sqlite_url: str, tmp_path: Path) -> None:
    async with (
        server(tmp_path, sqlite_url, GRPC_MAX_MESSAGE_BYTES="65536") as command,
        clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
    ):
        service = clients.service
        usual = pb.ListIntegrationsRequest(user_id="ada")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.ListIntegrations(pb.ListIntegrationsRequest(user_id="a" * 65_536))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.ListIntegrations(usual, metadata=[("x-long", "y" * 20_000)])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await service.ListIntegrations(usual, metadata=[("x-long", "y" * 10_000)])


async def test_a_caller_over_its_quota_is_rejected_and_health_checks_continue(sqlite_url: str, tmp_path: Path) -> None:
    async with (
        server(tmp_path, sqlite_url, CALLER_MAX_CALLS_PER_SECOND="20") as command,
        clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
    ):
        request = pb.ListIntegrationsRequest(user_id="ada")
        calls = [asyncio.ensure_future(clients.service.ListIntegrations(request)) for _ in range(200)]
        responses = await asyncio.gather(*calls, return_exceptions=True)
        refused = [response for response in responses if isinstance(response, grpc.aio.AioRpcError)]
        assert 0 < len(refused) < 200
        assert {reason_of(error) for error in refused} == {"QUOTA_EXCEEDED"}
        for _ in range(100):
            await clients.health.Check(health_pb2.HealthCheckRequest())


def reason_of(error: grpc.aio.AioRpcError) -> str:
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what is used of a call
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status is not None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    assert retry.retry_delay.ToTimedelta()
    return info.reason
