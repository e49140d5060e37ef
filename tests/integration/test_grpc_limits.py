"""The limits that gRPC's channel arguments set on misbehaving clients, with negative controls without them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from integration_server.rpc.call_log import CallLog
from integration_server.rpc.interceptors import RequestReader, convert_errors, read_request
from integration_server.rpc.methods import Interceptor
from integration_server.rpc.server import MAX_METADATA_ENTRIES, ProtectedHandlers
from integration_server.settings import Settings
from integration_server.wiring.grpc_server import grpc_options
from tests import http2_frames
from tests.integration.providers.socket_servers import server_tls

DEADLINE = 60.0  # seconds; the machine may be busy
SOON = timedelta(seconds=0.5)
LONG = timedelta(seconds=60)
SETTINGS = Settings(
    grpc_max_connections=100,
    grpc_max_streams_per_connection=100,
    grpc_handshake=LONG,
    grpc_connection_idle=LONG,
    grpc_connection_age=LONG,
)
PREFACE = http2_frames.PREFACE
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HALF_A_HELLO = bytes.fromhex("16030102000100")


def options(**changes: Any) -> Sequence[tuple[str, int]]:
    """The channel arguments after changes to the `grpc_…` settings."""
    return grpc_options(SETTINGS.model_copy(update={f"grpc_{name}": value for name, value in changes.items()}))


class Servicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Counts the calls in progress, and responds when it is released."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.most = 0
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await self.may_respond.wait()
        self.in_flight -= 1
        return health_pb2.HealthCheckResponse()


@asynccontextmanager
async def serving(
    options: Sequence[tuple[str, int]],
    servicer: health_pb2_grpc.HealthServicer | None = None,
    credentials: Any = None,
    interceptors: Sequence[Interceptor] = (),
    max_metadata_entries: int = MAX_METADATA_ENTRIES,
) -> AsyncIterator[int]:
    server = grpc.aio.server(options=options)
    handlers = ProtectedHandlers(
        interceptors, unknown_method=interceptors[:-1][:1], max_metadata_entries=max_metadata_entries
    )
    target = handlers if interceptors else server
    health_pb2_grpc.add_HealthServicer_to_server(servicer or Servicer(), target)
    if interceptors:
        server.add_generic_rpc_handlers([handlers])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


async def is_disconnected(port: int, sent_bytes: bytes, timeout: float) -> bool:
    """Whether the server ends a connection that sends only these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent_bytes)
        async with asyncio.timeout(timeout):
            with suppress(ConnectionError):
                await reader.read()
        return True
    except TimeoutError:
        return False
    finally:
        writer.transport.abort()


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Any]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel).Check


async def is_served(port: int) -> bool:
    async with client(port) as check:
        with suppress(grpc.aio.AioRpcError):
            await check(health_pb2.HealthCheckRequest(), timeout=DEADLINE, wait_for_ready=True)
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("sent_bytes", [b"", PREFACE[:5], PREFACE], ids=["nothing", "half-a-preface", "preface"])
async def test_a_client_without_a_complete_preface_is_disconnected(sent_bytes: bytes) -> None:
    async with serving(options(handshake=SOON)) as port:
        assert await is_disconnected(port, sent_bytes, DEADLINE)
        assert await is_served(port)
    async with serving(()) as port:
        assert not await is_disconnected(port, sent_bytes, 4 * SOON.total_seconds())


@pytest.mark.slow
async def test_a_client_that_stops_in_its_tls_handshake_is_disconnected(tmp_path: Path) -> None:
    _, certificate = server_tls(tmp_path, "localhost")
    pair = ((tmp_path / "key.pem").read_bytes(), certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair])
    async with serving(options(handshake=SOON), credentials=credentials) as port:
        assert await is_disconnected(port, HALF_A_HELLO, DEADLINE)
    async with serving((), credentials=credentials) as port:
        assert not await is_disconnected(port, HALF_A_HELLO, 4 * SOON.total_seconds())


@pytest.mark.slow
async def test_a_client_without_calls_is_disconnected() -> None:
    async with serving(options(connection_idle=SOON)) as port:
        assert await is_disconnected(port, PREFACE + EMPTY_SETTINGS, DEADLINE)
        assert await is_served(port)
    async with serving(()) as port:
        assert not await is_disconnected(port, PREFACE + EMPTY_SETTINGS, 4 * SOON.total_seconds())


@pytest.mark.slow
async def test_a_disconnected_client_reconnects_with_its_next_call() -> None:
    async with serving(options(connection_idle=SOON, connection_age=SOON)) as port, client(port) as check:
        for _ in range(5):
            await check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
            await asyncio.sleep(0.6 * SOON.total_seconds())


