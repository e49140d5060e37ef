"""The cost of calls and of background work does not grow with the number of integrations or of due rows.

Two servers, each with a PostgreSQL of its own, differ in the number of integrations. Each call is measured at one and
then at the other, so that a disturbance affects both. Then nine tenths of the rows of the larger database become due,
and all is measured again.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import asyncpg
from rich.progress import Progress

from benchmarks.harness import Bound, Result
from benchmarks.system import HEALTHY_TYPE, DatabaseKind, Seeded, System, running_system, seed
from integration_server.service.background.ports import Claim, JobKind
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import open_database
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb

_PAGE = 50
_HOT = 10  # integrations that are read again and again
_CLAIM = 8  # rows, as of the background worker
_CLAIM_DURATION = timedelta(minutes=10)  # longer than a run: a claim ends with its outcome
_FILLER_TYPE = "filler"  # no server has it, so that their workers leave its due rows to the benchmark
_DUE = 0.9
_DEADLINE = 60.0
_FIRST_MISSES = 5
_WARM_UP = 50  # calls: connections are made and statements prepared


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """The parameters: both numbers of integrations, the calls of each kind in a round, and the highest ratio."""

    smallest: int
    integrations: int
    rounds: int
    calls: int
    bound: float
    database: DatabaseKind = DatabaseKind.POSTGRES


@dataclass(slots=True)
class _Subject:
    """A system, its integrations that can be read, and of them the unread ones."""

    system: System
    seeded: Sequence[Seeded]
    due_work: SqlDueWork
    unread: list[Seeded] = field(default_factory=list)
    claimed: Sequence[Claim[Any]] = ()

    async def hit(self) -> None:
        """Read an integration that is in the cache."""
        self._turn = (self._turn + 1) % _HOT
        await self.read(self.seeded[self._turn])

    async def miss(self) -> None:
        """Read an integration that has not been read."""
        await self.read(self.unread.pop())

    async def page(self) -> None:
        """List the integrations of a user."""
        self._turn += 1
        user_id = self.seeded[self._turn * _PAGE % len(self.seeded)].user_id
        request = pb.ListIntegrationsRequest(user_id=user_id, page_size=_PAGE)
        response = await self.system.servers[0].service.ListIntegrations(request, timeout=_DEADLINE)
        assert len(response.integrations) == _PAGE, "the page is not full"

    async def claim(self) -> None:
        """Find the types with due work, and claim some rows of one, as a poll of the background worker does."""
        await self.due_work.due_types()
        self.claimed = await self.due_work.claim(JobKind.REFRESH, _FILLER_TYPE, _CLAIM, claim_duration=_CLAIM_DURATION)

    async def complete_claims(self) -> None:
        """Make the claimed rows due again at once, after all others. It is the write of a refresh, and not measured."""
        claimed, self.claimed = self.claimed, ()
        for claim in claimed:
            assert await self.due_work.postpone(claim, timedelta(0)) is not None, "the claim was lost"

    async def read(self, integration: Seeded) -> None:
        """Get the credentials of an integration."""
        request = pb.GetCredentialsRequest(integration_id=integration.integration_id, user_id=integration.user_id)
        await self.system.servers[0].service.GetCredentials(request, timeout=_DEADLINE)

    _turn: int = 0


_CALLS: Mapping[str, Callable[[_Subject], Awaitable[None]]] = {
    "hit": _Subject.hit,
    "miss": _Subject.miss,
    "page": _Subject.page,
    "claims": _Subject.claim,
}


async def measure(plan: GrowthPlan, progress: Progress) -> Result:
    """Measure both systems without and with due rows."""
    task = progress.add_task("Starting", total=None)
    async with AsyncExitStack() as stack:
        readable = plan.smallest // 2
        pair = [await _subject(stack, readable) for _ in range(2)]
        small, large = pair
        progress.update(task, description=f"Inserting {plan.integrations:,}")
        start = time.monotonic()
        for subject, count in zip(pair, (plan.smallest, plan.integrations), strict=True):
            await _fill(subject.system.database_url, count - len(subject.seeded))
        filled = time.monotonic() - start
        total = 2 * plan.rounds * len(_CALLS)
        progress.update(task, description="Measuring", total=total)
        phases = {"": await _measure(plan, small, large, partial(progress.advance, task))}
        progress.update(task, description=f"Making {_DUE:.0%} due")
        # All of the smaller one: a claim that finds no rows would be another statement.
        for subject, share in ((small, 1.0), (large, _DUE)):
            await _make_due(subject.system.database_url, share)
        due = f", with {_DUE * plan.integrations:,.0f} due"
        progress.update(task, description="Measuring")
        phases[due] = await _measure(plan, small, large, partial(progress.advance, task))
    return _result(plan, phases, filled)


async def _subject(stack: AsyncExitStack, readable: int) -> _Subject:
    system = await stack.enter_async_context(running_system(DatabaseKind.POSTGRES))
    expire_times = [utc_now() + timedelta(days=7)] * readable
    seeded = sorted(
        await seed(system, HEALTHY_TYPE, expire_times, accounts_of_a_user=_PAGE),
        key=lambda integration: integration.integration_id,
    )
    database = await stack.enter_async_context(open_database(system.database_url))
    return _Subject(system, seeded, SqlDueWork(database), seeded[_HOT:])


# --- rows --------------------------------------------------------------------------------------------------------


async def _fill(url: str, count: int) -> None:
    """Insert copies of an integration for other users, without triggers and with the indexes built afterwards."""
    connection = await asyncpg.connect(url)
    try:
        columns = [
            row["attname"]
            for row in await connection.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'integrations'::regclass AND attnum > 0"
                " AND NOT attisdropped AND attgenerated = ''"
            )
        ]
        values = {
            "integration_id": "nextval(pg_get_serial_sequence('integrations', 'integration_id'))",
            "uid": "'filler-' || n",
            "user_id": f"'filler-' || n / {_PAGE}",
            "integration_type": f"'{_FILLER_TYPE}'",
            "client_key": f"'{_FILLER_TYPE}'",
            "account_id": "'filler-' || n",
            "refresh_due_time": "now() + interval '1 day' * (1 + random())",
            "check_due_time": "now() + interval '1 day' * (1 + random())",
        }
        selected = ", ".join(values.get(column, f"i.{column}") for column in columns)
        indexes = await connection.fetch(
            "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition FROM pg_index"
            " WHERE indrelid = 'integrations'::regclass AND NOT EXISTS"
            " (SELECT FROM pg_constraint WHERE conindid = indexrelid)"
        )
        await connection.execute("SET session_replication_role = replica; SET maintenance_work_mem = '512MB'")
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        insert = f"INSERT INTO integrations ({', '.join(columns)}) SELECT {selected}"
        source = "FROM (SELECT * FROM integrations LIMIT 1) i, generate_series(1, $1::integer) n"
        await connection.execute(f"{insert} {source}", count, timeout=3600)
        for index in indexes:
            await connection.execute(index["definition"], timeout=3600)
        await connection.execute("VACUUM (ANALYZE) integrations", timeout=3600)
        await connection.execute("CHECKPOINT", timeout=3600)
    finally:
        await connection.close()


async def _make_due(url: str, share: float) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            "UPDATE integrations SET refresh_due_time = now() - interval '1 hour' * random(),"
            " check_due_time = now() - interval '1 hour' * random()"
            " WHERE integration_type = $1 AND integration_id % 1000 < $2",
            *(_FILLER_TYPE, round(1000 * share)),
            timeout=3600,
        )
        await connection.execute("VACUUM (ANALYZE) integrations", timeout=3600)
        await connection.execute("CHECKPOINT", timeout=3600)
    finally:
        await connection.close()


# --- figures -----------------------------------------------------------------------------------------------------

Times = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
"""For each kind of call, the seconds of each call at the smaller and at the larger system, in each round."""


async def _measure(plan: GrowthPlan, small: _Subject, large: _Subject, advance: Callable[[], None]) -> Times:
    for subject in (small, large):
        for name, call in _CALLS.items():
            for _ in range(_FIRST_MISSES if name == "miss" else _WARM_UP):
                await call(subject)
                await subject.complete_claims()
    times: dict[str, list[tuple[list[float], list[float]]]] = {name: [] for name in _CALLS}
    for _ in range(plan.rounds):
        for name, call in _CALLS.items():
            both: tuple[list[float], list[float]] = [], []
            count = plan.calls
            if name == "miss":  # each reads an integration for the first time: the smaller system has few
                count = min(count, (plan.smallest // 2 - _HOT - 2 * _FIRST_MISSES) // (2 * plan.rounds))
            for number in range(count):
                order = (0, 1) if number % 2 else (1, 0)
                for index in order:
                    begin = time.perf_counter()
                    await call((small, large)[index])
                    both[index].append(time.perf_counter() - begin)
                    await (small, large)[index].complete_claims()
            times[name].append(both)
            advance()
            await asyncio.sleep(0)
    return times


def _result(plan: GrowthPlan, phases: Mapping[str, Times], filled: float) -> Result:
    figures, bounds = {}, []
    for due, times in phases.items():
        for name, rounds in times.items():
            ratios = [statistics.median(large) / statistics.median(small) for small, large in rounds]
            ratio = statistics.median(ratios)
            medians = [statistics.median(chain(*side)) for side in zip(*rounds, strict=True)]
            figures[f"{name}{due}"] = (
                f"{1000 * medians[0]:.2f} → {1000 * medians[1]:.2f} ms, ratios {min(ratios):.2f} to {max(ratios):.2f}"
            )
            text = f"{name}{due}: at most {plan.bound:g} times the time with {plan.smallest:,} integrations"
            bounds.append(
                Bound(text, f"{ratio:.2f} times", ratio <= plan.bound, ratio, plan.bound, (min(ratios), max(ratios)))
            )
    return Result(
        comparisons=[],
        lateness=0.0,
        figures={
            **figures,
            "rows inserted in": f"{filled:.0f} s",
        },
        bounds=bounds,
        raw={"seconds": {due or "none due": dict(times) for due, times in phases.items()}},
    )
