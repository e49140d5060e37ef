"""Refreshing while processes die, sleep and lose their database. A `FakeSystem.another_process()` is a process."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import structlog
import structlog.testing
from sqlalchemy import update

from integration_server.domain.errors import (
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.events import EventKind
from integration_server.domain.integration import Failure, Integration, Status
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.service.credentials.ports import Lease
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import NewCredentials
from integration_server.storage.tables import refresh_leases
from tests.fakes.provider import HOUR, until
from tests.fakes.stores import InMemoryRefreshJournal, allow_shared_leases, intercept, restore
from tests.fakes.system import ADA, LEASE, FakeSystem

INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """One whose token has expired."""
    integration = await system.connect()
    system.clock.advance(HOUR)
    return integration


async def crash_after_the_call(system: FakeSystem, integration: Integration) -> Lease:
    """What a process leaves that dies between the provider's answer and the commit; its lease has lapsed since."""
    lease = await system.leases.claim(integration, "dead process")
    assert lease is not None
    system.clock.advance(LEASE)
    return lease


def status(system: FakeSystem, integration: Integration) -> Status:
    return system.row(integration.integration_id).status(system.clock())


# --- holders that don't come back ----------------------------------------------------------------------------------


async def test_who_waits_for_a_holder_gives_up_in_the_end(integration: Integration, system: FakeSystem) -> None:
    system.sleep_advances_clock = True
    system.provider.gate = asyncio.Event()
    hanging = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await until(lambda: system.provider.refreshes)
    system.database.execute(update(refresh_leases).values(expire_time=system.clock() + HOUR))
    with pytest.raises(ProviderUnavailable) as refused:
        await system.refresher.refresh(integration)
    assert refused.value.retry_after is not None
    system.provider.gate.set()
    await hanging


async def test_a_spent_token_is_not_sent_again_while_its_holder_may_come_back(
    system: FakeSystem, integration: Integration
) -> None:
    await crash_after_the_call(system, integration)
    with pytest.raises(ProviderUnavailable) as refused:
        await system.refresher.refresh(integration)
    assert refused.value.retry_after == 2 * LEASE
    assert not system.provider.refreshes
    assert status(system, integration) is Status.ACTIVE


async def test_a_token_whose_holder_never_comes_back_needs_reauthorization(
    system: FakeSystem, integration: Integration
) -> None:
    processes = [system.another_process().refresher for _ in range(3)]
    await crash_after_the_call(system, integration)
    system.clock.advance(2 * LEASE)
    for process in processes:
        with pytest.raises(ReauthorizationRequired):
            await process.refresh(integration)
    assert not system.provider.refreshes
    assert status(system, integration) is Status.EXPIRED


async def test_a_spent_token_is_sent_again_where_the_provider_gives_a_grace(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = HOUR
    await crash_after_the_call(system, integration)
    await system.refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]


async def test_after_the_grace_it_is_not_sent_again(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_token_grace = LEASE
    await crash_after_the_call(system, integration)
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert not system.provider.refreshes


async def test_a_failed_replay_does_not_make_the_token_look_unused(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = HOUR
    await crash_after_the_call(system, integration)
    system.provider.refresh_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    system.provider.refresh_error = None
    system.clock.advance(HOUR)
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]  # not again after the grace, when it would end the grant


async def test_connecting_again_mends_a_lost_refresh(system: FakeSystem, integration: Integration) -> None:
    await crash_after_the_call(system, integration)
    system.clock.advance(2 * LEASE)
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration)
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    system.clock.advance(HOUR)
    await system.refresher.refresh(system.row(integration.integration_id))
    assert status(system, integration) is Status.ACTIVE


# --- holders that sleep --------------------------------------------------------------------------------------------


async def test_an_owner_that_slept_past_its_lease_commits_its_token_response(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.gate = asyncio.Event()
    sleeper = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await until(lambda: system.provider.refreshes)
    system.clock.advance(3 * LEASE)
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration)  # has given the sleeper up
    system.provider.gate.set()
    refreshed = await sleeper
    assert await system.tokens(integration.integration_id) == refreshed.tokens
    assert status(system, integration) is Status.ACTIVE


