"""The connections of outbound HTTP: where they may go, and which requests may share one.

SSRF protection: a host name is resolved once, each of its addresses is checked, and the connection goes to a checked
address. There is no second resolution that could return another address (DNS rebinding). httpcore performs TLS with the
host name over the connection. The lists of addresses are our own, because `is_global` of Python's `ipaddress` differs
between versions and includes multicast.

A connection that has bytes left over after a response, for example because a response was split, would give them to the
next request as its response. Therefore a connection is reused only by requests with the same credentials, and closed
when anything follows a response.

A request that is a stream (`STREAMS_BODY`) is sent while its response is received (RFC 9112 §9.5): a provider that
refuses an upload says so before its end, and one that responds while it reads would otherwise wait for us for ever.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from threading import Thread
from typing import Any, TypeAlias, cast

import httpcore
import httpx

Address: TypeAlias = IPv4Address | IPv6Address
AddressPolicy: TypeAlias = Callable[[Address], bool]
Resolve: TypeAlias = Callable[[str], Awaitable[Sequence[Address]]]
"""Resolves a host name or literal to at least one address. Raises `OSError`."""

CREDENTIALS_KEY = "credentials_key"
"""The extension of a request with the key of its credentials (bytes). Requests with equal keys may use one connection,
one after the other; a request without the extension gets its own, which is closed after the response."""

# Seconds for each address but the last, so that the next one is tried well within the deadline of a request.
_CONNECT_TIMEOUT_SECONDS = 2.0
STREAMS_BODY = "streams_body"
"""The extension of a request whose body is sent while its response is received (true). An error response, and the end
of any response, ends the body."""

_FIRST_ERROR_STATUS = 300  # a redirect is none, but its provider does not want the body either

_READ_ITERATIONS = 4  # of the event loop, in which a read returns bytes that have arrived, also below TLS


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


# --- which requests may share a connection ---------------------------------------------------------------------------


class PooledTransport(httpx.AsyncBaseTransport):
    """httpx's default transport with our network backend, for which httpx has no parameter.

    `reuses_leftovers` switches the checks of this module off, for negative controls.
    """

    def __init__(self, network: httpcore.AsyncNetworkBackend, *, reuses_leftovers: bool = False) -> None:
        self._is_keyed = not reuses_leftovers
        self._pool = (httpcore.AsyncConnectionPool if reuses_leftovers else _Pool)(
            ssl_context=httpx.create_ssl_context(),
            # A limit would be shared by all providers, so that one that hangs blocks the others.
            max_connections=None,
            max_keepalive_connections=100,
            # Servers close idle connections after 2 s (gunicorn), 5 s (Node, uvicorn, Apache) or more. The outcome of
            # a request that is sent at that moment is unknown.
            keepalive_expiry=1,
            network_backend=network,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return once the response headers have arrived."""
        key, url, headers = request.extensions.get(CREDENTIALS_KEY), request.url, request.headers.raw
        make_url = httpcore.URL
        if self._is_keyed:
            make_url = _KeyedUrl
            if key is None:
                headers = [*headers, (b"Connection", b"close")]
        target = make_url(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        if isinstance(target, _KeyedUrl):
            target.key = key
        http_response = await self._pool.handle_async_request(
            httpcore.Request(
                request.method, target, headers=headers, content=request.stream, extensions=request.extensions
            )
        )
        stream = cast(httpx.AsyncByteStream, http_response.stream)  # with the same two methods
        return httpx.Response(http_response.status, headers=http_response.headers, stream=stream)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class _KeyedOrigin(httpcore.Origin):
    """An origin that is equal only to the same origin with the same key. The pool compares origins."""

    def __init__(self, origin: httpcore.Origin, key: bytes | None) -> None:
        super().__init__(origin.scheme, origin.host, origin.port)
        self._key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _KeyedOrigin) and super().__eq__(other) and self._key == other._key

    __hash__ = None  # type: ignore[assignment]  # as httpcore's


class _KeyedUrl(httpcore.URL):
    key: bytes | None = None

    @property
    def origin(self) -> httpcore.Origin:
        return _KeyedOrigin(super().origin, self.key)


class _Pool(httpcore.AsyncConnectionPool):
    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return _Connection(origin, self._ssl_context, self._keepalive_expiry, network_backend=self._network_backend)


