"""uvicorn's HTTP protocol, with an end to everything that a client can make it wait for.

uvicorn has a time for idle connections, but none for a head or a body that comes slowly, nor for an answer that nobody
reads; and it counts a connection only once it has sent a request.
"""

import asyncio
import socket
import struct
from enum import Enum
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from integration_server.sidecar.limits import HttpLimits
from integration_server.sidecar.middleware import security_headers

IdleConnections: TypeAlias = "dict[LimitedProtocol, None]"
"""Connections whose next request has not come yet, the longest waiting first."""

_CHUNK_BYTES = 4 * 1024  # bytes
_NO_LINGER = struct.pack("ii", 1, 0)  # on, for no seconds
_SEND_BUFFER_BYTES = (
    64 * 1024
)  # bytes that the kernel keeps for a client that does not read; by itself it may keep megabytes


class Phase(Enum):
    """What a connection waits for."""

    KEEPALIVE = "for a next request, of which nothing has come"
    HEAD = "for the rest of a request's head"
    BODY = "for the rest of its body"
    RESPONSE = "for the answer to be made"


def limited_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """What uvicorn takes as its protocol: makes them for one server."""
    idle: IdleConnections = {}
    return cast(type[asyncio.Protocol], partial(LimitedProtocol, limits=limits, idle=idle))


class LimitedProtocol(H11Protocol):
    """One connection. It is in one phase at a time, and each phase has its time; that of a kept one is uvicorn's."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: HttpLimits,
        idle: IdleConnections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._idle = idle
        self._phase: Phase | None = None
        self._cycle: object = None  # of the request whose phase it is
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take the connection; if that is one too many, instead of the one that has been silent for longest."""
        super().connection_made(transport)
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if len(self.connections) > self._limits.connections:
            longest_idle = next(iter(self._idle), None)
            if longest_idle is None:
                self._reject(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                del self._idle[longest_idle]
                longest_idle.abort_connection()
        self._update_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of it."""
        super().connection_lost(exc)
        self._idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Hand on what has come, in pieces: h11 measures a head only while it is not complete."""
        for begin in range(0, len(data), _CHUNK_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + _CHUNK_BYTES])

    def handle_events(self) -> None:
        """Handle what has come; uvicorn calls this whenever there may be something to do."""
        super().handle_events()
        self._update_phase()

    def _update_phase(self) -> None:
        """Note the phase. A new one begins to count, and so does that of a next request."""
        phase, cycle = self._current_phase(), self.cycle
        if phase is self._phase and cycle is self._cycle:
            return
        self._phase, self._cycle = phase, cycle
        self._idle.pop(self, None)
        if phase in (Phase.KEEPALIVE, Phase.HEAD):
            self._idle[self] = None
        if self._timer is not None:
            self._timer.cancel()
        # What was answered before may still have to be read while a connection is kept.
        times = {Phase.HEAD: self._limits.header_timeout, Phase.BODY: self._limits.body_timeout}
        time = times.get(phase, self._limits.response_timeout)
        self._timer = self.loop.call_later(time.total_seconds(), self._on_timeout)

    def _current_phase(self) -> Phase:
        if self.conn.their_state is h11.IDLE:
            previous: object = self.cycle  # None ahead of the first
            return Phase.HEAD if previous is None or self.conn.trailing_data[0] else Phase.KEEPALIVE
        return Phase.BODY if self.conn.their_state is h11.SEND_BODY else Phase.RESPONSE

    def _on_timeout(self) -> None:
        if self._phase is Phase.KEEPALIVE and not self.transport.get_write_buffer_size():
            return
        may_respond = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing()
        if may_respond and self._phase in (Phase.HEAD, Phase.BODY):
            self._reject(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.abort_connection()

    def _reject(self, status: HTTPStatus) -> None:
        """Answer below the app, which may be waiting for more of the request, and end the connection."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # Without a body, which an answer to HEAD could not have.
        extra = {"Content-Length": "0", "Connection": "close"}
        headers = [*security_headers("default-src 'none'").items(), *extra.items()]
        for event in (h11.Response(status_code=status, headers=headers, reason=status.phrase), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.abort_connection()  # who does not read what was said before will not read this either

    def abort_connection(self) -> None:
        """End the connection with a reset: an orderly end would have the kernel wait for the client once more."""
        self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _socket(self) -> socket.socket:
        connection: socket.socket = self.transport.get_extra_info("socket")
        return connection
