"""Ten thousand tokens that expire in the same minute are refreshed in time, without delaying other RPCs.

No caller requests them: the background worker refreshes them, within the limit of concurrent requests to a provider,
while RPCs about integrations of another type are as fast as at a reference server without background work.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial

from rich.progress import Progress, TaskID
from sqlalchemy import select

from benchmarks.harness import (
    Bound,
    LoadPhase,
    NotMeasured,
    Result,
    compare,
    lateness_of,
    load_both,
    load_figures,
    speed_bounds,
)
from benchmarks.provider import TokenCalls
from benchmarks.system import TROUBLED_TYPE, DatabaseKind, Seeded, System, healthy_calls, running_system, seed
from integration_server.domain.credentials import OAuthTokens
from integration_server.sandbox.behaviour import Fault
from integration_server.settings import Settings
from integration_server.storage.engine import open_database
from integration_server.storage.tables import integrations
from integration_server.wiring.system import utc_now

_MAX_CONCURRENT_CALLS = 8  # concurrent requests of each server to a provider
_WINDOW = timedelta(minutes=1)  # the time in which all tokens expire
_SPREAD = 10  # refreshes become due in the tenth of the lifetime before the refresh buffer: docs/refreshing.md
_START = 5.0  # seconds for connecting, in addition
_SEEDED_PER_SECOND = 400  # a minimum; an idle machine is many times as fast
_WARM_UP = 3.0
_GRACE_PERIOD = timedelta(seconds=15)  # after the last due time; the first refresh must have happened by then


@dataclass(frozen=True, slots=True)
class ProactiveRefreshPlan:
    """The parameters.

    Refreshes become due over `minutes`; the provider needs `provider_delay` seconds for each. `seconds` is the length
    of a phase of load, `rate` the RPCs per second to each system.
    """

    database: DatabaseKind
    integrations: int
    minutes: float
    servers: int
    provider_delay: float
    seconds: float
    rate: float
    bound: float


@dataclass(frozen=True, slots=True)
class Timetable:
    """When the refreshes become due, and when the tokens expire."""

    begin: datetime
    spread: timedelta
    buffer: timedelta
    window: timedelta

    @property
    def lifetime(self) -> timedelta:
        """The lifetime of the tokens when they were issued."""
        return self.spread * _SPREAD

    @property
    def last_due_time(self) -> datetime:
        """The latest due time."""
        return self.begin + self.spread + self.window

    @property
    def last_expire_time(self) -> datetime:
        """The latest expiry."""
        return self.last_due_time + self.buffer

    def expire_times(self, count: int) -> Sequence[datetime]:
        """`count` expiry times, evenly over the window."""
        first = self.last_expire_time - self.window
        return [first + self.window * (number / count) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Sample:
    """The provider's token requests at one time, in seconds since the first due time."""

    seconds: float
    token_calls: TokenCalls


@dataclass(frozen=True, slots=True)
class RefreshOutcomes:
    """The final state of the database. `margins` are the remaining lifetimes at the refresh, in seconds."""

    margins: Sequence[float]
    missed_count: int

    @property
    def late_count(self) -> int:
        """The number of tokens that were refreshed after their expiry."""
        return sum(margin <= 0 for margin in self.margins)


async def measure(plan: ProactiveRefreshPlan, progress: Progress) -> Result:
    """Measure during the refreshes, beside a reference system without them."""
    task = progress.add_task("Starting", total=plan.integrations)
    start = partial(
        running_system, plan.database, servers=plan.servers, BACKGROUND_CALLS_PER_PROVIDER=str(_MAX_CONCURRENT_CALLS)
    )
    async with start() as reference, start() as system:
        await system.provider.break_token_endpoint(Fault(delay=plan.provider_delay))
        both = partial(
            load_both,
            (await healthy_calls(reference), await healthy_calls(system)),
            (reference.cpu_seconds, system.cpu_seconds),
            plan.rate,
        )
        timetable = _timetable(plan, system)
        progress.update(task, description=f"Connecting {plan.integrations:,}")
        expire_times = timetable.expire_times(plan.integrations)
        seeded = await seed(system, TROUBLED_TYPE, expire_times, timetable.lifetime)
        progress.update(task, description="Warming up: none due yet")
        await both(_WARM_UP)
        if utc_now() > timetable.begin:
            raise NotMeasured("the integrations were put in too slowly: try fewer, with --integrations")
        await asyncio.sleep((timetable.begin - utc_now()).total_seconds())

        progress.update(task, description="Refreshed")
        pairs: list[tuple[LoadPhase, LoadPhase]] = []
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(_sample(plan, system, timetable, progress, task))
            while not sampling.done():
                pairs.append(await both(plan.seconds))
        outcome = await _read_outcomes(system, seeded)
    # The last of the phases was idle in part.
    return _result(plan, pairs[:-1] or pairs, sampling.result(), outcome)


