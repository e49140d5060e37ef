"""Connections go only to addresses that were checked."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import httpcore
import pytest

from integration_server.providers.ip_policy import Address, is_public
from integration_server.providers.ssrf_guard import AddressNotAllowed, SsrfGuardedBackend

PUBLIC, OTHER_PUBLIC, PRIVATE = "93.184.216.34", "2606:4700::1111", "10.0.0.1"


class FakeResolver:
    """A resolver that returns the given results in turn."""

    def __init__(self, *results: Sequence[str]) -> None:
        self._results = list(results)
        self.hosts: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.hosts.append(host)
        return [ip_address(text) for text in self._results.pop(0)]


class Connector(httpcore.AsyncNetworkBackend):
    """Records addresses and timeouts of connections. Connections to `down` addresses fail."""

    def __init__(self, *down: str) -> None:
        self._down = down
        self.attempts: list[tuple[str, int, float | None]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.attempts.append((host, port, timeout))
        if host in self._down:
            raise httpcore.ConnectTimeout
        return httpcore.AsyncMockStream([])


def network(resolver: FakeResolver, connector: Connector) -> SsrfGuardedBackend:
    return SsrfGuardedBackend(is_public, resolve=resolver, connector=connector)


async def test_connects_to_the_checked_address() -> None:
    resolver, connector = FakeResolver([PUBLIC]), Connector()
    await network(resolver, connector).connect_tcp("acme.example", 443)
    assert connector.attempts == [(PUBLIC, 443, None)]
    assert resolver.hosts == ["acme.example"]


async def test_checks_each_connection() -> None:
    resolver, connector = FakeResolver([PUBLIC], [PRIVATE]), Connector()
    checked = network(resolver, connector)
    await checked.connect_tcp("rebinding.example", 443)
    with pytest.raises(AddressNotAllowed):
        await checked.connect_tcp("rebinding.example", 443)
    assert [host for host, _, _ in connector.attempts] == [PUBLIC]


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
