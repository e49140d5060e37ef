"""SSRF: attempts to make the server connect to its internal network, and the same attempts without the defence.

The internal network is a server on loopback that sends a secret to every client. All other addresses are external:
connections to them are only recorded.
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore
import pytest

from integration_server.domain.errors import ProviderUnavailable
from integration_server.providers.http import HttpResponse, ProviderHttp, UrlNotAllowed, origin_of
from integration_server.providers.outbound_connections import (
    Address,
    AddressPolicy,
    Resolve,
    SsrfGuardedNetwork,
    SystemResolver,
    is_public,
    is_public_or_loopback,
)
from integration_server.providers.outbound_sockets import LoopNetwork, Network, Stream
from tests.integration.providers.socket_servers import server_tls, serving

NAME = "rebinding.example"
PUBLIC = "93.184.216.34"
SECRET = b"an internal secret"


def allow_any_address(_address: Address) -> bool:
    """No check, for negative controls."""
    return True


@dataclass
class InternalServer:
    """A server in the internal network."""

    port: int
    connections: list[Any] = field(default_factory=list)

    def url(self, host: str) -> str:
        """Its URL with another spelling of the host."""
        return f"https://{host}:{self.port}/"


@pytest.fixture
async def internal_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InternalServer]:
    """An internal server with a trusted certificate for `NAME`, localhost and its addresses."""
    tls, ca_file = server_tls(tmp_path, NAME, "localhost", "127.0.0.1", "::1", "0.0.0.0", "::ffff:7f00:1")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))

    async def send_secret(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SECRET), SECRET))
        await writer.drain()

    async with serving(send_secret, tls=tls) as url:
        yield InternalServer(urlsplit(url).port or 0)


class RecordingNetwork:
    """Connects to loopback, and records the requested hosts."""

    def __init__(self) -> None:
        self.connected_hosts: list[str] = []
        self._network = LoopNetwork()

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None) -> Stream:
        self.connected_hosts.append(host)
        if is_public(ip_address(host)):
            raise httpcore.ConnectError("tests open no external connections")
        return await self._network.connect_tcp(host, port, timeout)


def fake_resolver(*results: str) -> Resolve:
    """A resolver that returns these addresses, one per look-up."""
    remaining = list(results)

    async def resolve(_host: str) -> Sequence[Address]:
        return [ip_address(remaining.pop(0))]

    return resolve


async def get(url: str, network: Network, *, dev_mode: bool = False, deadline: float = 10) -> bytes:
    """The response to a provider that declares the URL."""
    http = ProviderHttp(
        lambda: datetime.now(UTC), dev_mode=dev_mode, deadline=timedelta(seconds=deadline), network=network
    )
    async with http:
        result: HttpResponse = await http.request("GET", url, allowed_origins={origin_of(url)})
        return result.body


# --- spellings of addresses --------------------------------------------------------------------------------

# Names that the system resolves, and notations of old resolvers: decimal, hexadecimal, octal, short.
SPELLINGS = ["localhost", "127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "0x7f.1", "127.1"]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_a_host_reaches_the_internal_server(host: str, internal_server: InternalServer) -> None:
    backend = RecordingNetwork()
    with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
        await get(internal_server.url(host), SsrfGuardedNetwork(is_public, connector=backend))
    assert backend.connected_hosts == []


@pytest.mark.parametrize("host", SPELLINGS)
async def test_negative_control_without_the_check_each_spelling_connects(
    host: str, internal_server: InternalServer
) -> None:
    backend = RecordingNetwork()
    try:
        body = await get(internal_server.url(host), SsrfGuardedNetwork(allow_any_address, connector=backend))
    except ProviderUnavailable:  # the certificate lacks some names, but the connection was made
        body = SECRET
    assert body == SECRET
    assert backend.connected_hosts[-1] in {"127.0.0.1", "0.0.0.0", "::ffff:7f00:1", "::ffff:127.0.0.1"}


async def test_the_check_is_on_by_default(internal_server: InternalServer) -> None:
    http = ProviderHttp(lambda: datetime.now(UTC))
    async with http:
        with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
            await http.request(
                "GET", internal_server.url("localhost"), allowed_origins={internal_server.url("localhost")[:-1]}
            )


@pytest.mark.parametrize(
    "host", ["localhost.", "user@localhost", "acme.example@localhost", "[fe80::1%25lo]", "[::1%lo]"]
)
async def test_a_host_with_user_name_or_path_is_not_a_host(host: str, internal_server: InternalServer) -> None:
    backend = RecordingNetwork()
    http = ProviderHttp(lambda: datetime.now(UTC), network=SsrfGuardedNetwork(allow_any_address, connector=backend))
    async with http:
        with pytest.raises(UrlNotAllowed):
            await http.request("GET", internal_server.url(host), allowed_origins={internal_server.url(host)[:-1]})
    assert backend.connected_hosts == []


# --- dev mode ----------------------------------------------------------------------------------------------------


async def test_dev_mode_reaches_loopback(internal_server: InternalServer) -> None:
    network = SsrfGuardedNetwork(is_public_or_loopback)
    assert await get(internal_server.url("localhost"), network, dev_mode=True) == SECRET


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1", "fd00:ec2::254"])
async def test_dev_mode_reaches_no_other_internal_address(address: str) -> None:
    backend = RecordingNetwork()
    network = SsrfGuardedNetwork(is_public_or_loopback, resolve=fake_resolver(address), connector=backend)
    with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
        await get(f"https://{NAME}/", network, dev_mode=True)
    assert backend.connected_hosts == []


# --- DNS rebinding ----------------------------------


class CheckThenResolveNetwork:
    """A common mistake: resolves and checks the name, and resolves it again to connect."""

    def __init__(self, is_allowed: AddressPolicy, resolve: Resolve, connector: Network) -> None:
        self._is_allowed = is_allowed
        self._resolve = resolve
        self._connector = connector

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None) -> Stream:
        assert all(map(self._is_allowed, await self._resolve(host)))
        (address,) = await self._resolve(host)
        return await self._connector.connect_tcp(str(address), port)


async def test_dns_rebinding_does_not_reach_the_internal_server(internal_server: InternalServer) -> None:
    backend = RecordingNetwork()
    network = SsrfGuardedNetwork(is_public, resolve=fake_resolver(PUBLIC, "127.0.0.1"), connector=backend)
    with pytest.raises(ProviderUnavailable, match="ConnectError"):
        await get(internal_server.url(NAME), network)
    with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
        await get(internal_server.url(NAME), network)
    assert backend.connected_hosts == [PUBLIC]


async def test_negative_control_check_then_resolve_reaches_the_internal_server(internal_server: InternalServer) -> None:
    backend = RecordingNetwork()
    network = CheckThenResolveNetwork(is_public, fake_resolver(PUBLIC, "127.0.0.1"), backend)
    assert await get(internal_server.url(NAME), network) == SECRET
    assert backend.connected_hosts == ["127.0.0.1"]


# --- TLS -----------------------------------------------------------------------------------------


async def test_the_certificate_must_match_the_host_name(internal_server: InternalServer) -> None:
    def network() -> SsrfGuardedNetwork:
        return SsrfGuardedNetwork(allow_any_address, resolve=fake_resolver("127.0.0.1"))

    assert await get(internal_server.url(NAME), network()) == SECRET
    with pytest.raises(ProviderUnavailable, match="CertificateNotTrusted"):
        await get(internal_server.url("other.example"), network())


# --- hanging name servers -----------------------------------------------------------------------------------------

HANGING = 40  # more than the default executor has threads


async def test_a_hanging_look_up_ends_at_the_deadline() -> None:
    async def hang(_host: str) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ProviderUnavailable, match="TimeoutError"):
        await get("https://acme.example/", SsrfGuardedNetwork(is_public, resolve=hang), deadline=0.1)


@dataclass
class HangingNameServer:
    """Look-ups of names below `hanging.example` end when `released` is set."""

    looked_up: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @asynccontextmanager
    async def pending_lookups(self, resolve: Resolve, hosts: Iterable[str]) -> AsyncIterator[None]:
        """Run look-ups of these hosts for the duration of the context."""
        waiting = [asyncio.ensure_future(resolve(host)) for host in hosts]
        await asyncio.sleep(0)
        try:
            yield
        finally:
            self.released.set()
            await asyncio.gather(*waiting, return_exceptions=True)


@pytest.fixture
def hanging_name_server(monkeypatch: pytest.MonkeyPatch) -> HangingNameServer:
    """Install a hanging name server as the system's resolver."""
    server = HangingNameServer()
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        server.looked_up.append(host)
        if host.endswith("hanging.example"):
            server.released.wait()
            raise socket.gaierror
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return server