async def test_a_holder_that_slept_takes_what_another_got_meanwhile(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = HOUR
    system.provider.gate = asyncio.Event()
    sleeper = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await until(lambda: system.provider.refreshes)
    system.clock.advance(LEASE)
    gate, system.provider.gate = system.provider.gate, None
    newest = await system.refresher.refresh(integration)
    gate.set()
    assert (await sleeper).tokens == newest.tokens == await system.tokens(integration.integration_id)


async def test_a_holder_that_slept_before_the_call_does_not_call(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_token_grace = HOUR
    sleeper = system.another_process().refresher

    async def sleep_after_claiming(seen: Integration, owner: str) -> Lease | None:
        restore(system.leases)
        lease = await system.leases.claim(seen, owner)
        system.clock.advance(LEASE)
        await system.refresher.refresh(seen)
        return lease

    intercept(system.leases, claim=sleep_after_claiming)
    await sleeper.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]


@pytest.mark.parametrize(
    ("slept", "meanwhile"),
    [(LEASE, ProviderUnavailable), (3 * LEASE, ReauthorizationRequired)],
    ids=["wait", "give up"],
)
async def test_a_holder_that_slept_before_the_call_costs_nobody_the_grant(
    system: FakeSystem,
    integration: Integration,
    slept: timedelta,
    meanwhile: type[Exception],
) -> None:
    sleeper = system.another_process().refresher

    async def sleep_after_claiming(seen: Integration, owner: str) -> Lease | None:
        restore(system.leases)
        lease = await system.leases.claim(seen, owner)
        system.clock.advance(slept)
        with pytest.raises(meanwhile):  # it may be spent, as far as anybody else knows
            await system.refresher.refresh(seen)
        return lease

    intercept(system.leases, claim=sleep_after_claiming)
    await sleeper.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]
    assert status(system, integration) is Status.ACTIVE


async def test_a_lease_is_released_only_by_its_owner(system: FakeSystem, integration: Integration) -> None:
    lapsed = await crash_after_the_call(system, integration)
    assert await system.leases.claim(integration, "another")
    await system.leases.release(lapsed, outcome_known=True)
    assert not await system.leases.is_free(integration)


# --- the database away ---------------------------------------------------------------------------------------------


def on_another_machine(system: FakeSystem) -> TokenRefresher:
    """A process that does not see the others' journal."""
    return system.another_process(journal=InMemoryRefreshJournal()).refresher


async def answer_while_away(system: FakeSystem, integration: Integration) -> str:
    """The access token of a refresh that was answered while the database was away."""
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(system.refresher.refresh(integration))
    await until(lambda: system.provider.in_flight)
    system.database.is_unavailable = True
    system.provider.gate.set()
    return (await waiting).tokens.access_token


async def test_a_token_response_that_cannot_be_stored_is_journaled_and_stored_later(
    system: FakeSystem, integration: Integration
) -> None:
    assert await answer_while_away(system, integration) == "renewed-access-1"
    with pytest.raises(StoreUnavailable):
        await system.refresher.recover()
    system.database.is_unavailable = False
    await system.another_process().refresher.recover()  # as after a restart
    tokens = await system.tokens(integration.integration_id)
    assert (tokens.access_token, tokens.refresh_token) == ("renewed-access-1", "renewed-refresh-1")
    assert not system.journal.refreshes
    assert await system.leases.is_free(system.row(integration.integration_id))


async def test_a_token_response_that_the_database_rejects_is_journaled(
    system: FakeSystem, integration: Integration
) -> None:
    async def refuse(*_: object) -> None:
        raise LookupError("no such table")

    intercept(system.integrations, commit_refresh=refuse)
    refreshed = await system.refresher.refresh(integration)
    assert refreshed.tokens.access_token == "renewed-access-1"
    with pytest.raises(ExceptionGroup):
        await system.refresher.recover()
    restore(system.integrations)
    await system.refresher.recover()
    assert (await system.tokens(integration.integration_id)).access_token == "renewed-access-1"


async def test_a_journal_entry_that_cannot_be_stored_blocks_no_other(system: FakeSystem) -> None:
    first, second = [await system.connect_account(name) for name in ("first", "second")]
    system.clock.advance(HOUR)
    for integration in (first, second):
        await answer_while_away(system, integration)
        system.database.is_unavailable = False
    commit = system.integrations.commit_refresh

    async def refuse_the_first(
        integration: Integration, credentials: NewCredentials, now: datetime
    ) -> Integration | None:
        if integration.integration_id == first.integration_id:
            raise LookupError
        return await commit(integration, credentials, now)

    intercept(system.integrations, commit_refresh=refuse_the_first)
    with pytest.raises(ExceptionGroup):
        await system.refresher.recover()
    assert [pending.integration.integration_id for pending in await system.journal.pending()] == [first.integration_id]


