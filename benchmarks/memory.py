"""A worker takes hardly more memory with a million integrations, each of which was read once, than with a thousand.

Two servers, each with a PostgreSQL of its own, differ in the number of integrations. All of them are read through
`BatchGetCredentials`, so that the cache of the larger one has forgotten most of them in the end.
"""

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc.aio
from rich.progress import Progress, TaskID

from benchmarks.harness import Bound, Result
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_system, seed_many
from integrations.v1 import integration_service_pb2 as pb

_BATCH = 500  # integrations
_CONCURRENCY = 4
_DEADLINE = 60.0
_PAUSE = 0.5  # seconds
_TIMEOUT = 1800.0  # seconds, for all reads


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The parameters: both numbers of integrations, and the highest ratio of the memory."""

    smallest: int
    integrations: int
    bound: float
    database: DatabaseKind = DatabaseKind.POSTGRES


async def measure(plan: MemoryPlan, progress: Progress) -> Result:
    """Read all integrations of both systems once, and compare the memory of their workers."""
    task = progress.add_task("Starting", total=plan.smallest + plan.integrations)
    memory: list[int] = []
    inserting = reading = 0.0
    refused = 0
    async with AsyncExitStack() as stack:
        for count in (plan.smallest, plan.integrations):
            system = await stack.enter_async_context(running_system(plan.database, WORKERS="1"))
            progress.update(task, description=f"Inserting {count:,}")
            begin = time.monotonic()
            seeded = await seed_many(system, HEALTHY_TYPE, count)
            inserting = time.monotonic() - begin
            progress.update(task, description=f"Reading {count:,} once")
            begin = time.monotonic()
            refused += await _read_each(system, seeded, progress, task)
            reading = time.monotonic() - begin
            (worker,) = system.servers[0].processes
            memory.append(int(worker.memory_info().rss))
    growth = memory[1] / memory[0]
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            "memory of the worker": " → ".join(f"{size / 2**20:.0f} MiB" for size in memory),
            "rows inserted, and read": f"in {inserting:.0f} s, and in {reading:.0f} s",
            "batches that the audit log did not take in time": f"{refused}",
        },
        bounds=[
            Bound(
                f"memory after {plan.integrations:,} integrations were read once: at most {plan.bound:g} times"
                f" that after {plan.smallest:,}",
                f"{growth:.2f} times",
                growth <= plan.bound,
                growth,
                plan.bound,
            )
        ],
        raw={"bytes": memory},
    )


async def _read_each(system: System, seeded: Sequence[Seeded], progress: Progress, task: TaskID) -> int:
    """Return how many batches were refused, and requested again."""
    refused = 0
    batches = iter([seeded[begin : begin + _BATCH] for begin in range(0, len(seeded), _BATCH)])

    async def read() -> None:
        nonlocal refused
        for batch in batches:
            waiting = [
                pb.GetCredentialsRequest(integration_id=one.integration_id, user_id=one.user_id) for one in batch
            ]
            while waiting:  # those that do not fit into a response are requested again
                try:
                    response = await system.servers[0].service.BatchGetCredentials(
                        pb.BatchGetCredentialsRequest(requests=waiting), timeout=_DEADLINE
                    )
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise
                    refused += 1
                    await asyncio.sleep(_PAUSE)
                    continue
                failed = [
                    (request, result)
                    for request, result in zip(waiting, response.results, strict=True)
                    if not result.HasField("credentials")
                ]
                if len(failed) == len(waiting):
                    raise RuntimeError(f"no credentials: {failed[0][1]}")
                waiting = [request for request, _ in failed]
            progress.advance(task, len(batch))

    async with asyncio.timeout(_TIMEOUT), asyncio.TaskGroup() as group:
        for _ in itertools.repeat(None, _CONCURRENCY):
            group.create_task(read())
    return refused
