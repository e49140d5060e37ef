"""SSRF protection: the network backend of httpcore, which checks addresses before it connects.

A host name is resolved once, each of its addresses is checked, and the connection goes to a checked address. There is
no second resolution that could return another address (DNS rebinding). httpcore performs TLS with the host name over
the connection.
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
"""Resolves a host name or literal to at least one address. Raises `OSError`."""

# Seconds for each address but the last, so that the next one is tried well within the deadline of a request.
_CONNECT_TIMEOUT_SECONDS = 2.0


class AddressNotAllowed(OSError):
    """A host name resolved to an address that is not allowed. Nothing was sent to it."""


class SsrfGuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to hosts whose addresses are all allowed. Raises `AddressNotAllowed` for other hosts."""

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
        """A connection to the first address of the host that accepts one."""
        addresses = await self._resolve(host)
        if not all(map(self._is_allowed, addresses)):
            # One forbidden address is enough to reject the host: its DNS cannot be trusted.
            raise AddressNotAllowed

        async def connect(address: Address, timeout: float | None) -> httpcore.AsyncNetworkStream:
            return await self._connector.connect_tcp(str(address), port, timeout, local_address, socket_options)

        *others, last = addresses
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await connect(address, _CONNECT_TIMEOUT_SECONDS)
        return await connect(last, timeout)


class SystemResolver:
    """Resolves with the system's resolver, which includes the hosts file and search domains.

    A look-up blocks for as long as a name server hangs, and cannot be cancelled. Each therefore runs in its own thread
    instead of a shared pool, at most one per host. The threads are daemons, so that they do not delay the exit of the
    process.
    """

    def __init__(self) -> None:
        self._in_flight: dict[str, asyncio.Future[Sequence[Address]]] = {}

    async def __call__(self, host: str) -> Sequence[Address]:
        """All addresses of a host, in the order of the system's preference."""
        lookup = self._in_flight.get(host)
        if lookup is None:
            lookup = self._in_flight[host] = asyncio.wrap_future(_resolve_in_thread(host))
            lookup.add_done_callback(lambda _: self._in_flight.pop(host))
        return await asyncio.shield(lookup)


def _resolve_in_thread(host: str) -> Future[Sequence[Address]]:
    found: Future[Sequence[Address]] = Future()

    def look_up() -> None:
        try:
            results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found.set_result([ip_address(sockaddr[0]) for _, _, _, _, sockaddr in results])
        except Exception as error:
            found.set_exception(error)

    Thread(target=look_up, name="resolver", daemon=True).start()
    return found
