"""uvicorn's HTTP protocol with strict parsing, a timeout for every phase of a connection, and limits on connections.

uvicorn has a timeout for idle connections only: none for a head or a body that arrives slowly, none for a response that
the client does not read. It counts a connection only when the connection has sent a request. It parses all that has
arrived at once, also a body that nobody reads, and the rest of a request that has its response already.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from integration_server.domain.http_syntax import RequestRefused, RequestSyntax, read_chunk_header
from integration_server.domain.peers import peer_key
from integration_server.http_serving import reset_connection
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.middleware import AnonymousLimits, is_verified, security_headers

_SLICE_BYTES = 4 * 1024
_CHUNKED_SLICE_BYTES = 1024  # at most 170 chunks, each of which costs some ten µs
_MAX_DISCARDED_BODIES = 16  # of the largest size: far more than a client sends by mistake
_SOCKET_BUFFER_BYTES = 64 * 1024  # for a client that does not read, or sends at once; the kernel's grow to megabytes


# --- the parser of a connection --------------------------------------------------------------------------------------


class StrictConnection(h11.Connection):
    """One connection's parser, which reads only what `RequestSyntax` accepts.

    After `next_event` has raised, `refusal` is the status of the response to send.
    """

    def __init__(self, limits: HttpLimits) -> None:
        super().__init__(h11.SERVER, limits.head_bytes)
        self.refusal = HTTPStatus.BAD_REQUEST
        self._limits = limits
        self._syntax = RequestSyntax(head_bytes=limits.head_bytes, headers=limits.headers, url_bytes=limits.url_bytes)
        self._chunks = 0
        self._body_bytes = 0
        self.is_chunked = False
        """Whether the body of the current request has chunks."""
        self._expects_chunk = False  # the next bytes are a chunk's header, perhaps after the end of a chunk
        self._expects_trailers = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. Raises `RemoteProtocolError`."""
        try:
            if self._limits.refuse_ambiguous:
                self._check(self.trailing_data[0])
            event = super().next_event()
            self._follow(event)
        except RequestRefused as error:
            self.refusal = error.status
            raise h11.RemoteProtocolError(str(error), error_status_hint=error.status) from error
        except h11.RemoteProtocolError as error:
            self.refusal = HTTPStatus(error.error_status_hint)
            raise
        return event

    def _check(self, data: bytes) -> None:
        """Check what h11 reads next."""
        if self.their_state is h11.IDLE:
            self._syntax.check_head(data)
        elif self.their_state is h11.SEND_BODY and self._expects_trailers:
            self._syntax.check_trailers(data)
        elif self.their_state is h11.SEND_BODY and self._expects_chunk:
            self._check_chunk_header(data)

    def _check_chunk_header(self, data: bytes) -> None:
        header = read_chunk_header(data)
        if header is None:
            return
        size, rest = header
        self._expects_chunk = False  # h11 reads the header now, even if nothing of the chunk has arrived
        if not size:
            self._expects_trailers = True
            self._syntax.check_trailers(rest)

    def _follow(self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]) -> None:
        """Remember what comes after an event, and count chunks."""
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
            self._expects_trailers = False
            self.is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            self._expects_chunk = self.is_chunked
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            self._expects_chunk = event.chunk_end
            if self._chunks > self._limits.chunks + self._body_bytes // 1024:
                raise RequestRefused("too many chunks", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


# --- connections -----------------------------------------------------------------------------------------------------


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
    LINGER = auto()
    """The client to read the last response. What it sends is discarded."""


class ConnectionTable:
    """The connections of one server that can be closed for a new one, and the number of each peer's connections."""

    def __init__(self) -> None:
        self.by_peer: Counter[str] = Counter()
        self.idle: dict[LimitedProtocol, None] = {}  # the longest idle first

    def add(self, connection: "LimitedProtocol") -> None:
        """Count a new connection."""
        self.by_peer[connection.peer] += 1

    def remove(self, connection: "LimitedProtocol") -> None:
        """Forget a closed connection."""
        self.idle.pop(connection, None)
        self.by_peer[connection.peer] -= 1
        self.by_peer += Counter()  # drops peers without a connection

    def longest_idle(self, peer: str | None = None) -> "LimitedProtocol | None":
        """The connection that has been idle for longest: of all, or of one peer."""
        return next((connection for connection in self.idle if peer in (None, connection.peer)), None)


class ParserTurns:
    """Parses one slice in each iteration of the loop, however many connections have data. Peers take turns."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[LimitedProtocol, None]] = {}

    def add(self, connection: "LimitedProtocol") -> None:
        """Give a connection a turn."""
        if not self._waiting:
            connection.loop.call_soon(self._run, connection.loop)
        self._waiting.setdefault(connection.peer, {})[connection] = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        peer, connections = next(iter(self._waiting.items()))
        connection = next(iter(connections))
        del self._waiting[peer], connections[connection]
        if connections:
            self._waiting[peer] = connections
        if self._waiting:
            loop.call_soon(self._run, loop)
        connection.parse_slice()


def limited_protocol(limits: HttpLimits, anonymous: AnonymousLimits) -> type[asyncio.Protocol]:
    """The protocol factory for one uvicorn server."""
    protocol = partial(
        LimitedProtocol, limits=limits, anonymous=anonymous, table=ConnectionTable(), turns=ParserTurns()
    )
    return cast(type[asyncio.Protocol], protocol)


class LimitedProtocol(H11Protocol):
    """One connection. It is in one phase at a time, each with a timeout. uvicorn times the KEEPALIVE phase."""

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401  # uvicorn's own
        limits: HttpLimits,
        anonymous: AnonymousLimits,
        table: ConnectionTable,
        turns: ParserTurns,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*arguments, **options)
        self.conn: StrictConnection = StrictConnection(limits)
        self.peer = ""
        self._limits = limits
        self._anonymous = anonymous
        self._table = table
        self._turns = turns
        self._is_proxy = False
        self._phase: ConnectionPhase | None = None
        self._cycle: object = None  # the request that the phase belongs to
        self._timer: asyncio.TimerHandle | None = None
        self._unparsed = bytearray()
        self._body_reader: object = None  # the request whose body the app reads
        self._is_at_end = False  # the client sends nothing more
        self._discarded_bytes = 0

    # --- events of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Accept the connection. Above a limit, close the connection that has been idle for longest instead."""
        super().connection_made(cast(asyncio.Transport, _LingeringTransport(transport, self)))
        self._socket_transport = transport
        self.flow = _DemandFlowControl(transport, self._read_on_demand)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        host = self.client[0] if self.client else ""
        self.peer, self._is_proxy = peer_key(host), self._anonymous.is_proxy(host)
        self._table.add(self)
        self._enforce_connection_limits()
        self._update_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and forget the connection."""
        super().connection_lost(exc)
        self._table.remove(self)
        self._unparsed.clear()
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        """Keep what arrived until it is parsed."""
        if self._phase is ConnectionPhase.LINGER:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _MAX_DISCARDED_BODIES * self._limits.body_bytes:
                reset_connection(self._socket_transport)
            return
        self._unset_keepalive_if_required()
        self._unparsed += data
        self._continue_parsing()
        self._update_phase()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own declaration
        """Keep the connection for the responses to requests that have arrived."""
        self._is_at_end = True
        return self._phase in (ConnectionPhase.HEAD, ConnectionPhase.BODY, ConnectionPhase.RESPONSE) and (
            self._has_input() or not self._needs_data()
        )

    # --- parsing

    def parse_slice(self) -> None:
        """Parse a part of what arrived: of a head, no more than the head, because its body may never be read."""
        if self.is_closing() or not self._needs_data():
            return
        size = _CHUNKED_SLICE_BYTES if self.conn.is_chunked else _SLICE_BYTES
        if self.conn.their_state is h11.IDLE:
            head_end = self._unparsed.find(b"\r\n\r\n", 0, _SLICE_BYTES)
            size = _SLICE_BYTES if head_end < 0 else head_end + 4
        self.conn.receive_data(bytes(self._unparsed[:size]))
        del self._unparsed[:size]
        self.handle_events()

    def handle_events(self) -> None:
        """Handle parsed events; uvicorn calls this after every change of state."""
        super().handle_events()
        if not self.is_closing():
            self._continue_parsing()
            self._update_phase()

    def _continue_parsing(self) -> None:
        """Wait for a turn if there is something to parse, or for the client if the parser needs more."""
        has_unused_body = self.conn.their_state is h11.SEND_BODY and not self._needs_data()
        if has_unused_body or len(self._unparsed) > _SLICE_BYTES:
            self.flow.pause_reading()
        if self._needs_data():
            if self._unparsed:
                self._turns.add(self)
            elif self._is_at_end:
                self._socket_transport.close()
            else:
                self.flow.resume_reading()

    def _needs_data(self) -> bool:
        """Whether the parser waits for a head, or for a body that the app reads."""
        reads_body = self._body_reader is not None and self._body_reader is self.cycle
        return self.conn.their_state is h11.IDLE or (self.conn.their_state is h11.SEND_BODY and reads_body)

    def _read_on_demand(self) -> bool:
        """The app, or uvicorn after a response, wants to read: whether from the socket."""
        self._body_reader = self.cycle
        if self._unparsed and self._needs_data():
            self._turns.add(self)
        return not self._unparsed and not self._is_at_end

    # --- uvicorn's own steps

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser refused."""
        self._refuse(self.conn.refusal)

    def on_response_complete(self) -> None:
        """Read the next request: after a pause, unless the peer is trusted or has sent a verified request.

        Requests that cost their sender nothing are thereby few on each connection. The first is not delayed.
        """
        pause = self._limits.request_interval.total_seconds()
        if self.is_closing() or self._is_proxy or not pause or is_verified(cast(Scope, self.cycle.scope)):
            super().on_response_complete()
            return
        self.flow.pause_reading()
        self._update_phase()
        self.loop.call_later(pause, super().on_response_complete)

    def shutdown(self) -> None:
        """Close the connection, or have the response in progress close it."""
        if self._phase is ConnectionPhase.LINGER:
            reset_connection(self._socket_transport)
        else:
            super().shutdown()

    # --- phases

    def _update_phase(self) -> None:
        """Restart the timer if the phase or the request has changed."""
        phase, cycle = self._current_phase(), self.cycle
        if phase is self._phase and cycle is self._cycle:
            return
        self._phase, self._cycle = phase, cycle
        self._table.idle.pop(self, None)
        if phase in (ConnectionPhase.KEEPALIVE, ConnectionPhase.HEAD):
            self._table.idle[self] = None
        # In the KEEPALIVE phase the timer covers a previous response that the client has not read yet.
        timeouts = {ConnectionPhase.HEAD: self._limits.header_timeout, ConnectionPhase.BODY: self._limits.body_timeout}
        self._start_timer(timeouts.get(phase, self._limits.response_timeout).total_seconds())

    def _current_phase(self) -> ConnectionPhase:
        is_first: bool = self.cycle is None
        if self.conn.their_state is h11.IDLE:
            return ConnectionPhase.HEAD if is_first or self._has_input() else ConnectionPhase.KEEPALIVE
        if self.conn.their_state is h11.SEND_BODY:
            return ConnectionPhase.BODY
        is_complete = not is_first and self.cycle.response_complete
        return ConnectionPhase.KEEPALIVE if is_complete else ConnectionPhase.RESPONSE

    def _has_input(self) -> bool:
        return bool(self._unparsed or self.conn.trailing_data[0])

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _on_timeout(self) -> None:
        if self._phase is ConnectionPhase.KEEPALIVE and not self.transport.get_write_buffer_size():
            return
        if self._phase in (ConnectionPhase.HEAD, ConnectionPhase.BODY):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            # After an orderly close the kernel would wait for the client once more.
            reset_connection(self._socket_transport)

    # --- the end of a connection

    def _enforce_connection_limits(self) -> None:
        peer = self.peer if self._table.by_peer[self.peer] > self._limits.peer_connections else None
        if self._is_proxy:
            peer = None  # it forwards the requests of many
        if peer is None and len(self.connections) <= self._limits.connections:
            return
        longest_idle = self._table.longest_idle(peer)
        if longest_idle is None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._table.idle.pop(longest_idle)
            reset_connection(longest_idle._socket_transport)

    def _refuse(self, status: HTTPStatus) -> None:
        """Respond without the app, which may be waiting for more of the request, and close the connection."""
        if self.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            reset_connection(self._socket_transport)  # in the middle of a response
            return
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._anonymous.record_refusal(self.peer, status)
        # No body, because a response to HEAD cannot have one.
        extra = {"Content-Length": "0", "Connection": "close"}
        headers = [*security_headers("default-src 'none'").items(), *extra.items()]
        for event in (h11.Response(status_code=status, headers=headers, reason=status.phrase), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def is_closing(self) -> bool:
        """Whether the connection gets no further response."""
        return self._phase is ConnectionPhase.LINGER or self._socket_transport.is_closing()

    def close(self) -> None:
        """Close the connection after what was written.

        If the client may still be sending, first let it read the response: closing a socket with unread data resets
        the connection, and the client loses what it has not read (RFC 9112 §9.6).
        """
        if self.is_closing():
            return
        is_read = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED) and not self._has_input()
        if is_read or self._is_at_end or self._phase in (None, ConnectionPhase.KEEPALIVE):
            self._socket_transport.close()
            return
        self._phase = ConnectionPhase.LINGER
        self._table.idle[self] = None
        self._unparsed.clear()
        self._unset_keepalive_if_required()
        self._socket_transport.write_eof()
        self.flow.resume_reading()
        self._start_timer(self._limits.linger_timeout.total_seconds())


class _LingeringTransport:
    """The transport as uvicorn sees it; it is closed as its connection says."""

    def __init__(self, transport: asyncio.Transport, connection: LimitedProtocol) -> None:
        self._transport = transport
        self.close = connection.close
        self.is_closing = connection.is_closing

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # any method of a transport
        return getattr(self._transport, name)


class _DemandFlowControl(FlowControl):
    """Reads from the socket only when all that has arrived is parsed: uvicorn would read more for each request."""

    def __init__(self, transport: asyncio.Transport, read_on_demand: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._read_on_demand = read_on_demand

    def resume_reading(self) -> None:
        """Parse what has arrived; read from the socket if there is nothing."""
        if self._read_on_demand():
            super().resume_reading()
