"""What reads cost: CPU time of a cache miss, of reads of integrations, of a call to a provider and of a webhook.

The reference is a bare grpc.aio handler in its own process that does the same work with SQLAlchemy Core and httpx.
Both take turns, several in each phase. A webhook has no reference: its figure is the CPU time of all processes of the
server.
"""

import asyncio
import hashlib
import hmac
import itertools
import json
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import httpx
import psutil
from rich.progress import Progress

from benchmarks.bare_server import running_bare_server
from benchmarks.harness import Bound, Result, cpu_seconds_of
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_system, seed
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

if TYPE_CHECKING:
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

_USERS_LIST = 50  # integrations of one user
_DEADLINE = 30.0  # seconds
_TURNS = 6  # of each system in a phase
_WEEK = timedelta(days=7)
_SECRET = "whsec_benchmark"  # of webhooks to the system under test

Send = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class ReadsPlan:
    """The parameters: `calls` of each kind in each of the `rounds`. The bounds are ratios, and milliseconds."""

    database: DatabaseKind
    rounds: int
    calls: int
    miss_bound: float = 1.0
    read_bound: float = 1.3
    list_bound: float = 2.0
    webhook_bound: float = 2.0


@dataclass(frozen=True, slots=True)
class _Case:
    """A kind of call, how many are under way at a time, and its highest ratio to the reference."""

    name: str
    concurrency: int
    bound: float
    send: "Callable[[IntegrationServiceAsyncStub], Send]"


async def measure(plan: ReadsPlan, progress: Progress) -> Result:
    """Measure each kind of call in alternating phases; medians of the rounds are judged."""
    async with (
        running_system(plan.database, CREDENTIALS_CACHE_SIZE="1048576") as system,
        running_bare_server(system.database_url, system.provider.url) as (bare, bare_process),
    ):
        seeded = await seed(system, HEALTHY_TYPE, [utc_now() + _WEEK] * plan.calls, accounts_of_a_user=_USERS_LIST)
        server, (worker,) = system.servers[0], system.servers[0].processes
        cases, costs = _cases(plan, seeded), dict[str, list[tuple[float, float]]]()
        systems = {
            case: ((case.send(server.service), cpu_of(worker)), (case.send(bare), cpu_of(bare_process)))
            for case in cases
        }
        task = progress.add_task("rounds", total=(plan.rounds + 1) * (len(cases) + 1))
        webhooks: list[float] = []
        async with _webhooks(system, seeded[0]) as deliver:
            for number in range(plan.rounds + 1):  # the first warms both up
                for case, sends in systems.items():
                    pair = await _costs_in_turn(sends, plan.calls, case.concurrency)
                    if number:
                        costs.setdefault(case.name, []).append(pair)
                    progress.advance(task)
                cost = await cost_of(deliver, plan.calls, 4, system.total_cpu_seconds)
                webhooks += [cost] if number else []
                progress.advance(task)
    return _result(plan, cases, costs, webhooks)


def _cases(plan: ReadsPlan, seeded: Sequence[Seeded]) -> Sequence[_Case]:
    def of_one(
        name: str, targets: Sequence[Seeded] = seeded, **fields: object
    ) -> "Callable[[IntegrationServiceAsyncStub], Send]":
        request_class = getattr(pb, f"{name}Request")
        requests = [
            request_class(integration_id=target.integration_id, user_id=target.user_id, **fields) for target in targets
        ]

        def send_to(service: "IntegrationServiceAsyncStub") -> Send:
            # Each system gets all of them in turn: otherwise its cache would have room for those that it gets.
            own: Iterator[object] = itertools.cycle(requests)
            return lambda: getattr(service, name)(next(own), timeout=_DEADLINE)

        return send_to

    page = pb.ListIntegrationsRequest(user_id=seeded[0].user_id, page_size=_USERS_LIST)
    miss = of_one("GetCredentials")
    return [
        _Case("GetCredentials, miss", 1, plan.miss_bound, miss),
        _Case("GetCredentials, 8 misses at a time", 8, plan.miss_bound, miss),
        _Case("GetIntegration", 4, plan.read_bound, of_one("GetIntegration")),
        # Of one integration: each has its own connection to the provider, as the bare handler has one.
        _Case("CallProvider", 4, plan.read_bound, of_one("CallProvider", seeded[:1], method="GET", path="/healthz")),
        _Case(
            f"ListIntegrations of {_USERS_LIST}",
            4,
            plan.read_bound,
            lambda service: lambda: service.ListIntegrations(page, timeout=_DEADLINE),
        ),
    ]


