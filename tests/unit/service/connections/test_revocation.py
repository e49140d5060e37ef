"""Disconnecting, and what the outbox sees to. A `FakeSystem.another_revoker()` is a process."""

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    AccountMismatch,
    IntegrationNotFound,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration
from integration_server.domain.revocation import RevocationState
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.credentials.refresher import RefreshResult
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.tables import revocations
from tests.fakes.provider import HOUR, until
from tests.fakes.stores import intercept, restore, with_non_exclusive_claims
from tests.fakes.system import ADA, EVE, GIVE_UP_AFTER, LEASE, FakeSystem

REVOKED, PENDING = RevocationState.REVOKED, RevocationState.PENDING
SHARED = RevocationState.GRANT_SHARED


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect()


async def disconnect(system: FakeSystem, integration: Integration) -> RevocationState:
    return await system.revocation_service.disconnect_integration(integration.integration_id, integration.user_id)


async def rest() -> None:
    """Let the others go on until they all wait for something."""
    for _ in range(100):
        await asyncio.sleep(0)


async def background_round(system: FakeSystem) -> None:
    """What a server does by itself every second."""
    await system.worker.poll()
    await rest()


async def background_until_quiet(system: FakeSystem) -> list[timedelta]:
    """Rounds whenever something falls due, until nothing is left; the pauses between them."""
    pauses = []
    while system.revocation_rows():
        pauses.append(min(row.due_time for row in system.revocation_rows()) - system.clock())
        system.clock.advance(pauses[-1])
        await background_round(system)
    return pauses


async def down_at_disconnect(system: FakeSystem, integration: Integration, error: Exception | None = None) -> None:
    """Disconnected while its provider was down; what comes next is up to the background."""
    system.provider.revoke_error = error or ProviderUnavailable()
    assert await disconnect(system, integration) is PENDING
    system.provider.revocations.clear()


# --- within the call -----------------------------------------------------------------------------------------------


async def test_disconnecting_removes_and_revokes(system: FakeSystem, integration: Integration) -> None:
    tokens = await system.tokens(integration.integration_id)
    assert await disconnect(system, integration) is REVOKED
    assert not system.ids()
    assert not system.revocation_rows()
    assert system.provider.revocations == [tokens]
    with pytest.raises(IntegrationNotFound):
        await disconnect(system, integration)


@pytest.mark.parametrize("error", [ProviderUnavailable(), ProviderRejected("revocation"), ProviderMisconfigured()])
async def test_it_is_gone_here_whatever_the_provider_answers(
    system: FakeSystem, integration: Integration, error: Exception
) -> None:
    system.provider.revoke_error = error
    assert await disconnect(system, integration) is PENDING
    assert not system.ids()
    assert len(system.revocation_rows()) == 1


async def test_it_is_gone_here_before_the_provider_is_asked(system: FakeSystem, integration: Integration) -> None:
    system.provider.gate = asyncio.Event()
    disconnecting = asyncio.create_task(disconnect(system, integration))
    await until(lambda: system.provider.revocations)
    assert not system.ids()
    system.provider.gate.set()
    assert await disconnecting is REVOKED


async def test_a_provider_that_hangs_does_not_keep_the_caller_waiting() -> None:
    system = FakeSystem(options={"revocation_wait": timedelta(0)})
    async with system.tasks:
        integration = await system.connect()
        system.provider.gate = asyncio.Event()
        assert await disconnect(system, integration) is PENDING
        await until(lambda: system.provider.revocations)
        system.provider.gate.set()
        await until(lambda: not system.revocation_rows())
    assert len(system.provider.revocations) == 1


async def test_no_more_than_a_few_of_a_provider_are_asked_for_at_once(system: FakeSystem) -> None:
    rows = [await system.connect_account(f"account-{number}") for number in range(20)]
    system.provider.gate, system.provider.max_in_flight = asyncio.Event(), 0
    disconnecting = [asyncio.create_task(disconnect(system, row)) for row in rows]
    await until(lambda: system.provider.in_flight == 8)
    await rest()
    system.provider.gate.set()
    assert set(await asyncio.gather(*disconnecting)) == {REVOKED}
    assert system.provider.max_in_flight == 8


