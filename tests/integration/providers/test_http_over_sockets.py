"""Outbound HTTP over real sockets, against misbehaving servers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import httpx
import pytest

from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.http import HttpResponse, ProviderHttp
from integration_server.providers.outbound_connections import (
    PooledTransport,
    SsrfGuardedNetwork,
    is_public_or_loopback,
)
from integration_server.providers.outbound_sockets import SocketStream, Stream
from integration_server.service.request_body import RequestBody
from tests.integration.providers.socket_servers import serving
from tests.loopback import ConnectionHandler, accepting

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def send_request(handler: ConnectionHandler, *, deadline: float = 60) -> HttpResponse:
    async with (
        serving(handler) as url,
        ProviderHttp(lambda: datetime.now(UTC), dev_mode=True, deadline=timedelta(seconds=deadline)) as http,
    ):
        return await http.request("GET", f"{url}/token", allowed_origins={url})


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b'Content-Length: 9\r\n\r\n{"a": 1}\n')
    await writer.drain()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client closes the connection


async def send_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def stop_halfway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b'Content-Length: 1000\r\n\r\n{"access_token": "s3cret"')
    await writer.drain()


async def send_other_protocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'{"access_token": "s3cret"}\r\n\r\n')
    await writer.drain()


async def send_endless_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while not writer.is_closing():
        writer.write(b"X-Filler: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def test_reads_a_response() -> None:
    assert (await send_request(respond)).body == b'{"a": 1}\n'


@pytest.mark.parametrize("handler", [hang, send_slowly])
async def test_a_request_ends_at_the_deadline(handler: ConnectionHandler) -> None:
    with pytest.raises(ProviderUnavailable, match="TimeoutError"):
        await send_request(handler, deadline=0.1)


@pytest.mark.parametrize("handler", [flood, reset, stop_halfway, send_other_protocol, send_endless_headers])
async def test_an_invalid_http_response_is_provider_unavailable(handler: ConnectionHandler) -> None:
    with pytest.raises(ProviderUnavailable) as raised:
        await send_request(handler)
    assert "TimeoutError" not in str(raised.value)
    assert "s3cret" not in f"{raised.value!r}{raised.value.__cause__!r}{raised.value.__context__!r}"


CHUNKS = 8000


async def send_tiny_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS * b"1\r\n \r\n" + b"0\r\n\r\n")
    await writer.drain()


class Turns:
    """How often another task runs within the block."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> Self:
        self._counting = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._counting.cancel()

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


def client_of(transport: PooledTransport) -> ProviderHttp:
    return ProviderHttp(lambda: datetime.now(UTC), dev_mode=True, transport=transport, deadline=timedelta(seconds=60))


async def turns_of_other_tasks(transport: PooledTransport) -> int:
    """The turns while a body of tiny chunks, which arrive together, is read."""
    http = client_of(transport)
    async with serving(send_tiny_chunks) as url, http, http.stream("GET", url, None, **stream_options(url)) as response:
        await asyncio.sleep(0.2)  # until all of it is there, as far as the sockets take it
        async with Turns() as turns:
            size = sum([len(chunk) async for chunk in response.chunks()])
    assert size == CHUNKS
    return turns.count


INTERIM = 3000
FINAL = b"HTTP/1.1 204 No Content\r\n\r\n"


class OneSegmentStream(SocketStream):
    """What the peer sends is there at once."""

    async def read(self, max_bytes: int) -> bytes:
        """All of it."""
        return INTERIM * b"HTTP/1.1 103 Early Hints\r\n\r\n" + FINAL

    async def write(self, buffer: bytes) -> None:
        """Send nothing."""

    async def aclose(self) -> None:
        """Close nothing."""


class OneSegmentNetwork:
    """Connects to nobody."""

    async def connect_tcp(self, *_: object, **__: object) -> Stream:
        """The stream."""
        return OneSegmentStream()


async def turns_during_interim_responses(transport: PooledTransport) -> int:
    url = "http://127.0.0.1:1"
    async with client_of(transport) as http, Turns() as turns:
        assert (await http.request("GET", url, allowed_origins={url})).status == 204
    return turns.count


async def test_interim_responses_do_not_hold_the_event_loop() -> None:
    assert await turns_during_interim_responses(PooledTransport(OneSegmentNetwork())) >= INTERIM // 100


async def test_negative_control_interim_responses_of_a_segment_are_read_in_one_turn() -> None:
    transport = PooledTransport(OneSegmentNetwork(), events_in_turn=2 * INTERIM)
    assert await turns_during_interim_responses(transport) < INTERIM // 200


async def test_what_has_arrived_is_read_before_each_part_of_an_upload_is_sent() -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x"

    async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(FINAL)

    http = client_of(PooledTransport(SsrfGuardedNetwork(is_public_or_loopback)))
    body = RequestBody(parts())
    async with (
        serving(read_all) as url,
        http,
        Turns() as turns,
        http.stream("POST", url, body, **stream_options(url)) as response,
    ):
        assert response.status == 204
    assert turns.count >= 200


def stream_options(url: str) -> dict[str, Any]:
    return {"allowed_origins": {url}, "idle_timeout": timedelta(seconds=60)}


