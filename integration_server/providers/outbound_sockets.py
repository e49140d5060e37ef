"""The sockets of outbound HTTP: TCP and TLS over the event loop's own transports, with the errors of httpcore.

What arrives is kept until it is read, up to a limit. So it is known at any time whether anything is unread, also below
TLS, without a read that has to be cancelled.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

import httpcore

_MAX_UNREAD = 1 << 16  # bytes; then the socket is not read any more, and the kernel makes the peer wait


class Stream(Protocol):
    """One connection. At a time, one task may read and one may write."""

    async def read(self, max_bytes: int) -> bytes:
        """The next bytes; none at the end. Raises `httpcore.ReadError`."""

    async def write(self, buffer: bytes) -> None:
        """Send bytes; returns when there is room for more. Raises `httpcore.WriteError`."""

    async def aclose(self) -> None:
        """Close the connection, whatever has not been sent."""

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None) -> "Stream":
        """The connection within TLS, to a server that has a certificate for this name. Raises as `connect_tcp`."""

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401  # as the event loop's transports
        """`is_readable`: whether bytes, or the end, have arrived and were not read."""


class Network(Protocol):
    """Opens connections."""

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None) -> Stream:
        """A connection, within `timeout` seconds. Raises `httpcore.ConnectError` or `httpcore.ConnectTimeout`."""


class LoopNetwork:
    """Connects to addresses: a host must be a literal, which the event loop does not resolve."""

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None) -> Stream:
        """A connection."""
        async with _connecting(timeout):
            _, stream = await asyncio.get_running_loop().create_connection(SocketStream, host, port)
        return stream


class CertificateNotTrusted(httpcore.ConnectError):
    """The certificate of the peer is not valid for the host name, or not from a trusted authority."""


class TlsFailed(httpcore.ConnectError):
    """The peer does not speak TLS, or none of ours."""


class SocketStream(asyncio.Protocol):
    """The `Stream` of a transport of the event loop."""

    def __init__(self, *, is_tls: bool = False) -> None:
        self._is_tls = is_tls
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # set before anyone else has the stream
        self._unread = bytearray()
        self._is_paused = False
        self._is_ended = False  # nothing more arrives
        self._is_lost = False  # nothing can be sent either; TLS says then that it is open
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._pause_if_full()

    def data_received(self, data: bytes) -> None:
        """Keep what has arrived."""
        self._unread += data
        if self._transport is not None:  # within TLS, data may arrive at the end of the handshake
            self._pause_if_full()
        self._wake_reader()

    def eof_received(self) -> bool:
        """The peer sends nothing more. It may still read, unless TLS ends with this."""
        self._is_ended = True
        self._wake_reader()
        return not self._is_tls

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended in both directions."""
        self._is_ended = self._is_lost = True
        self._error = self._error or exc
        self._wake_reader()
        self._can_write.set()

    def pause_writing(self) -> None:
        """The peer takes nothing at the moment."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """The peer has taken what was waiting."""
        self._can_write.set()

    def _pause_if_full(self) -> None:
        if len(self._unread) >= _MAX_UNREAD and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- called by those who read and write

    async def read(self, max_bytes: int) -> bytes:
        """The next bytes; none at the end."""
        if self._unread:
            await asyncio.sleep(0)  # a peer that sends fast does not keep the event loop
        elif not self._is_ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if self._is_paused and len(self._unread) < _MAX_UNREAD:
            self._is_paused = False
            self._transport.resume_reading()
        if not data and self._error is not None:
            raise httpcore.ReadError from None
        return data

    async def write(self, buffer: bytes) -> None:
        """Send bytes; returns when there is room for more."""
        self._require_open()
        self._transport.write(buffer)
        if not self._can_write.is_set():
            await self._can_write.wait()
            self._require_open()

    def _require_open(self) -> None:
        if self._is_lost or self._transport.is_closing():
            raise httpcore.WriteError

    async def aclose(self) -> None:
        """Close the connection, whatever has not been sent. A reader gets an error: what it has is not all."""
        self._error = self._error or ConnectionAbortedError()
        self._transport.abort()

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None) -> Stream:
        """The connection within TLS."""
        stream = SocketStream(is_tls=True)  # a new one: bytes that came without TLS are not part of it
        async with _connecting():
            try:
                transport = await asyncio.get_running_loop().start_tls(
                    self._transport, stream, ssl_context, server_hostname=server_hostname
                )
                if transport is None:
                    raise OSError
            except BaseException:
                self._transport.abort()
                raise
        stream.connection_made(transport)
        return stream

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401  # as the transports
        """What the transport knows; `is_readable`: whether bytes, or the end, have arrived and were not read."""
        if info == "is_readable":
            return bool(self._unread) or self._is_ended
        return self._transport.get_extra_info(info)


@asynccontextmanager
async def _connecting(timeout: float | None = None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise httpcore.ConnectTimeout from None
    except ssl.SSLCertVerificationError:
        raise CertificateNotTrusted from None
    except ssl.SSLError:  # its message may quote the peer's bytes
        raise TlsFailed from None
    except OSError as error:
        raise httpcore.ConnectError(type(error).__name__) from None
