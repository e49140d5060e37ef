"""Sends the worst inputs to a server process, and measures for how long each holds an event loop of the server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from integration_server.sidecar.app import CALLBACK_PATH, WEBHOOK_PATH
from tests.end_to_end.processes import ProcessSystem, run_server_process
from tests.fuzz.messages import METHODS, KnownValues
from tests.fuzz.run import Fuzzer, IssuingSandbox
from tests.loop_hold.meter import MAX_HOLD, Hold, LoopHolds
from tests.loop_hold.worst_http import WorstHttp, worst_http
from tests.loop_hold.worst_requests import OVERSIZED, WorstRequest, worst_requests

C = TypeVar("C")
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

DEADLINE = 60.0  # seconds, on a machine that may be busy

_THIRD_PARTY: Sequence[Any] = (
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
ALL_METHODS: Sequence[MethodDescriptor] = [*METHODS, *(rpc for service in _THIRD_PARTY for rpc in service.methods)]
"""All RPCs of the server, of the contract and of others."""

_STREAM_WAIT = 0.02  # seconds for which a stream of responses is read
_HTTP_WAIT = 2.0  # seconds for the responses of one connection
_READ_WAIT = 1.0  # seconds without a byte of the response: the server keeps the connection
_BATCH = 8  # requests that are sent at a time; one callback belongs to one of them
_BOMB = b"\x0a\x00" * (4 * 1024 * 1024)  # compressed a thousandth of it
_BOMB_SIZES = (OVERSIZED, len(_BOMB))  # gRPC accepts the first

_METADATA: Sequence[Metadata] = (
    (("authorization", "Bearer " + "eyJhbGciOiJub25lIn0." * 700),),
    (("authorization", "Bearer " + "e30." * 3500),),
    (("x-purpose", " " * 14_000),),
    (("x-large-bin", bytes(10_000)),),
    tuple((f"x-{number}", "") for number in range(350)),
    (("x-equal", ""),) * 350,
)

_PATHS = (
    CALLBACK_PATH,
    f"{CALLBACK_PATH}/sandbox",
    WEBHOOK_PATH.format(integration_type="sandbox", endpoint="app"),
    "/healthz",
    "/readyz",
    "/x",
    "*",
)


class HoldProbe:
    """Measures a server process that was started with `holds.environment`."""

    def __init__(self, system: ProcessSystem, known: KnownValues, holds: LoopHolds) -> None:
        self.system = system
        self._holds = holds
        self.known = known
        self.cases = 0
        self.longest = Hold()

    async def measure_rpcs(self, requests: Iterable[WorstRequest]) -> Sequence[str]:
        """Send each request to its RPC, a few at a time. Returns what held the loop for too long."""
        return await self._measure(requests, lambda request: self._call(request.method, request.raw))

    async def measure_compressed(self, methods: Iterable[MethodDescriptor]) -> Sequence[str]:
        """Send each RPC requests that are small only while they are compressed."""
        cases = (WorstRequest(method, "compressed", _BOMB[:size]) for method in methods for size in _BOMB_SIZES)
        return await self._measure(
            cases, lambda request: self._call(request.method, request.raw, grpc.Compression.Gzip)
        )

    async def measure_metadata(self, methods: Iterable[MethodDescriptor]) -> Sequence[str]:
        """Send each RPC as much metadata as gRPC accepts, in one entry and in many."""
        cases = ((method, metadata) for method in methods for metadata in _METADATA)
        return await self._measure(cases, lambda case: self._call(case[0], b"", metadata=case[1]))

    async def measure_http(self, requests: Iterable[WorstHttp]) -> Sequence[str]:
        """Send each request on its own connection to the sidecar."""
        return await self._measure(requests, lambda request: self._send(request.raw))

    async def measure_call(self, call: Awaitable[object]) -> Sequence[str]:
        """Make one call, which may fail."""

        async def make(case: Awaitable[object]) -> None:
            with suppress(grpc.aio.AioRpcError):
                await case

        return await self._measure([call], make)

    async def _measure(self, cases: Iterable[C], send: Callable[[C], Awaitable[None]]) -> Sequence[str]:
        found = []
        remaining = iter(cases)
        self._holds.take()  # what was before
        while batch := list(itertools.islice(remaining, _BATCH)):
            await asyncio.gather(*map(send, batch))
            self.cases += len(batch)
            hold = self._holds.take()
            self.longest = max(self.longest, hold)
            if hold.seconds > MAX_HOLD:
                found.append(f"{hold} for one of {', '.join(map(str, batch))}")
        return found

    async def _call(
        self,
        method: MethodDescriptor,
        raw: bytes,
        compression: grpc.Compression = grpc.Compression.NoCompression,
        metadata: Metadata = (),
    ) -> None:
        path = f"/{method.containing_service.full_name}/{method.name}"
        channel: Any = self.system.channel
        if method.server_streaming:
            multi_callable = channel.stream_stream(path)
            call = multi_callable(iter([raw, raw]), metadata=metadata, timeout=DEADLINE, compression=compression)
            with suppress(grpc.aio.AioRpcError, TimeoutError):
                async with asyncio.timeout(_STREAM_WAIT):
                    async for _ in call:
                        pass
            call.cancel()
        else:
            with suppress(grpc.aio.AioRpcError):
                multi_callable = channel.unary_unary(path)
                await multi_callable(raw, metadata=metadata, timeout=DEADLINE, compression=compression)

    async def _send(self, raw: bytes) -> None:
        address = urlsplit(self.system.sidecar_url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            with suppress(OSError):  # the server may respond and close before it has read everything
                writer.write(raw)
                writer.write_eof()
            # Also a silence. Pipelined requests get their responses one after another, with pauses.
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_HTTP_WAIT):
                    while await asyncio.wait_for(reader.read(65536), _READ_WAIT):
                        pass
        finally:
            writer.transport.abort()


def rpc_inputs(known: KnownValues, *, all_sizes: bool) -> Iterator[WorstRequest]:
    """Yield the worst requests for every RPC."""
    for method in ALL_METHODS:
        yield from worst_requests(method, known.values_of, all_sizes=all_sizes)


def http_inputs() -> Iterator[WorstHttp]:
    """Yield the worst requests for every path of the sidecar, and for a path without a route."""
    for path in _PATHS:
        for method in ("GET", "POST"):
            yield from worst_http(path, method)


@asynccontextmanager
async def probed_server(directory: Path, database_url: str, **settings: str) -> AsyncIterator[HoldProbe]:
    """Run a measured server process with known values, once it is warm."""
    holds = LoopHolds(directory)
    sandbox = IssuingSandbox()
    environment = {**holds.environment, **settings}
    async with run_server_process(directory, database_url, sandbox=sandbox, forked=False, **environment) as system:
        known = await Fuzzer(system, sandbox).create_known_values()
        holds.take()
        yield HoldProbe(system, known, holds)
