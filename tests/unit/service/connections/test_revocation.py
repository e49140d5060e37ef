"""Tests of disconnection and of the revocation outbox. `FakeSystem.another_process()` is another process."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete
from structlog.testing import capture_logs

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    AccountMismatch,
    IntegrationNotFound,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration
from integration_server.domain.revocation import RevocationState
from integration_server.service.connections.revocation_ports import OrphanedGrant
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.tables import due_work_claims, revocations
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.stores import intercept, restore, with_non_exclusive_claims
from tests.fakes.system import ADA, EVE, GIVE_UP_AFTER, LEASE, FakeSystem

REVOKED, PENDING = RevocationState.REVOKED, RevocationState.PENDING
SHARED = RevocationState.GRANT_SHARED


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect()


async def disconnect(system: FakeSystem, integration: Integration) -> RevocationState:
    return await system.revocation_service.disconnect_integration(integration.integration_id, integration.user_id)


async def run_other_tasks() -> None:
    """Yield to other tasks until all of them wait."""
    for _ in range(100):
        await asyncio.sleep(0)


async def background_round(system: FakeSystem) -> None:
    """Poll once and let the jobs run until they wait."""
    await system.worker.poll()
    await run_other_tasks()


async def background_until_quiet(system: FakeSystem) -> list[timedelta]:
    """Poll whenever a revocation is due, until the outbox is empty. Returns the pauses in between."""
    pauses = []
    while system.revocation_rows():
        pauses.append(min(row.due_time for row in system.revocation_rows()) - system.clock())
        system.clock.advance(pauses[-1])
        await background_round(system)
    return pauses


async def disconnect_during_outage(
    system: FakeSystem, integration: Integration, error: Exception | None = None
) -> None:
    """Disconnect the integration while its provider fails, so that the revocation is in the outbox."""
    system.provider.revoke_error = error or ProviderUnavailable()
    assert await disconnect(system, integration) is PENDING
    system.provider.revocations.clear()


# --- first attempt ---------------------------------------------------------------------------------------------------


async def test_disconnecting_removes_the_integration_and_revokes_the_grant(
    system: FakeSystem, integration: Integration
) -> None:
    tokens = await system.tokens(integration.integration_id)
    assert await disconnect(system, integration) is REVOKED
    assert not system.ids()
    assert not system.revocation_rows()
    assert system.provider.revocations == [tokens]
    with pytest.raises(IntegrationNotFound):
        await disconnect(system, integration)


@pytest.mark.parametrize("error", [ProviderUnavailable(), ProviderRejected("revocation"), ProviderMisconfigured()])
async def test_the_integration_is_deleted_even_if_revocation_fails(
    system: FakeSystem, integration: Integration, error: Exception
) -> None:
    system.provider.revoke_error = error
    assert await disconnect(system, integration) is PENDING
    assert not system.ids()
    assert len(system.revocation_rows()) == 1


async def test_the_integration_is_deleted_before_the_provider_is_called(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.gate = asyncio.Event()
    disconnection = asyncio.create_task(disconnect(system, integration))
    await wait_until(lambda: system.provider.revocations)
    assert not system.ids()
    system.provider.gate.set()
    assert await disconnection is REVOKED


async def test_the_caller_does_not_wait_for_a_slow_provider() -> None:
    system = FakeSystem(options={"revocation_wait": timedelta(0)})
    async with system.tasks:
        integration = await system.connect()
        system.provider.gate = asyncio.Event()
        assert await disconnect(system, integration) is PENDING
        await wait_until(lambda: system.provider.revocations)
        system.provider.gate.set()
        await wait_until(lambda: not system.revocation_rows())
    assert len(system.provider.revocations) == 1


async def test_first_attempts_per_provider_are_limited() -> None:
    system = FakeSystem(options={"revocation_wait": timedelta(minutes=1)})  # in real time
    async with system.tasks:
        rows = [await system.connect_account(f"account-{number}") for number in range(20)]
        system.provider.gate, system.provider.max_in_flight = asyncio.Event(), 0
        disconnection = [asyncio.create_task(disconnect(system, row)) for row in rows]
        await wait_until(lambda: system.provider.in_flight == 8)
        await run_other_tasks()
        system.provider.gate.set()
        assert set(await asyncio.gather(*disconnection)) == {REVOKED}
    assert system.provider.max_in_flight == 8


async def test_a_revocation_without_a_free_slot_is_left_to_the_background() -> None:
    system = FakeSystem(options={"revocation_wait": timedelta(0)})
    async with system.tasks:
        rows = [await system.connect_account(f"account-{number}") for number in range(9)]
        system.provider.gate = asyncio.Event()
        assert {await disconnect(system, row) for row in rows} == {PENDING}
        await wait_until(lambda: any(row.due_time <= system.clock() for row in system.revocation_rows()))
        assert len(system.provider.revocations) == 8
        system.provider.gate.set()
        await run_other_tasks()
        await background_round(system)
    assert len(system.provider.revocations) == 9
    assert not system.revocation_rows()


async def test_a_provider_without_revocation_is_not_supported(system: FakeSystem, integration: Integration) -> None:
    system.provider.can_revoke = False
    assert await disconnect(system, integration) is RevocationState.NOT_SUPPORTED
    assert not system.revocation_rows()


async def test_a_pending_integration_is_deleted_without_a_call(system: FakeSystem) -> None:
    authorization = await system.begin()
    state = await system.revocation_service.disconnect_integration(authorization.integration_id, ADA)
    assert state is RevocationState.NOTHING_TO_REVOKE
    assert not system.ids()
    assert not system.provider.revocations


async def test_an_api_key_is_revoked(system: FakeSystem) -> None:
    system.key_provider.account = NewAccount(None, None)
    assert await disconnect(system, await system.connect_key(api_key="key-1")) is REVOKED
    assert len(system.key_provider.revocations) == 1


async def test_a_grant_is_revoked_after_the_caller_is_cancelled(system: FakeSystem, integration: Integration) -> None:
    caller = asyncio.create_task(disconnect(system, integration))
    await wait_until(lambda: not system.ids())
    caller.cancel()
    await wait_until(lambda: system.provider.revocations)
    assert len(system.provider.revocations) == 1


# --- background ------------------------------------------------------------------------------------------------------


async def test_a_failed_revocation_is_retried_until_it_succeeds(system: FakeSystem, integration: Integration) -> None:
    tokens = await system.tokens(integration.integration_id)
    await disconnect_during_outage(system, integration)
    system.clock.advance(timedelta(seconds=2))
    await background_round(system)
    system.provider.revoke_error = None
    await background_until_quiet(system)
    assert system.provider.revocations == [tokens, tokens]


async def test_negative_control_without_the_outbox_the_grant_stays_valid(
    system: FakeSystem, integration: Integration
) -> None:
    await disconnect_during_outage(system, integration)
    system.clear(revocations)
    system.provider.revoke_error = None
    system.clock.advance(GIVE_UP_AFTER)
    await background_round(system)
    assert not system.provider.revocations


async def test_a_grant_claimed_by_a_crashed_process_is_revoked_by_another(
    system: FakeSystem, integration: Integration
) -> None:
    await system.integrations.remove(integration.integration_id, ADA, claim_duration=LEASE)
    await background_round(system)
    assert not system.provider.revocations  # the claim has not expired yet
    system.clock.advance(LEASE)
    await background_round(system)
    assert len(system.provider.revocations) == 1
    assert not system.revocation_rows()


async def attempts_that_end_the_process(*, counts_expired_claims: bool, hours: int) -> tuple[FakeSystem, int]:
    """The number of attempts in that time of a revocation whose request ends the process."""
    system = FakeSystem()
    async with system.tasks:
        await disconnect_during_outage(system, await system.connect())
        # The task ends as if its process did: nothing records an outcome.
        system.provider.revoke_error = asyncio.CancelledError()  # type: ignore[assignment]
        for _ in range(12 * hours):
            system.clock.advance(timedelta(minutes=5))
            if not counts_expired_claims:
                system.database.execute(delete(due_work_claims))
            await background_round(system)
    return system, len(system.provider.revocations)


async def test_an_attempt_that_ends_the_process_is_repeated_ever_less_often_and_given_up() -> None:
    system, attempts = await attempts_that_end_the_process(counts_expired_claims=True, hours=10)
    assert 8 < attempts < 25
    assert system.revocation_rows()
    system.clock.advance(GIVE_UP_AFTER)
    with capture_logs() as logs:
        await background_round(system)
    assert not system.revocation_rows()
    assert len(system.provider.revocations) == attempts
    assert "revocation_given_up" in {log["event"] for log in logs}


async def test_negative_control_without_the_count_it_ends_each_process() -> None:
    _, attempts = await attempts_that_end_the_process(counts_expired_claims=False, hours=10)
    assert attempts == 120


async def test_a_database_failure_after_the_removal_does_not_undo_it(
    system: FakeSystem, integration: Integration
) -> None:
    disconnection = asyncio.create_task(disconnect(system, integration))
    await wait_until(lambda: not system.ids())
    system.database.is_unavailable = True
    assert await disconnection is PENDING
    system.database.is_unavailable = False
    system.clock.advance(LEASE)
    await background_round(system)
    assert len(system.provider.revocations) == 1


async def test_a_revocation_that_cannot_be_recorded_is_repeated(system: FakeSystem, integration: Integration) -> None:
    system.provider.gate = asyncio.Event()
    disconnection = asyncio.create_task(disconnect(system, integration))
    await wait_until(lambda: system.provider.revocations)
    system.database.is_unavailable = True
    system.provider.gate.set()
    assert await disconnection is REVOKED
    system.database.is_unavailable = False
    await background_until_quiet(system)
    assert len(system.provider.revocations) == 2


@pytest.mark.parametrize(("exclusive", "calls"), [(True, 1), (False, 2)], ids=["exclusive claims", "negative control"])
async def test_two_processes_make_one_call_per_attempt(exclusive: bool, calls: int) -> None:
    system = FakeSystem() if exclusive else FakeSystem(wrap_stores=with_non_exclusive_claims)
    async with system.tasks:
        await disconnect_during_outage(system, await system.connect())
        system.provider.revoke_error = None
        system.provider.gate = asyncio.Event()
        system.clock.advance(timedelta(seconds=2))
        await system.worker.poll()
        await system.another_process().worker.poll()
        await run_other_tasks()
        system.provider.gate.set()
    assert len(system.provider.revocations) == calls


async def test_the_backoff_grows_to_an_hour_and_ends_at_the_time_limit(
    system: FakeSystem, integration: Integration
) -> None:
    start = system.clock()
    await disconnect_during_outage(system, integration)
    pauses = await background_until_quiet(system)
    assert pauses[0] == 0.75 * timedelta(seconds=2)
    assert pauses[:-1] == sorted(pauses[:-1])
    assert pauses[-2] == 0.75 * HOUR
    assert system.clock() == start + GIVE_UP_AFTER
    assert len(system.provider.revocations) == len(pauses)


async def test_retry_after_is_respected(system: FakeSystem, integration: Integration) -> None:
    await disconnect_during_outage(system, integration, ProviderUnavailable(retry_after=timedelta(minutes=7)))
    system.clock.advance(timedelta(minutes=7) - timedelta(seconds=1))
    await background_round(system)
    assert not system.provider.revocations
    system.clock.advance(timedelta(seconds=1))
    await background_round(system)
    assert len(system.provider.revocations) == 1


async def test_giving_up_is_logged_as_an_error(system: FakeSystem, integration: Integration) -> None:
    with capture_logs() as logs:
        await disconnect_during_outage(
            system, integration, ProviderRejected("revocation", oauth_error="invalid_request")
        )
        await background_until_quiet(system)
    (log_entry,) = (line for line in logs if line["log_level"] == "error")
    assert log_entry["event"] == "revocation_given_up"
    assert (log_entry["integration_type"], log_entry["user_id"], log_entry["uid"]) == ("fake", ADA, integration.uid)
    assert (log_entry["error_class"], log_entry["oauth_error"]) == ("PROVIDER_REJECTED", "invalid_request")


async def test_a_grant_of_an_unknown_type_is_revoked_when_the_type_is_known_again(
    system: FakeSystem, integration: Integration
) -> None:
    del system.providers.by_type["fake"]
    assert await disconnect(system, integration) is PENDING
    system.providers.by_type["fake"] = system.provider
    await background_until_quiet(system)
    assert len(system.provider.revocations) == 1


async def test_undecryptable_credentials_are_given_up(system: FakeSystem, integration: Integration) -> None:
    system.corrupt(integration.integration_id)
    with capture_logs() as logs:
        assert await disconnect(system, integration) is PENDING
        assert not system.ids()
        await background_until_quiet(system)
    assert [line["error_class"] for line in logs if line["log_level"] == "error"] == ["CREDENTIALS_UNREADABLE"]
    assert not system.provider.revocations


async def test_a_bug_in_a_provider_is_retried_and_does_not_affect_others(
    system: FakeSystem, integration: Integration
) -> None:
    other = system.add_provider("other")
    eves = await system.connect(EVE, "other")
    await disconnect_during_outage(system, integration, RuntimeError("a bug"))
    other.revoke_error = ProviderUnavailable()
    await disconnect(system, eves)
    other.revoke_error = None
    system.clock.advance(timedelta(seconds=2))
    await background_round(system)
    assert len(other.revocations) == 2
    assert [row.uid for row in system.revocation_rows()] == [integration.uid]


async def test_a_slow_provider_delays_only_its_own_revocations(system: FakeSystem) -> None:
    other = system.add_provider("other")
    rows = [await system.connect_account(f"account-{number}") for number in range(20)]
    eves = await system.connect(EVE, "other")
    for row in (*rows, eves):
        await system.integrations.remove(row.integration_id, row.user_id)
    system.provider.gate = asyncio.Event()
    for _ in range(3):
        await background_round(system)
    assert len(system.provider.revocations) == 8
    assert len(other.revocations) == 1
    system.provider.gate.set()
    await run_other_tasks()
    await background_until_quiet(system)
    assert len(system.provider.revocations) == 20


# --- shared grants ---------------------------------------------------------------------------------------------------


async def test_a_shared_grant_is_revoked_with_the_last_integration(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake", "sister")
    sister = system.add_provider("sister", shares_grants_with=("fake", "sister"))
    adas = await system.connect(ADA)
    eves = await system.connect(EVE)
    related = await system.connect(EVE, "sister")

    assert await disconnect(system, adas) is PENDING  # as after a failure: nothing tells that Eve has an integration
    assert await disconnect(system, eves) is SHARED
    assert not system.provider.revocations
    assert not system.revocation_rows()
    assert await disconnect(system, related) is REVOKED
    assert len(sister.revocations) == 1


async def test_an_unshared_grant_is_revoked_at_once(system: FakeSystem) -> None:
    adas, eves = await system.connect(ADA), await system.connect(EVE)
    assert await disconnect(system, adas) is REVOKED
    assert system.ids() == [eves.integration_id]


async def test_two_concurrent_removals_revoke_the_shared_grant(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake",)
    adas, eves = await system.connect(ADA), await system.connect(EVE)
    assert REVOKED in await asyncio.gather(disconnect(system, adas), disconnect(system, eves))


async def test_another_account_does_not_share_the_grant(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake",)
    first = await system.connect_account("first")
    await system.connect_account("second")
    assert await disconnect(system, first) is REVOKED


@pytest.mark.parametrize(("shares", "calls"), [(("fake",), 0), ((), 1)])
async def test_a_shared_grant_of_a_reconnected_account_is_not_revoked(
    system: FakeSystem, integration: Integration, shares: tuple[str, ...], calls: int
) -> None:
    system.provider.shares_grants_with = shares
    await disconnect_during_outage(system, integration)
    await system.connect()
    system.provider.revoke_error = None
    await background_until_quiet(system)
    assert len(system.provider.revocations) == calls


# --- disconnection during a refresh ----------------------------------------------------------------------------------


@dataclass
class Refresh:
    """A refresh in another process that waits for the provider's response."""

    gate: asyncio.Event
    task: "asyncio.Task[RefreshResult]"

    async def receive_response(self) -> None:
        self.gate.set()
        with pytest.raises(IntegrationNotFound):
            await self.task


