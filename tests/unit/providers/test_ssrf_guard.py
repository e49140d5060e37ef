"""Connections go to addresses that were judged, and to no others."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

import httpcore
import pytest

from integration_server.providers.ip_policy import Address, is_public
from integration_server.providers.ssrf_guard import AddressNotAllowed, SsrfGuardedBackend

PUBLIC, OTHER_PUBLIC, PRIVATE = "93.184.216.34", "2606:4700::1111", "10.0.0.1"


class FakeResolver:
    """What a name means, one answer after the other."""

    def __init__(self, *results: Sequence[str]) -> None:
        self._results = list(results)
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        return [ip_address(text) for text in self._results.pop(0)]


class Connector(httpcore.AsyncNetworkBackend):
    """Remembers where it was to connect to, and within how many seconds; `down` takes nothing."""

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


async def test_connects_to_the_address_that_was_judged_not_to_the_name() -> None:
    resolver, connector = FakeResolver([PUBLIC]), Connector()
    await network(resolver, connector).connect_tcp("acme.example", 443)
    assert connector.attempts == [(PUBLIC, 443, None)]
    assert resolver.asked == ["acme.example"]


async def test_judges_each_connection_anew() -> None:
    resolver, connector = FakeResolver([PUBLIC], [PRIVATE]), Connector()
    checked = network(resolver, connector)
    await checked.connect_tcp("rebinding.example", 443)
    with pytest.raises(AddressNotAllowed):
        await checked.connect_tcp("rebinding.example", 443)
    assert [host for host, _, _ in connector.attempts] == [PUBLIC]


@pytest.mark.parametrize(
    "addresses", [[PRIVATE], [PUBLIC, PRIVATE], [PRIVATE, PUBLIC], [PUBLIC, OTHER_PUBLIC, PRIVATE]]
)
async def test_one_address_that_is_not_allowed_is_enough_to_refuse(addresses: Sequence[str]) -> None:
    connector = Connector()
    with pytest.raises(AddressNotAllowed):
        await network(FakeResolver(addresses), connector).connect_tcp("acme.example", 443)
    assert connector.attempts == []


async def test_goes_on_to_the_next_address_in_time() -> None:
    connector = Connector(OTHER_PUBLIC)
    await network(FakeResolver([OTHER_PUBLIC, PUBLIC]), connector).connect_tcp("acme.example", 443, timeout=9.0)
    assert connector.attempts == [(OTHER_PUBLIC, 443, 2.0), (PUBLIC, 443, 9.0)]


async def test_a_host_of_which_nothing_answers_is_told_as_its_last_address() -> None:
    with pytest.raises(httpcore.ConnectTimeout):
        await network(FakeResolver([OTHER_PUBLIC, PUBLIC]), Connector(OTHER_PUBLIC, PUBLIC)).connect_tcp(
            "acme.example", 443
        )
