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
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.stores import allow_shared_leases
from tests.fakes.system import ADA, FORCED_INTERVAL, FakeSystem

INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """A connected integration whose token has expired."""
    integration = await system.connect()
    system.clock.advance(HOUR)
    return integration


async def access_token(system: FakeSystem, integration: Integration) -> str:
    usable = await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert isinstance(usable.credentials, OAuthTokens)
    return usable.credentials.access_token


@pytest.fixture
def gate(system: FakeSystem) -> asyncio.Event:
    """Delays the provider's responses until it is set."""
    system.provider.gate = asyncio.Event()
    return system.provider.gate


# --- single flight and leases ----------------------------------------------------------------------------------------


async def test_refreshes_once_when_callers_race(system: FakeSystem, integration: Integration) -> None:
    tokens = await asyncio.gather(*(access_token(system, integration) for _ in range(1000)))
    assert system.provider.refreshes == ["refresh-1"]
    assert set(tokens) == {"renewed-access-1"}


async def test_refreshes_once_when_processes_race(system: FakeSystem, integration: Integration) -> None:
    refreshed = await asyncio.gather(*(system.another_process().refresher.refresh(integration) for _ in range(10)))
    assert system.provider.refreshes == ["refresh-1"]
    assert {result.tokens.access_token for result in refreshed} == {"renewed-access-1"}


async def test_negative_control_without_leases_every_process_refreshes() -> None:
    system = FakeSystem()
    allow_shared_leases(system.leases)
    integration = await system.connect()
    system.clock.advance(HOUR)
    await asyncio.gather(*(system.another_process().refresher.refresh(integration) for _ in range(10)))
    assert len(system.provider.refreshes) == 10