@pytest.mark.slow
async def test_tiny_chunks_do_not_hold_the_event_loop() -> None:
    assert await turns_of_other_tasks(PooledTransport(SsrfGuardedNetwork(is_public_or_loopback))) >= CHUNKS // 100


async def test_negative_control_tiny_chunks_of_a_segment_are_read_in_one_turn() -> None:
    transport = PooledTransport(SsrfGuardedNetwork(is_public_or_loopback), events_in_turn=CHUNKS)
    assert await turns_of_other_tasks(transport) < CHUNKS // 200


async def test_a_refused_connection_is_provider_unavailable() -> None:
    async with serving(respond) as url:
        pass
    async with ProviderHttp(lambda: datetime.now(UTC), dev_mode=True) as http:
        with pytest.raises(ProviderUnavailable, match="ConnectError") as raised:
            await http.request("GET", url, allowed_origins={url})
    assert not raised.value.outcome_unknown


@pytest.mark.parametrize(
    "handler", [hang, send_slowly, flood, reset, stop_halfway, send_other_protocol, send_endless_headers]
)
async def test_the_outcome_of_a_request_that_was_sent_is_unknown(handler: ConnectionHandler) -> None:
    with pytest.raises(ProviderUnavailable) as raised:
        await send_request(handler, deadline=1)
    assert raised.value.outcome_unknown


@pytest.mark.parametrize(
    "headers", [{"X-A": "a\nb"}, {"X-A": "\u20ac"}, {"X A": "b"}, {"Content-Length": "7"}, {"X-A": "\0"}]
)
async def test_a_request_that_cannot_be_sent_has_no_effect(headers: dict[str, str]) -> None:
    async with serving(respond) as url, client_of(PooledTransport(SsrfGuardedNetwork(is_public_or_loopback))) as http:
        for key in (b"key", b"key", None):
            assert (await http.request("GET", url, allowed_origins={url}, credentials_key=key)).is_success
            with pytest.raises(ProviderUnavailable) as raised:
                await http.request(
                    "POST", url, allowed_origins={url}, headers=headers, content=b"a", credentials_key=key
                )
            assert not raised.value.outcome_unknown


async def test_a_peer_without_tls_has_an_error_of_its_own() -> None:
    async def send_plain_text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(FINAL)
        await writer.drain()

    async with accepting(send_plain_text) as port, ProviderHttp(lambda: datetime.now(UTC), dev_mode=True) as http:
        url = f"https://127.0.0.1:{port}"
        with pytest.raises(ProviderUnavailable, match="TlsFailed") as raised:
            await http.request("GET", url, allowed_origins={url})
    assert not raised.value.outcome_unknown


async def test_a_body_is_not_complete_because_the_client_closes_the_connection() -> None:
    async def send_without_length(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\nbegin")
        await reader.read()

    transport = PooledTransport(SsrfGuardedNetwork(is_public_or_loopback))
    async with (
        serving(send_without_length) as url,
        client_of(transport) as http,
        http.stream("GET", url, None, **stream_options(url)) as response,
    ):
        chunks = response.chunks()
        assert await anext(chunks) == b"begin"
        rest = asyncio.ensure_future(anext(chunks, None))
        await asyncio.sleep(0.01)
        await transport.aclose()
        with pytest.raises(ProviderUnavailable, match="ReadError"):
            await rest


class HangingNetwork:
    """Never connects, as where a firewall discards packets."""

    async def connect_tcp(self, *_: object, **__: object) -> Stream:
        """Wait without end."""
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_request_without_a_connection_has_no_effect_also_at_the_deadline() -> None:
    network, deadline = HangingNetwork(), timedelta(seconds=0.1)
    async with ProviderHttp(lambda: datetime.now(UTC), network=network, deadline=deadline) as http:
        with pytest.raises(ProviderUnavailable, match="TimeoutError") as raised:
            await http.request("GET", "https://a.example", allowed_origins={"https://a.example:443"})
    assert not raised.value.outcome_unknown


async def test_a_request_to_an_address_that_is_not_allowed_has_no_effect() -> None:
    async with ProviderHttp(lambda: datetime.now(UTC), dev_mode=True) as http:
        with pytest.raises(ProviderUnavailable, match="AddressNotAllowed") as raised:
            await http.request("GET", "https://10.0.0.1", allowed_origins={"https://10.0.0.1:443"})
    assert not raised.value.outcome_unknown


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a proxy in the environment that does not exist."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("proxies")
async def test_a_proxy_from_the_environment_is_not_used() -> None:
    assert (await send_request(respond)).is_success


@pytest.mark.usefixtures("proxies")
async def test_negative_control_a_default_client_uses_the_proxy() -> None:
    async with serving(respond) as url, httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


async def test_a_cancelled_request_does_not_affect_the_next_ones() -> None:
    async with (
        serving(respond) as working_url,
        serving(hang) as bad,
        ProviderHttp(lambda: datetime.now(UTC), dev_mode=True, deadline=timedelta(seconds=60)) as http,
    ):
        waiting = [asyncio.ensure_future(http.request("GET", bad, allowed_origins={bad})) for _ in range(150)]
        await asyncio.sleep(0)
        assert (await http.request("GET", working_url, allowed_origins={working_url})).is_success
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (await http.request("GET", working_url, allowed_origins={working_url})).is_success
