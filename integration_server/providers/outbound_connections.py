"""The connections of outbound HTTP: where they may go, and which requests may share one.

SSRF protection: a host name is resolved once, each of its addresses is checked, and the connection goes to a checked
address. There is no second resolution that could return another address (DNS rebinding). TLS uses the host name. The
lists of addresses are our own, because `is_global` of Python's `ipaddress` differs between versions and includes
multicast.

A connection that has bytes left over after a response, for example because a response was split, would give them to the
next request as its response. Therefore a connection is reused only by requests with the same credentials, and closed
when anything follows a response.

A request that is a stream (`STREAMS_BODY`) is sent while its response is received (RFC 9112 §9.5): a provider that
refuses an upload says so before its end, and one that responds while it reads would otherwise wait for us for ever.
"""

import asyncio
import os
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from threading import Thread
from typing import Any, Self, TypeAlias, cast

import h11
import httpcore
import httpx
from cachetools import TTLCache

from integration_server.providers.outbound_sockets import LoopNetwork, Network, Stream

Address: TypeAlias = IPv4Address | IPv6Address
AddressPolicy: TypeAlias = Callable[[Address], bool]
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[Address]]]
"""Resolves a host name or literal to at least one address. Raises `OSError`."""

CREDENTIALS_KEY = "credentials_key"
"""The extension of a request with the key of its credentials (bytes). Requests with equal keys may use one connection,
one after the other; a request without the extension gets its own, which is closed after the response."""

# Seconds for each address but the last, so that the next one is tried well within the deadline of a request.
_CONNECT_TIMEOUT_SECONDS = 2.0

# A look-up takes a thread. Within this time connections go to the addresses that were checked, whatever the name means
# by now; resolvers keep answers for longer.
_CHECKED_SECONDS = 1.0
_MAX_CHECKED = 1000  # hosts

STREAMS_BODY = "streams_body"
"""The extension of a request whose body is sent while its response is received (true). An error response, and the end
of any response, ends the body."""

SEND_STATE = "send_state"
"""The extension of a request with its `SendState`."""

_FIRST_ERROR_STATUS = 300  # a redirect is none, but its provider does not want the body either

_READ_ITERATIONS = 2  # of the event loop, after which it has read the bytes that had arrived, also below TLS
_READ_BYTES = 1 << 16
_MAX_HEAD_BYTES = 100 * 1024  # of a response, or of one of its chunks' heads
_EVENTS_IN_TURN = 100  # of a response, such as chunks, in one turn of the loop: about a millisecond
_DEFAULT_PORTS = {"http": 80, "https": 443}

_Event: TypeAlias = tuple[Callable[..., h11.Event], Mapping[str, Any]]
"""The class of an event, and its values: some are not valid."""

_END_OF_MESSAGE: _Event = (h11.EndOfMessage, {})

# Servers close idle connections after 2 s (gunicorn), 5 s (Node, uvicorn, Apache) or more. The outcome of a request
# that is sent at that moment is unknown.
_KEEPALIVE_SECONDS = 1.0
_MAX_IDLE = 100  # connections. Busy ones have no limit: one provider that hangs would block the others


@dataclass(slots=True)
class SendState:
    """Whether a request is not sent yet. It stays so if it has no connection, or cannot be sent: nothing was sent."""

    is_unsent: bool = False


# --- the addresses that requests to providers may go to --------------------------------------------------------------


