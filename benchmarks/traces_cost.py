"""Traces of every call cost little CPU: the load of a server that exports them to a collector, against one without.

Two systems get the same load at the same time. All calls are traced, which is more than most installations record.
"""

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rich.progress import Progress

from benchmarks.harness import Bound, LoadPhase, Result, compare, load_both, merge_phases, percentile
from benchmarks.system import DatabaseKind, healthy_calls, running_system


@dataclass(frozen=True, slots=True)
class TracesCostPlan:
    """The parameters. `bound` is the highest ratio of the CPU time with traces to that without."""

    database: DatabaseKind
    rounds: int
    seconds: float
    rate: float
    bound: float


async def measure(plan: TracesCostPlan, progress: Progress) -> Result:
    """Measure both systems in rounds; the median of the ratios is judged."""
    with _running_collector() as collector:
        async with (
            running_system(plan.database) as without,
            running_system(plan.database, TRACES_ENDPOINT=collector.url) as traced,
        ):
            calls = await healthy_calls(without), await healthy_calls(traced)
            cpu = without.cpu_seconds, traced.cpu_seconds
            await load_both(calls, cpu, plan.rate, plan.seconds)  # warms the caches
            task, pairs = progress.add_task("rounds", total=plan.rounds), list[tuple[LoadPhase, LoadPhase]]()
            for _ in range(plan.rounds):
                pairs.append(await load_both(calls, cpu, plan.rate, plan.seconds))
                progress.advance(task)
    ratios = [load.cpu_usage[0] / reference.cpu_usage[0] for reference, load in pairs]
    ratio, phases = statistics.median(ratios), [phase for pair in pairs for phase in pair]
    received = sum(collector.sizes)
    costs = [1e6 * statistics.median(pair[side].cpu_usage[0] for pair in pairs) / plan.rate for side in (0, 1)]
    failures = sum(sum(phase.failures.values()) for phase in phases)
    return Result(
        comparisons=compare(pairs),
        lateness=percentile(merge_phases(phases).lateness, 99),
        figures={
            "CPU of an RPC without traces": f"{costs[0]:.0f} µs",
            "CPU of an RPC with traces": f"{costs[1]:.0f} µs",
            "Ratios of the rounds": ", ".join(f"{one:.3f}" for one in ratios),
            "Exported": f"{len(collector.sizes)} batches, {received} bytes",
        },
        bounds=[
            Bound(f"at most {plan.bound:g} times the CPU", f"{ratio:.3f} times", ratio <= plan.bound),
            Bound("spans arrive at the collector", f"{received} bytes", received > 0),
            Bound("no RPC fails", str(failures), failures == 0),
        ],
        raw={"ratios": ratios},
    )


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