async def test_different_integrations_refresh_concurrently(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    gate.set()
    other = await system.connect_account("other")
    system.clock.advance(HOUR)
    gate.clear()
    refreshes = asyncio.gather(access_token(system, integration), access_token(system, other))
    await wait_until(lambda: len(system.provider.refreshes) == 2)
    gate.set()
    assert len(set(await refreshes)) == 2


async def test_a_caller_with_an_old_row_gets_the_tokens_of_the_last_refresh(
    system: FakeSystem, integration: Integration
) -> None:
    await system.refresher.refresh(integration)
    refreshed = await system.refresher.refresh(integration)  # with the row from before the refresh
    assert refreshed.tokens.access_token == "renewed-access-1"
    assert len(system.provider.refreshes) == 1


async def test_expired_tokens_of_the_last_refresh_are_refreshed_again(
    system: FakeSystem, integration: Integration
) -> None:
    await system.refresher.refresh(integration)
    system.clock.advance(HOUR)
    refreshed = await system.refresher.refresh(integration)
    assert refreshed.tokens.access_token == "renewed-access-2"


async def test_a_failed_refresh_is_shared_and_does_not_block_the_next(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    outcomes = await asyncio.gather(*(access_token(system, integration) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(outcome, ProviderUnavailable) for outcome in outcomes)
    assert len(system.provider.refreshes) == 1
    system.provider.refresh_error = None
    assert await access_token(system, integration) == "renewed-access-2"


async def test_a_refresh_completes_after_all_callers_are_cancelled(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    callers = [asyncio.create_task(access_token(system, integration)) for _ in range(3)]
    await wait_until(lambda: system.provider.refreshes)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    gate.set()
    await wait_until(lambda: system.row(integration.integration_id).version == integration.version + 1)
    assert (await system.tokens(integration.integration_id)).refresh_token == "renewed-refresh-1"


async def test_a_cancelled_caller_does_not_affect_the_others(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    cancelled, remaining = [asyncio.create_task(access_token(system, integration)) for _ in range(2)]
    await wait_until(lambda: system.provider.refreshes)
    cancelled.cancel()
    gate.set()
    assert await remaining == "renewed-access-1"


# --- the commit ------------------------------------------------------------------------------------------------------


async def test_a_rotated_refresh_token_is_stored_with_the_access_token(
    system: FakeSystem, integration: Integration
) -> None:
    await access_token(system, integration)
    tokens = await system.tokens(integration.integration_id)
    row = system.row(integration.integration_id)
    assert (tokens.access_token, tokens.refresh_token) == ("renewed-access-1", "renewed-refresh-1")
    assert row.access_token_expire_time == tokens.expire_time == system.clock() + HOUR
    assert row.version == integration.version + 1


async def test_a_token_response_without_refresh_token_keeps_the_previous_one(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.rotates_refresh_token = False
    await access_token(system, integration)
    assert (await system.tokens(integration.integration_id)).refresh_token == "refresh-1"
    assert system.row(integration.integration_id).is_renewable


async def test_extras_are_kept_by_a_refresh(system: FakeSystem) -> None:
    result = await system.call_back((await system.begin()).state, query={"realmId": "9"})
    system.clock.advance(HOUR)
    await access_token(system, system.row(result.integration_id))
    assert (await system.tokens(result.integration_id)).extras == {"realmId": "9"}


async def test_the_second_of_two_commits_returns_the_tokens_of_the_first(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    allow_shared_leases(system.leases)
    first, second = system.another_process().refresher, system.another_process().refresher
    refreshes = asyncio.gather(first.refresh(integration), second.refresh(integration))
    await wait_until(lambda: len(system.provider.refreshes) == 2)
    gate.set()
    results = await refreshes
    assert results[0].tokens == results[1].tokens == await system.tokens(integration.integration_id)
    assert system.row(integration.integration_id).version == integration.version + 1


async def test_a_refresh_does_not_overwrite_a_reconnection(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    waiting = asyncio.create_task(access_token(system, integration))
    await wait_until(lambda: system.provider.refreshes)
    system.provider.gate = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    gate.set()
    assert await waiting == "access-2"
    assert (await system.tokens(integration.integration_id)).access_token == "access-2"


async def test_a_refresh_does_not_restore_a_disconnected_integration(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    waiting = asyncio.create_task(access_token(system, integration))
    await wait_until(lambda: system.provider.refreshes)
    system.provider.gate = None
    await system.revocation_service.disconnect_integration(integration.integration_id, ADA)
    gate.set()
    with pytest.raises(IntegrationNotFound):
        await waiting
    assert not system.ids()


async def test_a_token_response_that_is_already_expired_is_stored_but_not_served(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.lifetime = timedelta(0)
    with pytest.raises(ProviderUnavailable):
        await access_token(system, integration)
    assert (await system.tokens(integration.integration_id)).refresh_token == "renewed-refresh-1"

    system.provider.lifetime = HOUR
    system.clock.advance(FORCED_INTERVAL)
    assert await access_token(system, integration) == "renewed-access-2"
    assert system.provider.refreshes == ["refresh-1", "renewed-refresh-1"]


# --- granted scopes --------------------------------------------------------------------------------------------------


async def test_a_token_response_without_scope_keeps_the_granted_scopes(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("read",)
    integration = await system.connect(scopes=("write",))
    system.provider.granted_scopes = None
    await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    row = system.row(integration.integration_id)
    assert (row.scopes, row.missing_scopes) == (("read",), ("write",))


async def test_a_required_scope_lost_by_a_refresh_is_missing_until_it_is_granted_again(system: FakeSystem) -> None:
    integration = await system.connect(scopes=("write",))
    for granted, missing, status in (
        (("write",), ("read",), Status.ERROR),
        (("write", "read"), (), Status.ACTIVE),
    ):
        system.provider.granted_scopes = granted
        await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        row = system.row(integration.integration_id)
        assert (row.missing_scopes, row.status(system.clock())) == (missing, status)
        system.clock.advance(FORCED_INTERVAL)


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_temporary_failure_is_recorded_and_cleared_by_the_next_success(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            await system.credentials.refresh_token(integration.integration_id, ADA, force=False)
    row = system.row(integration.integration_id)
    assert row.last_error == Failure("PROVIDER_UNAVAILABLE", system.clock(), str(ProviderUnavailable()))
    assert (row.error_count, row.status(system.clock())) == (2, Status.ERROR)

    system.provider.refresh_error = None
    system.clock.advance(timedelta(seconds=2))
    await access_token(system, integration)
    row = system.row(integration.integration_id)
    assert (row.last_error, row.error_count, row.status(system.clock())) == (None, 0, Status.ACTIVE)


async def test_retry_after_is_passed_on(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(seconds=7))
    with pytest.raises(ProviderUnavailable) as caught:
        await access_token(system, integration)
    assert caught.value.retry_after == timedelta(seconds=7)


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


async def test_each_invalid_grant_raises_its_own_error(system: FakeSystem) -> None:
    system.provider.refresh_error = INVALID_GRANT
    errors = []
    for _ in range(2):
        integration = await system.connect()
        system.clock.advance(HOUR)
        with pytest.raises(ReauthorizationRequired) as caught:
            await access_token(system, integration)
        errors.append(caught.value)
    # An error that is raised again keeps the frames of all its tracebacks, with the tokens in them.
    assert errors[0] is not errors[1]


@pytest.mark.parametrize("oauth_error", [None, "invalid_request", "invalid_scope"])
async def test_other_oauth_errors_do_not_end_the_grant(
    system: FakeSystem, integration: Integration, oauth_error: str | None
) -> None:
    system.provider.refresh_error = ProviderRejected("grant", oauth_error=oauth_error)
    with pytest.raises(ProviderRejected):
        await access_token(system, integration)
    assert system.row(integration.integration_id).status(system.clock()) is Status.ERROR
    system.provider.refresh_error = None
    assert await access_token(system, integration) == "renewed-access-2"


async def test_a_misconfigured_client_does_not_change_the_integration(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = ProviderMisconfigured(oauth_error="invalid_client")
    for _ in range(20):
        with pytest.raises((ProviderMisconfigured, ProviderUnavailable)):
            await access_token(system, integration)
        system.clock.advance(timedelta(seconds=10))
    row = system.row(integration.integration_id)
    assert (row.last_error, row.error_count, row.status(system.clock())) == (None, 0, Status.ACTIVE)
    assert len(system.provider.refreshes) < 10  # after pauses that grow


async def test_a_failure_of_replaced_credentials_is_ignored(
    system: FakeSystem, integration: Integration, gate: asyncio.Event
) -> None:
    system.provider.refresh_error = INVALID_GRANT
    waiting = asyncio.create_task(system.refresher.refresh(integration))
    await wait_until(lambda: system.provider.refreshes)
    system.provider.gate = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    gate.set()
    assert (await waiting).tokens.access_token == "access-2"
    assert system.row(integration.integration_id).status(system.clock()) is Status.ACTIVE


async def test_an_integration_deactivated_meanwhile_is_not_refreshed(
    system: FakeSystem, integration: Integration
) -> None:
    await system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(is_active=False)
    )
    with pytest.raises(IntegrationServerError) as caught:
        await system.refresher.refresh(integration)
    assert caught.value.reason == "INTEGRATION_INACTIVE"
    assert not system.provider.refreshes


async def test_a_database_outage_is_not_recorded_as_a_failure(system: FakeSystem, integration: Integration) -> None:
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await system.refresher.refresh(integration)
    system.database.is_unavailable = False
    assert system.row(integration.integration_id) == integration


async def test_logs_report_outcomes_without_secrets(system: FakeSystem, integration: Integration) -> None:
    structlog.reset_defaults()
    with capture_logs() as logs:
        await access_token(system, integration)
        system.clock.advance(FORCED_INTERVAL)
        system.provider.refresh_error = INVALID_GRANT
        with pytest.raises(ReauthorizationRequired):
            await system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert [line["event"] for line in logs] == ["refresh_completed", "refresh_failed"]
    assert logs[1]["oauth_error"] == "invalid_grant"
    for secret in ("access-", "refresh-"):
        assert secret not in str(logs)
