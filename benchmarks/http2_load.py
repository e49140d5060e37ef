"""A load generator for unary RPCs in a process of its own, which costs a small part of what gRPC's own client costs.

Each RPC has a deadline, and the status of each is checked: a response without `grpc-status: 0` is a failure. Metadata
is indexed (RFC 7541), as by other clients: the second call of a connection sends a byte instead of a token.
"""

import multiprocessing
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from tests.http2_frames import PREFACE, call_headers, frame, message

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK, _END_STREAM, _PADDED, _PRIORITY = 0x1, 0x1, 0x8, 0x20
_WINDOW = 2**30  # bytes that the server may send before the next update
_STATIC = 61  # entries of HPACK's static table
_STATUS_200 = 8
_RESPONSE_TIMEOUT = 60.0  # seconds without any response


@dataclass(frozen=True, slots=True)
class Load:
    """What to send for `seconds`: these requests in turn, `concurrency` at a time over as many connections.

    With a `rate`, RPCs are sent at this rate, whether or not earlier ones have completed.
    """

    address: tuple[str, int]
    path: str
    metadata: Sequence[tuple[str, str]]
    requests: Sequence[bytes]
    seconds: float
    concurrency: int = 32
    connections: int = 4
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load has had: its duration, the latency of each RPC in seconds, and the failures by their status."""

    seconds: float
    latencies: Sequence[float]
    failures: Mapping[str, int]

    @property
    def throughput(self) -> float:
        """RPCs per second."""
        return len(self.latencies) / self.seconds


@contextmanager
def load_generator() -> Iterator["LoadGenerator"]:
    """Run the process until the block ends."""
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_serve, args=(child_end,), name="load generator", daemon=True)
    process.start()
    try:
        yield LoadGenerator(parent_end)
    finally:
        process.terminate()
        process.join()


class LoadGenerator:
    """Sends loads, one at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, load: Load) -> Measured:
        """Send a load; blocks until it has ended."""
        self._pipe.send(load)
        result: Measured | Exception = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result


# --- in the process of the generator -------------------------------------------------------------------------------


def _serve(pipe: Connection) -> None:
    while True:
        load = pipe.recv()
        try:
            pipe.send(_Run(load).run())
        except Exception as error:
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


class _Run:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._latencies: list[float] = []
        self._failures: Counter[str] = Counter()
        self._next = 0

    def run(self) -> Measured:
        load = self._load
        connections = [_Connection(load, self._end) for _ in range(load.connections)]
        # `select` waits to the microsecond, `epoll` to the millisecond: the rest would be a busy wait, and take a core.
        with selectors.SelectSelector() as selector:
            for connection in connections:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._open(connections, selector)
            begin = last = time.perf_counter()
            end = begin + load.seconds
            while (now := time.perf_counter()) < end or any(connection.in_flight for connection in connections):
                wait = self._send_due(connections, begin, now) if now < end else _RESPONSE_TIMEOUT
                for connection in connections:
                    connection.flush()
                ready = selector.select(wait)
                for key, _ in ready:
                    key.data.receive()
                if ready:
                    last = now
                elif now - last > _RESPONSE_TIMEOUT:
                    raise TimeoutError("no response")
            for connection in connections:
                connection.socket.close()
        return Measured(last - begin, self._latencies, dict(self._failures))

    def _open(self, connections: Sequence["_Connection"], selector: selectors.BaseSelector) -> None:
        """Send an RPC over each connection: the first takes longer, and is not measured."""
        for connection in connections:
            connection.send(self._request(), time.perf_counter())
            connection.flush()
        while any(connection.in_flight for connection in connections):
            ready = selector.select(_RESPONSE_TIMEOUT)
            if not ready:
                raise TimeoutError("no response")
            for key, _ in ready:
                key.data.receive()
        self._latencies.clear()
        self._next = 0

    def _send_due(self, connections: Sequence["_Connection"], begin: float, now: float) -> float:
        """Send what is due, and return the seconds until more is; without a rate, until there is a response."""
        load = self._load
        if load.rate is None:
            for connection in connections:
                while connection.in_flight < load.concurrency // load.connections:
                    connection.send(self._request(), now)
            return _RESPONSE_TIMEOUT
        while (due := begin + self._next / load.rate) <= now:
            connections[self._next % len(connections)].send(self._request(), due)
        return due - now

    def _request(self) -> bytes:
        self._next += 1
        return self._load.requests[self._next % len(self._load.requests)]

    def _end(self, status: str, latency: float) -> None:
        self._latencies.append(latency)
        if status != "0":
            self._failures[status] += 1


