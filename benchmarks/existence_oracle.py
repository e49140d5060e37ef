"""The response time does not tell another user's integration from one that does not exist.

The attacker measures each RPC in the process of the server, without a network, and trains a classifier on half of the
times: the threshold that separates the two best. Its accuracy on the other half is judged; guessing has 50%. The
control is a cache that rejects another user's cached integration without a read of the store.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from tempfile import TemporaryDirectory

import structlog
from rich.progress import Progress

from benchmarks.harness import Bound, Result
from benchmarks.system import DatabaseKind
from integration_server.storage.engine import Database, open_database
from integration_server.storage.schema import migrate
from tests.existence_attack import ABSENT, METHODS, AttackedServer, RevealingCache
from tests.postgres import run_postgres

_CONTROL = "GetCredentials"
_CONTROL_BOUND = 0.8


@dataclass(frozen=True, slots=True)
class ExistenceOraclePlan:
    """The parameters. `calls` is the number for each RPC; `bound` the highest accuracy of the classifier."""

    database: DatabaseKind
    calls: int
    bound: float


Sample = tuple[float, bool]
"""The seconds of a call, and whether the integration exists."""


async def measure(plan: ExistenceOraclePlan, progress: Progress) -> Result:
    """Measure every RPC that names an integration, and the control."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    accuracies: dict[str, float] = {}
    async with _open(plan.database) as database:
        server = AttackedServer(database)
        victims = [await server.connect() for _ in range(20)]
        task = progress.add_task("RPCs", total=len(METHODS) + 1)
        for path in METHODS:
            accuracies[path.removeprefix("integrations.v1.")] = await _accuracy(server, path, victims, plan.calls)
            progress.advance(task)
        control = AttackedServer(database, RevealingCache)
        victims = [await control.connect() for _ in range(20)]
        path = next(path for path, method in METHODS.items() if method.name == _CONTROL)
        control_accuracy = await _accuracy(control, path, victims, plan.calls)
    name, worst = max(accuracies.items(), key=lambda item: item[1])
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            "Calls of each RPC": f"{plan.calls:,}",
            "Accuracy, median RPC": f"{statistics.median(accuracies.values()):.1%}",
            **{f"Accuracy, {name}": f"{accuracy:.1%}" for name, accuracy in accuracies.items()},
        },
        bounds=[
            Bound(
                f"the classifier is right in at most {plan.bound:.0%} of the calls of any RPC",
                f"{worst:.1%} ({name})",
                worst <= plan.bound,
            ),
            Bound(
                f"the control is recognised in at least {_CONTROL_BOUND:.0%}",
                f"{control_accuracy:.1%}",
                control_accuracy >= _CONTROL_BOUND,
            ),
        ],
        raw={"accuracies": accuracies, "control": control_accuracy},
    )


@asynccontextmanager
async def _open(kind: DatabaseKind) -> AsyncIterator[Database]:
    with ExitStack() as stack:
        url = f"sqlite:///{stack.enter_context(TemporaryDirectory())}/oracle.db"
        if kind is DatabaseKind.POSTGRES:
            postgres = stack.enter_context(run_postgres())
            await asyncio.to_thread(postgres.run, "CREATE DATABASE oracle")
            url = postgres.url("oracle")
        await migrate(url)
        async with open_database(url) as database:
            yield database


async def _accuracy(server: AttackedServer, path: str, victims: Sequence[int], calls: int) -> float:
    """The share of the second half of the calls that a threshold, trained on the first half, classifies correctly."""
    method, samples = METHODS[path], list[Sample]()
    ids = list(chain.from_iterable((random.choice(victims), ABSENT + number) for number in range(calls // 2)))
    random.shuffle(ids)
    for integration_id in ids:
        begin = time.perf_counter()
        await server.attack(method, integration_id)
        samples.append((time.perf_counter() - begin, integration_id < ABSENT))
    half = len(samples) // 2
    threshold, exists_above = train(samples[:half])
    return sum((seconds > threshold) == (exists == exists_above) for seconds, exists in samples[half:]) / (
        len(samples) - half
    )


def train(samples: Sequence[Sample]) -> tuple[float, bool]:
    """The threshold that classifies most of the samples correctly, and whether those above it exist."""
    ordered = sorted(samples)
    existing = sum(exists for _, exists in ordered)
    best, result = 0, (0.0, True)
    below = 0  # existing ones at or below the threshold
    for count, (seconds, exists) in enumerate(ordered, start=1):
        below += exists
        correct = (existing - below) + (count - below)  # if those above exist
        for score, exists_above in ((correct, True), (len(ordered) - correct, False)):
            if score > best:
                best, result = score, (seconds, exists_above)
    return result
