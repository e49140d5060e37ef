"""The conformance tests. docs/adding-a-provider.md describes how to run them for another provider."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from integration_server.domain.credentials import RequestAuth
from integration_server.domain.errors import (
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.integration import Status
from integration_server.domain.revocation import RevocationState
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.service.oauth_clients.oauth_client_directory import require_oauth
from tests.conformance.fake_server import CLIENT_SECRET, OTHER_SECRET, key_auth
from tests.conformance.profile import Profile
from tests.conformance.scenario import Scenario
from tests.fakes.system import ADA, EVE

pytestmark = pytest.mark.asyncio(loop_scope="module")

oauth2 = pytest.mark.conformance("oauth2")
tokens = pytest.mark.conformance("tokens")
EXCHANGE_AGE = timedelta(days=1, minutes=1)  # some providers exchange no younger token


def down() -> Response:
    return JSONResponse({"message": "s3cret"}, 503, {"Retry-After": "7"})


def html() -> Response:
    return HTMLResponse("<p>s3cret: sign in to this network first")


# --- connecting ----------------------------------------------------------------------------------------------------


@tokens
async def test_connects(scenario: Scenario, profile: Profile) -> None:
    integration = await scenario.connect()
    tokens = await scenario.tokens(integration)
    assert scenario.simulated_provider.is_valid(tokens.access_token)
    assert integration.status(scenario.system.clock()) is Status.ACTIVE
    assert (integration.missing_scopes, integration.lacks_required_scope) == ((), False)
    assert set(integration.scopes) >= set(scenario.provider.required_scopes)
    assert (integration.account_id or "") == scenario.expected(profile.account_id)
    assert (integration.account_label or "") == scenario.expected(profile.account_label)
    assert integration.is_renewable == (profile.renewal.kind != "never")


@tokens
async def test_credentials_can_be_put_on_requests(scenario: Scenario, profile: Profile) -> None:
    integration = await scenario.connect()
    tokens = await scenario.tokens(integration)
    auth = await scenario.get_credentials(integration)
    parts = (profile.request, profile.request_query)
    assert auth == RequestAuth(*(scenario.expected(part, access_token=tokens.access_token) for part in parts))
    assert scenario.api_url(tokens) == scenario.expected(profile.api_url, access_token=tokens.access_token)


@oauth2
async def test_an_error_response_is_a_result(scenario: Scenario) -> None:
    scenario.simulated_provider.account_index = None
    outcome = await scenario.run_authorization()
    assert (outcome.success, outcome.reason) == (False, "access_denied")
    (pending_id,) = scenario.system.ids()
    assert not scenario.system.row(pending_id).is_connected  # the user can still allow, until the attempt expires


@oauth2
async def test_an_invalid_code_is_rejected_and_stores_nothing(scenario: Scenario, profile: Profile) -> None:
    with pytest.raises((ProviderError, InvalidField)) as raised:
        await scenario.run_authorization(code="s3cret-forged")
    assert "s3cret" not in str(raised.value)
    assert scenario.system.ids() == []
    assert profile.token is not None


def require_secret(profile: Profile) -> None:
    """Skip a test about the client secret for a public client."""
    if profile.token is not None and profile.token.client == "none":
        pytest.skip("a public client has no secret that could be wrong")


@oauth2
async def test_an_invalid_client_stores_nothing(scenario: Scenario, profile: Profile) -> None:
    require_secret(profile)
    scenario.with_client_secret(OTHER_SECRET)
    with pytest.raises((ProviderError, InvalidField)):
        await scenario.run_authorization()
    assert scenario.system.ids() == []


@pytest.mark.conformance("named accounts")
async def test_each_account_has_one_integration(scenario: Scenario) -> None:
    first = await scenario.connect()
    again = await scenario.connect()
    scenario.simulated_provider.account_index = 1
    other = await scenario.connect()
    assert again.integration_id == first.integration_id
    assert other.integration_id != first.integration_id
    assert other.account_id != first.account_id


ODD_EXPIRY: dict[str, dict[str, object]] = {
    "as text": {"expires_in": "3600"},
    "null": {"expires_in": None, "expires_at": None},
    "in words": {"expires_in": "soon", "expires_at": "tomorrow"},
    "for ever": {"expires_in": 1e300, "expires_at": "9999-12-31T23:59:59Z"},
    "a list": {"expires_in": [3600], "expires_at": [1]},
}


@tokens
@pytest.mark.parametrize("token_overrides", ODD_EXPIRY.values(), ids=ODD_EXPIRY.keys())
async def test_an_unusual_expiry_is_accepted(scenario: Scenario, token_overrides: dict[str, object]) -> None:
    scenario.simulated_provider.token_overrides = token_overrides
    integration = await scenario.connect()
    assert integration.status(scenario.system.clock()) is Status.ACTIVE
    assert await scenario.get_credentials(integration) != RequestAuth()


@pytest.mark.conformance("config")
async def test_a_bad_config_is_reported_by_field(scenario: Scenario, profile: Profile) -> None:
    for field, config in profile.bad_config.items():
        with pytest.raises(InvalidField) as raised:
            scenario.provider.for_config(config)
        assert raised.value.field == field


@pytest.mark.conformance("config")
async def test_metadata_in_the_config_is_kept(scenario: Scenario, profile: Profile) -> None:
    integration = await (scenario.connect() if profile.token else scenario.connect_key())
    config = {**profile.config, "metadata": {"colour": "red", "order": [1, 2]}}
    await scenario.system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(config=config)
    )
    assert scenario.system.row(integration.integration_id).config == config


# --- refreshing -----------------------------------------------------------------------------------------------------


@pytest.mark.conformance("renewable")
async def test_refreshes_repeatedly(scenario: Scenario, profile: Profile) -> None:
    integration = await scenario.connect()
    access_tokens = {(await scenario.tokens(integration)).access_token}
    refresh_token = (await scenario.tokens(integration)).refresh_token
    for _ in range(3):
        await advance_to_refresh(scenario, profile)
        await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        tokens = await scenario.tokens(integration)
        assert scenario.simulated_provider.is_valid(tokens.access_token)
        assert tokens.access_token not in access_tokens
        if profile.renewal.kind == "refresh":
            assert (tokens.refresh_token != refresh_token) == profile.renewal.rotates
        refresh_token = tokens.refresh_token
        access_tokens.add(tokens.access_token)
        row = scenario.system.row(integration.integration_id)
        assert row.account_id == integration.account_id
        assert row.missing_scopes == ()
        assert set(row.scopes) == set(integration.scopes)


@pytest.mark.conformance("refreshable")
@pytest.mark.parametrize("rotates", [True, False], ids=["new", "old"])
async def test_uses_a_new_refresh_token_or_keeps_the_old_one(
    scenario: Scenario, profile: Profile, rotates: bool
) -> None:
    """Both must work: with some providers apps can choose, and others have changed their behaviour."""
    behaviour = scenario.simulated_provider.sandbox.behaviour
    scenario.simulated_provider.sandbox.behaviour = replace(
        behaviour, rotate_refresh_tokens=rotates, refresh_response_has_refresh_token=rotates, refresh_grace=0
    )
    scenario.simulated_provider.reuses_code_response = True
    integration = await scenario.connect()
    refresh_tokens = [(await scenario.tokens(integration)).refresh_token]
    for _ in range(2):
        scenario.expire_access_tokens()
        await scenario.get_credentials(integration)
        refresh_tokens.append((await scenario.tokens(integration)).refresh_token)
    assert len(set(refresh_tokens)) == (3 if rotates else 1)
    assert scenario.simulated_provider.is_valid((await scenario.tokens(integration)).access_token)


async def advance_to_refresh(scenario: Scenario, profile: Profile) -> None:
    """Advance the clock to the expiry of the tokens, or before it if expired tokens cannot be renewed."""
    if profile.renewal.kind == "exchange":
        scenario.system.clock.advance(EXCHANGE_AGE)
    else:
        scenario.expire_access_tokens()


@pytest.mark.conformance("renewable")
async def test_a_repeated_forced_refresh_keeps_the_integration_active(scenario: Scenario) -> None:
    integration = await scenario.connect()
    for _ in range(2):
        await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scenario.simulated_provider.is_valid((await scenario.tokens(integration)).access_token)
    assert scenario.system.row(integration.integration_id).status(scenario.system.clock()) is Status.ACTIVE


@pytest.mark.conformance("refreshable")
async def test_an_expired_token_is_refreshed_before_it_is_returned(scenario: Scenario) -> None:
    integration = await scenario.connect()
    before = await scenario.get_credentials(integration)
    scenario.expire_access_tokens()
    after = await scenario.get_credentials(integration)
    assert after != before
    assert scenario.simulated_provider.is_valid((await scenario.tokens(integration)).access_token)


@pytest.mark.conformance("never expiring")
async def test_a_token_that_does_not_expire_is_returned_unchanged(scenario: Scenario) -> None:
    integration = await scenario.connect()
    before = await scenario.get_credentials(integration)
    scenario.system.clock.advance(timedelta(days=1000))
    assert await scenario.get_credentials(integration) == before
    assert scenario.system.row(integration.integration_id).status(scenario.system.clock()) is Status.ACTIVE


@pytest.mark.conformance("refreshable")
async def test_a_spent_refresh_token_works_for_the_declared_grace(scenario: Scenario, profile: Profile) -> None:
    provider = require_oauth(scenario.provider)
    grace = provider.refresh_token_grace
    if not profile.renewal.rotates:
        assert grace == timedelta(0) or grace == timedelta.max
        return
    integration = await scenario.connect()
    spent = await scenario.tokens(integration)
    await provider.refresh(spent)
    if grace > timedelta(0):
        scenario.system.clock.advance(min(grace, timedelta(days=1)) - timedelta(seconds=1))
        assert (await provider.refresh(spent)).access_token
    else:
        with pytest.raises(ProviderError):
            await provider.refresh(spent)


@pytest.mark.conformance("grants")
async def test_a_revoked_grant_ends_the_integration(scenario: Scenario, profile: Profile) -> None:
    integration = await scenario.connect()
    scenario.simulated_provider.revoke_all_grants()
    await advance_to_refresh(scenario, profile)
    is_proof = profile.token is None or profile.token.invalid_client != profile.token.invalid_grant
    with pytest.raises(ReauthorizationRequired if is_proof else ProviderUnavailable):
        await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    status = scenario.system.row(integration.integration_id).status(scenario.system.clock())
    assert status is (Status.EXPIRED if is_proof else Status.ERROR)


@pytest.mark.conformance("renewable")
@pytest.mark.parametrize("response", [down, html])
async def test_a_refresh_is_retried_after_an_outage(
    scenario: Scenario, profile: Profile, response: Callable[[], Response]
) -> None:
    integration = await scenario.connect()
    await advance_to_refresh(scenario, profile)
    scenario.simulated_provider.fault = response()
    error = await scenario.refresh_error(integration)
    assert isinstance(error, ProviderUnavailable)
    assert "s3cret" not in str(error)
    if response is down:
        assert error.retry_after == timedelta(seconds=7)
    scenario.simulated_provider.fault = None
    scenario.system.clock.advance(timedelta(seconds=30))
    await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scenario.simulated_provider.is_valid((await scenario.tokens(integration)).access_token)


@pytest.mark.conformance("grants")
async def test_an_invalid_client_at_a_refresh_does_not_end_the_grant(scenario: Scenario, profile: Profile) -> None:
    if profile.renewal.kind == "exchange" and not all(exchange.needs_client for exchange in profile.exchange):
        pytest.skip("its renewal does not authenticate the client")
    require_secret(profile)
    integration = await scenario.connect()
    await advance_to_refresh(scenario, profile)
    scenario.with_client_secret(OTHER_SECRET)
    error = await scenario.refresh_error(integration)
    is_distinguishable = profile.token is not None and profile.token.invalid_client != profile.token.invalid_grant
    assert isinstance(error, ProviderMisconfigured if is_distinguishable else ProviderUnavailable)
    scenario.with_client_secret(CLIENT_SECRET)
    scenario.system.clock.advance(timedelta(minutes=10))
    await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scenario.simulated_provider.is_valid((await scenario.tokens(integration)).access_token)


@pytest.mark.conformance("own secrets")
async def test_refused_secrets_end_the_integration(scenario: Scenario) -> None:
    integration = await scenario.connect()
    scenario.expire_access_tokens()
    scenario.simulated_provider.are_secrets_changed = True
    with pytest.raises(ReauthorizationRequired):
        await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scenario.system.row(integration.integration_id).status(scenario.system.clock()) is Status.EXPIRED


@pytest.mark.conformance("our secrets")
async def test_a_refusal_of_our_client_ends_no_integration(scenario: Scenario) -> None:
    integration = await scenario.connect()
    scenario.expire_access_tokens()
    scenario.simulated_provider.are_secrets_changed = True
    with pytest.raises(ProviderMisconfigured):
        await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    scenario.simulated_provider.are_secrets_changed = False
    scenario.system.clock.advance(timedelta(minutes=10))
    await scenario.get_credentials(integration)
    assert scenario.system.row(integration.integration_id).status(scenario.system.clock()) is Status.ACTIVE


@pytest.mark.conformance("own secrets")
async def test_wrong_secrets_are_rejected_and_not_stored(scenario: Scenario) -> None:
    scenario.simulated_provider.are_secrets_changed = True
    with pytest.raises(ProviderRejected):
        await scenario.connect()
    assert scenario.system.ids() == []


@pytest.mark.conformance("logins")
async def test_each_refusal_of_a_login_ends_the_integration(scenario: Scenario, profile: Profile) -> None:
    for rejection in profile.login[0].rejections:
        integration = await scenario.connect()
        scenario.expire_access_tokens()
        scenario.simulated_provider.fault = JSONResponse(dict(rejection.body), rejection.status)
        with pytest.raises(ReauthorizationRequired):
            await scenario.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        assert scenario.system.row(integration.integration_id).status(scenario.system.clock()) is Status.EXPIRED
        scenario.simulated_provider.fault = None


@pytest.mark.conformance("waits")
async def test_a_response_that_asks_to_wait_decides_nothing(scenario: Scenario, profile: Profile) -> None:
    for wait in profile.waits:
        scenario.simulated_provider.fault = JSONResponse(dict(wait.body), wait.status)
        with pytest.raises(ProviderUnavailable):
            await scenario.connect()
        assert scenario.system.ids() == []


# --- verifying -----------------------------------------------------------------------------------------------------


@tokens
async def test_a_health_check_reports_the_state_at_the_provider(scenario: Scenario, profile: Profile) -> None:
    integration = await scenario.connect()
    assert (await scenario.system.health_checker.check_health(integration.integration_id, ADA)).healthy
    if profile.verify is None:
        return  # without a verification request a check only compares the expiry
    # "2xx is valid" includes any content, unless the account or a field is read from it.
    for response in (down(), html()) if profile.verify.is_read else (down(),):
        scenario.simulated_provider.fault = response
        check = await scenario.system.health_checker.check_health(integration.integration_id, ADA)
        assert (check.healthy, check.error_class) == (False, ProviderUnavailable.reason)
        assert "s3cret" not in check.message
    scenario.simulated_provider.fault = None
    scenario.simulated_provider.revoke_all_grants()
    scenario.system.clock.advance(timedelta(seconds=10))  # a caller gets three checks in a row
    check = await scenario.system.health_checker.check_health(integration.integration_id, ADA)
    if profile.renewal.kind == "secrets":
        assert check.healthy  # the secrets have obtained another token
        return
    assert not check.healthy
    # A rejected access token is refreshed first, where there is a refresh token.
    assert check.error_class in {ProviderRejected.reason, ReauthorizationRequired.reason}


# --- revoking ------------------------------------------------------------------------------------------------------


@tokens
@pytest.mark.parametrize("when", ["before expiry", "after expiry"])
async def test_a_disconnect_ends_the_grant(scenario: Scenario, profile: Profile, when: str) -> None:
    integration = await scenario.connect()
    tokens = await scenario.tokens(integration)
    if when != "before expiry" and profile.renewal.kind == "refresh":
        scenario.expire_access_tokens()
    state = await scenario.system.revocation_service.disconnect_integration(integration.integration_id, ADA)
    if profile.revoke is None:
        assert state is RevocationState.NOT_SUPPORTED
        return
    assert state is RevocationState.REVOKED
    assert not any(
        scenario.simulated_provider.sandbox.grants_of(account.sub) for account in scenario.simulated_provider.accounts
    )
    assert not scenario.simulated_provider.is_valid(tokens.access_token)


@pytest.mark.conformance("revocable")
async def test_a_disconnect_keeps_the_integrations_of_other_users(scenario: Scenario) -> None:
    adas, eves = await scenario.connect(), await scenario.connect(EVE)
    tokens = await scenario.tokens(eves)
    disconnect = scenario.system.revocation_service.disconnect_integration
    await disconnect(adas.integration_id, ADA)
    assert scenario.simulated_provider.is_valid(tokens.access_token)
    assert await disconnect(eves.integration_id, EVE) is RevocationState.REVOKED
    assert not any(
        scenario.simulated_provider.sandbox.grants_of(account.sub) for account in scenario.simulated_provider.accounts
    )


@pytest.mark.conformance("revocable")
async def test_a_failed_revocation_is_retried(scenario: Scenario) -> None:
    integration = await scenario.connect()
    tokens = await scenario.tokens(integration)
    scenario.simulated_provider.fault = down()
    state = await scenario.system.revocation_service.disconnect_integration(integration.integration_id, ADA)
    assert (state, scenario.simulated_provider.is_valid(tokens.access_token)) == (RevocationState.PENDING, True)
    scenario.simulated_provider.fault = None
    scenario.system.clock.advance(timedelta(minutes=5))
    await scenario.system.worker.poll()
    async with asyncio.timeout(60):
        while scenario.simulated_provider.is_valid(tokens.access_token):  # noqa: ASYNC110  # the state is that of another server
            await asyncio.sleep(0.01)


@pytest.mark.conformance("revocable")
async def test_an_already_invalid_grant_counts_as_revoked(scenario: Scenario) -> None:
    integration = await scenario.connect()
    scenario.simulated_provider.revoke_all_grants()
    state = await scenario.system.revocation_service.disconnect_integration(integration.integration_id, ADA)
    assert state is RevocationState.REVOKED


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.conformance("key")
async def test_a_key_is_stored_and_returned(scenario: Scenario, profile: Profile) -> None:
    integration = await scenario.connect_key()
    assert integration.status(scenario.system.clock()) is Status.ACTIVE
    assert (integration.account_id or "") == scenario.expected(profile.account_id)
    assert (integration.account_label or "") == scenario.expected(profile.account_label)
    key = profile.key
    assert key is not None
    assert await scenario.get_credentials(integration) == key_auth(key)
    assert scenario.api_url(await scenario.credentials(integration)) == profile.api_url
    state = await scenario.system.revocation_service.disconnect_integration(integration.integration_id, ADA)
    assert state is RevocationState.NOT_SUPPORTED


@pytest.mark.conformance("verified key")
async def test_a_wrong_key_is_rejected_and_not_stored(scenario: Scenario, profile: Profile) -> None:
    key = profile.key
    assert key is not None
    wrong: dict[str, Any] = {"api_secret": "another"} if key.api_secret else {"api_key": key.api_key + "x"}
    with pytest.raises(ProviderRejected):
        await scenario.connect_key(**wrong)
    assert scenario.system.ids() == []


@pytest.mark.conformance("verified key")
async def test_an_outage_does_not_decide_about_a_key(scenario: Scenario) -> None:
    scenario.simulated_provider.fault = down()
    with pytest.raises(ProviderUnavailable) as raised:
        await scenario.connect_key()
    assert raised.value.retry_after == timedelta(seconds=7)
    assert scenario.system.ids() == []


# --- negative controls: the simulated provider can reject a request ---------------------------------------


@oauth2
async def test_negative_control_another_client_authentication_is_rejected(scenario: Scenario, profile: Profile) -> None:
    assert profile.token is not None
    other = "client_secret_basic" if profile.token.client == "post" else "client_secret_post"
    scenario.use_provider(scenario.provider.with_attributes(token_auth=other))
    with pytest.raises(ProviderError):
        await scenario.run_authorization()
    assert len(scenario.simulated_provider.violations) == 1
    scenario.expected_violations = scenario.simulated_provider.violations


@pytest.mark.conformance("several scopes")
async def test_negative_control_another_scope_separator_is_rejected(scenario: Scenario, profile: Profile) -> None:
    assert profile.authorize is not None
    if len(scenario.provider.required_scopes) < 2:
        pytest.skip("requests one scope only")
    other = " " if profile.authorize.scope_separator == "," else ","
    scenario.use_provider(scenario.provider.with_attributes(scope_separator=other))
    with pytest.raises(AssertionError, match="scopes that are not known"):
        await scenario.run_authorization()
    scenario.expected_violations = scenario.simulated_provider.violations


@pytest.mark.conformance("required parameters")
async def test_negative_control_a_missing_parameter_is_rejected(scenario: Scenario, profile: Profile) -> None:
    configured_provider = scenario.provider.for_config(profile.config)
    url = require_oauth(configured_provider.with_attributes(authorize_params={})).authorization_url(
        redirect_uri="https://hooks.example/x",
        state="s",
        scopes=configured_provider.required_scopes,
        code_challenge="c" * 43,
    )
    assert (await scenario.request_authorization_page(url)).status_code == 400
    scenario.expected_violations = scenario.simulated_provider.violations


@pytest.mark.conformance("any")
async def test_an_invalid_config_of_a_connected_integration_is_rejected(scenario: Scenario, profile: Profile) -> None:
    integration = await (scenario.connect() if profile.token else scenario.connect_key())
    for field, config in profile.bad_config.items():
        with pytest.raises(InvalidField) as raised:
            await scenario.system.integration_manager.update_integration(
                integration.integration_id, ADA, IntegrationUpdate(config=config)
            )
        assert raised.value.field == field
    assert scenario.system.row(integration.integration_id).config == dict(profile.config)
