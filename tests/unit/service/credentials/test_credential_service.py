import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import (
    CredentialsUnreadable,
    IntegrationInactive,
    IntegrationNotFound,
    IntegrationPending,
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.credentials.credential_service import TokenState, UsableCredentials
from integration_server.service.integrations.integration_manager import IntegrationUpdate
from tests.fakes.provider import HOUR, until
from tests.fakes.system import ADA, EVE, FakeSystem

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """One whose token is good for an hour."""
    return await system.connect()


async def get(
    system: FakeSystem,
    integration_id: int,
    min_ttl: timedelta | None = None,
    scopes: Sequence[str] = (),
    user_id: UserId = ADA,
) -> UsableCredentials:
    return await system.credentials.get_credentials(IntegrationId(integration_id), user_id, min_ttl, scopes)


async def access_token(system: FakeSystem, integration_id: int, min_ttl: timedelta | None = None) -> str:
    get_usable = await get(system, integration_id, min_ttl)
    assert isinstance(get_usable.credentials, OAuthTokens)
    return get_usable.credentials.access_token


# --- what is handed out --------------------------------------------------------------------------------------------


async def test_hands_out_what_to_put_on_a_request(system: FakeSystem, integration: Integration) -> None:
    get_usable = await get(system, integration.integration_id)
    assert get_usable.credentials == await system.tokens(integration.integration_id)
    assert get_usable.scopes == ("read",)
    assert get_usable.request_auth.headers == {"Authorization": "Bearer access-1"}
    assert "access-1" not in repr(get_usable)


async def test_hands_out_a_key(system: FakeSystem) -> None:
    row = await system.connect_key(api_key="key-1")
    get_usable = await get(system, row.integration_id, timedelta(days=365))
    assert get_usable.credentials == ApiKey("key-1")
    assert get_usable.request_auth.query_params == {"key": "key-1"}
    assert not system.key_provider.refreshes


async def test_scopes_that_were_not_granted_are_reported_without_a_call(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    with pytest.raises(ScopeMissing, match="write admin"):
        await get(system, integration.integration_id, scopes=["read", "write", "admin"])
    assert not system.provider.refreshes


async def test_scopes_that_were_granted_are_no_hindrance(system: FakeSystem) -> None:
    system.provider.granted = ("read",)
    row = await system.connect(scopes=("offline_access",))
    assert set((await get(system, row.integration_id, scopes=["offline_access", "read"])).scopes) == {
        "offline_access",
        "read",
    }


async def test_a_scope_that_the_refresh_lost_is_missed_at_once(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    system.provider.granted = ("profile",)
    with pytest.raises(ScopeMissing, match="read"):
        await get(system, integration.integration_id, scopes=["read"])
    assert (await get(system, integration.integration_id)).scopes == ("profile",)


# --- how fresh -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "age", "min_ttl", "is_refreshed"),
    [
        # the buffer: five minutes
        (60 * MINUTE, 55 * MINUTE, None, False),
        (60 * MINUTE, 55 * MINUTE + timedelta.resolution, None, True),
        # or half of the token's life
        (4 * MINUTE, 2 * MINUTE, None, False),
        (4 * MINUTE, 2 * MINUTE + timedelta.resolution, None, True),
        # an explicit one is neither capped nor raised
        (60 * MINUTE, 30 * MINUTE, 30 * MINUTE, False),
        (60 * MINUTE, 31 * MINUTE, 30 * MINUTE, True),
        (4 * MINUTE, timedelta(0), 30 * MINUTE, True),
        (60 * MINUTE, 59 * MINUTE, timedelta(0), False),
        (60 * MINUTE, 60 * MINUTE, timedelta(0), True),
    ],
)
async def test_refreshes_only_where_it_must(
    system: FakeSystem, lifetime: timedelta, age: timedelta, min_ttl: timedelta | None, is_refreshed: bool
) -> None:
    system.provider.lifetime = lifetime
    integration = await system.connect()
    system.clock.advance(age)
    token = await access_token(system, integration.integration_id, min_ttl)
    assert token == ("renewed-access-1" if is_refreshed else "access-1")


async def test_a_token_that_never_ends_is_never_refreshed(system: FakeSystem) -> None:
    system.provider.lifetime = None
    integration = await system.connect()
    system.clock.advance(timedelta(days=3650))
    assert await access_token(system, integration.integration_id, timedelta(days=365)) == "access-1"


async def test_a_refreshed_token_is_taken_however_short_its_life(system: FakeSystem, integration: Integration) -> None:
    system.provider.lifetime = timedelta(seconds=1)
    assert await access_token(system, integration.integration_id, 2 * HOUR) == "renewed-access-1"


@pytest.mark.parametrize(
    "error", [ProviderUnavailable(), ProviderRejected("grant", oauth_error="invalid_request"), ProviderMisconfigured()]
)
async def test_a_valid_token_is_served_while_its_refresh_fails_and_an_expired_one_is_not(
    system: FakeSystem, integration: Integration, error: Exception
) -> None:
    system.provider.refresh_error = error
    system.clock.advance(HOUR - timedelta.resolution)
    assert await access_token(system, integration.integration_id) == "access-1"
    system.clock.advance(timedelta.resolution)
    with pytest.raises(type(error)):
        await get(system, integration.integration_id)


async def test_a_valid_token_is_served_while_the_type_is_not_configured(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.missing_settings = ["FAKE_CLIENT_SECRET"]
    system.clock.advance(HOUR - MINUTE)
    assert await access_token(system, integration.integration_id) == "access-1"
    system.clock.advance(MINUTE)
    with pytest.raises(ProviderNotConfigured):
        await get(system, integration.integration_id)
    assert not system.provider.refreshes


async def test_a_token_that_expires_while_its_refresh_fails_is_not_served(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR - MINUTE)
    system.provider.gate = asyncio.Event()
    system.provider.refresh_error = ProviderUnavailable()
    waiting = asyncio.create_task(get(system, integration.integration_id))
    await until(lambda: system.provider.refreshes)
    system.clock.advance(MINUTE)
    system.provider.gate.set()
    with pytest.raises(ProviderUnavailable):
        await waiting


async def test_a_token_that_cannot_be_renewed_is_served_to_its_end(system: FakeSystem) -> None:
    system.provider.gives_refresh_token = False
    integration = await system.connect()
    system.clock.advance(HOUR - timedelta.resolution)
    assert await access_token(system, integration.integration_id) == "access-1"
    system.clock.advance(timedelta.resolution)
    with pytest.raises(ReauthorizationRequired):
        await get(system, integration.integration_id)


# --- what stands in the way ----------------------------------------------------------------------------------------


async def test_somebody_elses_is_as_absent_as_what_never_was(system: FakeSystem, integration: Integration) -> None:
    for integration_id, user_id in ((integration.integration_id, EVE), (999, ADA)):
        with pytest.raises(IntegrationNotFound):
            await get(system, integration_id, user_id=user_id)
        with pytest.raises(IntegrationNotFound):
            await system.credentials.refresh_token(IntegrationId(integration_id), user_id, force=True)
    assert not system.provider.refreshes


async def test_pending_inactive_and_expired_integrations_give_no_credentials(
    system: FakeSystem, integration: Integration
) -> None:
    pending = await system.begin()
    with pytest.raises(IntegrationPending):
        await get(system, pending.integration_id)

    await system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(is_active=False)
    )
    with pytest.raises(IntegrationInactive):
        await get(system, integration.integration_id)

    system.set_columns(integration.integration_id, is_active=True, reauthorization_required=True)
    with pytest.raises(ReauthorizationRequired):
        await get(system, integration.integration_id)


async def test_corrupt_credentials_do_not_decrypt_and_the_others_still_serve(
    system: FakeSystem, integration: Integration
) -> None:
    other = await system.connect_account("other")
    system.corrupt(integration.integration_id)
    with pytest.raises(CredentialsUnreadable):
        await get(system, integration.integration_id)
    assert await access_token(system, other.integration_id) == "access-2"


async def test_an_outage_is_reported(system: FakeSystem, integration: Integration) -> None:
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await get(system, integration.integration_id)


# --- RefreshToken --------------------------------------------------------------------------------------------------


async def refresh(system: FakeSystem, integration_id: int, *, force: bool = False) -> TokenState:
    return await system.credentials.refresh_token(IntegrationId(integration_id), ADA, force=force)


async def test_a_good_token_is_left_alone_unless_forced(system: FakeSystem, integration: Integration) -> None:
    end = system.clock() + HOUR
    assert await refresh(system, integration.integration_id) == TokenState(refreshed=False, expire_time=end)
    system.clock.advance(MINUTE)
    forced = await refresh(system, integration.integration_id, force=True)
    assert forced == TokenState(refreshed=True, expire_time=end + MINUTE)
    assert await access_token(system, integration.integration_id) == "renewed-access-1"


async def test_a_token_near_its_end_is_refreshed(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(56 * MINUTE)
    assert (await refresh(system, integration.integration_id)).refreshed


@pytest.mark.parametrize(
    "error", [ProviderUnavailable(), ProviderRejected("grant"), ProviderMisconfigured()], ids=lambda error: error.reason
)
async def test_who_asks_for_a_refresh_hears_that_it_failed(
    system: FakeSystem, integration: Integration, error: IntegrationServerError
) -> None:
    system.provider.refresh_error = error
    with pytest.raises(type(error)):
        await refresh(system, integration.integration_id, force=True)


async def test_a_token_that_cannot_be_renewed_asks_for_the_user(system: FakeSystem) -> None:
    system.provider.gives_refresh_token = False
    integration = await system.connect()
    assert not (await refresh(system, integration.integration_id)).refreshed
    with pytest.raises(ReauthorizationRequired):
        await refresh(system, integration.integration_id, force=True)


async def test_a_key_has_nothing_to_refresh(system: FakeSystem) -> None:
    row = await system.connect_key()
    nothing = TokenState(refreshed=False, expire_time=None)
    assert await refresh(system, row.integration_id, force=True) == nothing