async def test_a_revocation_without_a_free_slot_is_left_to_the_background() -> None:
    system = FakeSystem(options={"revocation_wait": timedelta(0)})
    async with system.tasks:
        rows = [await system.connect_account(f"account-{number}") for number in range(9)]
        system.provider.gate = asyncio.Event()
        assert {await disconnect(system, row) for row in rows} == {PENDING}
        await until(lambda: any(row.due_time <= system.clock() for row in system.revocation_rows()))
        assert len(system.provider.revocations) == 8
        system.provider.gate.set()
        await rest()
        await background_round(system)
    assert len(system.provider.revocations) == 9
    assert not system.revocation_rows()


async def test_a_provider_without_revocation_is_not_supported(system: FakeSystem, integration: Integration) -> None:
    system.provider.can_revoke = False
    assert await disconnect(system, integration) is RevocationState.NOT_SUPPORTED
    assert not system.revocation_rows()


async def test_a_pending_integration_goes_without_a_call(system: FakeSystem) -> None:
    begun = await system.begin()
    state = await system.revocation_service.disconnect_integration(begun.integration_id, ADA)
    assert state is RevocationState.NOTHING_TO_REVOKE
    assert not system.ids()
    assert not system.provider.revocations


async def test_a_key_is_revoked_as_it_is(system: FakeSystem) -> None:
    system.key_provider.account = NewAccount(None, None)
    assert await disconnect(system, await system.connect_key(api_key="key-1")) is REVOKED
    assert len(system.key_provider.revocations) == 1


async def test_a_grant_is_revoked_though_the_caller_is_gone(system: FakeSystem, integration: Integration) -> None:
    caller = asyncio.create_task(disconnect(system, integration))
    await until(lambda: not system.ids())
    caller.cancel()
    await until(lambda: system.provider.revocations)


# --- in the background ---------------------------------------------------------------------------------------------


async def test_what_failed_is_tried_again_until_the_provider_is_back(
    system: FakeSystem, integration: Integration
) -> None:
    tokens = await system.tokens(integration.integration_id)
    await down_at_disconnect(system, integration)
    system.clock.advance(timedelta(seconds=2))
    await background_round(system)
    system.provider.revoke_error = None
    await background_until_quiet(system)
    assert system.provider.revocations == [tokens, tokens]


async def test_without_the_outbox_the_grant_stays_valid(system: FakeSystem, integration: Integration) -> None:
    await down_at_disconnect(system, integration)
    system.clear(revocations)
    system.provider.revoke_error = None
    system.clock.advance(GIVE_UP_AFTER)
    await background_round(system)
    assert not system.provider.revocations


async def test_a_grant_claimed_by_a_crashed_process_is_revoked_by_another(
    system: FakeSystem, integration: Integration
) -> None:
    assert await system.integrations.remove(integration.integration_id, ADA, claim_duration=LEASE)
    await background_round(system)
    assert not system.provider.revocations  # the process may still be at it
    system.clock.advance(LEASE)
    await background_round(system)
    assert len(system.provider.revocations) == 1
    assert not system.revocation_rows()


async def test_a_database_that_goes_away_after_the_removal_does_not_undo_it(
    system: FakeSystem, integration: Integration
) -> None:
    disconnecting = asyncio.create_task(disconnect(system, integration))
    await until(lambda: not system.ids())
    system.database.is_unavailable = True
    assert await disconnecting is PENDING
    system.database.is_unavailable = False
    system.clock.advance(LEASE)
    await background_round(system)
    assert len(system.provider.revocations) == 1


async def test_a_revocation_that_cannot_be_noted_is_repeated(system: FakeSystem, integration: Integration) -> None:
    system.provider.gate = asyncio.Event()
    disconnecting = asyncio.create_task(disconnect(system, integration))
    await until(lambda: system.provider.revocations)
    system.database.is_unavailable = True
    system.provider.gate.set()
    assert await disconnecting is REVOKED
    system.database.is_unavailable = False
    await background_until_quiet(system)
    assert len(system.provider.revocations) == 2


@pytest.mark.parametrize(("exclusive", "calls"), [(True, 1), (False, 2)])
async def test_two_processes_make_one_call_an_attempt(exclusive: bool, calls: int) -> None:
    system = FakeSystem() if exclusive else FakeSystem(wrap_stores=with_non_exclusive_claims)
    async with system.tasks:
        await down_at_disconnect(system, await system.connect())
        system.provider.revoke_error = None
        system.provider.gate = asyncio.Event()
        system.clock.advance(timedelta(seconds=2))
        await system.worker.poll()
        await system.another_process().worker.poll()
        await rest()
        system.provider.gate.set()
    assert len(system.provider.revocations) == calls