async def test_hanging_look_ups_do_not_block_others(hanging_name_server: HangingNameServer) -> None:
    resolve = SystemResolver()
    async with (
        hanging_name_server.pending_lookups(resolve, [f"{number}.hanging.example" for number in range(HANGING)]),
        asyncio.timeout(60),
    ):
        assert await resolve("127.0.0.1") == [ip_address("127.0.0.1")]


async def test_negative_control_hanging_look_ups_exhaust_the_loops_threads(
    hanging_name_server: HangingNameServer,
) -> None:
    async def resolve(host: str) -> Sequence[Address]:
        results = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [ip_address(result[4][0]) for result in results]

    async with hanging_name_server.pending_lookups(resolve, [f"{number}.hanging.example" for number in range(HANGING)]):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await resolve("127.0.0.1")


async def test_concurrent_look_ups_of_a_host_are_shared(hanging_name_server: HangingNameServer) -> None:
    resolve = SystemResolver()
    async with hanging_name_server.pending_lookups(resolve, ["hanging.example"] * HANGING):
        assert await resolve("127.0.0.1")
    assert hanging_name_server.looked_up.count("hanging.example") == 1


async def test_an_unknown_host_is_provider_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ProviderUnavailable, match="gaierror"):
        await get("https://acme.example/", SsrfGuardedNetwork(is_public))
