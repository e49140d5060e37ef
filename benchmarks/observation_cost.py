"""What metrics and traces cost: CPU time of the server for an RPC, with them and without.

Two systems, which differ in that alone, get the same calls in short alternating phases. `GetIntegration` and
`ListIntegrations` take the general path of RPCs, with a statement each; `GetCredentials` from the cache takes the hot
path, whose bound is that of `hit`. Metrics are scraped every second, fifteen times as often as Prometheus does. All
calls are traced, which is more than most installations record.
"""

import asyncio
import itertools
import statistics
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.progress import Progress

from benchmarks.harness import Bound, Result
from benchmarks.reads import Send, cost_of
from benchmarks.system import DatabaseKind, System, healthy_calls, running_system
from integration_server.observability.metrics import METRICS

GENERAL_PATH, HOT_PATH = ("GetIntegration", "ListIntegrations"), ("GetCredentials",)
_PHASE_CALLS = 25  # of one kind to one system, until it is the turn of the other
_CONCURRENCY = 4
_SCRAPE_INTERVAL = 1.0  # seconds
_EXPORT_TIME = 60.0  # seconds; a server exports every five


@dataclass(frozen=True, slots=True)
class ObservationCostPlan:
    """The parameters: `calls` of each kind in a round. `bound` is the highest ratio of the CPU time with to without."""

    database: DatabaseKind
    rounds: int
    calls: int
    bound: float


async def measure_metrics(plan: ObservationCostPlan, progress: Progress) -> Result:
    """Measure a server with metrics; the medians of the rounds' ratios are judged."""
    async with (
        running_system(plan.database, WORKERS="1") as without,
        running_system(plan.database, WORKERS="1", METRICS_ADDRESS="127.0.0.1:0") as with_metrics,
        _scraped(with_metrics) as scrapes,
    ):
        costs = await _measure(plan, without, with_metrics, progress)
        counted = await _counted_calls(with_metrics)
    sent = (plan.rounds + 1) * len(costs) * plan.calls
    return _result(plan, costs, Bound("every RPC is counted", f"{counted:,.0f} of {sent:,}", counted >= sent), scrapes)


async def measure_traces(plan: ObservationCostPlan, progress: Progress) -> Result:
    """Measure a server with traces; the medians of the rounds' ratios are judged."""
    with _running_collector() as collector:
        async with (
            running_system(plan.database, WORKERS="1") as without,
            running_system(plan.database, WORKERS="1", TRACES_ENDPOINT=collector.url) as traced,
        ):
            costs = await _measure(plan, without, traced, progress)
            with suppress(TimeoutError):  # the bound reports the lack
                async with asyncio.timeout(_EXPORT_TIME):
                    while not collector.sizes:  # noqa: ASYNC110  # its thread appends to them
                        await asyncio.sleep(0.1)
    sizes = collector.sizes
    arrived = Bound("spans arrive at the collector", f"{sum(sizes):,} bytes in {len(sizes)} batches", bool(sizes))
    return _result(plan, costs, arrived, sizes)


Costs = Mapping[str, Sequence[tuple[float, float]]]
"""For each kind of call, the CPU seconds of one without and with, in each round."""


async def _measure(plan: ObservationCostPlan, without: System, observed: System, progress: Progress) -> Costs:
    systems = without, observed
    sends = [await _sends(system) for system in systems]
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in (*GENERAL_PATH, *HOT_PATH)}
    task = progress.add_task("rounds", total=plan.rounds + 1)
    for number in range(plan.rounds + 1):  # the first warms up
        for name, of_rounds in costs.items():
            used = [0.0, 0.0]
            for begin in range(0, plan.calls, _PHASE_CALLS):
                calls = min(_PHASE_CALLS, plan.calls - begin)
                for side in (0, 1) if begin // _PHASE_CALLS % 2 else (1, 0):
                    cost = await cost_of(sends[side][name], calls, _CONCURRENCY, systems[side].cpu_seconds)
                    used[side] += cost * calls / plan.calls
            if number:
                of_rounds.append((used[0], used[1]))
        progress.advance(task)
    return costs


async def _sends(system: System) -> Mapping[str, Send]:
    """What sends a call of each kind, about the integrations in turn."""
    calls = await healthy_calls(system)

    def in_turn(name: str) -> Send:
        of_kind = itertools.cycle([call for call in calls if call.name == name])

        async def send() -> None:
            await next(of_kind).send()

        return send

    return {name: in_turn(name) for name in (*GENERAL_PATH, *HOT_PATH)}


def _result(plan: ObservationCostPlan, costs: Costs, observed: Bound, sizes: Sequence[int]) -> Result:
    figures, bounds = {}, []
    for name, pairs in costs.items():
        ratios = [with_it / without for without, with_it in pairs]
        ratio, spread = statistics.median(ratios), (min(ratios), max(ratios))
        without, with_it = (1e6 * statistics.median(side) for side in zip(*pairs, strict=True))
        figures[name] = f"{without:.0f} → {with_it:.0f} µs, {ratio:.3f} times ({spread[0]:.3f} to {spread[1]:.3f})"
        if name in GENERAL_PATH:
            text = f"{name}: at most {plan.bound:g} times the CPU"
            bounds.append(Bound(text, f"{ratio:.3f} times", ratio <= plan.bound, ratio, plan.bound, spread))
    return Result([], 0.0, figures, [*bounds, observed], {"cpu_seconds": costs, "bytes": sizes})


# --- who gets them -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _scraped(system: System) -> AsyncIterator[list[int]]:
    """Scrape the metrics until the block ends. Yields the sizes of the responses."""
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


@dataclass(slots=True)
class _Collector:
    url: str
    sizes: list[int] = field(default_factory=list)


@contextmanager
def _running_collector() -> Iterator[_Collector]:
    """A collector that accepts everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.sizes.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name of the base class
            """Nothing is logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = _Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