class _Connection(httpcore.AsyncHTTPConnection):
    """A connection that is closed, and not reused, when bytes follow a response."""

    _stream: httpcore.AsyncNetworkStream | None = None  # after the first response
    _is_starting = False  # a request that is not sent yet: httpcore takes the connection for idle

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if self._is_starting:
            raise httpcore.ConnectionNotAvailable  # the pool takes another connection
        self._is_starting = True
        try:
            if self._stream is not None and await _has_unread_bytes(self._stream):
                await self.aclose()
                raise httpcore.ConnectionNotAvailable
            async with self._request_lock:
                if self._connection is None:
                    await self._open(request)
            response = await super().handle_async_request(request)
        finally:
            self._is_starting = False
        self._stream = response.extensions["network_stream"]
        return response

    async def _open(self, request: httpcore.Request) -> None:
        try:
            stream = await self._connect(request)
        except BaseException:
            self._connect_failed = True
            raise
        self._connection = _Http11Connection(self._origin, stream, self._keepalive_expiry)

    def is_available(self) -> bool:
        """Whether a request can be sent."""
        return super().is_available() and not self._is_starting

    def is_idle(self) -> bool:
        """Whether it can be closed."""
        return super().is_idle() and not self._is_starting

    def has_expired(self) -> bool:
        """Also if the parser has bytes that are not part of a response. The pool asks after each response."""
        if self._is_starting:
            return False
        parser: Any = getattr(self._connection, "_h11_state", None)  # httpcore has no other access
        return super().has_expired() or (parser is not None and self.is_idle() and bool(parser.trailing_data[0]))


class _Http11Connection(httpcore.AsyncHTTP11Connection):
    """HTTP/1.1 that can send a request's body while it receives the response."""

    _upload: asyncio.Task[None] | None = None

    async def _send_request_body(self, request: httpcore.Request) -> None:
        self._upload = None
        if not request.extensions.get(STREAMS_BODY):
            await super()._send_request_body(request)
            return
        self._upload = asyncio.create_task(self._send_until_closed(request), name="upload")
        self._upload.add_done_callback(_mark_retrieved)

    async def _send_until_closed(self, request: httpcore.Request) -> None:
        with suppress(httpcore.WriteError):  # the provider has closed the connection; its response may be there
            await super()._send_request_body(request)

    async def _receive_event(self, timeout: float | None = None) -> Any:  # noqa: ANN401  # an event of h11
        """The next event of the response. Raises what the upload raises meanwhile: then nobody waits for a response."""
        upload = self._upload
        if upload is None or (upload.done() and (upload.cancelled() or upload.exception() is None)):
            return await super()._receive_event(timeout)
        receiving = asyncio.ensure_future(super()._receive_event(timeout))
        receiving.add_done_callback(_mark_retrieved)
        try:
            await asyncio.wait({receiving, upload}, return_when=asyncio.FIRST_COMPLETED)
            if upload.done():
                upload.result()
            return await receiving
        finally:
            receiving.cancel()

    async def _receive_response_headers(self, request: httpcore.Request) -> Any:  # noqa: ANN401  # as httpcore's
        received = await super()._receive_response_headers(request)
        if received[1] >= _FIRST_ERROR_STATUS:
            await self._end_upload()
        return received

    async def _response_closed(self) -> None:
        try:
            await self._end_upload()
            await super()._response_closed()  # closes the connection, unless the whole request was sent
        except asyncio.CancelledError:  # a second one: httpcore would keep the connection open, and count it as busy
            await self.aclose()
            raise

    async def _end_upload(self) -> None:
        upload = self._upload
        if upload is not None and not upload.done():
            upload.cancel()
            await asyncio.wait({upload})


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from logging an exception that concerns nobody any more."""
    if not task.cancelled():
        task.exception()


async def _has_unread_bytes(stream: httpcore.AsyncNetworkStream) -> bool:
    """Whether bytes, or the end of the connection, have arrived and were not read yet."""
    read = asyncio.ensure_future(stream.read(1))
    try:
        for _ in range(_READ_ITERATIONS):
            await asyncio.sleep(0)
            if read.done():
                break
    finally:
        read.cancel()
    await asyncio.wait({read})
    if read.cancelled():
        return False
    read.exception()  # marks it as retrieved
    return True
