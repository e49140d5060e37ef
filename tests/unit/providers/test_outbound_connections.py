"""Connections go only to addresses that were checked, and only public addresses are allowed, in whatever notation."""

import asyncio
import ssl
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import httpcore
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration_server.providers.outbound_connections import (
    Address,
    AddressNotAllowed,
    PooledTransport,
    SsrfGuardedNetwork,
    is_public,
    is_public_or_loopback,
)
from integration_server.providers.outbound_sockets import Stream

PUBLIC, OTHER_PUBLIC, PRIVATE = "93.184.216.34", "2606:4700::1111", "10.0.0.1"

PUBLIC_V4 = ["1.1.1.1", "9.255.255.255", "93.184.216.34", "172.32.0.1", "192.0.1.1", "223.255.255.255", "100.128.0.1"]
PUBLIC_V6 = ["2606:4700::1111", "2a00:1450:4001:80e::200e", "2001:4860:4860::8888"]
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1"]
NOT_PUBLIC = [
    # this host, private, carrier-grade NAT, link-local, multicast, reserved, broadcast
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("169.254.1.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    # documentation, benchmarks, protocol assignments, 6to4 relays
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "192.0.0.8", "192.88.99.1"),
    # the metadata services of clouds
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254"),
    # unspecified, unique local, link-local with and without a zone, site-local, multicast, discard, documentation
    *("::", "fd00::1", "fc00::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1"),
    "5f00::1",
    # a public address with a zone
    "2606:4700::1111%lo",
    # IPv4 in IPv6: mapped, compatible, translated, 6to4, NAT64, Teredo; also of public addresses
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:1.1.1.1", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::101:101", "64:ff9b:1::a00:1"),
    *("2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:20::1"),
]


class FakeResolver:
    """A resolver that returns the given results in turn."""

    def __init__(self, *results: Sequence[str]) -> None:
        self._results = list(results)
        self.hosts: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.hosts.append(host)
        return [ip_address(text) for text in self._results.pop(0)]


class Connector:
    """Records addresses and timeouts of connections. Connections to `down` addresses fail."""

    def __init__(self, *down: str) -> None:
        self._down = down
        self.attempts: list[tuple[str, int, float | None]] = []

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None) -> Stream:
        self.attempts.append((host, port, timeout))
        if host in self._down:
            raise httpcore.ConnectTimeout
        return httpcore.AsyncMockStream([])


