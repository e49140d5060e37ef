"""Attempts to have the server connect to what is inside its own network, and the same with the defence left out.

What is inside is a server on loopback that anybody who connects to it is told a secret by. Outside is every other
address: a connection there goes nowhere, it is only written down.
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
from integration_server.providers.addresses import Address, is_public, is_public_or_loopback
from integration_server.providers.http import HttpAnswer, ProviderHttp, UrlNotAllowed
from integration_server.providers.network import CheckedNetwork, MayReach, Resolve, SystemResolver
from integration_server.providers.urls import origin_of
from tests.integration.providers.servers import certified, serving

NAME = "rebinding.example"
PUBLIC = "93.184.216.34"
SECRET = b"a secret of the inside"


def anything(_address: Address) -> bool:
    """The defence left out."""
    return True


@dataclass
class Inside:
    """A server inside the network."""

    port: int
    connections: list[Any] = field(default_factory=list)

    def url(self, host: str) -> str:
        """Its URL under another spelling of its host."""
        return f"https://{host}:{self.port}/"


@pytest.fixture
async def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    """Such a server, with a certificate that is trusted for the name, for localhost and for its addresses."""
    tls, trusted = certified(tmp_path, NAME, "localhost", "127.0.0.1", "::1", "0.0.0.0", "::ffff:7f00:1")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SECRET), SECRET))
        await writer.drain()

    async with serving(tell, tls=tls) as url:
        yield Inside(urlsplit(url).port or 0)


class Dialling(httpcore.AsyncNetworkBackend):
    """Connects to loopback, and writes down all that it is to connect to."""

    def __init__(self) -> None:
        self.dialled: list[str] = []
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append(host)
        if is_public(ip_address(host)):
            raise httpcore.ConnectError("nobody leaves this machine in a test")
        return await self._network.connect_tcp(host, port, timeout, local_address, socket_options)


def meaning(*answers: str) -> Resolve:
    """A name server that gives these addresses, one look-up after the other."""
    remaining = list(answers)

    async def resolve(_host: str) -> Sequence[Address]:
        return [ip_address(remaining.pop(0))]

    return resolve


async def get(
    url: str, network: httpcore.AsyncNetworkBackend, *, dev_mode: bool = False, deadline: float = 10
) -> bytes:
    """What a provider that declared the URL would get from it."""
    http = ProviderHttp(
        lambda: datetime.now(UTC), dev_mode=dev_mode, deadline=timedelta(seconds=deadline), network=network
    )
    async with http:
        answer: HttpAnswer = await http.request("GET", url, allowed_origins={origin_of(url)})
        return answer.body


# --- by every spelling of an address --------------------------------------------------------------------------------

# Names that the system resolves, and notations that only old resolvers read: decimal, hexadecimal, octal, short.
SPELLINGS = ["localhost", "127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "0x7f.1", "127.1"]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_a_host_leads_inside(host: str, inside: Inside) -> None:
    dialling = Dialling()
    with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
        await get(inside.url(host), CheckedNetwork(is_public, connector=dialling))
    assert dialling.dialled == []


@pytest.mark.parametrize("host", SPELLINGS)
async def test_without_the_check_each_of_them_would(host: str, inside: Inside) -> None:
    dialling = Dialling()
    try:
        told = await get(inside.url(host), CheckedNetwork(anything, connector=dialling))
    except ProviderUnavailable:  # some names are in no certificate, but the connection was made all the same
        told = SECRET
    assert told == SECRET
    assert dialling.dialled[-1] in {"127.0.0.1", "0.0.0.0", "::ffff:7f00:1", "::ffff:127.0.0.1"}


async def test_the_check_is_what_a_server_has_by_default(inside: Inside) -> None:
    http = ProviderHttp(lambda: datetime.now(UTC))
    async with http:
        with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
            await http.request("GET", inside.url("localhost"), allowed_origins={inside.url("localhost")[:-1]})


@pytest.mark.parametrize(
    "host", ["localhost.", "user@localhost", "acme.example@localhost", "[fe80::1%25lo]", "[::1%lo]"]
)
async def test_a_host_with_more_to_it_is_no_host(host: str, inside: Inside) -> None:
    dialling = Dialling()
    http = ProviderHttp(lambda: datetime.now(UTC), network=CheckedNetwork(anything, connector=dialling))
    async with http:
        with pytest.raises(UrlNotAllowed):
            await http.request("GET", inside.url(host), allowed_origins={inside.url(host)[:-1]})
    assert dialling.dialled == []


# --- in dev mode ----------------------------------------------------------------------------------------------------


async def test_dev_mode_reaches_loopback(inside: Inside) -> None:
    network = CheckedNetwork(is_public_or_loopback)
    assert await get(inside.url("localhost"), network, dev_mode=True) == SECRET


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1", "fd00:ec2::254"])
async def test_dev_mode_reaches_nothing_else_inside(address: str) -> None:
    dialling = Dialling()
    network = CheckedNetwork(is_public_or_loopback, resolve=meaning(address), connector=dialling)
    with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
        await get(f"https://{NAME}/", network, dev_mode=True)
    assert dialling.dialled == []


# --- by a name that means one thing when it is judged, and another when it is used ----------------------------------


class JudgedBefore(httpcore.AsyncNetworkBackend):
    """What many do: look the name up and judge it, then have it looked up again to connect."""

    def __init__(self, may_reach: MayReach, resolve: Resolve, connector: httpcore.AsyncNetworkBackend) -> None:
        self._may_reach = may_reach
        self._resolve = resolve
        self._connector = connector

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        assert all(map(self._may_reach, await self._resolve(host)))
        (address,) = await self._resolve(host)
        return await self._connector.connect_tcp(str(address), port)


async def test_a_name_that_changes_between_two_look_ups_does_not_lead_inside(inside: Inside) -> None:
    dialling = Dialling()
    network = CheckedNetwork(is_public, resolve=meaning(PUBLIC, "127.0.0.1"), connector=dialling)
    with pytest.raises(ProviderUnavailable, match="ConnectError"):
        await get(inside.url(NAME), network)
    with pytest.raises(ProviderUnavailable, match="AddressNotAllowed"):
        await get(inside.url(NAME), network)
    assert dialling.dialled == [PUBLIC]


async def test_judged_before_it_is_connected_to_it_would(inside: Inside) -> None:
    dialling = Dialling()
    network = JudgedBefore(is_public, meaning(PUBLIC, "127.0.0.1"), dialling)
    assert await get(inside.url(NAME), network) == SECRET
    assert dialling.dialled == ["127.0.0.1"]


# --- what goes on as before -----------------------------------------------------------------------------------------


async def test_a_certificate_is_still_asked_for_by_name(inside: Inside) -> None:
    def network() -> CheckedNetwork:
        return CheckedNetwork(anything, resolve=meaning("127.0.0.1"))

    assert await get(inside.url(NAME), network()) == SECRET
    with pytest.raises(ProviderUnavailable, match="ConnectError"):
        await get(inside.url("other.example"), network())


# --- name servers that hang -----------------------------------------------------------------------------------------

HANGING = 40  # more than the loop's own pool of threads has


async def test_a_look_up_that_hangs_ends_at_the_deadline() -> None:
    async def hang(_host: str) -> Sequence[Address]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(ProviderUnavailable, match="TimeoutError"):
        await get("https://acme.example/", CheckedNetwork(is_public, resolve=hang), deadline=0.1)


@dataclass
class DeadNameServer:
    """Look-ups of a name below `hanging.example` end when it is `over`."""

    looked_up: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @asynccontextmanager
    async def asked(self, resolve: Resolve, hosts: Iterable[str]) -> AsyncIterator[None]:
        """Look-ups of these hosts are under way."""
        waiting = [asyncio.ensure_future(resolve(host)) for host in hosts]
        await asyncio.sleep(0)
        try:
            yield
        finally:
            self.over.set()
            await asyncio.gather(*waiting, return_exceptions=True)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> DeadNameServer:
    """Such a name server is what the system asks."""
    server = DeadNameServer()
    look_up = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        server.looked_up.append(host)
        if host.endswith("hanging.example"):
            server.over.wait()
            raise socket.gaierror
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return server


async def test_names_that_hang_do_not_hold_up_the_others(dead: DeadNameServer) -> None:
    resolve = SystemResolver()
    async with dead.asked(resolve, [f"{number}.hanging.example" for number in range(HANGING)]), asyncio.timeout(20):
        assert await resolve("127.0.0.1") == [ip_address("127.0.0.1")]


async def test_in_the_loops_own_threads_they_would(dead: DeadNameServer) -> None:
    async def resolve(host: str) -> Sequence[Address]:
        answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [ip_address(answer[4][0]) for answer in answers]

    async with dead.asked(resolve, [f"{number}.hanging.example" for number in range(HANGING)]):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await resolve("127.0.0.1")


async def test_a_name_that_hangs_is_looked_up_once_for_all(dead: DeadNameServer) -> None:
    resolve = SystemResolver()
    async with dead.asked(resolve, ["hanging.example"] * HANGING):
        assert await resolve("127.0.0.1")
    assert dead.looked_up.count("hanging.example") == 1


async def test_a_name_that_does_not_exist_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ProviderUnavailable, match="gaierror"):
        await get("https://acme.example/", CheckedNetwork(is_public))
