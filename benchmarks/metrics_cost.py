"""Metrics cost little CPU: the load of a server with them, which is scraped, against one without.

Two systems get the same load at the same time. A scrape every second is fifteen times what Prometheus asks for.
"""

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.progress import Progress

from benchmarks.harness import Bound, LoadPhase, Result, compare, load_both, merge_phases, percentile
from benchmarks.system import DatabaseKind, System, healthy_calls, running_system
from integration_server.observability.metrics import METRICS

_SCRAPE_INTERVAL = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class MetricsCostPlan:
    """The parameters. `bound` is the highest ratio of the CPU time with metrics to that without."""

    database: DatabaseKind
    rounds: int
    seconds: float
    rate: float
    bound: float


async def measure(plan: MetricsCostPlan, progress: Progress) -> Result:
    """Measure both systems in rounds; the median of the ratios is judged."""
    async with (
        running_system(plan.database) as without,
        running_system(plan.database, METRICS_ADDRESS="127.0.0.1:0") as with_metrics,
        _scraped(with_metrics) as scrapes,
    ):
        calls = await healthy_calls(without), await healthy_calls(with_metrics)
        cpu = without.cpu_seconds, with_metrics.cpu_seconds
        await load_both(calls, cpu, plan.rate, plan.seconds)  # warms the caches
        task, pairs = progress.add_task("rounds", total=plan.rounds), list[tuple[LoadPhase, LoadPhase]]()
        for _ in range(plan.rounds):
            pairs.append(await load_both(calls, cpu, plan.rate, plan.seconds))
            progress.advance(task)
        counted = await _counted_calls(with_metrics)
    ratios = [load.cpu_usage[0] / reference.cpu_usage[0] for reference, load in pairs]
    ratio, sent = statistics.median(ratios), plan.rate * plan.seconds * (plan.rounds + 1)
    phases = [phase for pair in pairs for phase in pair]
    return Result(
        comparisons=compare(pairs),
        lateness=percentile(merge_phases(phases).lateness, 99),
        figures={
            "CPU of an RPC without metrics": f"{_cost(plan, [pair[0] for pair in pairs]):.0f} µs",
            "CPU of an RPC with metrics": f"{_cost(plan, [pair[1] for pair in pairs]):.0f} µs",
            "Ratios of the rounds": ", ".join(f"{one:.3f}" for one in ratios),
            "Scrapes": str(len(scrapes)),
        },
        bounds=[
            Bound(f"at most {plan.bound:g} times the CPU", f"{ratio:.3f} times", ratio <= plan.bound),
            Bound("every RPC is counted", f"{counted:.0f} of {sent:.0f}", counted >= sent),
            Bound(
                "no RPC fails",
                str(sum(sum(phase.failures.values()) for phase in phases)),
                not any(p.failures for p in phases),
            ),
        ],
        raw={"ratios": ratios, "scrape_bytes": scrapes},
    )


def _cost(plan: MetricsCostPlan, phases: list[LoadPhase]) -> float:
    """The CPU time of an RPC in microseconds."""
    return 1e6 * statistics.median(phase.cpu_usage[0] for phase in phases) / plan.rate


@asynccontextmanager
async def _scraped(system: System) -> AsyncIterator[list[int]]:
    """Scrape the system while the block runs; yields the sizes of the expositions."""
    sizes: list[int] = []

    async def scrape(client: httpx.AsyncClient) -> None:
        while True:
            sizes.append(len((await client.get(system.servers[0].metrics_url)).raise_for_status().content))
            await asyncio.sleep(_SCRAPE_INTERVAL)

    async with httpx.AsyncClient(trust_env=False) as client:
        task = asyncio.create_task(scrape(client))
        try:
            yield sizes
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _counted_calls(system: System) -> float:
    """The RPCs that the metrics have counted."""
    await asyncio.sleep(2 * _SCRAPE_INTERVAL)  # the exposition may be a second old
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(system.servers[0].metrics_url)).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return sum(sample.value for sample in families[METRICS.rpcs.family].samples)
