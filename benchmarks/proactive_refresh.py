"""Ten thousand tokens that expire in the same minute are renewed before they do, and nobody notices.

Nobody asks for them: the server has to do it by itself, within the calls at once that a provider is allowed, while
RPCs about integrations of another type are as quick as at a second server that has nothing to do besides.
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
    NotMeasured,
    Phase,
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
from integration_server.sandbox import Fault
from integration_server.settings import Settings
from integration_server.storage.engine import open_database
from integration_server.storage.tables import integrations
from integration_server.wiring.system import utc_now

_MAX_CONCURRENT_CALLS = 8  # calls that a provider gets from each server
_WINDOW = timedelta(minutes=1)  # in which all expire
_SPREAD = 10  # refreshes fall due in the tenth of the token's life before its buffer begins: docs/refreshing.md
_START = 5.0  # seconds that connecting takes, besides
_SEEDED_PER_SECOND = 400  # at least: many times as many on a machine with nothing else to do
_WARM_UP = 3.0
_GRACE_PERIOD = timedelta(seconds=15)  # after the last has fallen due; by then the first must have been refreshed


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Refreshes fall due over so many `minutes`; the provider takes `provider_delay` seconds for each. `seconds` is the
    length of a phase of load, `rate` the RPCs in a second at each of the two systems.
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
    """When tokens of some lifetime fall due and end. Times of day, and durations."""

    begin: datetime
    spread: timedelta
    buffer: timedelta
    window: timedelta

    @property
    def lifetime(self) -> timedelta:
        """How long the tokens were good for when they came."""
        return self.spread * _SPREAD

    @property
    def all_due(self) -> datetime:
        """When the last one is due at the latest."""
        return self.begin + self.spread + self.window

    @property
    def end(self) -> datetime:
        """When the last one expires."""
        return self.all_due + self.buffer

    def expire_times(self, count: int) -> Sequence[datetime]:
        """So many, evenly over the window."""
        first = self.end - self.window
        return [first + self.window * (number / count) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at a moment: seconds since the first was due, and the provider's calls."""

    seconds: float
    token_calls: TokenCalls


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the database says in the end. `margins` are the times that refreshed tokens still had, in seconds."""

    margins: Sequence[float]
    never: int

    @property
    def too_late(self) -> int:
        """Those refreshed after they had expired."""
        return sum(margin <= 0 for margin in self.margins)


async def measure(plan: Plan, progress: Progress) -> Result:
    """Measure while they are refreshed, beside a system that has none."""
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
        pairs: list[tuple[Phase, Phase]] = []
        async with asyncio.TaskGroup() as group:
            sampling = group.create_task(_sample(plan, system, timetable, progress, task))
            while not sampling.done():
                pairs.append(await both(plan.seconds))
        outcome = await _outcome(system, seeded)
    # The last of the phases was idle in part.
    return _result(plan, pairs[:-1] or pairs, sampling.result(), outcome)


def _timetable(plan: Plan, system: System) -> Timetable:
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
    plan: Plan, system: System, timetable: Timetable, progress: Progress, task: TaskID
) -> Sequence[Sample]:
    """Look every second, until all are refreshed or that has become hopeless."""
    begin = time.monotonic()
    samples: list[Sample] = []
    while True:
        current = await system.provider.token_calls()
        samples.append(Sample(time.monotonic() - begin, current))
        progress.update(task, completed=current.refreshed)
        is_stalled = current.refreshed == 0 and utc_now() > timetable.all_due + _GRACE_PERIOD
        if current.refreshed >= plan.integrations or is_stalled or utc_now() > timetable.end:
            return samples
        await asyncio.sleep(1)


async def _outcome(system: System, seeded: Sequence[Seeded]) -> Outcome:
    columns = (integrations.c.integration_id, integrations.c.version, integrations.c.update_time)
    query = select(*columns).where(integrations.c.integration_type == TROUBLED_TYPE)
    async with open_database(system.database_url) as database, database.read_connection() as connection:
        rows = (await connection.execute(query)).all()
    expire_times = {integration.integration_id: integration.expire_time for integration in seeded}
    return Outcome(
        margins=[
            (expire_times[row.integration_id] - row.update_time).total_seconds() for row in rows if row.version > 0
        ],
        never=sum(row.version == 0 for row in rows),
    )


def _result(plan: Plan, pairs: Sequence[tuple[Phase, Phase]], samples: Sequence[Sample], outcome: Outcome) -> Result:
    comparisons = compare(pairs)
    references, loads = zip(*pairs, strict=True)
    last = samples[-1]
    return Result(
        comparisons,
        lateness=lateness_of([*references, *loads]),
        figures={
            **load_figures(references, loads),
            "refreshed": f"{last.token_calls.refreshed:,} in {last.seconds:.0f} s",
            "calls to the provider": f"{last.token_calls.calls:,}",
            "time left of the tightest token": f"{min(outcome.margins):.0f} s" if outcome.margins else "none",
        },
        bounds=[
            in_time(plan.integrations, outcome),
            Bound(
                f"the provider never sees more than {_MAX_CONCURRENT_CALLS * plan.servers} token calls at once",
                f"{last.token_calls.max_in_flight} at most",
                last.token_calls.max_in_flight <= _MAX_CONCURRENT_CALLS * plan.servers,
            ),
            *speed_bounds(comparisons, plan.bound, [*references, *loads]),
        ],
        raw={
            "pairs": [[asdict(phase) for phase in pair] for pair in pairs],
            "samples": [asdict(sample) for sample in samples],
            "outcome": asdict(outcome),
        },
    )


def in_time(count: int, outcome: Outcome) -> Bound:
    """Whether each of so many was refreshed before it ended."""
    text = f"all of {count:,} are refreshed before they expire"
    if not outcome.margins:
        return Bound(text, "none was, though all were due: this server does not refresh by itself", holds=False)
    return Bound(
        text,
        f"{outcome.too_late:,} were too late, {outcome.never:,} not refreshed at all",
        outcome.too_late == 0 and outcome.never == 0,
    )