async def test_the_pauses_grow_to_an_hour_and_end_when_the_time_is_up(
    system: FakeSystem, integration: Integration
) -> None:
    begun = system.clock()
    await down_at_disconnect(system, integration)
    pauses = await background_until_quiet(system)
    assert pauses[0] == 0.75 * timedelta(seconds=2)
    assert pauses[:-1] == sorted(pauses[:-1])
    assert pauses[-2] == 0.75 * HOUR
    assert system.clock() == begun + GIVE_UP_AFTER
    assert len(system.provider.revocations) == len(pauses)


async def test_a_provider_that_says_wait_is_left_alone_for_that_time(
    system: FakeSystem, integration: Integration
) -> None:
    await down_at_disconnect(system, integration, ProviderUnavailable(retry_after=timedelta(minutes=7)))
    system.clock.advance(timedelta(minutes=7) - timedelta(seconds=1))
    await background_round(system)
    assert not system.provider.revocations
    system.clock.advance(timedelta(seconds=1))
    await background_round(system)
    assert len(system.provider.revocations) == 1


async def test_giving_up_is_logged_as_an_error(system: FakeSystem, integration: Integration) -> None:
    with capture_logs() as logs:
        await down_at_disconnect(system, integration, ProviderRejected("revocation", oauth_error="invalid_request"))
        await background_until_quiet(system)
    (entry,) = (line for line in logs if line["log_level"] == "error")
    assert entry["event"] == "revocation_given_up"
    assert (entry["integration_type"], entry["user_id"], entry["uid"]) == ("fake", ADA, integration.uid)
    assert (entry["error_class"], entry["oauth_error"]) == ("PROVIDER_REJECTED", "invalid_request")


async def test_a_type_that_is_back_in_time_is_revoked(system: FakeSystem, integration: Integration) -> None:
    del system.providers.by_type["fake"]
    assert await disconnect(system, integration) is PENDING
    system.providers.by_type["fake"] = system.provider
    await background_until_quiet(system)
    assert len(system.provider.revocations) == 1


async def test_undecryptable_credentials_are_given_up_in_the_end(system: FakeSystem, integration: Integration) -> None:
    system.corrupt(integration.integration_id)
    with capture_logs() as logs:
        assert await disconnect(system, integration) is PENDING
        assert not system.ids()
        await background_until_quiet(system)
    assert [line["error_class"] for line in logs if line["log_level"] == "error"] == ["CREDENTIALS_UNREADABLE"]
    assert not system.provider.revocations


async def test_a_mistake_in_a_provider_is_retried_and_spares_the_others(
    system: FakeSystem, integration: Integration
) -> None:
    other = system.add_provider("other")
    theirs = await system.connect(EVE, "other")
    await down_at_disconnect(system, integration, RuntimeError("a bug"))
    other.revoke_error = ProviderUnavailable()
    await disconnect(system, theirs)
    other.revoke_error = None
    system.clock.advance(timedelta(seconds=2))
    await background_round(system)
    assert len(other.revocations) == 2
    assert [row.uid for row in system.revocation_rows()] == [integration.uid]


async def test_a_provider_that_hangs_holds_up_only_its_own(system: FakeSystem) -> None:
    other = system.add_provider("other")
    rows = [await system.connect_account(f"account-{number}") for number in range(20)]
    theirs = await system.connect(EVE, "other")
    for row in (*rows, theirs):
        assert await system.integrations.remove(row.integration_id, row.user_id)
    system.provider.gate = asyncio.Event()
    for _ in range(3):
        await background_round(system)
    assert len(system.provider.revocations) == 8
    assert len(other.revocations) == 1
    system.provider.gate.set()
    await rest()
    await background_until_quiet(system)
    assert len(system.provider.revocations) == 20


# --- shared grants -------------------------------------------------------------------------------------------------