async def start_refresh(system: FakeSystem, integration: Integration) -> Refresh:
    gate = system.provider.gate = asyncio.Event()
    task = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await wait_until(lambda: system.provider.refreshes)
    system.provider.gate = None
    return Refresh(gate, task)


def revoked_refresh_tokens(system: FakeSystem) -> list[str | None]:
    return [tokens.refresh_token for tokens in system.provider.revocations if isinstance(tokens, OAuthTokens)]


async def test_a_token_response_for_a_removed_integration_is_revoked(
    system: FakeSystem, integration: Integration
) -> None:
    refresh = await start_refresh(system, integration)
    assert await disconnect(system, integration) is PENDING  # the response may contain another token
    await refresh.receive_response()
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1", "renewed-refresh-1"]
    assert not system.revocation_rows()
    assert not system.ids()


async def test_a_refresh_with_unknown_outcome_leaves_the_revocation_pending(
    system: FakeSystem, integration: Integration
) -> None:
    lease = await system.leases.claim(integration, "crashed process")
    assert lease is not None
    system.clock.advance(LEASE)
    assert await disconnect(system, integration) is PENDING


async def test_no_refresh_begins_after_the_removal(system: FakeSystem, integration: Integration) -> None:
    assert await disconnect(system, integration) is REVOKED
    assert await system.leases.claim(integration, "another process") is None


