"""What `WatchCredentials` costs: CPU time of the server for each delivered credential, beside an RPC that does nothing.

Streams watch all integrations of a system. Another process replaces the credentials of a part of them each second, as
refreshes by another server do. The reference is the bare grpc.aio handler of `hit`, with responses of the size of one
credential. Phases of both alternate. All CPU time of the server counts, such as reading the change feed and the rows,
decryption and the audit, except for what it uses in a phase without changes and with the same streams.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from random import SystemRandom
from typing import Any

import asyncpg
import psutil
from rich.progress import Progress

from benchmarks.harness import Bound, Result, percentile
from benchmarks.hit import GET_CREDENTIALS_PATH, running_no_op
from benchmarks.http2_load import Load, load_generator
from benchmarks.provider import SCOPES
from benchmarks.reads import cpu_of
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_system, seed
from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.due_times import Schedule
from integration_server.domain.integration import IntegrationId
from integration_server.providers.http import ProviderHttp
from integration_server.rpc.credential_watch import MAX_WATCHED
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.settings import Settings
from integration_server.storage.integrations import SqlIntegrations
from integration_server.wiring.providers import build_providers
from integration_server.wiring.storage import open_storage
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

_WEEK = timedelta(days=7)
_DEADLINE = 60.0  # seconds for everything that was changed to arrive
_INTERVAL = 0.05  # seconds between two transactions of the process that changes credentials
_READ_BATCH = 500
_CHANGE = """
UPDATE integrations SET version = version + 1, encrypted_credentials = new.encrypted
FROM unnest($1::bigint[], $2::bytea[]) AS new (id, encrypted) WHERE integration_id = new.id
"""


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """The parameters: `share` of the integrations changes in each second of a phase. `bound` is a ratio of CPU time."""

    rounds: int
    integrations: int
    share: float
    seconds: float
    bound: float
    database: DatabaseKind = DatabaseKind.POSTGRES


@dataclass(slots=True)
class _Received:
    """What the streams have received: when the credentials of each integration came last, and how many came."""

    times: dict[int, float] = field(default_factory=dict)
    count: int = 0
    errors: int = 0
    responses: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, response: pb.WatchCredentialsResponse) -> None:
        """Take a response."""
        now = time.monotonic()
        self.responses += bool(response.results)
        for result in response.results:
            self.times[result.integration_id] = now
            self.count += 1
            self.errors += not result.result.HasField("credentials")
        self.changed.set()

    async def until(self, number: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(_DEADLINE):
            while self.count < number:
                self.changed.clear()
                await self.changed.wait()


async def measure(plan: WatchPlan, progress: Progress) -> Result:
    """Measure in alternating phases; the median of the ratios is judged."""
    task = progress.add_task("inserting integrations", total=plan.rounds + 1)
    rounds: list[tuple[float, float]] = []
    delays: list[float] = []
    per_response: list[float] = []
    idle: list[float] = []
    async with running_system(DatabaseKind.POSTGRES, WORKERS="1") as system:
        seeded = await seed(system, HEALTHY_TYPE, [utc_now() + _WEEK] * plan.integrations)
        worker = system.servers[0].processes[0]
        one = await system.servers[0].service.GetCredentials(
            pb.GetCredentialsRequest(integration_id=seeded[0].integration_id, user_id=seeded[0].user_id),
            timeout=_DEADLINE,
        )
        progress.update(task, description="opening the streams", advance=1)
        before = worker.memory_info().rss
        async with _watching(system, [one.integration_id for one in seeded]) as received:
            memory = (worker.memory_info().rss - before) / plan.integrations
            with running_no_op(one.ByteSize()) as (address, process), load_generator() as generator:
                request = pb.GetCredentialsRequest(integration_id=1, user_id="user-1").SerializeToString()
                metadata = [("grpc-timeout", "30S"), ("user-agent", "benchmark")]
                load = Load(address, GET_CREDENTIALS_PATH, metadata, [request], plan.seconds / 2)
                await asyncio.to_thread(generator.send, replace(load, seconds=1))
                async with _open_changes(system, seeded, plan) as changes:
                    for number in range(plan.rounds):
                        progress.update(task, description=f"round {number + 1} of {plan.rounds}", advance=1)
                        begin = cpu_of(process)()
                        full = await asyncio.to_thread(generator.send, load)
                        if full.failures:
                            raise RuntimeError(f"RPCs have failed: {full.failures}")
                        no_op = (cpu_of(process)() - begin) / len(full.latencies)
                        begin = cpu_of(worker)()
                        await asyncio.sleep(plan.seconds / 2)
                        idle.append((cpu_of(worker)() - begin) / (plan.seconds / 2))
                        responses = received.responses
                        cost, changed = await _deliver(plan, worker, received, changes, idle[-1])
                        rounds.append((cost, no_op))
                        delays += [received.times[one] - sent for one, sent in changed.items()]
                        per_response.append(len(changed) / (received.responses - responses))
            errors = received.errors
    ratios = [cost / no_op for cost, no_op in rounds]
    median = statistics.median(ratios)
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            "CPU of a delivered credential": f"{1e6 * statistics.median(cost for cost, _ in rounds):.0f} µs",
            "CPU of an RPC that does nothing": f"{1e6 * statistics.median(no_op for _, no_op in rounds):.0f} µs",
            "CPU without changes": f"{1000 * statistics.median(idle):.0f} ms in a second",
            "credentials in a response": f"{statistics.median(per_response):.1f}",
            "delay from the commit to the client": (
                f"p50 {1000 * percentile(delays, 50):.0f} ms, p99 {1000 * percentile(delays, 99):.0f} ms"
            ),
            "memory of a watched integration": f"{memory:,.0f} bytes",
        },
        bounds=[
            Bound(
                f"a delivery: at most {plan.bound:g} times the CPU of an RPC that does nothing",
                f"{median:.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
                median <= plan.bound,
                median,
                plan.bound,
                (min(ratios), max(ratios)),
            ),
            Bound("no credential is an error", str(errors), not errors),
        ],
        raw={
            "cpu_seconds": rounds,
            "idle_cpu": idle,
            "delays": [percentile(delays, percent) for percent in (50, 90, 99)],
        },
    )


@asynccontextmanager
async def _watching(system: System, ids: Sequence[int]) -> AsyncIterator[_Received]:
    """Streams over all integrations, which have sent everything once."""
    received = _Received()

    async def read(part: Sequence[int]) -> None:
        call: Any = system.servers[0].service.WatchCredentials(pb.WatchCredentialsRequest(integration_ids=part))
        async for response in call:
            received.take(response)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for begin in range(0, len(ids), MAX_WATCHED):
            tasks.append(group.create_task(read(ids[begin : begin + MAX_WATCHED])))
            await received.until(min(begin + MAX_WATCHED, len(ids)))
        yield received
        for task in tasks:
            task.cancel()


_Change = tuple[int, bytes]


@dataclass(slots=True)
class _Changes:
    """Writes credentials that were encrypted before, so that a phase has only the costs of the server."""

    connection: "asyncpg.Connection[asyncpg.Record]"
    rounds: Iterator[Sequence[_Change]]

    async def write(self, plan: WatchPlan) -> Mapping[int, float]:
        """Write those of the next round at a fixed rate; returns when each was committed."""
        changes = iter(next(self.rounds))
        times: dict[int, float] = {}
        begin, number = time.monotonic(), 0
        size = max(1, round(plan.integrations * plan.share * _INTERVAL))
        while part := list(islice(changes, size)):
            await self.connection.execute(_CHANGE, [one for one, _ in part], [encrypted for _, encrypted in part])
            times.update(dict.fromkeys((one for one, _ in part), time.monotonic()))
            number += 1
            await asyncio.sleep(max(0.0, begin + number * _INTERVAL - time.monotonic()))
        return times


async def _deliver(
    plan: WatchPlan, worker: psutil.Process, received: _Received, changes: _Changes, idle: float
) -> tuple[float, Mapping[int, float]]:
    """The CPU seconds of a delivery in a phase, and when each integration was changed.

    `idle` is the CPU time in a second that the server uses without changes.
    """
    cpu_seconds, expected = cpu_of(worker), received.count
    begin, begin_time = cpu_seconds(), time.monotonic()
    changed = await changes.write(plan)
    await received.until(expected + len(changed))
    used = cpu_seconds() - begin - idle * (time.monotonic() - begin_time)
    return used / len(changed), changed


@asynccontextmanager
async def _open_changes(system: System, seeded: Sequence[Seeded], plan: WatchPlan) -> AsyncIterator[_Changes]:
    """Encrypt new credentials for each round, of other integrations in each as long as there are others."""
    settings = Settings.from_environment(system.environment)
    providers = build_providers(settings, system.environment, ProviderHttp(utc_now, dev_mode=True))
    size = max(1, round(plan.integrations * plan.share * plan.seconds))
    if size * plan.rounds > plan.integrations:
        raise ValueError("the rounds change more integrations than there are")
    rounds = []
    spread = random.Random(1).sample(seeded, len(seeded))  # over all streams
    async with open_storage(settings) as storage:
        store, cipher = SqlIntegrations(storage.database), CredentialCipher(storage.keyring)
        provider, schedule = providers[HEALTHY_TYPE], Schedule(settings.refresh_buffer, None, SystemRandom().random)
        for number in range(plan.rounds):
            changes: list[_Change] = []
            part = spread[number * size : (number + 1) * size]
            for begin in range(0, len(part), _READ_BATCH):
                ids = {(IntegrationId(one.integration_id), None) for one in part[begin : begin + _READ_BATCH]}
                found = await store.find_many(ids, 64 * 1024 * 1024)
                for integration_id, stored in found.by_id.items():
                    tokens = await cipher.decrypt(stored)
                    if not isinstance(tokens, OAuthTokens):
                        raise TypeError(type(tokens).__name__)
                    after = replace(stored.integration, version=stored.integration.version + 1)
                    renewed = replace(tokens, access_token=tokens.access_token[::-1])
                    new = await cipher.encrypt_new(after, renewed, provider, SCOPES, schedule)
                    changes.append((integration_id, new.encrypted_credentials))
            rounds.append(changes)
    connection = await asyncpg.connect(system.database_url)
    try:
        yield _Changes(connection, iter(rounds))
    finally:
        await connection.close()
