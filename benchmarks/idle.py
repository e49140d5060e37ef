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

import grpc.aio
import psutil
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from rich.progress import Progress

from benchmarks.harness import Bound, Result
from benchmarks.system import DatabaseKind, new_database
from integration_server.storage.schema import migrate
from tests.end_to_end.commands import DEADLINE, Command, wait_until_serving
from tests.end_to_end.processes import free_port, server_environment, started

_RECONNECT_MS = 10
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
    """One start; and of each worker PSS and RSS in MB, and CPU in ms per second.

    `wall` is in seconds until all processes serve, `worker_wall` until a worker reports SERVING; `start_cpu` is the CPU
    until then of that worker and of the supervisor, in seconds.
    """

    wall: float
    worker_wall: float
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
            "Time from the start of the command until a worker serves": _spread([r.worker_wall for r in rounds], "s"),
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
    address = f"127.0.0.1:{free_port()}"
    begin = time.perf_counter()
    async with started(directory, {**environment, "GRPC_ADDRESS": address}, "serve", forked=False) as command:
        start_cpu = await _cpu_until_serving(command, address)
        worker_wall = time.perf_counter() - begin
        await wait_until_serving(command)
        wall = time.perf_counter() - begin
        workers = [psutil.Process(pid) for name, pid in command.serving["pids"].items() if name.startswith("server")]
        await asyncio.sleep(_SETTLING)
        before, begin = [_cpu(worker) for worker in workers], time.perf_counter()
        await asyncio.sleep(plan.seconds)
        passed = time.perf_counter() - begin
        cpu = [1000 * (_cpu(worker) - first) / passed for worker, first in zip(workers, before, strict=True)]
        memory = [_memory(worker.pid) for worker in workers]
    return Round(wall, worker_wall, start_cpu, [one["Pss:"] for one in memory], [one["Rss:"] for one in memory], cpu)


async def _cpu_until_serving(command: Command, address: str) -> float:
    """Wait until a worker reports SERVING; the CPU of this worker and of the supervisor until then.

    The first worker starts alone. It is a fork of the supervisor, which has imported for it.
    """
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
    ]
    async with grpc.aio.insecure_channel(address, options) as channel, asyncio.timeout(DEADLINE):
        async for response in HealthStub(channel).Watch(HealthCheckRequest(), wait_for_ready=True):
            if response.status == HealthCheckResponse.SERVING:
                break
    supervisor = psutil.Process(command.process.pid)
    forks = [child for child in supervisor.children() if child.cmdline() == supervisor.cmdline()]
    return _cpu(supervisor) + max(map(_cpu, forks))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _memory(pid: int) -> Mapping[str, float]:
    """The lines of smaps_rollup in MB; only root reads those of a process that protects its memory."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name: int(kilobytes) / 1024 for name, kilobytes, *_ in lines}
