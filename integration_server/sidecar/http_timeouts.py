"""uvicorn's HTTP protocol with timeouts for every phase of a connection, and a limit on connections.

uvicorn has a timeout for idle connections only: none for a head or a body that arrives slowly, none for a response that
the client does not read. It counts a connection only when the connection has sent a request.
"""

import asyncio
import socket
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, TypeAlias, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from integration_server.http_serving import reset_connection
from integration_server.sidecar.middleware import HttpLimits, security_headers

IdleConnections: TypeAlias = "dict[LimitedProtocol, None]"
"""Connections that wait for a request, the longest idle first."""

_CHUNK_BYTES = 4 * 1024
_SEND_BUFFER_BYTES = 64 * 1024  # for a client that does not read; the kernel's default grows to megabytes


class ConnectionPhase(Enum):
    """The event that a connection waits for."""

    KEEPALIVE = auto()
    """The next request, of which nothing has arrived."""
    HEAD = auto()
    """The rest of a request's head."""
    BODY = auto()
    """The rest of a request's body."""
    RESPONSE = auto()
    """The response to be made."""


def limited_protocol(limits: HttpLimits) -> type[asyncio.Protocol]:
    """The protocol factory for one uvicorn server."""
    idle: IdleConnections = {}
    return cast(type[asyncio.Protocol], partial(LimitedProtocol, limits=limits, idle=idle))


class LimitedProtocol(H11Protocol):
    """One connection. It is in one phase at a time, each with a timeout. uvicorn times the KEEPALIVE phase."""

    def __init__(self, *arguments: Any, limits: HttpLimits, idle: IdleConnections, **options: Any) -> None:  # noqa: ANN401  # uvicorn's own
        super().__init__(*arguments, **options)
        self._limits = limits
        self._idle = idle
        self._phase: ConnectionPhase | None = None
        self._cycle: object = None  # the request that the phase belongs to
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Accept the connection. Above the limit, close the connection that has been idle for longest instead."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if len(self.connections) > self._limits.connections:
            longest_idle = next(iter(self._idle), None)
            if longest_idle is None:
                self._reject(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                del self._idle[longest_idle]
                reset_connection(longest_idle.transport)
        self._update_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and remove the connection from the idle ones."""
        super().connection_lost(exc)
        self._idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, in chunks: h11 checks the size of a head only while it is incomplete."""
        for begin in range(0, len(data), _CHUNK_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[begin : begin + _CHUNK_BYTES])

    def handle_events(self) -> None:
        """Handle parsed events; uvicorn calls this after every change of state."""
        super().handle_events()
        self._update_phase()

    def _update_phase(self) -> None:
        """Restart the timer if the phase or the request has changed."""
        phase, cycle = self._current_phase(), self.cycle
        if phase is self._phase and cycle is self._cycle:
            return
        self._phase, self._cycle = phase, cycle
        self._idle.pop(self, None)
        if phase in (ConnectionPhase.KEEPALIVE, ConnectionPhase.HEAD):
            self._idle[self] = None
        if self._timer is not None:
            self._timer.cancel()
        # In the KEEPALIVE phase the timer covers a previous response that the client has not read yet.
        timeouts = {ConnectionPhase.HEAD: self._limits.header_timeout, ConnectionPhase.BODY: self._limits.body_timeout}
        timeout = timeouts.get(phase, self._limits.response_timeout)
        self._timer = self.loop.call_later(timeout.total_seconds(), self._on_timeout)

    def _current_phase(self) -> ConnectionPhase:
        if self.conn.their_state is h11.IDLE:
            is_first: bool = self.cycle is None
            return ConnectionPhase.HEAD if is_first or self.conn.trailing_data[0] else ConnectionPhase.KEEPALIVE
        return ConnectionPhase.BODY if self.conn.their_state is h11.SEND_BODY else ConnectionPhase.RESPONSE

    def _on_timeout(self) -> None:
        if self._phase is ConnectionPhase.KEEPALIVE and not self.transport.get_write_buffer_size():
            return
        may_respond = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing()
        if may_respond and self._phase in (ConnectionPhase.HEAD, ConnectionPhase.BODY):
            self._reject(HTTPStatus.REQUEST_TIMEOUT)
        else:
            # After an orderly close the kernel would wait for the client once more.
            reset_connection(self.transport)

    def _reject(self, status: HTTPStatus) -> None:
        """Respond without the app, which may be waiting for more of the request, and close the connection."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # No body, because a response to HEAD cannot have one.
        extra = {"Content-Length": "0", "Connection": "close"}
        headers = [*security_headers("default-src 'none'").items(), *extra.items()]
        for event in (h11.Response(status_code=status, headers=headers, reason=status.phrase), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.transport.get_write_buffer_size():
            reset_connection(self.transport)  # the client does not read
