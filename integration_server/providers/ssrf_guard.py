"""How outbound connections are made: a name is looked up once, each of its addresses is judged, and the connection goes
to an address that was judged. There is no second look-up in which a name could mean something else (DNS rebinding).

httpcore asks this module for its connections, and does TLS over them by the name.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from ipaddress import ip_address
from threading import Thread
from typing import TypeAlias

import httpcore

from integration_server.providers.ip_policy import Address

AddressPolicy: TypeAlias = Callable[[Address], bool]
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[Address]]]
"""The addresses of a host, by name or literal, at least one. Raises `OSError`."""

# Seconds for one of several addresses: a host whose first one is unreachable is tried at the next well within the
# deadline of a request.
_CONNECT_TIMEOUT_SECONDS = 2.0


class AddressNotAllowed(OSError):
    """A host's name led to an address that no provider may have. Nothing was sent there."""


class SsrfGuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to hosts all of whose addresses `is_allowed` allows. Raises `AddressNotAllowed` for the others."""

    def __init__(
        self,
        is_allowed: AddressPolicy,
        *,
        resolve: Resolve | None = None,
        connector: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._is_allowed = is_allowed
        self._resolve = resolve or SystemResolver()
        self._connector = connector or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first of the host's addresses that takes one."""
        addresses = await self._resolve(host)
        if not all(map(self._is_allowed, addresses)):
            # One of several is enough to refuse: who answers so means no good with the others.
            raise AddressNotAllowed

        async def connect(address: Address, timeout: float | None) -> httpcore.AsyncNetworkStream:
            return await self._connector.connect_tcp(str(address), port, timeout, local_address, socket_options)

        *others, last = addresses
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await connect(address, _CONNECT_TIMEOUT_SECONDS)
        return await connect(last, timeout)


class SystemResolver:
    """Asks the system, so that its hosts file and search domains count.

    Its look-ups block, for as long as a name server cares to hang, and cannot be ended. So each is in a thread of its
    own, rather than in one of a few that all share, and there is one at a time for each host. The threads are daemons:
    none of them holds up the end of the process.
    """

    def __init__(self) -> None:
        self._in_flight: dict[str, asyncio.Future[Sequence[Address]]] = {}

    async def __call__(self, host: str) -> Sequence[Address]:
        """All addresses of a host, in the order in which the system would try them."""
        lookup = self._in_flight.get(host)
        if lookup is None:
            lookup = self._in_flight[host] = asyncio.wrap_future(_resolve_in_thread(host))
            lookup.add_done_callback(lambda _: self._in_flight.pop(host))
        return await asyncio.shield(lookup)


def _resolve_in_thread(host: str) -> Future[Sequence[Address]]:
    found: Future[Sequence[Address]] = Future()

    def look_up() -> None:
        try:
            found.set_result(_addresses_of(host))
        except Exception as error:
            found.set_exception(error)

    Thread(target=look_up, name="resolver", daemon=True).start()
    return found


def _addresses_of(host: str) -> Sequence[Address]:
    results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ip_address(sockaddr[0]) for _, _, _, _, sockaddr in results]