def connected(port: int, count: int) -> ExitStack:
    """Silent connections, until the stack is closed."""
    connections = ExitStack()
    for _ in range(count):
        connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE))
    return connections


async def test_a_connection_over_the_limit_is_closed_and_a_later_one_is_accepted() -> None:
    async with serving(options(max_connections=3)) as port:
        with connected(port, 3):
            assert await is_disconnected(port, b"", DEADLINE)
        assert await is_served(port)
    async with serving(()) as port:
        with connected(port, 3):
            assert not await is_disconnected(port, b"", 2 * SOON.total_seconds())


@pytest.mark.parametrize(("streams", "most"), [(3, 3), (100, 10)], ids=["limited", "not"])
async def test_calls_over_the_streams_of_a_connection_wait_at_the_client(streams: int, most: int) -> None:
    servicer = Servicer()
    servicer.may_respond.clear()
    async with serving(options(max_streams_per_connection=streams), servicer) as port, client(port) as check:
        calls = [check(health_pb2.HealthCheckRequest(), timeout=DEADLINE) for _ in range(10)]
        while servicer.in_flight < most:  # noqa: ASYNC110  # only the server has the count
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        servicer.may_respond.set()
        await asyncio.gather(*calls)
    assert servicer.most == most


BURST = 1000


@pytest.mark.slow
async def test_all_calls_of_a_burst_over_the_streams_of_a_connection_complete() -> None:
    async with serving(options(max_streams_per_connection=50)) as port, client(port) as check:
        await asyncio.gather(*(check(health_pb2.HealthCheckRequest(), timeout=DEADLINE) for _ in range(BURST)))


async def test_negative_control_the_overload_protection_of_grpc_rejects_calls_of_a_burst() -> None:
    arguments = dict(options(max_streams_per_connection=50)) | {"grpc.http.overload_protection": 1}
    async with serving(list(arguments.items())) as port, client(port) as check:
        calls = [check(health_pb2.HealthCheckRequest(), timeout=DEADLINE) for _ in range(BURST)]
        responses = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(response, grpc.aio.AioRpcError) for response in responses)


@pytest.mark.parametrize("length", [10_000, 15_000, 17_000, 30_000])
async def test_metadata_is_accepted_up_to_the_limit(length: int) -> None:
    async with serving(options()) as port, client(port) as check:
        call = check(health_pb2.HealthCheckRequest(), metadata=[("x", "y" * length)], timeout=DEADLINE)
        if length < SETTINGS.grpc_max_metadata_bytes:
            await call
            return
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("limited", [True, False], ids=["limited", "negative control"])
async def test_a_compressed_message_is_measured_after_its_decompression(limited: bool) -> None:
    """8 MiB that are 8 KiB on the wire. gRPC stops the decompression at the limit."""
    arguments = options() if limited else [("grpc.max_receive_message_length", -1)]
    async with serving(arguments) as port, client(port) as check:
        request = health_pb2.HealthCheckRequest(service="x" * 8 * 1024 * 1024)
        call = check(request, compression=grpc.Compression.Gzip, timeout=DEADLINE)
        assert await call.code() is (grpc.StatusCode.RESOURCE_EXHAUSTED if limited else grpc.StatusCode.OK)


def test_the_largest_message_is_the_largest_body_and_the_rest_of_its_request() -> None:
    assert dict(options())["grpc.max_receive_message_length"] == (1024 + 256) * 1024
    larger = SETTINGS.model_copy(update={"proxy_max_request_bytes": 2 * 1024 * 1024})
    assert dict(grpc_options(larger))["grpc.max_receive_message_length"] == (2048 + 256) * 1024
    assert dict(options(max_message_bytes=64 * 1024))["grpc.max_receive_message_length"] == 64 * 1024


@pytest.mark.parametrize("limit", [MAX_METADATA_ENTRIES, 1_000], ids=["limited", "negative control"])
@pytest.mark.parametrize("entries", [50, 120, 300])
async def test_the_number_of_metadata_entries_is_limited(limit: int, entries: int) -> None:
    interceptors = [convert_errors(), read_request(RequestReader(LONG))]
    metadata = [(f"x-{number}", "v") for number in range(entries)]
    async with serving(options(), interceptors=interceptors, max_metadata_entries=limit) as port, client(port) as check:
        call = check(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=DEADLINE)
        if entries <= limit:
            await call
            return
        with pytest.raises(grpc.aio.AioRpcError, match="more than 128 metadata entries") as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- clients that are gone ------------------------------------------------------------------------------------------


