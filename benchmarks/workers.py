"""Several workers cost a call no more CPU than one.

Two systems, with one and with two workers, get the same load for each worker in turn. (Half the load for each worker
is no fair comparison: a process that is less busy handles fewer calls each time it wakes up.)
"""

import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio
from rich.progress import Progress

from benchmarks.harness import (
    Bound,
    Call,
    LoadPhase,
    Result,
    compare,
    cpu_seconds_of,
    load,
    merge_phases,
    percentile,
)
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_system, seed
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

if TYPE_CHECKING:
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

_CONNECTIONS = 12  # for each worker. All at one of two workers: a probability of 10⁻⁷
_INTEGRATIONS = 100
_WEEK = timedelta(days=7)
_DEADLINE = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class WorkersPlan:
    """The parameters. `rate` is that of each worker, `bound` the highest ratio of the CPU with two workers to one."""

    database: DatabaseKind
    rounds: int
    seconds: float
    rate: float
    bound: float


async def measure(plan: WorkersPlan, progress: Progress) -> Result:
    """Measure both systems in rounds; the median of the ratios is judged."""
    async with (
        running_system(plan.database, WORKERS="1") as one,
        running_system(plan.database, WORKERS="2") as two,
        _connections(one, _CONNECTIONS) as services_of_one,
        _connections(two, 2 * _CONNECTIONS) as services_of_two,
    ):
        calls_of_one, calls_of_two = await _calls(one, services_of_one), await _calls(two, services_of_two)

        async def load_in_turn() -> tuple[LoadPhase, LoadPhase]:
            return (
                await load(calls_of_one, plan.rate, plan.seconds, one.cpu_seconds),
                await load(calls_of_two, 2 * plan.rate, plan.seconds, two.cpu_seconds),
            )

        await load_in_turn()  # warms the caches
        task, pairs = progress.add_task("rounds", total=plan.rounds), list[tuple[LoadPhase, LoadPhase]]()
        shares: list[Sequence[float]] = []
        for _ in range(plan.rounds):
            before = _cpu_of_workers(two)
            pairs.append(await load_in_turn())
            shares.append([after - first for after, first in zip(_cpu_of_workers(two), before, strict=True)])
            progress.advance(task)
    ratios = [load.cpu_usage[0] / reference.cpu_usage[0] / 2 for reference, load in pairs]
    ratio, phases = statistics.median(ratios), [phase for pair in pairs for phase in pair]
    failures = merge_phases(phases).failures
    least = min(min(share) / sum(share) for share in shares)
    return Result(
        comparisons=compare(pairs),
        lateness=percentile(merge_phases(phases).lateness, 99),
        figures={
            "CPU of an RPC with one worker": f"{_cost(plan.rate, [pair[0] for pair in pairs]):.0f} µs",
            "CPU of an RPC with two workers": f"{_cost(2 * plan.rate, [pair[1] for pair in pairs]):.0f} µs",
            "Ratios of the rounds": ", ".join(f"{one:.3f}" for one in ratios),
            "Smallest share of a worker in the CPU of both": f"{least:.0%}",
        },
        bounds=[
            Bound(f"at most {plan.bound:g} times the CPU", f"{ratio:.3f} times", ratio <= plan.bound),
            Bound("both workers serve", f"{least:.0%} of the CPU at least", least > 0.05),
            Bound("no RPC fails", str(sum(failures.values())), not failures),
        ],
        raw={"ratios": ratios, "shares": shares},
    )


def _cost(rate: float, phases: Sequence[LoadPhase]) -> float:
    """The CPU time of an RPC in microseconds."""
    return 1e6 * statistics.median(phase.cpu_usage[0] for phase in phases) / rate


def _cpu_of_workers(system: System) -> Sequence[float]:
    return list(map(cpu_seconds_of, system.servers[0].processes))


@asynccontextmanager
async def _connections(system: System, count: int) -> AsyncIterator[Sequence["IntegrationServiceAsyncStub"]]:
    """Clients with a connection each."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with AsyncExitStack() as stack:
        yield [
            IntegrationServiceStub(
                await stack.enter_async_context(grpc.aio.insecure_channel(system.servers[0].grpc_address, options))
            )
            for _ in range(count)
        ]


async def _integrations(system: System, count: int) -> Sequence[Seeded]:
    expire_time = utc_now() + _WEEK
    return await seed(system, HEALTHY_TYPE, [expire_time] * count)


def _request(one: Seeded) -> pb.GetCredentialsRequest:
    return pb.GetCredentialsRequest(integration_id=one.integration_id, user_id=one.user_id)


async def _calls(system: System, services: Sequence["IntegrationServiceAsyncStub"]) -> Sequence[Call]:
    """`GetCredentials` of each integration over each connection in turn."""
    seeded = await _integrations(system, _INTEGRATIONS)
    return [
        Call("GetCredentials", partial(service.GetCredentials, _request(one), timeout=_DEADLINE))
        for one in seeded
        for service in services
    ]
