"""A worker without calls: the time until it serves, its memory, and the CPU that it uses.

A server with two workers on an up-to-date database starts several times. The memory is the worker's own and its share
of what it has in common with the supervisor and the other workers (PSS of /proc/PID/smaps_rollup).
"""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from rich.progress import Progress

from benchmarks.harness import Bound, Result
from benchmarks.system import DatabaseKind, new_database
from integration_server.storage.schema import migrate
from tests.end_to_end.commands import wait_until_serving
from tests.end_to_end.processes import server_environment, started

_SETTLING = 5.0  # seconds after the start that are not measured
_MAX_START = 0.8  # seconds of CPU
_MAX_MEMORY = 90  # MB
_MAX_CPU = 5  # ms in a second


@dataclass(frozen=True, slots=True)
class IdlePlan:
    """The parameters. `bound` is the highest ratio of a figure to its goal."""

    database: DatabaseKind
    rounds: int
    seconds: float
    workers: int
    bound: float


@dataclass(frozen=True, slots=True)
class Round:
    """One start: seconds until the server serves; and of each worker PSS and RSS in MB, and CPU in ms per second."""

    wall: float
    start_cpu: float
    pss: Sequence[float]
    rss: Sequence[float]
    cpu: Sequence[float]


async def measure(plan: IdlePlan, progress: Progress) -> Result:
    """Start the server in rounds; the medians are judged."""
    task = progress.add_task("rounds", total=plan.rounds)
    rounds = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="benchmark-")))
        database_url = stack.enter_context(new_database(plan.database, directory))
        await migrate(database_url)
        environment = server_environment(
            database_url, WORKERS=str(plan.workers), DEV_MODE="false", METRICS_ADDRESS="127.0.0.1:0"
        )
        for _ in range(plan.rounds):
            rounds.append(await _measure_round(plan, directory, environment))
            progress.advance(task)
    start = statistics.median(one.start_cpu for one in rounds)
    pss = statistics.median(max(one.pss) for one in rounds)
    cpu = [statistics.median(values) for values in zip(*(one.cpu for one in rounds), strict=True)]
    judged = [
        ("CPU from the first import until a worker serves", start, _MAX_START, "s", 2),
        ("memory of the largest worker", pss, _MAX_MEMORY, "MB", 0),
        ("CPU of the busiest worker without calls", max(cpu), _MAX_CPU, "ms/s", 1),
    ]
    return Result(
        comparisons=(),
        lateness=0.0,
        figures={
            "Time from the start of the command until all processes serve": _spread([one.wall for one in rounds], "s"),
            "CPU from the first import until a worker serves": _spread([one.start_cpu for one in rounds], "s"),
            "Memory of a worker (PSS)": _spread([value for one in rounds for value in one.pss], "MB"),
            "Memory of a worker, with all that it shares (RSS)": _spread([v for one in rounds for v in one.rss], "MB"),
            "CPU of each worker, the first one first": ", ".join(f"{value:.1f} ms/s" for value in cpu),
        },
        bounds=[
            Bound(
                f"{name}: at most {plan.bound * goal:g} {unit}",
                f"{value:.{digits}f} {unit}",
                value <= goal * plan.bound,
            )
            for name, value, goal, unit, digits in judged
        ],
        raw={"rounds": rounds},
    )


def _spread(values: Sequence[float], unit: str) -> str:
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


async def _measure_round(plan: IdlePlan, directory: Path, environment: Mapping[str, str]) -> Round:
    begin = time.perf_counter()
    async with started(directory, environment, "serve", forked=False) as command:
        await wait_until_serving(command)
        wall = time.perf_counter() - begin
        workers = [psutil.Process(pid) for name, pid in command.serving["pids"].items() if name.startswith("server")]
        # A worker is a fork of the supervisor, which has imported for it.
        start_cpu = _cpu(psutil.Process(command.process.pid)) + _cpu(workers[0])
        await asyncio.sleep(_SETTLING)
        before, begin = [_cpu(worker) for worker in workers], time.perf_counter()
        await asyncio.sleep(plan.seconds)
        passed = time.perf_counter() - begin
        cpu = [1000 * (_cpu(worker) - first) / passed for worker, first in zip(workers, before, strict=True)]
        memory = [_memory(worker.pid) for worker in workers]
    return Round(wall, start_cpu, [one["Pss:"] for one in memory], [one["Rss:"] for one in memory], cpu)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _memory(pid: int) -> Mapping[str, float]:
    """The lines of smaps_rollup in MB; only root reads those of a process that protects its memory."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name: int(kilobytes) / 1024 for name, kilobytes, *_ in lines}
