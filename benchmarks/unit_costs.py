"""What one call and one piece of background work cost: CPU of the server and of PostgreSQL, and bytes written.

One system does one kind of work at a time. The CPU of the same time without work is subtracted. The refreshes and
checks are those of the background worker, at a provider that responds at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import psutil
from rich.progress import Progress

from benchmarks.harness import Bound, NotMeasured, Result
from benchmarks.system import HEALTHY_TYPE, TROUBLED_TYPE, DatabaseKind, Seeded, System, running_system, seed
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

_IDLE = 3.0  # seconds
_SETTLING = 2.0  # seconds after the work, in which its audit entries are written
_CLIENTS = 8  # concurrent calls
_HITS = 5  # reads of each integration from the cache
_DEADLINE = 60.0
_POLL_INTERVAL = 0.05
_WORK_TIMEOUT = 300.0  # seconds for all of the background work, many times what it takes
_LIFETIME = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class UnitCostsPlan:
    """The parameters: the number of integrations that are read and checked, and of tokens that are refreshed.

    `bound` is the smallest number of tokens that are refreshed with one second of the server's CPU time.
    """

    integrations: int
    tokens: int
    bound: float
    database: DatabaseKind = DatabaseKind.POSTGRES


@dataclass(frozen=True, slots=True)
class UnitCost:
    """The cost of one call or piece of work: microseconds of CPU, and bytes of write-ahead log."""

    server_us: float
    database_us: float
    wal_bytes: float


@dataclass(frozen=True, slots=True)
class _Meter:
    system: System
    connection: asyncpg.Connection
    postgres: psutil.Process

    async def read(self) -> tuple[float, float, float, float]:
        """The time, the CPU seconds of the server and of the database, and the position of the write-ahead log."""
        wal = await self.connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")
        return time.monotonic(), self.system.cpu_seconds(), self._database_seconds(), float(wal)

    def _database_seconds(self) -> float:
        # The times of the main process include those of the connections that have ended.
        total = self.postgres.cpu_times()
        seconds = total.user + total.system + total.children_user + total.children_system
        for child in self.postgres.children():
            times = child.cpu_times()
            seconds += times.user + times.system
        return float(seconds)


async def measure(plan: UnitCostsPlan, progress: Progress) -> Result:
    """Measure each kind of work."""
    task = progress.add_task("Starting", total=5)
    unlimited: dict[str, Any] = {"BACKGROUND_CALLS_PER_SECOND": "1000", "BACKGROUND_CALLS_PER_PROVIDER": "32"}
    async with running_system(DatabaseKind.POSTGRES, HEALTH_CHECK_INTERVAL_SECONDS="86400", **unlimited) as system:
        connection = await asyncpg.connect(system.database_url)
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        postgres = psutil.Process(pid).parent()
        assert postgres is not None
        meter = _Meter(system, connection, postgres)
        seeded = await seed(system, HEALTHY_TYPE, [utc_now() + timedelta(days=7)] * plan.integrations)
        before = await meter.read()
        await asyncio.sleep(_IDLE)
        idle = _per_second(before, await meter.read())
        cost = partial(_cost, meter, idle)
        costs = {}
        for name, count, work in (
            ("miss", len(seeded), partial(_read_all, system, seeded, 1)),
            ("hit", _HITS * len(seeded), partial(_read_all, system, seeded, _HITS)),
            ("check", len(seeded), partial(_check_all, connection, len(seeded))),
        ):
            progress.update(task, description=name, advance=1)
            costs[name] = await cost(count, work)
        progress.update(task, description="refresh", advance=1)
        due = [utc_now() + timedelta(minutes=30)] * plan.tokens
        await seed(system, TROUBLED_TYPE, due, _LIFETIME)  # not due yet
        costs["refresh"] = await cost(plan.tokens, partial(_refresh_all, system, connection, plan.tokens))
        row_bytes = await connection.fetchval(
            "SELECT pg_total_relation_size('integrations')::float8 / (SELECT count(*) FROM integrations)"
        )
        memory = system.memory_bytes()
        await connection.close()
    return _result(plan, costs, idle, float(row_bytes), memory)


def _per_second(begin: Sequence[float], end: Sequence[float]) -> Sequence[float]:
    return [(last - first) / (end[0] - begin[0]) for first, last in zip(begin[1:], end[1:], strict=True)]


async def _cost(meter: _Meter, idle: Sequence[float], count: int, work: Callable[[], Awaitable[None]]) -> UnitCost:
    begin = await meter.read()
    await work()
    await asyncio.sleep(_SETTLING)
    end = await meter.read()
    used = [rate - rest for rate, rest in zip(_per_second(begin, end), idle, strict=True)]
    server, database, wal = (one * (end[0] - begin[0]) / count for one in used)
    return UnitCost(1e6 * server, 1e6 * database, wal)


async def _read_all(system: System, seeded: Sequence[Seeded], times: int) -> None:
    service = system.servers[0].service

    async def read(number: int) -> None:
        for one in list(seeded)[number::_CLIENTS] * times:
            request = pb.GetCredentialsRequest(integration_id=one.integration_id, user_id=one.user_id)
            await service.GetCredentials(request, timeout=_DEADLINE)

    await asyncio.gather(*map(read, range(_CLIENTS)))


async def _check_all(connection: asyncpg.Connection, count: int) -> None:
    before = await connection.fetchval("SELECT count(*) FROM health_checks")
    await connection.execute("UPDATE integrations SET check_due_time = now()")
    await _until(connection, "SELECT count(*) FROM health_checks", before + count)


async def _refresh_all(system: System, connection: asyncpg.Connection, count: int) -> None:
    await connection.execute(
        "UPDATE integrations SET refresh_due_time = now() WHERE integration_type = $1", TROUBLED_TYPE
    )
    await _until(
        connection,
        "SELECT count(*) FROM integrations WHERE version > 0",
        count,
    )
    if (calls := (await system.provider.token_calls()).calls) != count:
        raise NotMeasured(f"{calls} requests to the provider for {count} tokens")


async def _until(connection: asyncpg.Connection, query: str, count: int) -> None:
    end = time.monotonic() + _WORK_TIMEOUT
    while (found := await connection.fetchval(query)) < count:
        if time.monotonic() > end:
            raise NotMeasured(f"{found} of {count} were done: the background worker is too slow")
        await asyncio.sleep(_POLL_INTERVAL)


def _result(
    plan: UnitCostsPlan, costs: dict[str, UnitCost], idle: Sequence[float], row_bytes: float, memory: int
) -> Result:
    per_second = 1e6 / costs["refresh"].server_us
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            **{
                name: f"{cost.server_us:,.0f} µs of the server, {cost.database_us:,.0f} µs of the database, "
                f"{cost.wal_bytes:,.0f} B of write-ahead log"
                for name, cost in costs.items()
            },
            "idle": f"{1000 * idle[0]:.0f} ms/s of the server, {1000 * idle[1]:.0f} ms/s of the database",
            "bytes of an integration with its indexes": f"{row_bytes:,.0f}",
            "memory of server and sidecar": f"{memory / 2**20:.0f} MiB",
        },
        bounds=[
            Bound(
                f"refreshes: at least {plan.bound:g} tokens per second of the server's CPU",
                f"{per_second:.0f} tokens",
                per_second >= plan.bound,
                plan.bound / per_second,
                1.0,
            )
        ],
        raw={
            "costs": {name: asdict(cost) for name, cost in costs.items()},
            "idle": list(idle),
            "row_bytes": row_bytes,
            "memory_bytes": memory,
        },
    )
