import asyncio
from datetime import timedelta

import pytest
import structlog
from structlog.testing import capture_logs

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, Status
from integration_server.service.integrations.integration_manager import IntegrationUpdate
from tests.fakes.provider import HOUR, until
from tests.fakes.stores import allow_shared_leases
from tests.fakes.system import ADA, FakeSystem

INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """One whose token has expired."""
    integration = await system.connect()
    system.clock.advance(HOUR)
    return integration


async def access_token(system: FakeSystem, integration: Integration) -> str:
    get_usable = await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert isinstance(get_usable.credentials, OAuthTokens)
    return get_usable.credentials.access_token


@pytest.fixture
def gate(system: FakeSystem) -> asyncio.Event:
    """Keeps the provider's answers back until it is set."""
    system.provider.gate = asyncio.Event()
    return system.provider.gate


# --- one at a time -------------------------------------------------------------------------------------------------


async def test_refreshes_once_when_callers_race(system: FakeSystem, integration: Integration) -> None:
    tokens = await asyncio.gather(*(access_token(system, integration) for _ in range(1000)))
    assert system.provider.refreshes == ["refresh-1"]
    assert set(tokens) == {"renewed-access-1"}


async def test_refreshes_once_when_processes_race(system: FakeSystem, integration: Integration) -> None:
    refreshed = await asyncio.gather(*(system.another_process().refresher.refresh(integration) for _ in range(10)))
    assert system.provider.refreshes == ["refresh-1"]
    assert {one.tokens.access_token for one in refreshed} == {"renewed-access-1"}


async def test_without_the_lease_every_process_refreshes() -> None:
    system = FakeSystem()
    allow_shared_leases(system.leases)
    integration = await system.connect()
    system.clock.advance(HOUR)
    await asyncio.gather(*(system.another_process().refresher.refresh(integration) for _ in range(10)))
    assert len(system.provider.refreshes) == 10