async def test_a_journal_entry_of_another_database_changes_nothing(
    system: FakeSystem, integration: Integration
) -> None:
    await answer_while_away(system, integration)
    (pending,) = await system.journal.pending()
    system.journal.refreshes = [replace(pending, integration=replace(pending.integration, uid="of another"))]
    system.database.is_unavailable = False
    with pytest.raises(ExceptionGroup):
        await system.refresher.recover()
    assert (await system.tokens(integration.integration_id)).access_token == "access-1"
    assert len(await system.journal.pending()) == 1


async def test_leases_that_come_back_while_others_are_released_are_not_forgotten(
    system: FakeSystem, integration: Integration
) -> None:
    other = await system.connect_account("other")
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()

    async def be_away(*_: object, **__: object) -> None:
        raise StoreUnavailable

    async def release_while_another_fails(lease: Lease, *, outcome_known: bool) -> None:
        intercept(system.leases, release=be_away)
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(other)
        restore(system.leases)
        await system.leases.release(lease, outcome_known=outcome_known)

    intercept(system.leases, release=be_away)
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    intercept(system.leases, release=release_while_another_fails)
    await system.refresher.recover()
    for one in (integration, other):
        assert await system.leases.is_free(system.row(one.integration_id))


async def test_without_the_journal_the_token_response_is_lost(system: FakeSystem, integration: Integration) -> None:
    await answer_while_away(system, integration)
    system.database.is_unavailable = False
    system.journal.refreshes.clear()
    await system.refresher.recover()
    system.clock.advance(3 * LEASE)
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration)


async def test_nobody_reuses_the_refresh_token_before_the_journal_is_replayed(
    system: FakeSystem, integration: Integration
) -> None:
    await answer_while_away(system, integration)
    system.database.is_unavailable = False
    system.clock.advance(LEASE)
    with pytest.raises(ProviderUnavailable):
        await system.another_process().refresher.refresh(integration)
    await system.refresher.recover()
    assert (await system.refresher.refresh(integration)).tokens.access_token == "renewed-access-1"
    assert system.provider.refreshes == ["refresh-1"]


async def test_a_call_that_aged_in_an_outage_is_not_lost_before_the_journal_is_replayed(
    system: FakeSystem, integration: Integration
) -> None:
    other = on_another_machine(system)
    await answer_while_away(system, integration)
    system.clock.advance(3 * LEASE)
    with pytest.raises(StoreUnavailable):
        await other.recover()
    system.database.is_unavailable = False
    with pytest.raises(ProviderUnavailable):
        await other.refresh(integration)
    assert status(system, integration) is Status.ACTIVE
    await system.refresher.recover()
    assert (await other.refresh(integration)).tokens.access_token == "renewed-access-1"


async def test_without_knowing_of_the_outage_it_would_be_taken_for_lost(
    system: FakeSystem, integration: Integration
) -> None:
    unaware = on_another_machine(system)
    await answer_while_away(system, integration)
    system.clock.advance(3 * LEASE)
    system.database.is_unavailable = False
    with pytest.raises(ReauthorizationRequired):
        await unaware.refresh(integration)


async def test_a_refresh_in_the_local_journal_is_never_given_up(system: FakeSystem, integration: Integration) -> None:
    unaware = system.another_process().refresher
    await answer_while_away(system, integration)
    system.clock.advance(3 * LEASE)
    system.database.is_unavailable = False
    with pytest.raises(ProviderUnavailable):
        await unaware.refresh(integration)
    assert status(system, integration) is Status.ACTIVE


@pytest.mark.parametrize("end", [StoreUnavailable, asyncio.CancelledError])
async def test_a_lease_with_an_unknown_commit_is_not_a_call(
    system: FakeSystem, integration: Integration, end: type[BaseException]
) -> None:

    async def claim_and_go(seen: Integration, owner: str) -> Lease | None:
        restore(system.leases)
        await system.leases.claim(seen, owner)
        raise end

    intercept(system.leases, claim=claim_and_go)
    with pytest.raises(end):
        await system.refresher.refresh(integration)
    await system.refresher.recover()
    await system.another_process().refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]


async def test_an_earlier_call_outlives_a_lease_with_an_unknown_commit(
    system: FakeSystem, integration: Integration
) -> None:
    await crash_after_the_call(system, integration)

    async def claim_and_go(seen: Integration, owner: str) -> Lease | None:
        restore(system.leases)
        await system.leases.claim(seen, owner)
        raise StoreUnavailable

    intercept(system.leases, claim=claim_and_go)
    with pytest.raises(StoreUnavailable):
        await system.refresher.refresh(integration)
    await system.refresher.recover()
    system.clock.advance(LEASE)
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert not system.provider.refreshes