async def test_a_completed_refresh_does_not_affect_the_state(system: FakeSystem, integration: Integration) -> None:
    await system.refresher.refresh(integration)
    assert await disconnect(system, integration) is REVOKED
    assert revoked_refresh_tokens(system) == ["renewed-refresh-1"]


async def test_a_journaled_token_response_is_revoked_if_its_integration_is_removed(
    system: FakeSystem, integration: Integration
) -> None:
    refresh = await start_refresh(system, integration)
    system.database.is_unavailable = True
    refresh.gate.set()
    await refresh.task
    system.database.is_unavailable = False
    assert await disconnect(system, integration) is PENDING
    await system.another_process().refresher.recover()
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1", "renewed-refresh-1"]
    assert not system.journal.refreshes


async def test_a_token_response_is_journaled_if_the_outbox_is_unavailable(
    system: FakeSystem, integration: Integration
) -> None:
    refresh = await start_refresh(system, integration)
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


# --- tokens that cannot be stored ------------------------------------------------------------------------------------


async def reconnect_with_another_account(system: FakeSystem, integration: Integration) -> None:
    authorization = await system.begin(integration_id=integration.integration_id)
    system.provider.account = NewAccount("account-2", None)
    with pytest.raises(AccountMismatch):
        await system.call_back(authorization.state)