async def test_a_shared_grant_is_revoked_with_the_last_of_those_who_share_it(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake", "sister")
    sister = system.add_provider("sister", shares_grants_with=("fake", "sister"))
    mine = await system.connect(ADA)
    hers = await system.connect(EVE)
    related = await system.connect(EVE, "sister")

    assert await disconnect(system, mine) is SHARED
    assert await disconnect(system, hers) is SHARED
    assert not system.provider.revocations
    assert not system.revocation_rows()
    assert await disconnect(system, related) is REVOKED
    assert len(sister.revocations) == 1


async def test_a_grant_that_is_not_shared_is_revoked_at_once(system: FakeSystem) -> None:
    mine, hers = await system.connect(ADA), await system.connect(EVE)
    assert await disconnect(system, mine) is REVOKED
    assert system.ids() == [hers.integration_id]


async def test_of_two_last_ones_at_once_the_grant_is_revoked(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake",)
    mine, hers = await system.connect(ADA), await system.connect(EVE)
    assert REVOKED in await asyncio.gather(disconnect(system, mine), disconnect(system, hers))


async def test_another_account_does_not_share_the_grant(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake",)
    one = await system.connect_account("one")
    await system.connect_account("two")
    assert await disconnect(system, one) is REVOKED


@pytest.mark.parametrize(("shares", "calls"), [(("fake",), 0), ((), 1)])
async def test_an_account_that_was_connected_again_meanwhile_is_spared(
    system: FakeSystem, integration: Integration, shares: tuple[str, ...], calls: int
) -> None:
    system.provider.shares_grants_with = shares
    await down_at_disconnect(system, integration)
    await system.connect()
    system.provider.revoke_error = None
    await background_until_quiet(system)
    assert len(system.provider.revocations) == calls


# --- disconnected while being refreshed ----------------------------------------------------------------------------


@dataclass
class Refresh:
    """One that has called its provider, in another process, and waits for the answer."""

    gate: asyncio.Event
    task: "asyncio.Task[RefreshResult]"

    async def comes_back(self) -> None:
        self.gate.set()
        with pytest.raises(IntegrationNotFound):
            await self.task


async def refresh_meanwhile(system: FakeSystem, integration: Integration) -> Refresh:
    gate = system.provider.gate = asyncio.Event()
    task = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await until(lambda: system.provider.refreshes)
    system.provider.gate = None
    return Refresh(gate, task)


def revoked_refresh_tokens(system: FakeSystem) -> list[str | None]:
    return [tokens.refresh_token for tokens in system.provider.revocations if isinstance(tokens, OAuthTokens)]


async def test_a_token_response_for_a_removed_integration_is_revoked(
    system: FakeSystem, integration: Integration
) -> None:
    refresh = await refresh_meanwhile(system, integration)
    assert await disconnect(system, integration) is PENDING  # the old token is dead, of the new one nobody knows
    await refresh.comes_back()
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1", "renewed-refresh-1"]
    assert not system.revocation_rows()
    assert not system.ids()


async def test_a_refresh_that_was_lost_makes_a_revocation_doubtful(
    system: FakeSystem, integration: Integration
) -> None:
    lease = await system.leases.claim(integration, "dead process")
    assert lease is not None
    system.clock.advance(LEASE)
    assert await disconnect(system, integration) is PENDING


async def test_nobody_begins_to_refresh_after_the_removal(system: FakeSystem, integration: Integration) -> None:
    assert await disconnect(system, integration) is REVOKED
    assert await system.leases.claim(integration, "another process") is None


async def test_a_refresh_that_is_over_leaves_no_doubt(system: FakeSystem, integration: Integration) -> None:
    await system.refresher.refresh(integration)
    assert await disconnect(system, integration) is REVOKED
    assert revoked_refresh_tokens(system) == ["renewed-refresh-1"]


async def test_a_journaled_token_response_is_revoked_if_its_integration_is_removed(
    system: FakeSystem, integration: Integration
) -> None:
    refresh = await refresh_meanwhile(system, integration)
    system.database.is_unavailable = True
    refresh.gate.set()
    await refresh.task
    system.database.is_unavailable = False
    assert await disconnect(system, integration) is PENDING
    await system.another_process().refresher.recover()
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1", "renewed-refresh-1"]
    assert not system.journal.refreshes


async def test_a_token_response_that_cannot_go_into_the_outbox_is_journaled(
    system: FakeSystem, integration: Integration
) -> None:
    refresh = await refresh_meanwhile(system, integration)
    await disconnect(system, integration)

    async def fail(grant: OrphanedGrant) -> None:
        raise StoreUnavailable

    intercept(system.revocations, add=fail)
    refresh.gate.set()
    await refresh.task
    restore(system.revocations)
    await system.refresher.recover()
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1", "renewed-refresh-1"]


async def test_a_late_journal_entry_of_an_older_format_is_logged(system: FakeSystem, integration: Integration) -> None:
    refresh = await refresh_meanwhile(system, integration)
    system.database.is_unavailable = True
    refresh.gate.set()
    await refresh.task
    system.database.is_unavailable = False
    (journaled,) = system.journal.refreshes
    system.journal.refreshes[:] = [replace(journaled, uid=None, integration_type=None)]
    await disconnect(system, integration)
    with capture_logs() as logs:
        await system.refresher.recover()
    assert {"log_level": "error", "event": "grant_not_revoked"}.items() <= logs[0].items()
    assert not system.journal.refreshes


# --- tokens that cannot be kept ------------------------------------------------------------------------------------


async def answered_for_another_account(system: FakeSystem, integration: Integration) -> None:
    begun = await system.begin(integration_id=integration.integration_id)
    system.provider.account = NewAccount("account-2", None)
    with pytest.raises(AccountMismatch):
        await system.call_back(begun.state)


async def test_tokens_of_another_account_are_revoked(system: FakeSystem, integration: Integration) -> None:
    await answered_for_another_account(system, integration)
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-2"]
    assert (await system.tokens(integration.integration_id)).refresh_token == "refresh-1"


async def test_they_are_not_where_that_would_end_what_the_other_account_has(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.shares_grants_with = ("fake",)
    await system.connect_account("account-2", EVE)
    await answered_for_another_account(system, integration)
    await background_round(system)
    assert not system.provider.revocations
    assert not system.revocation_rows()


async def test_they_are_though_the_integrations_own_account_stays(system: FakeSystem, integration: Integration) -> None:
    system.provider.shares_grants_with = ("fake",)
    await answered_for_another_account(system, integration)
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-2"]


@pytest.mark.parametrize(("shares", "calls"), [(("fake",), 0), ((), 1)])
async def test_tokens_of_an_unknown_account_may_be_of_one_that_is_in_use(
    system: FakeSystem, shares: tuple[str, ...], calls: int
) -> None:
    system.provider.shares_grants_with = shares
    await system.connect(EVE)
    begun = await system.begin(ADA)
    system.provider.verify_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.call_back(begun.state)
    await background_round(system)
    assert len(system.provider.revocations) == calls


async def test_tokens_for_an_integration_that_was_disconnected_meanwhile_are_revoked(system: FakeSystem) -> None:
    begun = await system.begin()
    gate = system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(system.call_back(begun.state))
    await until(lambda: system.provider.exchanges)
    system.provider.gate = None
    state = await system.revocation_service.disconnect_integration(begun.integration_id, ADA)
    assert state is RevocationState.NOTHING_TO_REVOKE
    gate.set()
    with pytest.raises(IntegrationNotFound):
        await waiting
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1"]


async def test_a_code_that_is_refused_leaves_nothing_to_revoke(system: FakeSystem) -> None:
    begun = await system.begin()
    system.provider.exchange_error = ProviderRejected("code")
    with pytest.raises(ProviderRejected):
        await system.call_back(begun.state)
    assert not system.revocation_rows()


async def test_tokens_that_may_have_been_kept_are_not_revoked(system: FakeSystem) -> None:
    begun = await system.begin()
    commit = system.integrations.commit_connection

    async def commit_and_lose_the_answer(*arguments: Any, **given: Any) -> None:
        await commit(*arguments, **given)
        raise StoreUnavailable

    intercept(system.integrations, commit_connection=commit_and_lose_the_answer)
    with pytest.raises(StoreUnavailable):
        await system.call_back(begun.state)
    assert system.row(begun.integration_id).is_connected
    assert not system.revocation_rows()


async def test_tokens_that_cannot_go_into_the_outbox_are_logged(system: FakeSystem, integration: Integration) -> None:
    begun = await system.begin(integration_id=integration.integration_id)
    gate = system.provider.gate = asyncio.Event()
    system.provider.verify_error = ProviderUnavailable()
    with capture_logs() as logs:
        waiting = asyncio.create_task(system.call_back(begun.state))
        await until(lambda: len(system.provider.exchanges) == 2)
        system.database.is_unavailable = True
        gate.set()
        with pytest.raises(StoreUnavailable):  # of the attempt, which cannot be given up either
            await waiting
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["grant_not_revoked"]