async def test_a_superseded_journal_entry_is_removed(system: FakeSystem, integration: Integration) -> None:
    await answer_while_away(system, integration)
    system.database.is_unavailable = False
    system.provider.gate = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    await system.refresher.recover()
    assert (await system.tokens(integration.integration_id)).access_token == "access-2"
    assert not system.journal.refreshes


async def test_a_failure_during_a_database_outage_is_not_a_lost_token_response(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    with pytest.raises(StoreUnavailable):
        await answer_while_away(system, integration)
    system.database.is_unavailable = False
    system.provider.refresh_error = None
    await system.refresher.recover()
    assert (await system.refresher.refresh(integration)).tokens.access_token == "renewed-access-2"


# --- failures ------------------------------------------------------------------------------------------------------


async def test_an_invalid_grant_is_checked_against_a_concurrent_refresh(
    system: FakeSystem, integration: Integration
) -> None:
    allow_shared_leases(system.leases)
    system.provider.gate = asyncio.Event()
    system.provider.refresh_error = INVALID_GRANT
    loser = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await until(lambda: system.provider.refreshes)
    gate, system.provider.gate = system.provider.gate, None
    system.provider.refresh_error = None
    winner = await system.refresher.refresh(integration)
    gate.set()
    assert (await loser).tokens == winner.tokens
    assert status(system, integration) is Status.ACTIVE


async def test_pauses_grow_with_failed_refreshes_only(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    for _ in range(30):
        await system.integrations.record_call(integration, Failure("X", system.clock(), "of a call"))
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert system.row(integration.integration_id).refresh_retry_time is None
    for _ in range(5):
        await system.integrations.record_call(integration, None)  # calls go well, with a token that lasts a little
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(integration, force=True)
    retry_time = system.row(integration.integration_id).refresh_retry_time
    assert retry_time is not None
    assert retry_time - system.clock() > timedelta(seconds=20)


async def test_a_client_that_is_refused_is_an_alarm_each_time(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderMisconfigured(oauth_error="invalid_client")
    with structlog.testing.capture_logs() as logs, pytest.raises(ProviderMisconfigured):
        await system.another_process().refresher.refresh(integration)
    alarm = {"event": "invalid_client", "log_level": "error", "integration_type": "fake"}
    assert alarm in logs
    assert status(system, integration) is Status.ACTIVE


async def test_a_provider_that_fails_gets_longer_pauses(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    pauses = []
    for _ in range(12):
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(integration)
        retry_time = system.row(integration.integration_id).refresh_retry_time
        pauses.append(timedelta(0) if retry_time is None else retry_time - system.clock())
        system.clock.advance(pauses[-1])
    assert pauses == sorted(pauses)
    assert pauses[0] == timedelta(0)
    assert timedelta(minutes=2) < pauses[-1] <= timedelta(minutes=5)
    assert len(system.provider.refreshes) == 12


async def test_during_a_pause_the_provider_is_not_asked(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(minutes=7))
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    system.clock.advance(timedelta(minutes=6))
    with pytest.raises(ProviderUnavailable) as refused:
        await system.refresher.refresh(integration)
    assert refused.value.retry_after == timedelta(minutes=1)
    assert len(system.provider.refreshes) == 1
    system.provider.refresh_error = None
    await system.refresher.refresh(integration, force=True)
    assert system.row(integration.integration_id).refresh_retry_time is None


async def test_refusals_without_a_code_are_believed_in_the_end(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable(is_refusal=True)
    for _ in range(7):
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(integration, force=True)
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration, force=True)


@pytest.mark.parametrize("code", ["invalid_token", "access_denied", "bad_refresh_token", "unsupported_grant_type"])
async def test_refusals_with_other_codes_are_believed_in_the_end(
    system: FakeSystem, integration: Integration, code: str
) -> None:
    system.provider.refresh_error = ProviderRejected("grant", oauth_error=code)
    for _ in range(2 * 60):
        with pytest.raises((ProviderRejected, ProviderUnavailable, ReauthorizationRequired)):
            await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
        system.clock.advance(timedelta(minutes=1))
    assert len(system.provider.refreshes) == 8
    assert status(system, integration) is Status.EXPIRED


async def test_an_api_that_refuses_tokens_for_a_moment_ends_no_grant(system: FakeSystem) -> None:
    integration = await system.connect()
    system.provider.refresh_error = ProviderUnavailable(is_refusal=True)
    system.provider.responses = [ApiResponse(401, (), b"{}") for _ in range(50)]
    for _ in range(50):
        with pytest.raises(ProviderUnavailable):
            await system.api_proxy.call_provider(integration.integration_id, ADA, ApiRequest("GET", "/things"))
        system.clock.advance(timedelta(milliseconds=100))
    assert len(system.provider.refreshes) == 4  # at once, at once, and after 1.5 s and 3 s
    system.clock.advance(timedelta(minutes=1))
    system.provider.refresh_error = None
    refreshed = await system.refresher.refresh(system.row(integration.integration_id))
    assert refreshed.integration.status(system.clock()) is Status.ACTIVE


async def test_outages_are_never_taken_for_refusals(system: FakeSystem, integration: Integration) -> None:
    for is_refusal in (False, True, False) * 10:
        system.provider.refresh_error = ProviderUnavailable(is_refusal=is_refusal)
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(integration, force=True)


async def test_many_invalid_grants_at_once_raise_an_alarm(system: FakeSystem) -> None:
    integrations = [await system.connect_account(f"account-{number}") for number in range(40)]
    system.clock.advance(HOUR)
    system.provider.refresh_error = INVALID_GRANT
    outcomes = await asyncio.gather(
        *(system.refresher.refresh(integration) for integration in integrations), return_exceptions=True
    )
    assert sum(isinstance(outcome, ProviderMisconfigured) for outcome in outcomes) == 21
    for one in integrations:  # also the first nineteen, whose deaths were believed
        row = system.row(one.integration_id)
        assert not row.reauthorization_required
        assert row.last_error is None
        assert row.refresh_retry_time is not None
        assert row.refresh_due_time == row.refresh_retry_time
    changes = [Status(event.status_after) for event in system.event_rows() if event.kind == EventKind.STATUS_CHANGED]
    assert Counter(changes[-38:]) == {Status.EXPIRED: 19, Status.ACTIVE: 19}


async def test_reverts_that_failed_are_retried_with_the_next_invalid_grant(system: FakeSystem) -> None:
    async def unavailable(integration: Integration, retry_time: datetime | None) -> None:
        raise StoreUnavailable

    integrations = [await system.connect_account(f"account-{number}") for number in range(22)]
    system.clock.advance(HOUR)
    system.provider.refresh_error = INVALID_GRANT
    for integration in integrations[:19]:
        with pytest.raises(ReauthorizationRequired):
            await system.refresher.refresh(integration)
    intercept(system.integrations, revert_failure=unavailable)
    with pytest.raises(StoreUnavailable):
        await system.refresher.refresh(integrations[19])
    restore(system.integrations)
    assert sum(system.row(one.integration_id).reauthorization_required for one in integrations) == 19
    with pytest.raises(ProviderMisconfigured):
        await system.refresher.refresh(integrations[20])
    assert sum(system.row(one.integration_id).reauthorization_required for one in integrations) == 0


async def test_invalid_grants_older_than_a_minute_are_not_reverted(system: FakeSystem) -> None:
    integrations = [await system.connect_account(f"account-{number}") for number in range(30)]
    system.clock.advance(HOUR)
    system.provider.refresh_error = INVALID_GRANT
    for number, integration in enumerate(integrations):
        with pytest.raises((ReauthorizationRequired, ProviderMisconfigured)):
            await system.refresher.refresh(integration)
        if number == 5:
            system.clock.advance(timedelta(minutes=1))
    expired = [number for number, one in enumerate(integrations) if status(system, one) is Status.EXPIRED]
    assert expired == [0, 1, 2, 3, 4, 5]


async def test_no_invalid_grant_counts_until_a_refresh_succeeds(system: FakeSystem) -> None:
    integrations = [await system.connect_account(f"account-{number}") for number in range(40)]
    system.clock.advance(HOUR)
    system.provider.refresh_error = INVALID_GRANT

    async def ask_all() -> int:
        for integration in integrations:
            with pytest.raises((ReauthorizationRequired, ProviderMisconfigured, ProviderUnavailable)):
                await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
        return sum(status(system, integration) is Status.EXPIRED for integration in integrations)

    for _ in range(60):
        assert await ask_all() == 0
        system.clock.advance(timedelta(minutes=1))

    system.clock.advance(timedelta(minutes=2))
    system.provider.refresh_error = None
    await system.refresher.refresh(system.row(integrations[-1].integration_id))
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(system.row(integrations[-2].integration_id))


async def test_one_invalid_grant_among_many_counts(system: FakeSystem, integration: Integration) -> None:
    others = [await system.connect_account(f"other-{number}") for number in range(40)]
    system.clock.advance(HOUR)
    await asyncio.gather(*(system.refresher.refresh(other) for other in others))
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
