"""Hostile clients delay no other caller, and fill neither memory nor log.

A victim, which is an authenticated service, calls `GetCredentials` at a fixed rate. Phases without and with an attack
alternate. Each attack (benchmarks/attacks.py) runs in its own process.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from rich.progress import Progress

from benchmarks.attacks import Target, run_attack
from benchmarks.harness import (
    Bound,
    Call,
    Comparison,
    LoadPhase,
    Result,
    compare,
    format_counts,
    lateness_of,
    load,
    load_figures,
    merge_phases,
)
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, System, running_system, seed
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.authenticated_system import POLICY, CredentialIssuer

MAX_MEMORY_GROWTH = 64 * 2**20  # bytes
MAX_LOG_GROWTH = 1_000  # bytes per second

_TOKEN_LIFETIME = timedelta(hours=6)
_WARM_UP = 3.0  # seconds
_ATTACK_START = 2.0  # seconds until the process of an attack sends its first request
_DEADLINE = 30.0  # seconds for the victim's calls
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class HostileClientsPlan:
    """The parameters: `seconds` is the length of a phase, `rate` the victim's calls per second."""

    database: DatabaseKind
    attacks: Sequence[str]
    rounds: int
    seconds: float
    rate: float
    bound: float


@dataclass(slots=True)
class AttackFigures:
    """The measurements of one attack: pairs of phases without and with it, and what it cost the server."""

    pairs: list[tuple[LoadPhase, LoadPhase]] = field(default_factory=list)
    requests: int = 0
    memory_growth: int = 0  # bytes, of the phase in which it was largest
    total_memory_growth: int = 0  # bytes, since the start of the benchmark
    log_bytes: int = 0
    seconds: float = 0.0

    @property
    def log_rate(self) -> float:
        """Bytes per second."""
        return self.log_bytes / self.seconds


@dataclass(frozen=True, slots=True)
class AuthenticatedServer:
    """A server that authenticates callers by tokens, the victim's calls, and what attackers know."""

    system: System
    calls: Sequence[Call]
    target: Target

    async def measure(self, plan: HostileClientsPlan, attack: str, figures: AttackFigures, memory: int) -> None:
        """Measure a phase without and one with the attack."""
        load_victim = partial(load, self.calls, plan.rate, plan.seconds, self.system.cpu_seconds)
        idle, log, memory_before = await load_victim(), self.system.log_bytes(), self.system.memory_bytes()
        async with asyncio.TaskGroup() as group:
            attacking = group.create_task(run_attack(self.target, attack))
            await asyncio.sleep(_ATTACK_START)
            attacked = await load_victim()
        figures.pairs.append((idle, attacked))
        figures.requests += attacking.result()
        figures.seconds += self.target.seconds
        figures.log_bytes += self.system.log_bytes() - log
        memory_after = self.system.memory_bytes()
        figures.memory_growth = max(figures.memory_growth, memory_after - memory_before)
        figures.total_memory_growth = max(figures.total_memory_growth, memory_after - memory)


@asynccontextmanager
async def authenticated_server(
    database: DatabaseKind, seconds: float, *, has_quotas: bool, **settings: str
) -> AsyncIterator[AuthenticatedServer]:
    """Run a server with these settings. An attack on it lasts `seconds`."""
    with TemporaryDirectory(prefix="benchmark-") as folder:
        issuer = CredentialIssuer(Path(folder))
        token_of = partial(issuer.services.token, now=utc_now(), lifetime=_TOKEN_LIFETIME)
        issuer.put("policy.toml", POLICY.replace("[sidecar]", '[sidecar]\ntokens = ["sidecar"]').encode())
        sidecar_token = issuer.put("sidecar.token", token_of("sidecar").encode())
        authentication: dict[str, Any] = {**issuer.token_settings, "SIDECAR_TOKEN_FILE": str(sidecar_token)}
        # Callers that are known have a line for each call: the bound is for what anybody can cause.
        given = {**authentication, "ACCESS_LOG": "false", **settings}
        async with running_system(database, has_quotas=has_quotas, **given) as system:
            user_token = issuer.users.token("mallory", utc_now(), lifetime=_TOKEN_LIFETIME)
            calls = await _victim_calls(system, token_of("backend"))
            yield AuthenticatedServer(system, calls, _target(system, seconds, user_token))


