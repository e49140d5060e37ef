"""Response splitting: bytes that follow a response never become the response to another request."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from integration_server.providers.http import ProviderHttp
from integration_server.providers.outbound_connections import PooledTransport, SsrfGuardedNetwork
from tests.integration.providers.socket_servers import server_tls
from tests.loopback import accepting

ADA, EVE = b"key of ada", b"key of eve"


def response(body: bytes, *, head: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    return head + b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body) + body


GENUINE, SMUGGLED = response(b"genuine"), response(b"smuggled")
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\ngenuine\r\n0\r\n\r\n"
SPLITS = {
    "a second response": [GENUINE + SMUGGLED],
    "a second response in another segment": [GENUINE, SMUGGLED],
    "half a head": [GENUINE + b"HTTP/1.1 200 OK\r\nX-Smuggled: 1\r\n"],
    "a second response after one without a body": [NO_CONTENT + SMUGGLED],
    "a second response after chunks": [CHUNKED + SMUGGLED],
    "an informational response": [GENUINE + b"HTTP/1.1 100 Continue\r\n\r\n"],
    "a second response after as many bytes as are read at once": [response(b"x" * (1 << 16)) + SMUGGLED],
    "many responses": [GENUINE + 100 * SMUGGLED],
    "one byte": [GENUINE + b"\n"],
}


@asynccontextmanager
async def keep_alive_server(
    first: Sequence[bytes], *, pause: float = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[int]]]:
    """Responds to its first request with `first`, to others genuinely; yields its URL and counts per connection."""
    counts: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts.append(0)
        index = len(counts) - 1
        while True:
            await reader.readuntil(b"\r\n\r\n")
            counts[index] += 1
            for segment in first if sum(counts) == 1 else [GENUINE]:
                writer.write(segment)
                await writer.drain()
                await asyncio.sleep(pause)

    async with accepting(serve, tls=tls) as port:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", counts


def http_client(*, reuses_leftovers: bool = False) -> ProviderHttp:
    network = SsrfGuardedNetwork(lambda _: True)
    transport = PooledTransport(network, reuses_leftovers=reuses_leftovers)
    return ProviderHttp(lambda: datetime.now(UTC), dev_mode=True, transport=transport, deadline=timedelta(seconds=60))


async def body_of(http: ProviderHttp, url: str, key: bytes | None) -> bytes:
    return (await http.request("GET", f"{url}/x", allowed_origins={url}, credentials_key=key)).body


@pytest.mark.parametrize("keys", [(ADA, EVE), (ADA, ADA), (None, None), (ADA, None)], ids=str)
@pytest.mark.parametrize("first", SPLITS.values(), ids=SPLITS)
async def test_leftover_bytes_are_never_a_response(first: Sequence[bytes], keys: tuple[bytes | None, ...]) -> None:
    async with keep_alive_server(first) as (url, _), http_client() as http:
        await body_of(http, url, keys[0])
        await asyncio.sleep(0.01)
        for key in (keys[1], keys[0], keys[1]):
            assert await body_of(http, url, key) == b"genuine"


async def test_without_credentials_each_request_has_its_own_connection() -> None:
    async with keep_alive_server([GENUINE]) as (url, counts), http_client() as http:
        for _ in range(3):
            assert await body_of(http, url, None) == b"genuine"
    assert counts == [1, 1, 1]


async def test_a_connection_is_reused_with_the_same_credentials_only() -> None:
    async with keep_alive_server([GENUINE]) as (url, counts), http_client() as http:
        for key in (ADA, ADA, EVE, ADA, EVE):
            assert await body_of(http, url, key) == b"genuine"
    assert counts == [3, 2]


async def test_a_connection_with_leftover_bytes_is_closed() -> None:
    async with keep_alive_server([GENUINE + SMUGGLED]) as (url, counts), http_client() as http:
        for _ in range(3):
            assert await body_of(http, url, ADA) == b"genuine"
    assert counts == [1, 2]


async def test_a_late_second_response_is_not_used() -> None:
    """It arrives after the connection has become idle."""
    async with keep_alive_server([GENUINE, SMUGGLED], pause=0.02) as (url, counts), http_client() as http:
        await body_of(http, url, ADA)
        await asyncio.sleep(0.1)
        assert await body_of(http, url, ADA) == b"genuine"
    assert counts == [1, 1]


@pytest.mark.parametrize("first", SPLITS.values(), ids=SPLITS)
async def test_leftover_bytes_below_tls_are_never_a_response(
    first: Sequence[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, certificate = server_tls(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with keep_alive_server(first, tls=context) as (url, _), http_client() as http:
        await body_of(http, url, ADA)
        await asyncio.sleep(0.01)
        assert await body_of(http, url, ADA) == b"genuine"
        assert await body_of(http, url, EVE) == b"genuine"


async def test_negative_control_without_the_checks_the_next_user_gets_the_smuggled_response() -> None:
    async with keep_alive_server([GENUINE + SMUGGLED]) as (url, _), http_client(reuses_leftovers=True) as http:
        await body_of(http, url, EVE)
        assert await body_of(http, url, ADA) == b"smuggled"


async def test_a_connection_that_the_server_closed_is_not_reused() -> None:
    closing = response(b"", head=b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
    async with keep_alive_server([closing]) as (url, counts), http_client() as http:
        for _ in range(2):
            await body_of(http, url, ADA)
    assert counts == [1, 1]


async def test_concurrent_requests_do_not_share_a_connection() -> None:
    async with keep_alive_server([GENUINE]) as (url, counts), http_client() as http:
        for _ in range(3):
            assert await asyncio.gather(*(body_of(http, url, ADA) for _ in range(20))) == [b"genuine"] * 20
    assert sum(counts) == 60


async def test_a_request_that_is_cancelled_at_any_moment_leaves_no_connection_open() -> None:
    are_open: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        are_open.add(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(GENUINE)
        finally:
            are_open.remove(writer)

    async with accepting(serve) as port, http_client() as http:
        url = f"http://127.0.0.1:{port}"
        for turns in range(1, 12):
            assert await body_of(http, url, ADA) == b"genuine"  # its connection is idle now
            cancelled = asyncio.ensure_future(body_of(http, url, ADA))
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
            async with asyncio.timeout(60):
                while len(are_open) > 1:  # noqa: ASYNC110  # at most the one that is kept
                    await asyncio.sleep(0.001)


async def test_a_connection_that_ended_with_its_response_is_not_kept() -> None:
    until_the_end = b"HTTP/1.1 200 OK\r\n\r\ngenuine"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(until_the_end)
        writer.write_eof()
        ends.append(await reader.read())  # returns when the client has closed the connection

    ends: list[bytes] = []
    async with accepting(serve) as port, http_client() as http:
        assert await body_of(http, f"http://127.0.0.1:{port}", ADA) == b"genuine"
        async with asyncio.timeout(60):
            while not ends:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    assert ends == [b""]
