"""The connections of outbound HTTP: httpcore's pool, which reuses a connection only where no response can cross users.

A connection that has bytes left over after a response, for example because a response was split, would give them to the
next request as its response. Therefore a connection is reused only by requests with the same credentials, and closed
when anything follows a response.
"""

import asyncio
from typing import Any, cast

import httpcore
import httpx

CREDENTIALS_KEY = "credentials_key"
"""The extension of a request with the key of its credentials (bytes). Requests with equal keys may use one connection,
one after the other; a request without the extension gets its own, which is closed after the response."""

_READ_ITERATIONS = 4  # of the event loop, in which a read returns bytes that have arrived, also below TLS


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
            response = await super().handle_async_request(request)
        finally:
            self._is_starting = False
        self._stream = response.extensions["network_stream"]
        return response

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
