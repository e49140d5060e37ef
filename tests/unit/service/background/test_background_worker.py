import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete
from structlog.testing import capture_logs

from integration_server.domain.errors import (
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    QuotaExceeded,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.events import EventKind
from integration_server.domain.integration import Integration, Status, StoredIntegration
from integration_server.service.background.background_worker import (
    BackgroundWorker,
    CircuitBreaker,
    DueJob,
    JobHandler,
    WorkBudget,
    WorkerLimits,
)
from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.integrations.ports import IntegrationUpdate, NewAccount
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.tables import due_work_claims
from tests.fakes.clock import NOON, SettableClock
from tests.fakes.provider import FakeProvider, wait_until
from tests.fakes.system import ADA, CHECK_INTERVAL, FakeSystem
from tests.fakes.workers import is_busy

CLAIM_DURATION = timedelta(minutes=1)
MAX_CONCURRENT = 3
MINUTE = timedelta(minutes=1)


def new_worker(system: FakeSystem, job_kind: JobKind, handler: JobHandler) -> BackgroundWorker:
    return BackgroundWorker(
        [DueJob(job_kind, handler, CLAIM_DURATION)],
        system.due_work,
        system.providers,
        system.clock,
        lambda: 0.5,
        limits=WorkerLimits(MAX_CONCURRENT, 100),
        pause=system.pause,
    )


@asynccontextmanager
async def refresh_worker(system: FakeSystem) -> AsyncIterator[BackgroundWorker]:
    async def refresh(claim: Claim[StoredIntegration]) -> bool:
        return await system.refresher.refresh_proactively(claim.item)

    async with new_worker(system, JobKind.REFRESH, refresh) as worker:
        yield worker


@asynccontextmanager
async def check_worker(system: FakeSystem) -> AsyncIterator[BackgroundWorker]:
    async with new_worker(system, JobKind.CHECK, system.health_checker.check_due) as worker:
        yield worker


async def run_once(worker: BackgroundWorker) -> None:
    """Poll once and wait for all jobs that it starts."""
    await worker.poll()
    await wait_until(lambda: not is_busy(worker))


async def connect_many(system: FakeSystem, number: int, integration_type: str = "fake") -> list[Integration]:
    rows = []
    provider = system.providers.by_type[integration_type]
    assert isinstance(provider, FakeProvider)
    for index in range(number):
        provider.account = NewAccount(f"{integration_type}-{index}", None)
        rows.append(await system.connect(integration_type=integration_type))
    return rows


def make_refreshes_due(system: FakeSystem) -> None:
    """Advance the clock until every refresh is due, and no token is inside its buffer."""
    system.clock.advance(timedelta(minutes=54))


# --- proactive refresh -----------------------------------------------------------------------------------------------


async def test_tokens_are_refreshed_ahead_of_expiry(system: FakeSystem) -> None:
    rows = await connect_many(system, 10)
    async with refresh_worker(system) as worker:
        await run_once(worker)
        assert system.provider.refreshes == []
        make_refreshes_due(system)
        await run_once(worker)
        assert sorted(system.provider.refreshes) == sorted(f"refresh-{number + 1}" for number in range(10))
        await run_once(worker)
    assert len(system.provider.refreshes) == 10
    for row in rows:
        assert system.row(row.integration_id).version == row.version + 1
        assert (system.row(row.integration_id).refresh_due_time or NOON) > system.clock()


async def test_the_expiry_of_a_token_without_refresh_token_is_recorded(system: FakeSystem) -> None:
    system.provider.issues_refresh_token = False
    integration = await system.connect()
    async with refresh_worker(system) as worker:
        system.clock.advance(timedelta(minutes=59))
        await run_once(worker)
        assert not system.row(integration.integration_id).reauthorization_required
        system.clock.advance(timedelta(minutes=1))
        for _ in range(3):
            system.clock.advance(timedelta(minutes=5))
            await run_once(worker)
    expired = system.row(integration.integration_id)
    assert expired.reauthorization_required
    assert expired.last_error is not None
    assert expired.error_count == 1
    change = [event for event in system.event_rows() if event.kind == EventKind.STATUS_CHANGED][-1]
    assert (change.status_before, change.status_after) == (Status.ACTIVE, Status.EXPIRED)
    assert system.provider.refreshes == []


async def test_a_request_for_an_expired_token_records_the_expiry(system: FakeSystem) -> None:
    system.provider.issues_refresh_token = False
    integration = await system.connect()
    system.clock.advance(timedelta(hours=1))
    with pytest.raises(ReauthorizationRequired):
        await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert system.row(integration.integration_id).reauthorization_required


async def test_two_processes_refresh_each_token_once(system: FakeSystem) -> None:
    await connect_many(system, 20)
    make_refreshes_due(system)
    async with refresh_worker(system) as first, refresh_worker(system) as second:
        await asyncio.gather(run_once(first), run_once(second))
    assert len(system.provider.refreshes) == len(set(system.provider.refreshes)) == 20


async def test_calls_to_a_provider_are_limited(system: FakeSystem) -> None:
    await connect_many(system, 10)
    make_refreshes_due(system)
    system.provider.gate = asyncio.Event()
    async with refresh_worker(system) as worker:
        await worker.poll()
        await wait_until(lambda: len(system.provider.refreshes) == MAX_CONCURRENT)
        await worker.poll()
        system.provider.gate.set()
        await wait_until(lambda: not is_busy(worker))
    assert (system.provider.max_in_flight, len(system.provider.refreshes)) == (MAX_CONCURRENT, 10)


async def test_a_slow_provider_delays_only_its_own_integrations(system: FakeSystem) -> None:
    slow_provider = system.add_provider("slow")
    await connect_many(system, 5, "slow")
    await connect_many(system, 5)
    make_refreshes_due(system)
    slow_provider.gate = asyncio.Event()
    async with refresh_worker(system) as worker:
        await worker.poll()
        await wait_until(lambda: len(system.provider.refreshes) == 5)
        assert len(slow_provider.refreshes) == MAX_CONCURRENT
        slow_provider.gate.set()
        await wait_until(lambda: len(slow_provider.refreshes) == 5)


async def test_inactive_and_expired_integrations_are_skipped(system: FakeSystem) -> None:
    inactive, expired = await connect_many(system, 2)
    make_refreshes_due(system)
    await system.integration_manager.update_integration(
        inactive.integration_id, ADA, IntegrationUpdate(is_active=False)
    )
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    async with refresh_worker(system) as worker:
        for _ in range(3):
            await run_once(worker)
            system.clock.advance(CLAIM_DURATION)
    assert len(system.provider.refreshes) == 1
    assert system.row(expired.integration_id).status(system.clock()) is Status.EXPIRED


async def test_a_failed_refresh_is_retried_after_its_backoff(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    make_refreshes_due(system)
    system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(seconds=20))
    async with refresh_worker(system) as worker:
        await run_once(worker)
        system.clock.advance(timedelta(seconds=19))
        await run_once(worker)
        assert len(system.provider.refreshes) == 1
        system.provider.refresh_error = None
        system.clock.advance(timedelta(seconds=1))
        await run_once(worker)
    assert len(system.provider.refreshes) == 2
    assert system.row(row.integration_id).last_error is None


async def test_the_claim_of_a_crashed_process_expires(system: FakeSystem) -> None:
    await connect_many(system, 1)
    make_refreshes_due(system)
    assert await system.due_work.claim(JobKind.REFRESH, "fake", 1, claim_duration=CLAIM_DURATION)
    async with refresh_worker(system) as worker:
        await run_once(worker)
        assert not system.provider.refreshes
        system.clock.advance(CLAIM_DURATION)
        await run_once(worker)
    assert len(system.provider.refreshes) == 1


async def work_beside_a_fatal_row(*, counts_expired_claims: bool) -> tuple[int, int]:
    """How often a row whose work ends the process is begun in 300 minutes, and how often another one is completed."""
    system = FakeSystem()
    fatal, _ = await connect_many(system, 2)
    make_refreshes_due(system)
    begun, completed, is_ended = 0, 0, asyncio.Event()

    async def handler(claim: Claim[StoredIntegration]) -> bool:
        nonlocal begun, completed
        if claim.row_id == fatal.integration_id:
            begun += 1
            is_ended.set()
        await asyncio.sleep(0)
        if is_ended.is_set():
            await asyncio.Event().wait()
        completed += 1
        return await system.due_work.postpone(claim, timedelta(days=1)) is not None

    for _ in range(300):
        if not counts_expired_claims:
            system.database.execute(delete(due_work_claims))
        is_ended.clear()
        async with new_worker(system, JobKind.REFRESH, handler) as worker:
            await worker.poll()
            for _ in range(20):
                await asyncio.sleep(0)
        system.clock.advance(MINUTE)
    return begun, completed


async def test_a_row_whose_work_ends_the_process_is_repeated_ever_less_often() -> None:
    with capture_logs() as logs:
        begun, completed = await work_beside_a_fatal_row(counts_expired_claims=True)
    assert 8 < begun < 20
    assert completed == 1
    abandoned = [log["expired_claims"] for log in logs if log["event"] == "background_job_abandoned"]
    assert max(abandoned) == begun - 1


@pytest.mark.slow
async def test_negative_control_without_the_count_it_ends_each_process() -> None:
    assert await work_beside_a_fatal_row(counts_expired_claims=False) == (300, 0)


async def test_an_unavailable_database_ends_one_poll_only(system: FakeSystem) -> None:
    await connect_many(system, 1)
    make_refreshes_due(system)
    async with refresh_worker(system) as worker:
        system.database.is_unavailable = True
        with pytest.raises(StoreUnavailable):
            await worker.poll()
        system.database.is_unavailable = False
        await run_once(worker)
    assert len(system.provider.refreshes) == 1


async def test_exit_does_not_wait_and_loses_no_token_response(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    make_refreshes_due(system)
    system.provider.gate = asyncio.Event()
    async with refresh_worker(system) as worker:
        await worker.poll()
        await wait_until(lambda: system.provider.refreshes)
    assert not is_busy(worker)
    system.provider.gate.set()
    await wait_until(lambda: system.row(row.integration_id).version > row.version)


async def test_an_unexpected_failure_is_logged_and_does_not_block_others(system: FakeSystem) -> None:
    rows = await connect_many(system, 3)
    handled = []

    async def handler(claim: Claim[StoredIntegration]) -> bool:
        handled.append(claim.row_id)
        if claim.row_id == rows[0].integration_id:
            raise RuntimeError("secret")
        return True

    make_refreshes_due(system)
    with capture_logs() as logs:
        async with new_worker(system, JobKind.REFRESH, handler) as worker:
            await run_once(worker)
    assert sorted(handled) == [row.integration_id for row in rows]
    assert [log["kind"] for log in logs if log["event"] == "background_job_failed"] == ["RuntimeError"]
    assert "secret" not in str(logs)


@pytest.mark.parametrize("failure", [ProviderUnavailable(), ReauthorizationRequired(), ValueError(), None])
async def test_rows_without_an_outcome_delay_no_others(system: FakeSystem, failure: Exception | None) -> None:
    """The last case is the negative control: for the worker, the row has an outcome."""
    failing, other = await connect_many(system, 2)
    make_refreshes_due(system)
    due_times = {row.integration_id: system.row(row.integration_id).refresh_due_time for row in (failing, other)}

    async def handler(_claim: Claim[StoredIntegration]) -> bool:
        if isinstance(failure, ProviderUnavailable):
            return False
        if failure is not None:
            raise failure
        return True

    async with new_worker(system, JobKind.REFRESH, handler) as worker:
        await run_once(worker)
    for integration_id, due_time in due_times.items():
        assert due_time is not None
        is_postponed = (system.row(integration_id).refresh_due_time or due_time) >= system.clock() + CLAIM_DURATION
        assert is_postponed == (failure is not None)


async def test_unknown_types_are_skipped(system: FakeSystem) -> None:
    provider = system.add_provider("removed")
    await connect_many(system, 1, "removed")
    make_refreshes_due(system)
    del system.providers.by_type["removed"]
    async with refresh_worker(system) as worker:
        await run_once(worker)
    assert not provider.refreshes


@pytest.mark.parametrize("error", [ProviderUnavailable(), ProviderMisconfigured()], ids=lambda error: error.reason)
async def test_the_circuit_breaker_opens_and_then_allows_one_trial(system: FakeSystem, error: Exception) -> None:
    await connect_many(system, 40)
    make_refreshes_due(system)
    system.provider.refresh_error = error
    async with refresh_worker(system) as worker:
        await run_once(worker)
        calls = len(system.provider.refreshes)
        assert calls < 10
        await run_once(worker)
        assert len(system.provider.refreshes) == calls
        system.clock.advance(MINUTE)
        await run_once(worker)
        assert len(system.provider.refreshes) == calls + 1
        system.provider.refresh_error = None
        system.clock.advance(MINUTE)
        await run_once(worker)
    assert all(system.row(number).version == 1 + 1 for number in system.ids())


class UnreleasedDueWork(SqlDueWork):
    """Negative control: claims whose work has not begun last until they expire."""

    async def release(self, claims: Collection[Claim[Any]]) -> None:
        """Do nothing."""


async def rows_left_behind(due_work: SqlDueWork, system: FakeSystem, *, fails: bool) -> int:
    """How many rows have neither been begun by a worker, nor can be claimed after its end.

    It ends because its breaker opens, or because its process stops before the second group of handlers.
    """
    pauses, begun, one_at_a_time = iter((0, 3600)), 0, asyncio.Lock()

    async def pause(_seconds: float) -> None:
        await (asyncio.sleep(0) if fails else asyncio.sleep(next(pauses)))

    async def handler(_claim: Claim[StoredIntegration]) -> bool:
        nonlocal begun
        begun += 1
        async with one_at_a_time:
            for _ in range(20):
                await asyncio.sleep(0)
        return not fails

    await connect_many(system, 40)
    make_refreshes_due(system)
    jobs = [DueJob(JobKind.REFRESH, handler, CLAIM_DURATION)]
    parts = due_work, system.providers, system.clock, lambda: 0.5
    async with BackgroundWorker(jobs, *parts, limits=WorkerLimits(8, 100), pause=pause) as worker:
        await worker.poll()
        await wait_until(lambda: bool(worker.open_breakers()) and not is_busy(worker) if fails else begun > 0)
    claims = await due_work.claim(JobKind.REFRESH, "fake", 40, claim_duration=CLAIM_DURATION)
    assert {claim.expired_claims for claim in claims} == {0}
    return 40 - begun - len(claims)


@pytest.mark.parametrize("fails", [True, False], ids=["breaker", "stop"])
async def test_rows_whose_work_has_not_begun_are_released(system: FakeSystem, *, fails: bool) -> None:
    assert await rows_left_behind(SqlDueWork(system.database), system, fails=fails) == 0


@pytest.mark.parametrize("fails", [True, False], ids=["breaker", "stop"])
async def test_negative_control_without_their_release_they_wait(system: FakeSystem, *, fails: bool) -> None:
    assert await rows_left_behind(UnreleasedDueWork(system.database), system, fails=fails) >= 3


async def test_an_outage_of_the_database_does_not_close_a_circuit_breaker(system: FakeSystem) -> None:
    await connect_many(system, 20)
    make_refreshes_due(system)
    is_database_down = False

    async def handler(_claim: Claim[StoredIntegration]) -> bool:
        if is_database_down:
            raise StoreUnavailable
        return False

    async with new_worker(system, JobKind.REFRESH, handler) as worker:
        await run_once(worker)
        assert worker.open_breakers()
        is_database_down = True
        system.clock.advance(MINUTE)
        await run_once(worker)
        assert worker.open_breakers()


# --- health checks ---------------------------------------------------------------------------------------------------


async def test_a_check_that_gets_no_turn_delays_no_others(system: FakeSystem) -> None:
    """A user has at most eight checks at a provider at a time. The ninth is due later."""
    await connect_many(system, 9)
    system.clock.advance(CHECK_INTERVAL)
    system.provider.gate = asyncio.Event()
    system.health_checker.deadline = timedelta(seconds=0.02)
    claims = await system.due_work.claim(JobKind.CHECK, "fake", 9, claim_duration=timedelta(0))
    outcomes = await asyncio.gather(*map(system.health_checker.check_due, claims), return_exceptions=True)
    (without_turn,) = [outcome for outcome in outcomes if outcome is not False]
    assert isinstance(without_turn, QuotaExceeded)  # so that the worker postpones it


async def test_every_integration_is_checked_on_its_interval(system: FakeSystem) -> None:
    rows = await connect_many(system, 5)
    key = await system.connect_key()
    async with check_worker(system) as worker:
        await run_once(worker)
        assert not system.check_rows()
        for rounds in (1, 2):
            system.clock.advance(CHECK_INTERVAL)
            await run_once(worker)
            checked = sorted(row.integration_id for row in system.check_rows())
            assert checked == sorted(rounds * [*(row.integration_id for row in rows), key.integration_id])


async def test_a_failed_check_is_repeated_sooner(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    system.provider.verify_error = ProviderUnavailable()
    async with check_worker(system) as worker:
        system.clock.advance(CHECK_INTERVAL)
        await run_once(worker)
        assert system.row(row.integration_id).status(system.clock()) is Status.ERROR
        system.provider.verify_error = None
        system.clock.advance(timedelta(minutes=1))
        await run_once(worker)
    assert [check.healthy for check in system.check_rows()] == [False, True]
    assert system.row(row.integration_id).check_due_time == system.clock() + CHECK_INTERVAL


async def test_inactive_integrations_are_checked_when_they_become_active(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    await system.integration_manager.update_integration(row.integration_id, ADA, IntegrationUpdate(is_active=False))
    async with check_worker(system) as worker:
        system.clock.advance(CHECK_INTERVAL)
        await run_once(worker)
        assert not system.check_rows()
        await system.integration_manager.update_integration(row.integration_id, ADA, IntegrationUpdate(is_active=True))
        await run_once(worker)
    assert len(system.check_rows()) == 1


# --- circuit breaker -------------------------------------------------------------------------------------------------


def test_the_circuit_breaker_stays_open_for_up_to_half_a_minute() -> None:
    clock, breaker = SettableClock(), CircuitBreaker(lambda: 1)
    for _ in range(4):
        breaker.record(False, clock())
        assert breaker.capacity(MAX_CONCURRENT, clock()) == MAX_CONCURRENT
    for seconds in (2, 4, 8, 16, 30, 30):
        breaker.record(False, clock())
        clock.advance(timedelta(seconds=seconds - 1))
        assert breaker.capacity(MAX_CONCURRENT, clock()) == 0
        clock.advance(timedelta(seconds=1))
        assert breaker.capacity(MAX_CONCURRENT, clock()) == 1
    breaker.record(True, clock())
    assert breaker.capacity(MAX_CONCURRENT, clock()) == MAX_CONCURRENT


# --- budget ----------------------------------------------------------------------------------------------------------

PER_SECOND = 100
SIMULATED = 20.0  # seconds


class SimulatedLoop:
    """An event loop of which RPCs use `load`: time passes only in pauses, and a handler takes `handler_time`."""

    def __init__(self, load: float, handler_time: float = 0.002) -> None:
        self.load = load
        self.handler_time = handler_time
        self.time = self.busy = 0.0

    async def pause(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds
        self.busy += self.load * seconds
        await asyncio.sleep(0)

    def handle(self) -> None:
        """Run a handler."""
        self.time += self.handler_time
        self.busy += self.handler_time


async def count_starts(budgets: list[WorkBudget], loop: SimulatedLoop, wanted: int = 1) -> list[int]:
    """How many handlers each of these types starts while the time of the simulation passes."""

    async def work(budget: WorkBudget) -> int:
        starts = 0
        while loop.time < SIMULATED:
            group = await budget.take_turn(wanted)
            for _ in range(group):
                loop.handle()
            starts += group
        return starts

    return await asyncio.gather(*map(work, budgets))


def new_budget(loop: SimulatedLoop, *, yields: bool = True) -> WorkBudget:
    limits = WorkerLimits(MAX_CONCURRENT, PER_SECOND, yields=yields)
    return WorkBudget(limits, loop.pause, lambda: loop.busy)


@pytest.mark.parametrize("wanted", [1, 3, 100])
@pytest.mark.parametrize("types", [1, 2, 7, 50])
async def test_all_types_share_one_budget_in_turns(types: int, wanted: int) -> None:
    loop = SimulatedLoop(load=0, handler_time=0)
    starts = await count_starts([new_budget(loop)] * types, loop, wanted)
    group = min(wanted, 4)
    assert sum(starts) == pytest.approx(SIMULATED * PER_SECOND, abs=types * group)
    assert max(starts) - min(starts) <= group


@pytest.mark.slow
async def test_negative_control_a_budget_for_each_type_starts_as_many_times_more() -> None:
    async def of_type() -> int:
        loop = SimulatedLoop(load=0, handler_time=0)
        return sum(await count_starts([new_budget(loop)], loop))

    assert sum([await of_type() for _ in range(50)]) > 45 * SIMULATED * PER_SECOND


@pytest.mark.parametrize(
    ("load", "handler_time", "at_least", "at_most"),
    [
        (0.0, 0.002, 0.8, 1.0),
        (0.2, 0.002, 0.8, 1.0),
        (0.6, 0.002, 0.04, 0.1),
        (0.95, 0.002, 0.04, 0.06),
        (1.0, 0.0, 0.04, 0.06),
        (0.0, 0.05, 0.04, 0.1),  # handlers too use at most about half of the time
    ],
)
@pytest.mark.parametrize("wanted", [1, 100])
async def test_background_work_yields_to_a_busy_loop_and_never_stops(
    load: float, handler_time: float, at_least: float, at_most: float, wanted: int
) -> None:
    loop = SimulatedLoop(load, handler_time)
    starts = sum(await count_starts([new_budget(loop)] * 5, loop, wanted))
    assert at_least <= starts / (SIMULATED * PER_SECOND) <= at_most


@pytest.mark.parametrize(("load", "yields", "group"), [(0.0, True, 4), (0.3, True, 4), (0.9, True, 1), (0.9, False, 4)])
async def test_handlers_start_together_unless_the_loop_is_busy(load: float, yields: bool, group: int) -> None:
    """The last case is the negative control."""
    loop = SimulatedLoop(load, handler_time=0)
    budget = new_budget(loop, yields=yields)
    assert [await budget.take_turn(100) for _ in range(20)][-10:] == [group] * 10


async def test_negative_control_without_yielding_a_busy_loop_gets_as_much_work() -> None:
    loop = SimulatedLoop(load=0.95)
    starts = sum(await count_starts([new_budget(loop, yields=False)] * 5, loop))
    assert starts > 0.8 * SIMULATED * PER_SECOND


async def start_backlog(system: FakeSystem, *, yields: bool) -> tuple[int, int]:
    """The handlers that start in a second in which callers use 90 % of the loop, and the number of due rows."""
    types = [f"type-{number}" for number in range(6)]
    for name in types:
        system.add_provider(name)
        await connect_many(system, 20, name)
    make_refreshes_due(system)
    started, loop = 0, SimulatedLoop(load=0.9)

    async def handler(_claim: Claim[StoredIntegration]) -> bool:
        nonlocal started
        started += loop.time < 1
        return True

    worker = BackgroundWorker(
        [DueJob(JobKind.REFRESH, handler, CLAIM_DURATION)],
        system.due_work,
        system.providers,
        system.clock,
        lambda: 0.5,
        limits=WorkerLimits(MAX_CONCURRENT, PER_SECOND, yields=yields),
        pause=loop.pause,
        busy_time=lambda: loop.busy,
    )
    async with worker:
        await worker.poll()
        await wait_until(lambda: not is_busy(worker) or loop.time > 1)
    return started, 20 * len(types)


async def test_a_backlog_of_many_providers_does_not_delay_callers(system: FakeSystem) -> None:
    started, due = await start_backlog(system, yields=True)
    assert 0 < started <= 10 < due


async def test_negative_control_without_yielding_callers_wait_for_the_backlog(system: FakeSystem) -> None:
    started, due = await start_backlog(system, yields=False)
    assert started > 0.7 * due


def test_many_types_share_the_places_of_a_few() -> None:
    budget = new_budget(SimulatedLoop(load=0))
    assert [budget.share(types) for types in (0, 1, 8, 12, 24, 500)] == [3, 3, 3, 2, 1, 1]


async def test_types_beyond_the_limit_of_a_poll_are_taken_by_the_next_ones(system: FakeSystem) -> None:
    types = [f"type-{number:02}" for number in range(8 * MAX_CONCURRENT + 6)]
    providers = [system.add_provider(name) for name in types]
    for name in types:
        await connect_many(system, 1, name)
    make_refreshes_due(system)
    async with refresh_worker(system) as worker:
        await run_once(worker)
        assert sum(len(provider.refreshes) for provider in providers) == 8 * MAX_CONCURRENT
        await run_once(worker)
    assert [len(provider.refreshes) for provider in providers] == [1] * len(types)