class Failing(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Ends every call with a status of its own, after a time in which its client may go."""

    async def Check(self, request: Any, context: Any) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.01)
        await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        while True:
            yield health_pb2.HealthCheckResponse()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)


async def leave(port: int, calls: int, *, pause: float, disconnects: bool) -> None:
    """Begin calls of each shape, and cancel them or disconnect."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(http2_frames.opening())
    await asyncio.sleep(0.1)
    request = health_pb2.HealthCheckRequest().SerializeToString()
    streams = range(1, 2 * calls, 2)
    for stream in streams:
        path = f"/grpc.health.v1.Health/{('Check', 'Watch', 'Unknown')[stream // 2 % 3]}"
        writer.write(http2_frames.headers(stream, http2_frames.call_headers(path), end_stream=stream % 5 == 0))
        if stream % 5:
            writer.write(
                http2_frames.message(stream, request, end_stream=stream % 4 == 1)[: -1 if stream == 99 else None]
            )
    await asyncio.sleep(pause)
    if not disconnects:
        for stream in streams:
            writer.write(http2_frames.reset(stream))
        await asyncio.sleep(0.1)
    writer.transport.abort()


@pytest.mark.slow
@pytest.mark.parametrize("watches_log", [True, False], ids=["", "negative control"])
async def test_a_client_that_is_gone_is_only_counted(watches_log: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Negative control: without our handling, gRPC logs clients that are gone, with tracebacks."""
    log = CallLog()

    def is_logged() -> bool:
        return any("raised by servicer method" in record.getMessage() for record in caplog.records)

    protected = [convert_errors(log=log), read_request(RequestReader(LONG))]
    unprotected: list[Interceptor] = [read_request(RequestReader(LONG))]
    with capture_logs() as lines, log.watching_grpc_log() if watches_log else nullcontext():
        async with serving(options(), Failing(), interceptors=protected if watches_log else unprotected) as port:
            async with asyncio.timeout(DEADLINE):
                while not (log.counts.get("client_gone", 0) > 100 if watches_log else is_logged()):
                    for pause in (0, 0.005, 0.02):
                        await leave(port, 50, pause=pause, disconnects=False)
                        await leave(port, 50, pause=pause, disconnects=True)
    if watches_log:
        assert not caplog.records
        assert {line["event"] for line in lines} <= {"rpc_rejected"}, "requests that had no message"


# --- requests that never arrive ------------------------------------------------------------------------------------


async def never() -> AsyncIterator[bytes]:
    """A request that never arrives. gRPC treats it like a request whose last byte is missing."""
    await asyncio.Event().wait()
    yield b""


@asynccontextmanager
async def silent_caller(port: int) -> AsyncIterator[Callable[[], Any]]:
    """Yields a function that begins a call without a request."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_unary("/grpc.health.v1.Health/Check")
        yield lambda: call(never(), timeout=DEADLINE)


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code()


async def test_a_request_that_does_not_arrive_is_rejected_after_the_timeout() -> None:
    reader = read_request(RequestReader(timedelta(seconds=1)))
    async with (
        serving([], interceptors=[convert_errors(), reader]) as port,
        silent_caller(port) as begin,
        client(port) as check,
    ):
        assert await refusal(begin()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)


async def test_negative_control_grpc_alone_waits_for_a_request() -> None:
    async with serving([]) as port, silent_caller(port) as begin:
        call = begin()
        done, _ = await asyncio.wait([asyncio.ensure_future(call.code())], timeout=1)
        assert not done
        call.cancel()


@pytest.mark.slow
async def test_the_number_of_slow_requests_is_limited() -> None:
    reader = read_request(RequestReader(LONG, slow_after=1, max_slow_requests=2))
    async with (
        serving([], interceptors=[convert_errors(), reader]) as port,
        silent_caller(port) as begin,
        client(port) as check,
    ):
        for _ in range(2):  # a rejected request frees its slot
            calls = [begin() for _ in range(5)]
            waiting = {asyncio.ensure_future(call.code()) for call in calls}
            refused: list[grpc.StatusCode] = []
            while len(refused) < 3:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                refused += [one.result() for one in done]
            assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
            await check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
            assert len(waiting) == 2
            for call in calls:
                call.cancel()
            await asyncio.wait(waiting)


async def test_a_call_without_a_request_is_rejected() -> None:
    reader = read_request(RequestReader(LONG))
    async with (
        serving([], interceptors=[convert_errors(), reader]) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: Any = channel.stream_unary("/grpc.health.v1.Health/Check")
        assert await refusal(call(iter(()), timeout=DEADLINE)) is grpc.StatusCode.INVALID_ARGUMENT