# IANA IPv4 Special-Purpose Address Registry (RFC 6890), and metadata services of clouds.
_SPECIAL_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; metadata of some clouds
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host agent of a cloud, at a public address
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; metadata of some clouds
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# The only IPv6 addresses that are assigned publicly (RFC 4291 §2.4). All others are local, or contain an IPv4 address
# for a translator: mapped, compatible, NAT64.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, including Teredo, which contains an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which contains an IPv4 address
        "3fff::/20",  # documentation
    )
)
_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def is_public(address: Address) -> bool:
    """Whether an address is a public unicast address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return (
        address in _GLOBAL_UNICAST
        and address.scope_id is None
        and not any(address in network for network in _SPECIAL_V6)
    )


def is_public_or_loopback(address: Address) -> bool:
    """Whether an address is public or loopback. Dev mode needs loopback for the sandbox."""
    return is_public(address) or any(address in network for network in _LOOPBACK)


# --- how a connection is opened --------------------------------------------------------------------------------------


class AddressNotAllowed(OSError):
    """A host name resolved to an address that is not allowed. Nothing was sent to it."""


class SsrfGuardedNetwork:
    """Connects to hosts whose addresses are all allowed. Raises `AddressNotAllowed` for other hosts."""

    def __init__(
        self,
        is_allowed: AddressPolicy,
        *,
        resolve: Resolve | None = None,
        connector: Network | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_allowed = is_allowed
        self._resolve = resolve or SystemResolver()
        self._connector = connector or LoopNetwork()
        self._checked: TTLCache[str, Sequence[Address]] = TTLCache(_MAX_CHECKED, _CHECKED_SECONDS, monotonic)

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None) -> Stream:
        """A connection to the first address of the host that accepts one."""
        *others, last = await self._checked_addresses(host)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._connector.connect_tcp(str(address), port, _CONNECT_TIMEOUT_SECONDS)
        try:
            return await self._connector.connect_tcp(str(last), port, timeout)
        except BaseException:
            self._checked.pop(host, None)  # it may have moved
            raise

    async def _checked_addresses(self, host: str) -> Sequence[Address]:
        """The addresses of a host, all of which are allowed; for a moment those that were checked last."""
        addresses = self._checked.get(host)
        if addresses is None:
            addresses = await self._resolve(host)
            if not all(map(self._is_allowed, addresses)):
                # One forbidden address is enough to reject the host: its DNS cannot be trusted.
                raise AddressNotAllowed
            self._checked[host] = addresses
        return addresses


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


# --- which requests may share a connection ---------------------------------------------------------------------------


_Target: TypeAlias = tuple[str, str, int, bytes | None]
"""What the requests on one connection have in common: scheme, host, port, and the key of their credentials."""


def _tls_of_http1() -> ssl.SSLContext:
    tls = httpx.create_ssl_context()
    tls.set_alpn_protocols(["http/1.1"])
    return tls


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends requests by HTTP/1.1, on connections that `network` opens.

    `reuses_leftovers` switches the checks of this module off, for negative controls. `monotonic` is in seconds.
    `events_in_turn`: after so many chunks and interim responses, which arrive in one segment, other tasks have a turn.
    """

    def __init__(
        self,
        network: Network,
        *,
        reuses_leftovers: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        events_in_turn: int = _EVENTS_IN_TURN,
    ) -> None:
        self._network = network
        self._events_in_turn = events_in_turn
        self._is_checked = not reuses_leftovers
        self._monotonic = monotonic
        # Authorities that the operator names are read at once, so that a mistake prevents the start.
        self._tls = _tls_of_http1() if os.environ.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR"} else None
        self._reading_tls = asyncio.Lock()
        self._open: set[_Connection] = set()
        self._idle: dict[_Target, list[_Connection]] = {}
        self._idle_times: OrderedDict[_Connection, float] = OrderedDict()  # since when, the longest first

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return once the response headers have arrived."""
        url, key, headers = request.url, request.extensions.get(CREDENTIALS_KEY), request.headers.raw
        if self._is_checked and key is None:
            headers = [*headers, (b"Connection", b"close")]
        port = url.port or _DEFAULT_PORTS[url.scheme]
        target = (url.scheme, url.raw_host.decode("ascii"), port, key if self._is_checked else None)
        send_state = request.extensions.get(SEND_STATE) or SendState()
        send_state.is_unsent = True
        connection = await self._take_idle(target) or await self._connect(target)
        return await connection.exchange(request, headers, send_state)

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in list(self._open):
            await connection.close()

    async def _connect(self, target: _Target) -> "_Connection":
        scheme, host, port, _ = target
        tls = await self._get_tls() if scheme == "https" else None
        stream = await self._network.connect_tcp(host, port)
        if tls is not None:
            stream = await stream.start_tls(tls, server_hostname=host)
        connection = _Connection(target, stream, self._is_checked, self._events_in_turn, self._keep, self._forget)
        self._open.add(connection)
        return connection

    async def _get_tls(self) -> ssl.SSLContext:
        """The TLS settings of all connections. Made for the first one: the usual authorities take 25 ms to read."""
        async with self._reading_tls:
            if self._tls is None:
                self._tls = await asyncio.to_thread(_tls_of_http1)
            return self._tls

    async def _take_idle(self, target: _Target) -> "_Connection | None":
        await self._close_expired()
        while connections := self._idle.get(target):
            connection = connections[-1]
            self._remove_idle(connection)
            is_usable = False
            try:
                is_usable = not (self._is_checked and await connection.has_unread_bytes())
            finally:
                if not is_usable:  # also if the caller is cancelled: nobody else has it
                    await connection.close()
            if is_usable:
                return connection
        return None

    async def _keep(self, connection: "_Connection") -> None:
        self._idle.setdefault(connection.target, []).append(connection)
        self._idle_times[connection] = self._monotonic()
        await self._close_expired()

    async def _close_expired(self) -> None:
        end = self._monotonic() - _KEEPALIVE_SECONDS
        while self._idle_times:
            connection, idle_since = next(iter(self._idle_times.items()))
            if idle_since > end and len(self._idle_times) <= _MAX_IDLE:
                return
            self._remove_idle(connection)
            await connection.close()

    def _remove_idle(self, connection: "_Connection") -> None:
        if self._idle_times.pop(connection, None) is not None:
            same_target = self._idle[connection.target]
            same_target.remove(connection)
            if not same_target:
                del self._idle[connection.target]

    def _forget(self, connection: "_Connection") -> None:
        self._remove_idle(connection)
        self._open.discard(connection)


class _Connection:
    """A connection with HTTP/1.1, for one request at a time. It is closed, and not kept, when bytes follow a response.

    The body of a request can be sent while the response is received.
    """

    def __init__(
        self,
        target: _Target,
        stream: Stream,
        is_checked: bool,
        events_in_turn: int,
        keep: "Callable[[_Connection], Awaitable[None]]",
        forget: "Callable[[_Connection], None]",
    ) -> None:
        self.target = target
        self._stream = stream
        self._is_checked = is_checked
        self._events_in_turn = events_in_turn
        self._event_count = 0
        self._keep, self._forget = keep, forget
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._upload: asyncio.Task[None] | None = None

    async def has_unread_bytes(self) -> bool:
        """Whether bytes, or the end of the connection, have arrived since the last response."""
        for _ in range(_READ_ITERATIONS):
            await asyncio.sleep(0)
        return bool(self._stream.get_extra_info("is_readable"))

    async def close(self) -> None:
        """Close the connection, in the middle of an exchange too."""
        self._forget(self)
        try:
            await self._end_upload()
        finally:
            await self._stream.aclose()

    async def exchange(
        self, request: httpx.Request, headers: Sequence[tuple[bytes, bytes]], send_state: SendState
    ) -> httpx.Response:
        """Send a request, and return once the response headers have arrived."""
        try:
            with suppress(httpcore.WriteError):  # the provider has closed the connection; its response may be there
                await self._send(request, headers, send_state)
            response = await self._next_event()
            while isinstance(response, h11.InformationalResponse):
                response = await self._next_event()
            if not isinstance(response, h11.Response):
                raise httpcore.RemoteProtocolError
            if response.status_code >= _FIRST_ERROR_STATUS:
                await self._end_upload()
        except BaseException:
            await self.close()
            raise
        return httpx.Response(response.status_code, headers=response.headers.raw_items(), stream=_ResponseBody(self))

    async def next_chunk(self) -> bytes | None:
        """The next bytes of the response body as it arrives; None at its end."""
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def end(self) -> None:
        """End the exchange. The connection is kept for the next one, if both messages are complete."""
        try:
            await self._end_upload()
        except asyncio.CancelledError:  # a second one
            await self.close()
            raise
        is_complete = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        is_followed = self._http.trailing_data[0] or self._stream.get_extra_info("is_readable")
        if is_complete and not (self._is_checked and is_followed):
            self._http.start_next_cycle()
            await self._keep(self)
        else:
            await self.close()

    async def _send(
        self, request: httpx.Request, headers: Sequence[tuple[bytes, bytes]], send_state: SendState
    ) -> None:
        self._upload = None
        is_stream = request.extensions.get(STREAMS_BODY)
        head: _Event = (h11.Request, {"method": request.method, "target": request.url.raw_path, "headers": headers})
        if is_stream:
            sent = self._bytes_of(head)
        elif request.content:
            sent = self._bytes_of(head, (h11.Data, {"data": request.content}), _END_OF_MESSAGE)
        else:
            sent = self._bytes_of(head, _END_OF_MESSAGE)
        send_state.is_unsent = False
        await self._stream.write(sent)
        if is_stream:
            body = cast("httpx.AsyncByteStream", request.stream)
            self._upload = asyncio.create_task(self._send_body(body), name="upload")
            self._upload.add_done_callback(_mark_retrieved)

    async def _send_body(self, body: httpx.AsyncByteStream) -> None:
        with suppress(httpcore.WriteError):  # as above
            async for chunk in body:
                # What has arrived is read first: it is lost if a write finds the connection closed.
                await asyncio.sleep(0)
                await self._stream.write(self._bytes_of((h11.Data, {"data": chunk})))
            if end := self._bytes_of(_END_OF_MESSAGE):
                await self._stream.write(end)

    def _bytes_of(self, *events: _Event) -> bytes:
        try:
            return b"".join(self._http.send(make(**values)) or b"" for make, values in events)
        except h11.LocalProtocolError:
            raise httpcore.LocalProtocolError from None

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        """The next event of the response. Raises what the upload raises meanwhile: then nobody waits for a response."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:  # it quotes what it could not parse
                raise httpcore.RemoteProtocolError from None
            if event is not h11.NEED_DATA:
                self._event_count += 1
                if self._event_count % self._events_in_turn == 0:
                    await asyncio.sleep(0)
                return cast("h11.Event | type[h11.PAUSED]", event)
            data = await self._read()
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise httpcore.RemoteProtocolError("the connection ended before the response")
            self._http.receive_data(data)

    async def _read(self) -> bytes:
        upload = self._upload
        if upload is None or (upload.done() and (upload.cancelled() or upload.exception() is None)):
            return await self._stream.read(_READ_BYTES)
        receiving = asyncio.ensure_future(self._stream.read(_READ_BYTES))
        receiving.add_done_callback(_mark_retrieved)
        try:
            await asyncio.wait({receiving, upload}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done():
                upload.result()
            return await receiving
        finally:
            receiving.cancel()

    async def _end_upload(self) -> None:
        upload = self._upload
        if upload is not None and not upload.done():
            upload.cancel()
            await asyncio.wait({upload})


class _ResponseBody(httpx.AsyncByteStream):
    """The body of a response. Closing it ends the exchange."""

    def __init__(self, connection: _Connection) -> None:
        self._connection: _Connection | None = connection

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = None if self._connection is None else await self._connection.next_chunk()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """End the exchange."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.end()


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from logging an exception that concerns nobody any more."""
    if not task.cancelled():
        task.exception()