class _Connection:
    def __init__(self, load: Load, end: Callable[[str, float], None]) -> None:
        self.socket = socket.create_connection(load.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._end = end
        self._streams: dict[int, float] = {}
        self._stream = 1
        settings = (4).to_bytes(2, "big") + (2**31 - 1).to_bytes(4, "big")  # SETTINGS_INITIAL_WINDOW_SIZE
        self._out = bytearray(PREFACE + frame(_SETTINGS, 0, 0, settings) + _window_update(_WINDOW))
        self._in = bytearray()
        self._table: list[tuple[str, str]] = []
        self._unacknowledged = 0
        fields = call_fields(load.path, load.metadata)
        self._first_block = b"".join(b"\x40" + field for field in fields)  # with incremental indexing
        # §2.3.3: the newest entry has the lowest index.
        self._block = b"".join(bytes([0x80 | (_STATIC + len(fields) - number)]) for number in range(len(fields)))

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def send(self, request: bytes, due: float) -> None:
        stream, self._stream = self._stream, self._stream + 2
        block = self._first_block if stream == 1 else self._block
        self._out += frame(_HEADERS, 0x4, stream, block) + message(stream, request)
        self._streams[stream] = due

    def flush(self) -> None:
        if self._out:
            self.socket.sendall(self._out)
            self._out.clear()

    def receive(self) -> None:
        received = self.socket.recv(1 << 18)
        if not received:
            raise ConnectionError("the server has closed the connection")
        self._in += received
        at, data = 0, self._in
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at - 9 < length:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._frame(data[at + 3], data[at + 4], stream, bytes(data[at + 9 : at + 9 + length]))
            at += 9 + length
        del data[:at]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS:
            if flags & (_PADDED | _PRIORITY):
                raise ValueError("padding or priority, which gRPC does not use")
            fields = self._decode(payload)
            if flags & _END_STREAM:
                self._finish(stream, fields.get("grpc-status", "none"))
        elif kind == _DATA:
            self._unacknowledged += len(payload)
            if self._unacknowledged > _WINDOW // 2:
                self._out += _window_update(self._unacknowledged)
                self._unacknowledged = 0
        elif kind == _RST_STREAM:
            self._finish(stream, f"RST_STREAM {int.from_bytes(payload, 'big')}")
        elif kind == _SETTINGS and not flags & _ACK:
            self._out += frame(_SETTINGS, _ACK, 0)
        elif kind == _PING and not flags & _ACK:
            self._out += frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            raise ConnectionError("the server ends the connection")

    def _finish(self, stream: int, status: str) -> None:
        due = self._streams.pop(stream, None)
        if due is not None:
            self._end(status, time.perf_counter() - due)

    def _decode(self, block: bytes) -> Mapping[str, str]:
        """Decode a header block (RFC 7541) without Huffman coding, which gRPC uses for binary values only."""
        fields: dict[str, str] = {}
        at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                name, value = self._entry(index)
            elif first & 0xE0 == 0x20:
                _, at = _integer(block, at, 5)  # a new size of the table, which never exceeds ours
                continue
            else:
                index, at = _integer(block, at, 6 if first & 0x40 else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _text(block, at)
                value, at = _text(block, at)
                if first & 0x40:
                    self._table.insert(0, (name, value))
            fields[name] = value
        return fields

    def _entry(self, index: int) -> tuple[str, str]:
        if index > _STATIC:
            return self._table[index - _STATIC - 1]
        return f"static {index}", "200" if index == _STATUS_200 else ""


def call_fields(path: str, metadata: Sequence[tuple[str, str]]) -> Sequence[bytes]:
    """The encoded header fields of a call, each without the byte that says how it is indexed."""
    block, fields, at = call_headers(path, metadata), [], 0
    while at < len(block):
        begin = at = at + 1
        for _ in range(2):  # name and value
            length, at = _integer(block, at, 7)
            at += length
        fields.append(block[begin:at])
    return fields


def _window_update(size: int) -> bytes:
    return frame(_WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big"))


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer with a prefix of some bits at an index, and the index after it (§5.1)."""
    limit = (1 << bits) - 1
    number, at, shift = block[at] & limit, at + 1, 0
    if number < limit:
        return number, at
    while True:
        byte, at = block[at], at + 1
        number += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return number, at


def _text(block: bytes, at: int) -> tuple[str, int]:
    if block[at] & 0x80:
        raise ValueError("Huffman coding")
    length, at = _integer(block, at, 7)
    return block[at : at + length].decode(), at + length