async def test_tokens_of_another_account_are_revoked(system: FakeSystem, integration: Integration) -> None:
    await reconnect_with_another_account(system, integration)
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-2"]
    assert (await system.tokens(integration.integration_id)).refresh_token == "refresh-1"


async def test_tokens_of_another_account_are_kept_if_it_has_an_integration(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.shares_grants_with = ("fake",)
    await system.connect_account("account-2", EVE)
    await reconnect_with_another_account(system, integration)
    await background_round(system)
    assert not system.provider.revocations
    assert not system.revocation_rows()


async def test_tokens_of_another_account_are_revoked_if_it_has_no_integration(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.shares_grants_with = ("fake",)
    await reconnect_with_another_account(system, integration)
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-2"]


@pytest.mark.parametrize(("shares", "calls"), [(("fake",), 0), ((), 1)])
async def test_tokens_of_an_unknown_account_are_kept_where_grants_are_shared(
    system: FakeSystem, shares: tuple[str, ...], calls: int
) -> None:
    system.provider.shares_grants_with = shares
    await system.connect(EVE)
    authorization = await system.begin(ADA)
    system.provider.verify_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.call_back(authorization.state)
    await background_round(system)
    assert len(system.provider.revocations) == calls


@pytest.mark.parametrize(
    ("error", "live_token", "calls"),
    [
        (ProviderUnavailable(), "refresh-1", 1),
        (ProviderRejected("tenant"), "refresh-1", 1),
        (ProviderMisconfigured(), "refresh-1", 1),
        (ProviderUnavailable(), "discarded", 0),  # the provider repeats the token of the live integration
    ],
)
async def test_tokens_that_cannot_be_completed_are_revoked_unless_an_integration_has_them(
    system: FakeSystem, error: ProviderError, live_token: str, calls: int
) -> None:
    live = await system.connect(EVE)
    tokens = OAuthTokens("access", "discarded")
    if live_token == "discarded":
        await system.integrations.remove(live.integration_id, EVE)
        system.clear(revocations)
        system.provider.repeated_tokens = tokens
        await system.connect(EVE)
    error.issued_tokens = tokens
    system.provider.exchange_error = error
    authorization = await system.begin(ADA)
    with pytest.raises(type(error)):
        await system.call_back(authorization.state)
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["discarded"] * calls
    assert not system.revocation_rows()


@pytest.mark.parametrize("account_id", ["account-2", None, "account-1"])
async def test_a_failed_connection_with_the_token_of_a_live_integration_does_not_revoke_it(
    system: FakeSystem, integration: Integration, account_id: str | None
) -> None:
    """The provider repeats its tokens: at a mismatch, at a failed verification, and with the same account."""
    system.provider.repeated_tokens = await system.tokens(integration.integration_id)
    authorization = await system.begin(integration_id=integration.integration_id)
    system.provider.account = NewAccount(account_id or "account-1", None)
    system.provider.verify_error = ProviderUnavailable() if account_id is None else None
    with suppress(AccountMismatch, ProviderUnavailable):
        await system.call_back(authorization.state)
    await background_round(system)
    assert not system.provider.revocations
    assert await disconnect(system, integration) is REVOKED


async def test_tokens_for_a_disconnected_integration_are_revoked(system: FakeSystem) -> None:
    authorization = await system.begin()
    gate = system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(system.call_back(authorization.state))
    await wait_until(lambda: system.provider.exchanges)
    system.provider.gate = None
    state = await system.revocation_service.disconnect_integration(authorization.integration_id, ADA)
    assert state is RevocationState.NOTHING_TO_REVOKE
    gate.set()
    with pytest.raises(IntegrationNotFound):
        await waiting
    await background_round(system)
    assert revoked_refresh_tokens(system) == ["refresh-1"]


async def test_a_rejected_code_leaves_nothing_to_revoke(system: FakeSystem) -> None:
    authorization = await system.begin()
    system.provider.exchange_error = ProviderRejected("code")
    with pytest.raises(ProviderRejected):
        await system.call_back(authorization.state)
    assert not system.revocation_rows()


async def test_tokens_that_may_be_stored_are_not_revoked(system: FakeSystem) -> None:
    authorization = await system.begin()
    commit = system.connections.commit_connection

    async def commit_and_fail(*arguments: Any, **keywords: Any) -> None:
        await commit(*arguments, **keywords)
        raise StoreUnavailable

    intercept(system.connections, commit_connection=commit_and_fail)
    with pytest.raises(StoreUnavailable):
        await system.call_back(authorization.state)
    assert system.row(authorization.integration_id).is_connected
    assert not system.revocation_rows()


async def test_tokens_are_logged_if_the_outbox_is_unavailable(system: FakeSystem, integration: Integration) -> None:
    authorization = await system.begin(integration_id=integration.integration_id)
    gate = system.provider.gate = asyncio.Event()
    system.provider.verify_error = ProviderUnavailable()
    with capture_logs() as logs:
        waiting = asyncio.create_task(system.call_back(authorization.state))
        await wait_until(lambda: len(system.provider.exchanges) == 2)
        system.database.is_unavailable = True
        gate.set()
        with pytest.raises(StoreUnavailable):  # abandoning the attempt fails too
            await waiting
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["grant_not_revoked"]
