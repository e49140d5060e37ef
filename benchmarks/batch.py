"""What a batch costs: CPU time of the server for each credential of `BatchGetCredentials`.

The reference is a call of `GetCredentials` for the same integrations at the same server. Phases of both alternate, and
the cache has all of them.
"""

import asyncio
import itertools
import statistics
from dataclasses import dataclass
from datetime import timedelta

from rich.progress import Progress

from benchmarks.harness import Bound, Result
from benchmarks.reads import cost_of, cpu_of
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, running_system, seed
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

_DEADLINE = 30.0  # seconds
_CONCURRENCY = 4
# Seconds of CPU for a read, of the best of the servers that were compared (4 to 6 ms), on another day.
_PEER_READ = 0.004
_PEER_BOUND = 20


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The parameters: `calls` of `GetCredentials`, and as many credentials ten times over in batches of `size`.

    `bound` is the lowest ratio of credentials per CPU second to those of single calls.
    """

    database: DatabaseKind
    rounds: int
    calls: int
    size: int
    bound: float


async def measure(plan: BatchPlan, progress: Progress) -> Result:
    """Measure single calls and batches in alternating phases; the median of the rounds is judged."""
    single_costs: list[float] = []
    batch_costs: list[float] = []
    async with running_system(plan.database) as system:
        seeded = await seed(system, HEALTHY_TYPE, [utc_now() + timedelta(days=7)] * plan.size)
        server, (worker,) = system.servers[0], system.servers[0].processes
        items = [pb.GetCredentialsRequest(integration_id=one.integration_id, user_id=one.user_id) for one in seeded]
        batch, singles = pb.BatchGetCredentialsRequest(requests=items), itertools.cycle(items)

        async def send_single() -> None:
            await server.service.GetCredentials(next(singles), timeout=_DEADLINE)

        async def send_batch() -> None:
            response = await server.service.BatchGetCredentials(batch, timeout=_DEADLINE)
            if not all(result.HasField("credentials") for result in response.results):
                raise RuntimeError("a result of the batch is an error")

        batches = max(1, plan.calls * 10 // plan.size)
        task = progress.add_task("rounds", total=plan.rounds + 1)
        for number in range(plan.rounds + 1):  # the first warms up
            single = await cost_of(send_single, plan.calls, _CONCURRENCY, cpu_of(worker))
            batched = await cost_of(send_batch, batches, _CONCURRENCY, cpu_of(worker)) / plan.size
            if number:
                single_costs.append(single)
                batch_costs.append(batched)
            progress.advance(task)
            await asyncio.sleep(0)
    batch_cost = statistics.median(batch_costs)
    ratios = [single / batched for single, batched in zip(single_costs, batch_costs, strict=True)]
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            "CPU of a single call": f"{1e6 * statistics.median(single_costs):.0f} µs",
            f"CPU of a credential in a batch of {plan.size}": f"{1e6 * batch_cost:.1f} µs",
            "credentials per CPU second of single calls": f"{_PEER_READ / statistics.median(single_costs):.0f} times as"
            f" many as of the best peer, whose reads take {1000 * _PEER_READ:g} ms",
        },
        bounds=[
            Bound(
                f"a batch returns at least {plan.bound:g} times as many credentials per CPU second as single calls",
                f"{statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f})",
                statistics.median(ratios) >= plan.bound,
            ),
            Bound(
                f"a batch returns at least {_PEER_BOUND} times as many credentials per CPU second as the best peer"
                f" ({1000 * _PEER_READ:g} ms for each)",
                f"{_PEER_READ / batch_cost:.0f} times",
                _PEER_READ / batch_cost >= _PEER_BOUND,
            ),
        ],
        raw={"single_cpu_seconds": single_costs, "batch_cpu_seconds": batch_costs},
    )