async def test_integrations_refresh_side_by_side(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    gate.set()
    other = await system.connect_account("other")
    system.clock.advance(HOUR)
    gate.clear()
    both = asyncio.gather(access_token(system, integration), access_token(system, other))
    await until(lambda: len(system.provider.refreshes) == 2)
    gate.set()
    assert len(set(await both)) == 2


async def test_those_who_come_late_take_what_was_refreshed(system: FakeSystem, integration: Integration) -> None:
    await system.refresher.refresh(integration)
    late = await system.refresher.refresh(integration)  # has seen the row before the refresh
    assert late.tokens.access_token == "renewed-access-1"
    assert len(system.provider.refreshes) == 1


async def test_what_was_refreshed_and_has_expired_since_is_not_taken(
    system: FakeSystem, integration: Integration
) -> None:
    await system.refresher.refresh(integration)
    system.clock.advance(HOUR)
    late = await system.refresher.refresh(integration)
    assert late.tokens.access_token == "renewed-access-2"


async def test_a_failed_flight_does_not_keep_the_next_from_trying(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    outcomes = await asyncio.gather(*(access_token(system, integration) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(outcome, ProviderUnavailable) for outcome in outcomes)
    assert len(system.provider.refreshes) == 1
    system.provider.refresh_error = None
    assert await access_token(system, integration) == "renewed-access-2"


async def test_a_refresh_runs_to_its_end_though_every_caller_is_gone(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    callers = [asyncio.create_task(access_token(system, integration)) for _ in range(3)]
    await until(lambda: system.provider.refreshes)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    gate.set()
    await until(lambda: system.row(integration.integration_id).version == integration.version + 1)
    assert (await system.tokens(integration.integration_id)).refresh_token == "renewed-refresh-1"


async def test_one_caller_who_leaves_takes_nothing_from_the_others(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    impatient, patient = [asyncio.create_task(access_token(system, integration)) for _ in range(2)]
    await until(lambda: system.provider.refreshes)
    impatient.cancel()
    gate.set()
    assert await patient == "renewed-access-1"


# --- the commit ----------------------------------------------------------------------------------------------------


async def test_a_rotated_refresh_token_is_stored_with_the_access_token(
    system: FakeSystem, integration: Integration
) -> None:
    await access_token(system, integration)
    tokens = await system.tokens(integration.integration_id)
    row = system.row(integration.integration_id)
    assert (tokens.access_token, tokens.refresh_token) == ("renewed-access-1", "renewed-refresh-1")
    assert row.access_token_expire_time == tokens.expire_time == system.clock() + HOUR
    assert row.version == integration.version + 1


async def test_a_token_response_without_a_refresh_token_keeps_the_old_one(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.rotates = False
    await access_token(system, integration)
    assert (await system.tokens(integration.integration_id)).refresh_token == "refresh-1"
    assert system.row(integration.integration_id).is_renewable


async def test_what_belongs_to_the_account_survives_a_refresh(system: FakeSystem) -> None:
    outcome = await system.call_back((await system.begin()).state, query={"realmId": "9"})
    system.clock.advance(HOUR)
    await access_token(system, system.row(outcome.integration_id))
    assert (await system.tokens(outcome.integration_id)).extras == {"realmId": "9"}


async def test_who_commits_second_takes_the_winners_tokens(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    allow_shared_leases(system.leases)
    here, there = system.another_process().refresher, system.another_process().refresher
    both = asyncio.gather(here.refresh(integration), there.refresh(integration))
    await until(lambda: len(system.provider.refreshes) == 2)
    gate.set()
    one, two = await both
    assert one.tokens == two.tokens == await system.tokens(integration.integration_id)
    assert system.row(integration.integration_id).version == integration.version + 1


async def test_a_refresh_does_not_overwrite_a_reconnection(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    waiting = asyncio.create_task(access_token(system, integration))
    await until(lambda: system.provider.refreshes)
    system.provider.gate = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    gate.set()
    assert await waiting == "access-2"
    assert (await system.tokens(integration.integration_id)).access_token == "access-2"


async def test_a_refresh_does_not_bring_a_disconnected_integration_back(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    waiting = asyncio.create_task(access_token(system, integration))
    await until(lambda: system.provider.refreshes)
    system.provider.gate = None
    await system.revocation_service.disconnect_integration(integration.integration_id, ADA)
    gate.set()
    with pytest.raises(IntegrationNotFound):
        await waiting
    assert not system.ids()


async def test_a_token_that_comes_expired_is_not_served_but_its_refresh_token_is_kept(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.lifetime = timedelta(0)
    with pytest.raises(ProviderUnavailable):
        await access_token(system, integration)
    assert (await system.tokens(integration.integration_id)).refresh_token == "renewed-refresh-1"

    system.provider.lifetime = HOUR
    assert await access_token(system, integration) == "renewed-access-2"
    assert system.provider.refreshes == ["refresh-1", "renewed-refresh-1"]


# --- what was granted ----------------------------------------------------------------------------------------------


async def test_no_scope_in_the_token_response_leaves_scopes_unchanged(system: FakeSystem) -> None:
    system.provider.granted = ("read",)
    integration = await system.connect(scopes=("write",))
    system.provider.granted = None
    await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    row = system.row(integration.integration_id)
    assert (row.scopes, row.missing_scopes) == (("read",), ("write",))


async def test_a_required_scope_that_a_refresh_lost_is_shown_until_it_is_back(system: FakeSystem) -> None:
    integration = await system.connect(scopes=("write",))
    for granted, missing, status in (
        (("write",), ("read",), Status.ERROR),
        (("write", "read"), (), Status.ACTIVE),
    ):
        system.provider.granted = granted
        await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        row = system.row(integration.integration_id)
        assert (row.missing_scopes, row.status(system.clock())) == (missing, status)


# --- failures, told apart ------------------------------------------------------------------------------------------


async def test_a_passing_failure_is_noted_and_cleared_by_the_next_success(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    row = system.row(integration.integration_id)
    assert row.last_error == Failure("PROVIDER_UNAVAILABLE", system.clock(), str(ProviderUnavailable()))
    assert (row.error_count, row.status(system.clock())) == (2, Status.ERROR)

    system.provider.refresh_error = None
    system.clock.advance(timedelta(seconds=2))
    await access_token(system, integration)
    row = system.row(integration.integration_id)
    assert (row.last_error, row.error_count, row.status(system.clock())) == (None, 0, Status.ACTIVE)


async def test_how_long_to_wait_is_passed_on(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(seconds=7))
    with pytest.raises(ProviderUnavailable) as refused:
        await access_token(system, integration)
    assert refused.value.retry_after == timedelta(seconds=7)


async def test_an_invalid_grant_is_not_retried(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = INVALID_GRANT
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired):
            await access_token(system, integration)
    row = system.row(integration.integration_id)
    assert len(system.provider.refreshes) == 1
    assert row.status(system.clock()) is Status.EXPIRED
    assert row.last_error is not None
    assert row.last_error.error_class == "REAUTHORIZATION_REQUIRED"


@pytest.mark.parametrize("oauth_error", [None, "invalid_request", "invalid_scope"])
async def test_another_refusal_does_not_kill_the_grant(
    system: FakeSystem, integration: Integration, oauth_error: str | None
) -> None:
    system.provider.refresh_error = ProviderRejected("grant", oauth_error=oauth_error)
    with pytest.raises(ProviderRejected):
        await access_token(system, integration)
    assert system.row(integration.integration_id).status(system.clock()) is Status.ERROR
    system.provider.refresh_error = None
    assert await access_token(system, integration) == "renewed-access-2"


async def test_our_own_fault_does_not_touch_the_users_integration(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderMisconfigured(oauth_error="invalid_client")
    with pytest.raises(ProviderMisconfigured):
        await access_token(system, integration)
    assert system.row(integration.integration_id) == integration


async def test_a_failure_of_credentials_that_were_replaced_is_not_held_against_the_new_ones(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    system.provider.refresh_error = INVALID_GRANT
    waiting = asyncio.create_task(system.refresher.refresh(integration))
    await until(lambda: system.provider.refreshes)
    system.provider.gate = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    gate.set()
    assert (await waiting).tokens.access_token == "access-2"
    assert system.row(integration.integration_id).status(system.clock()) is Status.ACTIVE


async def test_an_integration_switched_off_meanwhile_is_not_refreshed(
    system: FakeSystem, integration: Integration
) -> None:
    await system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(is_active=False)
    )
    with pytest.raises(IntegrationServerError) as refused:
        await system.refresher.refresh(integration)
    assert refused.value.reason == "INTEGRATION_INACTIVE"
    assert not system.provider.refreshes


async def test_the_database_away_is_no_fault_of_the_grant(system: FakeSystem, integration: Integration) -> None:
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await system.refresher.refresh(integration)
    system.database.is_unavailable = False
    assert system.row(integration.integration_id) == integration


async def test_logs_tell_what_happened_and_no_secret(system: FakeSystem, integration: Integration) -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        await access_token(system, integration)
        system.provider.refresh_error = INVALID_GRANT
        with pytest.raises(ReauthorizationRequired):
            await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert [line["event"] for line in logs] == ["refreshed", "refresh_failed"]
    assert logs[1]["oauth_error"] == "invalid_grant"
    for secret in ("access-", "refresh-"):
        assert secret not in str(logs)
