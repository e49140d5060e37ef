"""Slow, idle and greedy clients over real sockets: the sidecar disconnects them and continues to serve others.

The negative controls show what uvicorn alone does.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.fakes.limits import LIMITS
from tests.integration.sidecar_clients import DEADLINE, RawConnection, connect, serving_sidecar
from tests.unit.sidecar.fakes import FakeServer

SOON = timedelta(seconds=0.3)
GET = b"GET /healthz HTTP/1.1\r\nHost: sidecar\r\n"
POST = b"POST /api/v1/webhooks/stripe/app HTTP/1.1\r\nHost: sidecar\r\n"  # its body is read
RESPONSE_200 = b"HTTP/1.1 200 "


Attack = Callable[[RawConnection], Awaitable[None]]


@asynccontextmanager
async def unlimited() -> AsyncIterator[int]:
    """The same app on uvicorn's own protocol."""
    app = FakeServer().endpoints()
    config = uvicorn.Config(app, http=H11Protocol, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Not `serve`, which takes the process's signals.
        serving = asyncio.create_task(server._serve([listener]))
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = server.force_exit = True
            await serving


async def is_served(port: int) -> bool:
    """Whether a well-behaved client is served. On a busy machine it may time out itself, and retries."""
    async with asyncio.timeout(DEADLINE), httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as client:
        while True:
            with suppress(httpx.ReadError):  # disconnected between connecting and sending
                status = (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code
                if status != 408:
                    return status == 200


# --- slow and silent clients ---------------------------------------------------------------------------------------


async def send_nothing(connection: RawConnection) -> None:
    """Connect only."""


async def begin(connection: RawConnection) -> None:
    await connection.send(b"GET /heal")


async def drip_headers(connection: RawConnection) -> None:
    await connection.send(GET)
    await connection.drip(b"X: y\r\n")


async def drip_second_head(connection: RawConnection) -> None:
    await connection.send(GET + b"\r\n")
    await connection.drip(b"G")


async def stop_in_body(connection: RawConnection) -> None:
    await connection.send(POST + b"Content-Length: 1000\r\n\r\nx")


async def drip_body(connection: RawConnection) -> None:
    await connection.send(POST + b"Content-Length: 100000\r\n\r\n")
    await connection.drip(b"x")


async def drip_chunks(connection: RawConnection) -> None:
    await connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    await connection.drip(b"1\r\nx\r\n")


DRIPPING = [drip_headers, drip_second_head, drip_body, drip_chunks]
SLOW = [send_nothing, begin, stop_in_body, *DRIPPING]


async def while_attacked(port: int, attack: Attack) -> bytes:
    """The data that an attacker receives until the connection is closed."""
    async with connect(port) as connection:
        attacking = asyncio.ensure_future(attack(connection))
        try:
            return await connection.received()
        finally:
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)


@pytest.mark.parametrize("attack", SLOW)
async def test_a_slow_client_gets_408_and_is_disconnected(attack: Attack) -> None:
    async with serving_sidecar(replace(LIMITS, header_timeout=SOON, body_timeout=SOON)) as port:
        received = await while_attacked(port, attack)
        # A client that sends on a closed connection loses data that it has not read yet.
        has_status = b"HTTP/1.1 408 " in received and b"Content-Security-Policy: default-src 'none'" in received
        assert has_status or (attack in DRIPPING and received == b"")
        assert await is_served(port)


@pytest.mark.slow
@pytest.mark.parametrize("attack", SLOW)
async def test_negative_control_uvicorn_alone_waits_for_a_slow_client(attack: Attack) -> None:
    async with unlimited() as port:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4 * SOON.total_seconds()):
                await while_attacked(port, attack)


async def test_a_request_within_the_timeouts_is_served() -> None:
    async with serving_sidecar(LIMITS) as port, connect(port) as connection:
        for part in (POST[:10], POST[10:], b"Content-Length: 4\r\n", b"Connection: close\r\n\r\n", b"a", b"b", b"cd"):
            await connection.send(part)
            await asyncio.sleep(0.01)
        assert (await connection.received()).startswith(RESPONSE_200)


@pytest.mark.slow
async def test_an_idle_connection_is_kept_longer_than_the_header_timeout() -> None:
    timeout = timedelta(seconds=1)
    limits = replace(LIMITS, header_timeout=timeout, response_timeout=timeout)
    async with serving_sidecar(limits) as port, connect(port) as connection:
        for is_last in (False, True):
            await connection.send(GET + b"\r\n")
            assert (await connection.response()).startswith(b"HTTP/1.1 200 ")
            if not is_last:
                await asyncio.sleep(2 * timeout.total_seconds())


