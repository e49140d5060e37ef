"""A provider that hangs delays nobody else.

Refreshes that the provider never answers are kept up all the time, more of them than the server has database
connections. Meanwhile other RPCs, about integrations of another type, are as quick as at a second server to which
nothing happens.
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
    Phase,
    Result,
    compare,
    format_counts,
    lateness_of,
    load_both,
    load_figures,
    speed_bounds,
)
from benchmarks.system import TROUBLED_TYPE, DatabaseKind, Seeded, System, healthy_calls, running_system, seed
from integration_server.sandbox import Hang
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

_POOL_SIZE = 5
_PROVIDER_DEADLINE = 10.0  # seconds after which the server gives a call up
_SPARE = 0.2  # of the refreshes may have just been given up, and be on their way again
_WARM_UP = 3.0
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it; `seconds` is the length of a phase, `rate` the RPCs in a second at each of the two."""

    database: DatabaseKind
    pending: int
    rounds: int
    seconds: float
    rate: float
    bound: float


@dataclass(frozen=True, slots=True)
class PendingRefreshes:
    """What became of the refreshes: how many hung at the provider, looked at every so often, and their answers."""

    in_flight: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


async def measure(plan: Plan, progress: Progress) -> Result:
    """Measure beside a system without them."""
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
        count = plan.pending + math.ceil(_SPARE * plan.pending)
        seeded = await seed(system, TROUBLED_TYPE, [utc_now() - timedelta(minutes=1)] * count)
        await system.provider.break_token_endpoint(Hang())
        progress.update(task, description="Warming up, and making them hang")
        await both(_WARM_UP)
        async with _pending_refreshes(plan, system, seeded, pending):
            pairs = []
            for number in range(1, plan.rounds + 1):
                progress.update(task, description=f"{plan.pending} hang: phase {number} of {plan.rounds}")
                pairs.append(await both(plan.seconds))
                progress.update(task, advance=1)
    return _result(plan, pairs, pending)


def _result(plan: Plan, pairs: Sequence[tuple[Phase, Phase]], pending: PendingRefreshes) -> Result:
    comparisons = compare(pairs)
    references, loads = zip(*pairs, strict=True)
    least = min(pending.in_flight, default=0)
    return Result(
        comparisons,
        lateness=lateness_of([*references, *loads]),
        figures={
            **load_figures(references, loads),
            "answers to the hanging refreshes": format_counts(pending.outcomes),
        },
        bounds=[
            Bound(
                f"{plan.pending} refreshes hang at the provider all the time",
                f"{least} at least, {max(pending.in_flight, default=0)} at most",
                least >= plan.pending,
            ),
            *speed_bounds(comparisons, plan.bound, [*references, *loads]),
        ],
        raw={"pairs": [[asdict(phase) for phase in pair] for pair in pairs], "under_way": pending.in_flight},
    )


@asynccontextmanager
async def _pending_refreshes(
    plan: Plan, system: System, seeded: Sequence[Seeded], pending: PendingRefreshes
) -> AsyncIterator[None]:
    """Within the block each of these integrations is being refreshed, again and again."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            # Begun over the time that each takes to be given up, so that they are not given up all at once.
            group.create_task(
                _refresh_for_ever(system, integration, _PROVIDER_DEADLINE * number / len(seeded), pending)
            )
            for number, integration in enumerate(seeded)
        ]
        await _wait_for(system, lambda in_flight: in_flight >= plan.pending)
        await asyncio.sleep(_SETTLE_SECONDS)
        tasks.append(group.create_task(_sample(system, pending)))
        yield
        for task in tasks:
            task.cancel()


async def _refresh_for_ever(system: System, integration: Seeded, delay: float, pending: PendingRefreshes) -> None:
    await asyncio.sleep(delay)
    # By force: the provider is asked even though it has failed lately.
    request = pb.RefreshTokenRequest(integration_id=integration.integration_id, user_id=integration.user_id, force=True)
    while True:
        begin = time.monotonic()
        try:
            await system.servers[0].service.RefreshToken(request)
            pending.outcomes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            pending.outcomes[error.code().name] += 1
        if time.monotonic() - begin < 1:
            await asyncio.sleep(1)  # it did not hang: a flood of refusals would be another benchmark


async def _sample(system: System, pending: PendingRefreshes) -> None:
    while True:
        pending.in_flight.append((await system.provider.token_calls()).in_flight)
        await asyncio.sleep(0.5)


async def _wait_for(system: System, enough: Callable[[int], bool]) -> None:
    """Wait for so many calls at the provider. Not for ever: the verdict tells if they never came."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2 * _PROVIDER_DEADLINE):
            while not enough((await system.provider.token_calls()).in_flight):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.1)