_Side = tuple[Send, Callable[[], float]]
"""Sends a call to a system, and returns the CPU seconds that the system has used."""


async def _costs_in_turn(sides: tuple[_Side, _Side], calls: int, concurrency: int) -> tuple[float, float]:
    """The CPU seconds of a call to each of two systems. They take turns, so that what slows the machine slows both."""
    totals = [0.0, 0.0]
    for _ in range(_TURNS):
        for index, (send, cpu_seconds) in enumerate(sides):
            totals[index] += await cost_of(send, calls // _TURNS, concurrency, cpu_seconds)
    return totals[0] / _TURNS, totals[1] / _TURNS


def cpu_of(process: psutil.Process) -> Callable[[], float]:
    return partial(cpu_seconds_of, process)


async def cost_of(send: Send, calls: int, concurrency: int, cpu_seconds: Callable[[], float]) -> float:
    """The CPU seconds of a call. A failed call ends the benchmark."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for _ in numbers:
            await send()

    begin = cpu_seconds()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller())
    return (cpu_seconds() - begin) / calls


@asynccontextmanager
async def _webhooks(system: System, target: Seeded) -> AsyncIterator[Send]:
    """Yields a function that delivers another event to an integration, through the sidecar."""
    server = system.servers[0]
    set_secret = pb.SetWebhookSecretRequest(
        integration_id=target.integration_id, user_id=target.user_id, webhook_secret=_SECRET
    )
    endpoint = await server.service.SetWebhookSecret(set_secret, timeout=_DEADLINE)
    url = server.sidecar_url + httpx.URL(endpoint.webhook_url).path
    numbers = itertools.count()
    async with httpx.AsyncClient(trust_env=False) as client:

        async def deliver() -> None:
            event = {"id": f"evt_{next(numbers)}", "type": "invoice.paid", "data": {"object": {"amount": 4200}}}
            body = json.dumps(event).encode()
            signature = hmac.new(_SECRET.encode(), body, hashlib.sha256).hexdigest()
            response = await client.post(url, content=body, headers={"X-Signature": signature})
            response.raise_for_status()

        yield deliver


def _result(
    plan: ReadsPlan, cases: Sequence[_Case], costs: dict[str, list[tuple[float, float]]], webhooks: Sequence[float]
) -> Result:
    figures, bounds = {}, []
    for case in cases:
        pairs = costs[case.name]
        ratios = [server / bare for server, bare in pairs]
        server, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
        figures[case.name] = f"{1e6 * server:.0f} µs, bare {1e6 * bare:.0f} µs"
        bounds.append(
            Bound(
                f"{case.name}: at most {case.bound:g} times the CPU of a bare handler",
                f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
                statistics.median(ratios) <= case.bound,
            )
        )
        if case.name.startswith("ListIntegrations"):
            bounds.append(_milliseconds(case.name, [pair[0] for pair in pairs], plan.list_bound))
    bounds.append(_milliseconds("a webhook, in all processes", webhooks, plan.webhook_bound))
    return Result([], 0.0, figures, bounds, {"cpu_seconds": costs, "webhook_cpu_seconds": webhooks})


def _milliseconds(name: str, seconds: Sequence[float], bound: float) -> Bound:
    values = [1000 * second for second in seconds]
    median = statistics.median(values)
    text = f"{median:.2f} ms ({min(values):.2f} to {max(values):.2f})"
    return Bound(f"{name}: at most {bound:g} ms of CPU", text, median <= bound)
