"""What `GetCredentials` from the cache costs, with tokens, a policy and the audit, beside an RPC that does nothing.

The reference is a bare grpc.aio handler that returns a response of the same size, in a process with the same settings
of gRPC and the same event loop; it gets the same requests with the same metadata. The load generator sets a deadline
on every RPC and checks every status. In a round the systems get load in turn, a fifth of a phase at a time, so that
what slows the machine slows both: first as many RPCs as they take, which gives throughput and CPU time, then half of
the throughput of each at a fixed rate, for twice as long, which gives the p99: the median of those of the turns.
"""

import asyncio
import multiprocessing
import signal
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import grpc.aio
import psutil
import uvloop
from rich.progress import Progress

from benchmarks.harness import Bound, Result, percentile
from benchmarks.hostile_clients import AuthenticatedServer, authenticated_server
from benchmarks.http2_load import Load, LoadGenerator, Measured, load_generator
from benchmarks.reads import cpu_of
from benchmarks.system import DatabaseKind
from integration_server.settings import Settings
from integration_server.wiring.grpc_server import grpc_options

GET_CREDENTIALS_PATH = "/integrations.v1.IntegrationService/GetCredentials"
_WARM_UP = 2.0  # seconds
_SLICES = 5  # of a phase; twice as many at a fixed rate, because the p99 of a second varies most
_TIMEOUT = "30S"


@dataclass(frozen=True, slots=True)
class HitPlan:
    """The parameters: `seconds` is the length of a phase. The bounds are ratios to the RPC that does nothing."""

    database: DatabaseKind
    rounds: int
    seconds: float
    cpu_bound: float = 1.25
    throughput_bound: float = 0.85
    p99_bound: float = 1.5


@dataclass(frozen=True, slots=True)
class _Round:
    """The figures of one system in a round: microseconds of CPU of an RPC, RPCs per second, and a latency in ms."""

    cpu: float
    throughput: float
    p99: float
    failures: int


@dataclass(frozen=True, slots=True)
class _Target:
    process: psutil.Process
    load: Load


async def measure(plan: HitPlan, progress: Progress) -> Result:
    """Measure both systems in rounds; the medians of the ratios are judged."""
    task = progress.add_task("Starting", total=plan.rounds + 1)
    rounds: list[tuple[_Round, _Round]] = []
    async with authenticated_server(
        plan.database, 0.0, has_quotas=False, WORKERS="1", METRICS_ADDRESS="127.0.0.1:0"
    ) as server:
        load = _load(server, plan.seconds / _SLICES)
        response: Any = await server.calls[0].send()
        with running_no_op(response.ByteSize()) as (address, process), load_generator() as generator:
            targets = (
                _Target(server.system.servers[0].processes[0], load),
                _Target(process, replace(load, address=address)),
            )
            for target in targets:
                await asyncio.to_thread(generator.send, replace(target.load, seconds=_WARM_UP))
            for number in range(plan.rounds):
                progress.update(task, description=f"round {number + 1} of {plan.rounds}", advance=1)
                hit, no_op = await asyncio.to_thread(_measure, generator, targets)
                rounds.append((hit, no_op))
    return _result(plan, rounds)


def _load(server: AuthenticatedServer, seconds: float) -> Load:
    parts = urlsplit(f"//{server.system.servers[0].grpc_address}")
    sends: list[Any] = [call.send for call in server.calls]
    metadata = [*sends[0].keywords["metadata"], ("grpc-timeout", _TIMEOUT), ("user-agent", "benchmark")]
    requests = [send.args[0].SerializeToString() for send in sends]
    return Load((parts.hostname or "", parts.port or 0), GET_CREDENTIALS_PATH, metadata, requests, seconds)


def _measure(generator: LoadGenerator, targets: Sequence[_Target]) -> Sequence[_Round]:
    full, cpu = _send_in_turn(generator, targets, [None for _ in targets], _SLICES)
    throughput = [_calls(parts) / sum(part.seconds for part in parts) for parts in full]
    half, _ = _send_in_turn(generator, targets, [calls / 2 for calls in throughput], 2 * _SLICES)
    return [
        _Round(
            1e6 * cpu[number] / _calls(full[number]),
            throughput[number],
            1000 * statistics.median(percentile(part.latencies, 99) for part in half[number]),
            sum(map(_failed, [*full[number], *half[number]])),
        )
        for number in range(len(targets))
    ]


def _send_in_turn(
    generator: LoadGenerator, targets: Sequence[_Target], rates: Sequence[float | None], slices: int
) -> tuple[Sequence[Sequence[Measured]], Sequence[float]]:
    """Send the slices of a phase to each target; returns what each has measured, and its seconds of CPU."""
    measured: Sequence[list[Measured]] = [[] for _ in targets]
    cpu = [0.0 for _ in targets]
    for _ in range(slices):
        for number, target in enumerate(targets):
            cpu_seconds = cpu_of(target.process)
            begin = cpu_seconds()
            measured[number].append(generator.send(replace(target.load, rate=rates[number])))
            cpu[number] += cpu_seconds() - begin
    return measured, cpu


def _calls(parts: Sequence[Measured]) -> int:
    return sum(len(part.latencies) for part in parts)


def _failed(measured: Measured) -> int:
    return sum(measured.failures.values())


def _result(plan: HitPlan, rounds: Sequence[tuple[_Round, _Round]]) -> Result:
    hits, no_ops = zip(*rounds, strict=True)
    failures = sum(one.failures for pair in rounds for one in pair)

    def ratio(name: str) -> Sequence[float]:
        return [getattr(hit, name) / getattr(no_op, name) for hit, no_op in rounds]

    def bound(text: str, name: str, limit: float, *, is_minimum: bool = False) -> Bound:
        values = ratio(name)
        median = statistics.median(values)
        holds = median >= limit if is_minimum else median <= limit
        return Bound(f"{text} {limit:g} times", f"{median:.2f} times", holds, median, limit, (min(values), max(values)))

    def median(side: Sequence[_Round], name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in side))

    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            label: f"{median(hits, name):,.{digits}f} {unit}, doing nothing {median(no_ops, name):,.{digits}f} {unit}"
            for label, name, unit, digits in (
                ("CPU of an RPC", "cpu", "µs", 0),
                ("Throughput of one process", "throughput", "RPCs/s", 0),
                ("p99 at half of the throughput", "p99", "ms", 2),
            )
        },
        bounds=[
            bound("CPU: at most", "cpu", plan.cpu_bound),
            bound("throughput: at least", "throughput", plan.throughput_bound, is_minimum=True),
            bound("p99 at half load: at most", "p99", plan.p99_bound),
            Bound("no RPC fails", str(failures), not failures),
        ],
        raw={"rounds": rounds},
    )


# --- the RPC that does nothing -------------------------------------------------------------------------------------


@contextmanager
def running_no_op(size: int) -> Iterator[tuple[tuple[str, int], psutil.Process]]:
    """Run it in another process until the block ends; yields its address, and the process."""
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_run, args=(child_end, size), name="no-op", daemon=True)
    process.start()
    try:
        yield ("127.0.0.1", parent_end.recv()), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join()


def _run(pipe: Connection, size: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C and ends this process
    uvloop.run(_serve(pipe, bytes(size)))


async def _serve(pipe: Connection, response: bytes) -> None:
    async def respond(_request: bytes, _context: object) -> bytes:
        return response

    settings = Settings.from_environment({"DEV_MODE": "true"}, needs_key=False)
    server = grpc.aio.server(options=grpc_options(settings))
    service, method = GET_CREDENTIALS_PATH[1:].split("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(respond)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()
