import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from integration_server.domain.errors import (
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, Status
from integration_server.service.managing import Change
from integration_server.service.ports import NewAccount, StoredIntegration, Work
from integration_server.service.upkeep import Breaker, Do, Pace, Upkeep
from tests.fakes.clock import NOON, SettableClock
from tests.fakes.provider import FakeProvider, until
from tests.fakes.system import ADA, CHECK_INTERVAL, FakeSystem

HOLD = timedelta(minutes=1)
AT_ONCE = 3
SOON = timedelta(minutes=1)


def upkeep_of(system: FakeSystem, work: Work, do: Do) -> Upkeep:
    return Upkeep(
        work,
        do,
        system.agenda,
        system.providers,
        system.clock,
        lambda: 0.5,
        pace=Pace(AT_ONCE, 100),
        hold=HOLD,
        pause=system.pause,
    )


@asynccontextmanager
async def refreshing(system: FakeSystem) -> AsyncIterator[Upkeep]:
    async with upkeep_of(system, Work.REFRESH, system.refreshing.refresh_ahead) as upkeep:
        yield upkeep


@asynccontextmanager
async def checking(system: FakeSystem) -> AsyncIterator[Upkeep]:
    async with upkeep_of(system, Work.CHECK, system.monitoring.check_due) as upkeep:
        yield upkeep


async def done(upkeep: Upkeep) -> None:
    """A look, and all that it begins."""
    await upkeep.look()
    await until(lambda: not upkeep.is_busy)


async def connect_many(system: FakeSystem, number: int, integration_type: str = "fake") -> list[Integration]:
    rows = []
    provider = system.providers.by_type[integration_type]
    assert isinstance(provider, FakeProvider)
    for one in range(number):
        provider.account = NewAccount(f"{integration_type}-{one}", None)
        rows.append(await system.connect(integration_type=integration_type))
    return rows


def due_for_refresh(system: FakeSystem) -> None:
    """Let time pass until every token is due, and none has come to its buffer."""
    system.clock.advance(timedelta(minutes=54))


# --- refreshing ahead of need --------------------------------------------------------------------------------------


async def test_tokens_are_renewed_before_anybody_asks(system: FakeSystem) -> None:
    rows = await connect_many(system, 10)
    async with refreshing(system) as upkeep:
        await done(upkeep)
        assert system.provider.refreshes == []
        due_for_refresh(system)
        await done(upkeep)
        assert sorted(system.provider.refreshes) == sorted(f"refresh-{number + 1}" for number in range(10))
        await done(upkeep)
    assert len(system.provider.refreshes) == 10
    for row in rows:
        assert system.row(row.integration_id).version == row.version + 1
        assert (system.row(row.integration_id).refresh_due_time or NOON) > system.clock()


async def test_the_end_of_a_token_that_cannot_be_renewed_is_noted_and_told(system: FakeSystem) -> None:
    system.provider.gives_refresh_token = False
    integration = await system.connect()
    async with refreshing(system) as upkeep:
        system.clock.advance(timedelta(minutes=59))
        await done(upkeep)
        assert not system.row(integration.integration_id).reauthorization_required
        system.clock.advance(timedelta(minutes=1))
        for _ in range(3):  # once is enough
            system.clock.advance(timedelta(minutes=5))
            await done(upkeep)
    noted = system.row(integration.integration_id)
    assert noted.reauthorization_required
    assert noted.last_error is not None
    assert noted.error_count == 1
    ends = [(event.status_before, event.status_after) for event in system.rows.events][-1:]
    assert ends == [(Status.ACTIVE, Status.EXPIRED)]
    assert system.provider.refreshes == []


async def test_who_asks_for_a_token_that_has_ended_notes_it(system: FakeSystem) -> None:
    system.provider.gives_refresh_token = False
    integration = await system.connect()
    system.clock.advance(timedelta(hours=1))
    with pytest.raises(ReauthorizationRequired):
        await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert system.row(integration.integration_id).reauthorization_required


async def test_many_processes_renew_each_once(system: FakeSystem) -> None:
    await connect_many(system, 20)
    due_for_refresh(system)
    async with refreshing(system) as one, refreshing(system) as another:
        await asyncio.gather(done(one), done(another))
    assert len(system.provider.refreshes) == len(set(system.provider.refreshes)) == 20


async def test_a_provider_gets_no_more_than_its_share_at_once(system: FakeSystem) -> None:
    await connect_many(system, 10)
    due_for_refresh(system)
    system.provider.gate = asyncio.Event()
    async with refreshing(system) as upkeep:
        await upkeep.look()
        await until(lambda: len(system.provider.refreshes) == AT_ONCE)
        await upkeep.look()
        system.provider.gate.set()
        await until(lambda: not upkeep.is_busy)
    assert (system.provider.most_at_once, len(system.provider.refreshes)) == (AT_ONCE, 10)


async def test_a_provider_that_hangs_holds_up_only_its_own(system: FakeSystem) -> None:
    hanging = system.add_provider("hanging")
    await connect_many(system, 5, "hanging")
    await connect_many(system, 5)
    due_for_refresh(system)
    hanging.gate = asyncio.Event()
    async with refreshing(system) as upkeep:
        await upkeep.look()
        await until(lambda: len(system.provider.refreshes) == 5)
        assert len(hanging.refreshes) == AT_ONCE
        hanging.gate.set()
        await until(lambda: len(hanging.refreshes) == 5)


async def test_what_is_off_or_dead_is_left_alone(system: FakeSystem) -> None:
    off, dead = await connect_many(system, 2)
    due_for_refresh(system)
    await system.managing.update_integration(off.integration_id, ADA, Change(is_active=False))
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    async with refreshing(system) as upkeep:
        for _ in range(3):
            await done(upkeep)
            system.clock.advance(HOLD)
    assert len(system.provider.refreshes) == 1
    assert system.row(dead.integration_id).status(system.clock()) is Status.EXPIRED


async def test_a_failure_is_tried_again_after_its_pause(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    due_for_refresh(system)
    system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(seconds=20))
    async with refreshing(system) as upkeep:
        await done(upkeep)
        system.clock.advance(timedelta(seconds=19))
        await done(upkeep)
        assert len(system.provider.refreshes) == 1
        system.provider.refresh_error = None
        system.clock.advance(timedelta(seconds=1))
        await done(upkeep)
    assert len(system.provider.refreshes) == 2
    assert system.row(row.integration_id).last_error is None


async def test_what_a_crashed_process_claimed_is_due_again(system: FakeSystem) -> None:
    await connect_many(system, 1)
    due_for_refresh(system)
    assert await system.agenda.claim(Work.REFRESH, "fake", system.clock(), system.clock() + HOLD, 1)
    async with refreshing(system) as upkeep:
        await done(upkeep)
        assert not system.provider.refreshes
        system.clock.advance(HOLD)
        await done(upkeep)
    assert len(system.provider.refreshes) == 1


async def test_the_database_away_ends_a_round_and_no_more(system: FakeSystem) -> None:
    await connect_many(system, 1)
    due_for_refresh(system)
    async with refreshing(system) as upkeep:
        system.rows.away = True
        with pytest.raises(StoreUnavailable):
            await upkeep.look()
        system.rows.away = False
        await done(upkeep)
    assert len(system.provider.refreshes) == 1


async def test_leaving_waits_for_nobody_and_loses_no_answer(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    due_for_refresh(system)
    system.provider.gate = asyncio.Event()
    async with refreshing(system) as upkeep:
        await upkeep.look()
        await until(lambda: system.provider.refreshes)
    assert not upkeep.is_busy
    system.provider.gate.set()
    await until(lambda: system.row(row.integration_id).version > row.version)


async def test_one_that_fails_in_an_unknown_way_is_told_and_holds_up_no_other(system: FakeSystem) -> None:
    rows = await connect_many(system, 3)
    seen = []

    async def do(due: StoredIntegration) -> bool:
        seen.append(due.integration.integration_id)
        if due.integration.integration_id == rows[0].integration_id:
            raise RuntimeError("secret")
        return True

    due_for_refresh(system)
    with capture_logs() as logs:
        async with upkeep_of(system, Work.REFRESH, do) as upkeep:
            await done(upkeep)
    assert sorted(seen) == [row.integration_id for row in rows]
    assert [log["kind"] for log in logs if log["event"] == "upkeep_failed"] == ["RuntimeError"]
    assert "secret" not in str(logs)


async def test_a_type_that_is_no_longer_known_is_left_alone(system: FakeSystem) -> None:
    provider = system.add_provider("gone")
    await connect_many(system, 1, "gone")
    due_for_refresh(system)
    del system.providers.by_type["gone"]
    async with refreshing(system) as upkeep:
        await done(upkeep)
    assert not provider.refreshes


@pytest.mark.parametrize("error", [ProviderUnavailable(), ProviderMisconfigured()], ids=lambda error: error.reason)
async def test_a_provider_that_only_fails_is_left_alone_and_then_tried_by_one(
    system: FakeSystem, error: Exception
) -> None:
    await connect_many(system, 40)
    due_for_refresh(system)
    system.provider.refresh_error = error
    async with refreshing(system) as upkeep:
        await done(upkeep)
        tried = len(system.provider.refreshes)
        assert tried < 10
        await done(upkeep)
        assert len(system.provider.refreshes) == tried
        system.clock.advance(SOON)
        await done(upkeep)
        assert len(system.provider.refreshes) == tried + 1
        system.provider.refresh_error = None
        system.clock.advance(SOON)
        await done(upkeep)
    assert all(system.row(number).version == 1 + 1 for number in system.ids())


# --- checking ------------------------------------------------------------------------------------------------------


async def test_every_integration_is_checked_on_its_interval(system: FakeSystem) -> None:
    rows = await connect_many(system, 5)
    key = await system.connect_key()
    async with checking(system) as upkeep:
        await done(upkeep)
        assert not system.rows.checks
        for rounds in (1, 2):
            system.clock.advance(CHECK_INTERVAL)
            await done(upkeep)
            checked = sorted(check.integration.integration_id for check in system.rows.checks)
            assert checked == sorted(rounds * [*(row.integration_id for row in rows), key.integration_id])


async def test_one_that_fails_is_checked_sooner(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    system.provider.verify_error = ProviderUnavailable()
    async with checking(system) as upkeep:
        system.clock.advance(CHECK_INTERVAL)
        await done(upkeep)
        assert system.row(row.integration_id).status(system.clock()) is Status.ERROR
        system.provider.verify_error = None
        system.clock.advance(timedelta(minutes=1))
        await done(upkeep)
    assert [check.healthy for check in system.rows.checks] == [False, True]
    assert system.row(row.integration_id).check_due_time == system.clock() + CHECK_INTERVAL


async def test_what_is_switched_off_is_checked_again_when_it_is_on(system: FakeSystem) -> None:
    (row,) = await connect_many(system, 1)
    await system.managing.update_integration(row.integration_id, ADA, Change(is_active=False))
    async with checking(system) as upkeep:
        system.clock.advance(CHECK_INTERVAL)
        await done(upkeep)
        assert not system.rows.checks
        await system.managing.update_integration(row.integration_id, ADA, Change(is_active=True))
        await done(upkeep)
    assert len(system.rows.checks) == 1


# --- the breaker ---------------------------------------------------------------------------------------------------


def test_the_pause_grows_up_to_a_minute() -> None:
    clock, breaker = SettableClock(), Breaker(lambda: 1)
    for _ in range(4):
        breaker.note(False, clock())
        assert breaker.places(AT_ONCE, clock()) == AT_ONCE
    for seconds in (2, 4, 8, 16, 32, 60, 60):
        breaker.note(False, clock())
        clock.advance(timedelta(seconds=seconds - 1))
        assert breaker.places(AT_ONCE, clock()) == 0
        clock.advance(timedelta(seconds=1))
        assert breaker.places(AT_ONCE, clock()) == 1
    breaker.note(True, clock())
    assert breaker.places(AT_ONCE, clock()) == AT_ONCE
