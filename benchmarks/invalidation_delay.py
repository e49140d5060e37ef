"""Every worker of every replica applies a disconnect and a rotation within a second, whatever else is in the database.

Another client keeps a transaction open that has written, as a migration of another program does. Meanwhile credentials
are disconnected and rotated over one connection. Each delay is measured from the response to the change: until no
connection to any server reads what was replaced, and until each of their streams has received the change. There are so
many connections that each worker has some.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
from rich.progress import Progress
from sqlalchemy import text

from benchmarks.harness import Bound, Result, percentile
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_system, seed
from integration_server.storage.engine import open_database
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

if TYPE_CHECKING:
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

_CONNECTIONS = 12  # for each worker. All at one of two workers: a probability of 10⁻⁷
_WEEK = timedelta(days=7)
_DEADLINE = 30.0  # seconds
_READ_INTERVAL = 0.02  # seconds between two reads of a connection
_GONE = ""  # in place of a token
_MAX_DELAY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class InvalidationPlan:
    """The parameters. `changes` of each kind are spread over the time for which the other transaction is open."""

    database: DatabaseKind
    servers: int
    workers: int
    changes: int
    transaction_seconds: float


@dataclass(slots=True)
class _Client:
    """A connection to a server, with a stream of all credentials. `tokens` are those that it has received."""

    service: "IntegrationServiceAsyncStub"
    tokens: dict[int, str] = field(default_factory=dict, repr=False)
    received: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self, ids: Sequence[int]) -> None:
        """Receive the stream."""
        call: Any = self.service.WatchCredentials(pb.WatchCredentialsRequest(integration_ids=ids))
        async for response in call:
            for result in response.results:
                self.tokens[result.integration_id] = result.result.credentials.bearer_token
            self.received.set()

    async def until_received(self, number: int, replaced: str | None) -> None:
        """Wait until the stream has something else than `replaced` for an integration."""
        while self.tokens.get(number, replaced) == replaced:
            self.received.clear()
            await self.received.wait()

    async def until_read(self, one: Seeded, replaced: str) -> None:
        """Read until the credentials are not `replaced` any more."""
        while await self.read(one) == replaced:  # noqa: ASYNC110  # no server tells when its reads change
            await asyncio.sleep(_READ_INTERVAL)

    async def read(self, one: Seeded) -> str:
        """Read the token."""
        request = pb.GetCredentialsRequest(integration_id=one.integration_id, user_id=one.user_id)
        try:
            response = await self.service.GetCredentials(request, timeout=_DEADLINE)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return _GONE
        return response.credentials.bearer_token


@dataclass(slots=True)
class _Delays:
    """The seconds until a kind of change was applied everywhere, for each change."""

    reads: list[float] = field(default_factory=list)
    streams: list[float] = field(default_factory=list)


async def measure(plan: InvalidationPlan, progress: Progress) -> Result:
    """Measure the delays of all changes; the longest is judged."""
    limits: dict[str, Any] = {"CALLER_MAX_CALLS_PER_SECOND": "1000000", "WORKERS": str(plan.workers)}
    delays = {"disconnect": _Delays(), "rotation": _Delays()}
    async with running_system(plan.database, servers=plan.servers, **limits) as system:
        seeded = await seed(system, HEALTHY_TYPE, [utc_now() + _WEEK] * plan.changes * len(delays))
        task = progress.add_task("changes", total=len(seeded))
        async with _clients(system, plan.workers, [one.integration_id for one in seeded]) as clients:
            async with asyncio.timeout(_DEADLINE):
                await asyncio.gather(*(client.until_received(seeded[-1].integration_id, None) for client in clients))
            async with _open_transaction(system):
                begin = time.monotonic()
                for index, one in enumerate(seeded):
                    due = begin + plan.transaction_seconds * index / max(1, len(seeded) - 1)
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    kind = ("disconnect", "rotation")[index % 2]
                    await _change(kind, one, clients, delays[kind])
                    progress.advance(task)
                open_for = time.monotonic() - begin
    return _result(plan, delays, open_for)


def _result(plan: InvalidationPlan, delays: dict[str, _Delays], open_for: float) -> Result:
    figures = {"time for which the other transaction was open": f"{open_for:.0f} s"}
    bounds = []
    for kind, found in delays.items():
        for name, seconds in (("read", found.reads), ("stream", found.streams)):
            figures[f"{kind}, until each {name} has it"] = (
                f"median {statistics.median(seconds):.3f} s, p99 {percentile(seconds, 99):.3f} s"
            )
        slowest = [max(pair) for pair in zip(found.reads, found.streams, strict=True)]
        bounds.append(
            Bound(
                f"each {kind} is applied everywhere within a second",
                f"{max(slowest):.3f} s at most",
                max(slowest) <= _MAX_DELAY,
                max(slowest),
                _MAX_DELAY,
                (min(slowest), max(slowest)),
            )
        )
    is_long = plan.database is DatabaseKind.SQLITE or open_for >= plan.transaction_seconds
    bounds.append(Bound("the other transaction is open all the time", f"{open_for:.0f} s", is_long))
    raw = {kind: {"reads": found.reads, "streams": found.streams} for kind, found in delays.items()}
    return Result(comparisons=[], lateness=0.0, figures=figures, bounds=bounds, raw=raw)


async def _change(kind: str, one: Seeded, clients: Sequence[_Client], delays: _Delays) -> None:
    """Change an integration, and measure until all clients have the change."""
    number, service = one.integration_id, clients[0].service
    replaced, *others = await asyncio.gather(*(client.read(one) for client in clients))  # also fills all caches
    if not replaced or any(other != replaced for other in others):
        raise RuntimeError("the servers disagree before the change")
    if kind == "disconnect":
        removal = pb.DisconnectIntegrationRequest(integration_id=number, user_id=one.user_id)
        await service.DisconnectIntegration(removal, timeout=_DEADLINE)
    else:
        refresh = pb.RefreshTokenRequest(integration_id=number, user_id=one.user_id, force=True)
        await service.RefreshToken(refresh, timeout=_DEADLINE)
    begin = time.monotonic()

    async def reads() -> None:
        await asyncio.gather(*(client.until_read(one, replaced) for client in clients))
        delays.reads.append(time.monotonic() - begin)

    async def streams() -> None:
        await asyncio.gather(*(client.until_received(number, replaced) for client in clients))
        delays.streams.append(time.monotonic() - begin)

    async with asyncio.timeout(_DEADLINE):
        await asyncio.gather(reads(), streams())


@asynccontextmanager
async def _clients(system: System, workers: int, ids: Sequence[int]) -> AsyncIterator[Sequence[_Client]]:
    """Clients with a connection and a stream each, to all servers."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with AsyncExitStack() as stack:
        clients = [
            _Client(
                IntegrationServiceStub(
                    await stack.enter_async_context(grpc.aio.insecure_channel(server.grpc_address, options))
                )
            )
            for server in system.servers
            for _ in range(_CONNECTIONS * workers)
        ]
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(client.watch(ids)) for client in clients]
            yield clients
            for stream in streams:
                stream.cancel()


@asynccontextmanager
async def _open_transaction(system: System) -> AsyncIterator[None]:
    """On PostgreSQL a transaction that has written; SQLite has none beside those of the servers."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(system.database_url))
        if system.database_url.startswith("postgresql"):
            connection = await stack.enter_async_context(database.write_transaction())
            await connection.execute(text("CREATE TABLE another_program (id integer)"))
        yield