class Clock:
    """Seconds that the test sets."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def network(resolver: FakeResolver, connector: Connector, clock: Clock | None = None) -> SsrfGuardedNetwork:
    return SsrfGuardedNetwork(is_public, resolve=resolver, connector=connector, monotonic=clock or Clock())


async def test_connects_to_the_checked_address() -> None:
    resolver, connector = FakeResolver([PUBLIC]), Connector()
    await network(resolver, connector).connect_tcp("acme.example", 443)
    assert connector.attempts == [(PUBLIC, 443, None)]
    assert resolver.hosts == ["acme.example"]


async def test_connects_to_checked_addresses_for_a_second_whatever_the_name_means_by_then() -> None:
    resolver, connector, clock = FakeResolver([PUBLIC], [PRIVATE], [PRIVATE]), Connector(), Clock()
    checked = network(resolver, connector, clock)
    for _ in range(3):
        await checked.connect_tcp("rebinding.example", 443)
        clock.seconds += 0.4
    for _ in range(2):
        with pytest.raises(AddressNotAllowed):
            await checked.connect_tcp("rebinding.example", 443)
    assert [host for host, _, _ in connector.attempts] == [PUBLIC] * 3
    assert len(resolver.hosts) == 3


async def test_hosts_do_not_share_checked_addresses() -> None:
    resolver, connector = FakeResolver([PUBLIC], [PRIVATE]), Connector()
    checked = network(resolver, connector)
    await checked.connect_tcp("acme.example", 443)
    with pytest.raises(AddressNotAllowed):
        await checked.connect_tcp("rebinding.example", 443)


async def test_a_host_is_resolved_again_after_a_failed_connection() -> None:
    resolver, connector = FakeResolver([PUBLIC], [OTHER_PUBLIC]), Connector(PUBLIC)
    checked = network(resolver, connector)
    with pytest.raises(httpcore.ConnectTimeout):
        await checked.connect_tcp("acme.example", 443)
    await checked.connect_tcp("acme.example", 443)
    assert [host for host, _, _ in connector.attempts] == [PUBLIC, OTHER_PUBLIC]


@pytest.mark.parametrize(
    "addresses", [[PRIVATE], [PUBLIC, PRIVATE], [PRIVATE, PUBLIC], [PUBLIC, OTHER_PUBLIC, PRIVATE]]
)
async def test_one_forbidden_address_rejects_the_host(addresses: Sequence[str]) -> None:
    connector = Connector()
    with pytest.raises(AddressNotAllowed):
        await network(FakeResolver(addresses), connector).connect_tcp("acme.example", 443)
    assert connector.attempts == []


async def test_tries_the_next_address_before_the_deadline() -> None:
    connector = Connector(OTHER_PUBLIC)
    await network(FakeResolver([OTHER_PUBLIC, PUBLIC]), connector).connect_tcp("acme.example", 443, timeout=9.0)
    assert connector.attempts == [(OTHER_PUBLIC, 443, 2.0), (PUBLIC, 443, 9.0)]


async def test_an_unreachable_host_fails_with_the_error_of_its_last_address() -> None:
    with pytest.raises(httpcore.ConnectTimeout):
        await network(FakeResolver([OTHER_PUBLIC, PUBLIC]), Connector(OTHER_PUBLIC, PUBLIC)).connect_tcp(
            "acme.example", 443
        )


@pytest.mark.parametrize("text", PUBLIC_V4 + PUBLIC_V6)
def test_public_addresses_are_allowed(text: str) -> None:
    assert is_public(ip_address(text))
    assert is_public_or_loopback(ip_address(text))


@pytest.mark.parametrize("text", LOOPBACK)
def test_loopback_is_allowed_in_dev_mode_only(text: str) -> None:
    assert not is_public(ip_address(text))
    assert is_public_or_loopback(ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_other_addresses_are_not_allowed_in_dev_mode_either(text: str) -> None:
    assert not is_public(ip_address(text))
    assert not is_public_or_loopback(ip_address(text))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_addresses_that_python_calls_not_global_are_not_public(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_ipv6_forms_of_ipv4_addresses_are_not_public(address: IPv4Address) -> None:
    number = int(address)
    teredo = (0x20010000 << 96) | (number ^ 0xFFFFFFFF)
    six_to_four = (0x2002 << 112) | (number << 80)
    prefixes = (0, 0xFFFF << 32, 0xFFFF << 48, 0x64FF9B << 96, 0x64FF9B0001 << 80)
    for form in (teredo, six_to_four, *(prefix | number for prefix in prefixes)):
        assert not is_public(IPv6Address(form))


class RefusingNetwork:
    """Connects to nothing."""

    async def connect_tcp(self, *_: object, **__: object) -> Stream:
        raise httpcore.ConnectError


def test_a_file_of_authorities_that_is_missing_prevents_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(FileNotFoundError):
        PooledTransport(RefusingNetwork())


@pytest.mark.parametrize(("scheme", "reads_authorities"), [("https", True), ("http", False)])
async def test_the_authorities_are_read_once_and_only_for_tls(
    scheme: str, reads_authorities: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[ssl.SSLContext] = []

    def create() -> ssl.SSLContext:
        created.append(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        return created[-1]

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setattr(httpx, "create_ssl_context", create)
    transport = PooledTransport(RefusingNetwork())
    assert created == []
    requests = [httpx.Request("GET", f"{scheme}://api.example/") for _ in range(3)]
    results = await asyncio.gather(*map(transport.handle_async_request, requests), return_exceptions=True)
    assert [type(result) for result in results] == [type(results[0])] * 3
    assert isinstance(results[0], httpcore.ConnectError | httpx.ConnectError)
    assert len(created) == reads_authorities