def _timetable(plan: ProactiveRefreshPlan, system: System) -> Timetable:
    whole = timedelta(minutes=plan.minutes)
    window = min(_WINDOW, whole / 5)
    spread = whole - window
    usual = Settings.from_environment(system.environment).refresh_buffer
    preparing = _WARM_UP + _START + plan.integrations / _SEEDED_PER_SECOND
    return Timetable(
        begin=utc_now() + timedelta(seconds=preparing),
        spread=spread,
        buffer=OAuthTokens("", lifetime=_SPREAD * spread).buffer(usual),
        window=window,
    )


async def _sample(
    plan: ProactiveRefreshPlan, system: System, timetable: Timetable, progress: Progress, task: TaskID
) -> Sequence[Sample]:
    """Sample every second, until all tokens are refreshed or no refresh can be expected."""
    begin = time.monotonic()
    samples: list[Sample] = []
    while True:
        current = await system.provider.token_calls()
        samples.append(Sample(time.monotonic() - begin, current))
        progress.update(task, completed=current.refreshed)
        is_stalled = current.refreshed == 0 and utc_now() > timetable.last_due_time + _GRACE_PERIOD
        if current.refreshed >= plan.integrations or is_stalled or utc_now() > timetable.last_expire_time:
            return samples
        await asyncio.sleep(1)


async def _read_outcomes(system: System, seeded: Sequence[Seeded]) -> RefreshOutcomes:
    columns = (integrations.c.integration_id, integrations.c.version, integrations.c.update_time)
    query = select(*columns).where(integrations.c.integration_type == TROUBLED_TYPE)
    async with open_database(system.database_url) as database, database.read_connection() as connection:
        rows = (await connection.execute(query)).all()
    expire_times = {integration.integration_id: integration.expire_time for integration in seeded}
    return RefreshOutcomes(
        margins=[
            (expire_times[row.integration_id] - row.update_time).total_seconds() for row in rows if row.version > 0
        ],
        missed_count=sum(row.version == 0 for row in rows),
    )


def _result(
    plan: ProactiveRefreshPlan,
    pairs: Sequence[tuple[LoadPhase, LoadPhase]],
    samples: Sequence[Sample],
    outcome: RefreshOutcomes,
) -> Result:
    comparisons = compare(pairs)
    references, loads = zip(*pairs, strict=True)
    last = samples[-1]
    max_concurrent = _MAX_CONCURRENT_CALLS * plan.servers
    return Result(
        comparisons,
        lateness=lateness_of([*references, *loads]),
        figures={
            **load_figures(references, loads),
            "refreshed": f"{last.token_calls.refreshed:,} in {last.seconds:.0f} s",
            "requests to the provider": f"{last.token_calls.calls:,}",
            "smallest remaining lifetime": f"{min(outcome.margins):.0f} s" if outcome.margins else "none",
        },
        bounds=[
            timeliness_bound(plan.integrations, outcome),
            Bound(
                f"the provider never receives more than {max_concurrent} concurrent token requests",
                f"{last.token_calls.max_in_flight} at most",
                last.token_calls.max_in_flight <= max_concurrent,
            ),
            *speed_bounds(comparisons, plan.bound, [*references, *loads]),
        ],
        raw={
            "pairs": [[asdict(phase) for phase in pair] for pair in pairs],
            "samples": [asdict(sample) for sample in samples],
            "outcome": asdict(outcome),
        },
    )


def timeliness_bound(count: int, outcome: RefreshOutcomes) -> Bound:
    """The bound that every token is refreshed before its expiry."""
    text = f"all {count:,} tokens are refreshed before they expire"
    if not outcome.margins:
        return Bound(text, "none was, although all were due: the background worker does not refresh", holds=False)
    return Bound(
        text,
        f"{outcome.late_count:,} were too late, {outcome.missed_count:,} not refreshed at all",
        outcome.late_count == 0 and outcome.missed_count == 0,
    )
