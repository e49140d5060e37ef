"""A provider that does not respond delays no other RPC.

Refreshes to which the provider never responds are pending all the time, more of them than the server has database
connections. Meanwhile RPCs about integrations of another type are as fast as at an undisturbed reference server.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial

import grpc
from rich.progress import Progress

from benchmarks.harness import (
    Bound,
    LoadPhase,
    Result,
    compare,
    format_counts,
    lateness_of,
    load_both,
    load_figures,
    speed_bounds,
)
from benchmarks.system import TROUBLED_TYPE, DatabaseKind, Seeded, System, healthy_calls, running_system, seed
from integration_server.sandbox.faults import Hang
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

_POOL_SIZE = 5
_PROVIDER_DEADLINE = 10.0  # seconds; the server gives up a request after it
_EXTRA_RATIO = 0.2  # additional refreshes, for those that are just being repeated
_WARM_UP = 3.0
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SlowProviderPlan:
    """The parameters: `seconds` is the length of a phase, `rate` the RPCs per second to each system."""

    database: DatabaseKind
    pending: int
    rounds: int
    seconds: float
    rate: float
    bound: float


@dataclass(frozen=True, slots=True)
class PendingRefreshes:
    """Samples of the number of pending refreshes at the provider, and the outcomes of the RPCs."""

    in_flight: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


async def measure(plan: SlowProviderPlan, progress: Progress) -> Result:
    """Measure beside a reference system without pending refreshes."""
    pending = PendingRefreshes()
    task = progress.add_task("Starting", total=plan.rounds)
    start = partial(running_system, plan.database, DATABASE_POOL_SIZE=str(_POOL_SIZE))
    async with start() as reference, start() as system:
        both = partial(
            load_both,
            (await healthy_calls(reference), await healthy_calls(system)),
            (reference.cpu_seconds, system.cpu_seconds),
            plan.rate,
        )
        count = plan.pending + math.ceil(_EXTRA_RATIO * plan.pending)
        seeded = await seed(system, TROUBLED_TYPE, [utc_now() - timedelta(minutes=1)] * count)
        await system.provider.break_token_endpoint(Hang())
        progress.update(task, description="Warming up")
        await both(_WARM_UP)
        async with _pending_refreshes(plan, system, seeded, pending):
            pairs = []
            for number in range(1, plan.rounds + 1):
                progress.update(task, description=f"{plan.pending} pending: phase {number} of {plan.rounds}")
                pairs.append(await both(plan.seconds))
                progress.update(task, advance=1)
    return _result(plan, pairs, pending)


def _result(plan: SlowProviderPlan, pairs: Sequence[tuple[LoadPhase, LoadPhase]], pending: PendingRefreshes) -> Result:
    comparisons = compare(pairs)
    references, loads = zip(*pairs, strict=True)
    least = min(pending.in_flight, default=0)
    return Result(
        comparisons,
        lateness=lateness_of([*references, *loads]),
        figures={
            **load_figures(references, loads),
            "outcomes of the pending refreshes": format_counts(pending.outcomes),
        },
        bounds=[
            Bound(
                f"{plan.pending} refreshes are pending at the provider all the time",
                f"{least} at least, {max(pending.in_flight, default=0)} at most",
                least >= plan.pending,
            ),
            *speed_bounds(comparisons, plan.bound, [*references, *loads]),
        ],
        raw={"pairs": [[asdict(phase) for phase in pair] for pair in pairs], "in_flight": pending.in_flight},
    )


@asynccontextmanager
async def _pending_refreshes(
    plan: SlowProviderPlan, system: System, seeded: Sequence[Seeded], pending: PendingRefreshes
) -> AsyncIterator[None]:
    """Refresh each of these integrations repeatedly, until the block ends."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            # The starts are spread over the provider deadline, so that the refreshes do not end all at once.
            group.create_task(
                _refresh_repeatedly(system, integration, _PROVIDER_DEADLINE * number / len(seeded), pending)
            )
            for number, integration in enumerate(seeded)
        ]
        await _wait_for(system, lambda in_flight: in_flight >= plan.pending)
        await asyncio.sleep(_SETTLE_SECONDS)
        tasks.append(group.create_task(_sample(system, pending)))
        yield
        for task in tasks:
            task.cancel()


async def _refresh_repeatedly(system: System, integration: Seeded, delay: float, pending: PendingRefreshes) -> None:
    await asyncio.sleep(delay)
    # `force` skips the backoff after failures.
    request = pb.RefreshTokenRequest(integration_id=integration.integration_id, user_id=integration.user_id, force=True)
    while True:
        begin = time.monotonic()
        try:
            await system.servers[0].service.RefreshToken(request)
            pending.outcomes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            pending.outcomes[error.code().name] += 1
        if time.monotonic() - begin < 1:
            await asyncio.sleep(
                1
            )  # it did not wait for the provider; repeated errors at once would be another benchmark


async def _sample(system: System, pending: PendingRefreshes) -> None:
    while True:
        pending.in_flight.append((await system.provider.token_calls()).in_flight)
        await asyncio.sleep(0.5)


async def _wait_for(system: System, enough: Callable[[int], bool]) -> None:
    """Wait until enough calls are pending at the provider. After a timeout the bound reports the lack."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * _PROVIDER_DEADLINE):
            while not enough((await system.provider.token_calls()).in_flight):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.1)