async def _victim_calls(system: System, token: str) -> Sequence[Call]:
    seeded = await seed(system, HEALTHY_TYPE, [utc_now() + _WEEK] * 20)
    metadata = (("authorization", f"Bearer {token}"),)
    return [
        Call(
            "GetCredentials",
            partial(
                system.servers[0].service.GetCredentials,
                pb.GetCredentialsRequest(integration_id=integration.integration_id, user_id=integration.user_id),
                metadata=metadata,
                timeout=_DEADLINE,
            ),
        )
        for integration in seeded
    ]


def _target(system: System, seconds: float, token: str) -> Target:
    (server,) = system.servers
    grpc, http = urlsplit(f"//{server.grpc_address}"), urlsplit(server.sidecar_url)
    return Target(grpc.hostname or "", grpc.port or 0, http.hostname or "", http.port or 0, seconds, token)


async def measure(plan: HostileClientsPlan, progress: Progress) -> Result:
    """Measure each attack in turn, `rounds` times."""
    task = progress.add_task("Starting", total=plan.rounds * len(plan.attacks))
    figures = {attack: AttackFigures() for attack in plan.attacks}
    async with authenticated_server(plan.database, plan.seconds + _ATTACK_START, has_quotas=True) as server:
        progress.update(task, description="Warming up")
        await load(server.calls, plan.rate, _WARM_UP, server.system.cpu_seconds)
        memory = server.system.memory_bytes()
        for number in range(1, plan.rounds + 1):
            for attack in plan.attacks:
                progress.update(task, description=f"{attack}: phase {number} of {plan.rounds}")
                await server.measure(plan, attack, figures[attack], memory)
                progress.update(task, advance=1)
    return _result(plan, figures)


def _result(plan: HostileClientsPlan, figures: Mapping[str, AttackFigures]) -> Result:
    pairs = [pair for attack in figures.values() for pair in attack.pairs]
    idle, attacked = zip(*pairs, strict=True)
    # The first comparison is that of the only RPC.
    comparisons = [replace(compare(attack.pairs)[0], name=name) for name, attack in figures.items()]
    return Result(
        comparisons,
        lateness=lateness_of([*idle, *attacked]),
        figures={
            **load_figures(idle, attacked),
            **{f"{name}: sent, memory, log": _cost(attack) for name, attack in figures.items()},
        },
        bounds=bounds(comparisons, figures, [*idle, *attacked], plan.bound),
        raw={name: asdict(attack) for name, attack in figures.items()},
    )


def _cost(attack: AttackFigures) -> str:
    memory = attack.memory_growth / 2**20
    return f"{attack.requests / attack.seconds:,.0f}/s, {memory:+.0f} MiB, {attack.log_rate:,.0f} B/s"


def bounds(
    comparisons: Sequence[Comparison], figures: Mapping[str, AttackFigures], phases: Sequence[LoadPhase], ratio: float
) -> Sequence[Bound]:
    """The bounds on the victim's failures and latency, and on the server's memory and log."""
    failures = merge_phases(phases).failures
    slowest = max(comparisons, key=lambda comparison: comparison.ratio)
    largest = max(figures, key=lambda name: figures[name].total_memory_growth)
    longest = max(figures, key=lambda name: figures[name].log_rate)
    memory, log = figures[largest].total_memory_growth, figures[longest].log_rate
    return [
        Bound("no call of the victim fails", format_counts(failures) or "none did", not failures),
        Bound(
            f"the victim's p99 is at most {ratio:g} times that without an attack",
            f"{slowest.ratio:.2f} times at most ({slowest.name})",
            slowest.ratio <= ratio,
        ),
        Bound(
            "memory grows by at most 64 MiB", f"{memory / 2**20:.0f} MiB (after {largest})", memory <= MAX_MEMORY_GROWTH
        ),
        Bound("the log grows by at most 1 kB/s", f"{log:,.0f} B/s ({longest})", log <= MAX_LOG_GROWTH),
    ]