async def test_an_idle_connection_is_closed_after_the_keepalive_timeout() -> None:
    async with (
        serving_sidecar(replace(LIMITS, keepalive_timeout=timedelta(seconds=1))) as port,
        connect(port) as connection,
    ):
        await connection.send(GET + b"\r\n")
        assert (await connection.received()).startswith(b"HTTP/1.1 200 ")


async def read_nothing(connection: RawConnection) -> None:
    """Send requests and read no responses."""
    connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.reader._transport.pause_reading()  # type: ignore[attr-defined]  # the only way to stop reading
    await connection.drip(200 * (GET + b"\r\n"), every=0)


@pytest.mark.slow
async def test_each_pipelined_request_has_its_own_timeout() -> None:
    """Together the requests take several times the timeout of one."""
    response_timeout = timedelta(seconds=1)
    async with serving_sidecar(replace(LIMITS, response_timeout=response_timeout)) as port, connect(port) as connection:
        started = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - started < 4 * response_timeout.total_seconds():
            await connection.send(500 * (GET + b"\r\n"))
            for _ in range(500):
                assert (await connection.response()).startswith(b"HTTP/1.1 200 ")


async def is_connected_after(port: int, attack: Attack, seconds: float) -> bool:
    """Whether the attacker's connection is still open after `seconds`."""
    async with connect(port) as connection:
        attacking = asyncio.ensure_future(attack(connection))
        try:
            async with asyncio.timeout(seconds):
                while not connection.writer.is_closing():  # noqa: ASYNC110  # it is closed from the other side
                    await asyncio.sleep(0.05)
            return False
        except TimeoutError:
            return True
        finally:
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)


async def test_a_client_that_does_not_read_is_disconnected() -> None:
    async with serving_sidecar(replace(LIMITS, response_timeout=SOON)) as port:
        assert not await is_connected_after(port, read_nothing, DEADLINE)
        assert await is_served(port)


@pytest.mark.slow
async def test_negative_control_uvicorn_alone_keeps_a_client_that_does_not_read() -> None:
    async with unlimited() as port:
        assert await is_connected_after(port, read_nothing, 8 * SOON.total_seconds())


# --- too many of them ----------------------------------------------------------------------------------------------


async def test_a_new_connection_replaces_the_longest_idle_one() -> None:
    async with serving_sidecar(replace(LIMITS, connections=5)) as port, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connect(port)) for _ in range(20)]
        for _ in range(3):
            assert await is_served(port)
        assert [await connection.received() for connection in idle[:16]] == [b""] * 16


async def test_without_an_idle_connection_a_new_one_gets_503() -> None:
    async with serving_sidecar(replace(LIMITS, connections=3, peer_share=1)) as port, AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connect(port)) for _ in range(3)]
        for connection in busy:
            head = b"Content-Length: 2\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
            await connection.send(POST + head)
            async with asyncio.timeout(DEADLINE):  # the server reads the body when it sends 100 Continue
                assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            await connection.send(b"a")

        async with connect(port) as one_more:
            assert (await one_more.received()).startswith(b"HTTP/1.1 503 ")
        for connection in busy:
            await connection.send(b"b")
            assert (await connection.received()).startswith(RESPONSE_200)
        assert await is_served(port)


# --- too large -----------------------------------------------------------------------------------------------------

CHUNK = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
TOO_LARGE = {
    "body": (POST + b"Content-Length: 1048577\r\n\r\n" + b"x" * 1000, {413}),
    "body-of-a-terabyte": (POST + b"Content-Length: 1000000000000\r\n\r\n", {413}),
    "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + 17 * CHUNK, {413}),
    "headers": (GET + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n", {431}),
    "a-hundred-headers": (GET + 100 * b"X: y\r\n" + b"\r\n", {431}),  # with Host one more than a hundred
    "header": (GET + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n", {431}),
    "url": (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: sidecar\r\n\r\n", {431}),
    "url-of-usual-headers": (b"GET /" + b"x" * 12_000 + b" HTTP/1.1\r\nHost: sidecar\r\n\r\n", {414}),
    "chunk-extension": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000, {400}),
}


@pytest.mark.parametrize("name", TOO_LARGE)
async def test_a_request_that_is_too_large_is_rejected(name: str) -> None:
    request, statuses = TOO_LARGE[name]
    async with (
        serving_sidecar(replace(LIMITS, body_timeout=timedelta(seconds=10))) as port,
        connect(port) as connection,
    ):
        await connection.send(request)
        async with asyncio.timeout(DEADLINE):
            response = await connection.reader.readline()
        assert int(response.split()[1]) in statuses
        assert await is_served(port)


async def test_a_body_that_is_too_large_gets_no_100_continue() -> None:
    async with serving_sidecar(LIMITS) as port, connect(port) as connection:
        await connection.send(POST + b"Content-Length: 1048577\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            assert (await connection.reader.readline()).startswith(b"HTTP/1.1 413 ")
