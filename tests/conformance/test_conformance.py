"""What every provider has to show, whatever its ways. docs/adding-a-provider.md says how to run it for another one."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from integration_server.domain.credentials import ApiKey, RequestAuth
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
from integration_server.service.managing import Change
from tests.conformance.profile import Profile
from tests.conformance.scene import Scene
from tests.conformance.stage import CLIENT_SECRET, auth_of
from tests.fakes.system import ADA

pytestmark = pytest.mark.asyncio(loop_scope="module")

oauth2 = pytest.mark.conformance("oauth2")
SOON = timedelta(days=1, minutes=1)  # some exchange no younger token


def down() -> Response:
    return JSONResponse({"message": "s3cret"}, 503, {"Retry-After": "7"})


def html() -> Response:
    return HTMLResponse("<p>s3cret: sign in to this network first")


# --- connecting ----------------------------------------------------------------------------------------------------


@oauth2
async def test_connects(scene: Scene, profile: Profile) -> None:
    integration = await scene.connect()
    tokens = await scene.tokens(integration)
    assert scene.play.is_alive(tokens.access_token)
    assert integration.status(scene.system.clock()) is Status.ACTIVE
    assert (integration.missing_scopes, integration.lacks_required_scope) == ((), False)
    assert set(integration.scopes) >= set(scene.provider.required_scopes)
    assert (integration.account_id or "") == scene.expected(profile.account_id)
    assert (integration.account_label or "") == scene.expected(profile.account_label)
    assert integration.is_renewable == (profile.renewal.how != "never")


@oauth2
async def test_credentials_are_ready_to_use(scene: Scene, profile: Profile) -> None:
    integration = await scene.connect()
    tokens = await scene.tokens(integration)
    auth = await scene.get_credentials(integration)
    assert auth == RequestAuth(scene.expected(profile.request, access_token=tokens.access_token))
    assert scene.provider.api_url(tokens) == scene.expected(profile.api_url)


@oauth2
async def test_a_refusal_is_an_answer(scene: Scene) -> None:
    scene.play.person = None
    outcome = await scene.go_through()
    assert (outcome.success, outcome.reason) == (False, "access_denied")
    assert scene.system.ids() == []


@oauth2
async def test_a_code_that_is_none_is_refused_and_leaves_nothing(scene: Scene, profile: Profile) -> None:
    with pytest.raises((ProviderError, InvalidField)) as raised:
        await scene.go_through(code="s3cret-forged")
    assert "s3cret" not in str(raised.value)
    assert scene.system.ids() == []
    assert profile.token is not None


def require_secret(profile: Profile) -> None:
    """Leave out what is about a client's secret where it has none."""
    if profile.token is not None and profile.token.client == "none":
        pytest.skip("a public client has no secret that could be wrong")


@oauth2
async def test_our_own_client_refused_is_nobodys_fault_and_leaves_nothing(scene: Scene, profile: Profile) -> None:
    require_secret(profile)
    scene.with_client_secret("another-secret")
    with pytest.raises((ProviderError, InvalidField)):
        await scene.go_through()
    assert scene.system.ids() == []


@pytest.mark.conformance("named accounts")
async def test_an_account_connected_twice_is_one_and_another_is_another(scene: Scene) -> None:
    first = await scene.connect()
    again = await scene.connect()
    scene.play.person = 1
    other = await scene.connect()
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


@oauth2
@pytest.mark.parametrize("odd", ODD_EXPIRY.values(), ids=ODD_EXPIRY.keys())
async def test_an_odd_expiry_loses_nothing(scene: Scene, odd: dict[str, object]) -> None:
    scene.play.odd = odd
    integration = await scene.connect()
    assert integration.status(scene.system.clock()) is Status.ACTIVE
    assert await scene.get_credentials(integration) != RequestAuth()


@pytest.mark.conformance("config")
async def test_a_bad_config_is_told_by_field(scene: Scene, profile: Profile) -> None:
    for field, config in profile.bad_config.items():
        with pytest.raises(InvalidField) as raised:
            scene.provider.at(config)
        assert raised.value.field == field


@pytest.mark.conformance("config")
async def test_a_caller_keeps_settings_of_its_own(scene: Scene, profile: Profile) -> None:
    scene.provider.at({**profile.config, "metadata": {"colour": "red", "order": [1, 2]}})


# --- keeping --------------------------------------------------------------------------------------------------------


@pytest.mark.conformance("renewed")
async def test_renews_again_and_again(scene: Scene, profile: Profile) -> None:
    integration = await scene.connect()
    seen = {(await scene.tokens(integration)).access_token}
    refresh_token = (await scene.tokens(integration)).refresh_token
    for _ in range(3):
        await age(scene, profile)
        await scene.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        tokens = await scene.tokens(integration)
        assert scene.play.is_alive(tokens.access_token)
        assert tokens.access_token not in seen
        if profile.renewal.how == "refresh":
            assert (tokens.refresh_token != refresh_token) == profile.renewal.rotates
        refresh_token = tokens.refresh_token
        seen.add(tokens.access_token)
        row = scene.system.row(integration.integration_id)
        assert row.account_id == integration.account_id
        assert row.missing_scopes == ()
        assert set(row.scopes) == set(integration.scopes)


@pytest.mark.conformance("refreshed")
@pytest.mark.parametrize("rotates", [True, False])
async def test_takes_a_new_refresh_token_or_keeps_the_old_one(scene: Scene, profile: Profile, rotates: bool) -> None:
    """Whichever the provider does today: apps can choose with some, and others have changed their ways."""
    behaviour = scene.play.sandbox.behaviour
    scene.play.sandbox.behaviour = replace(
        behaviour, rotate_refresh_tokens=rotates, refresh_answer_has_refresh_token=rotates, refresh_grace=0
    )
    scene.play.always_answers_as_first = True
    integration = await scene.connect()
    refresh_tokens = [(await scene.tokens(integration)).refresh_token]
    for _ in range(2):
        scene.pass_a_life()
        await scene.get_credentials(integration)
        refresh_tokens.append((await scene.tokens(integration)).refresh_token)
    assert len(set(refresh_tokens)) == (3 if rotates else 1)
    assert scene.play.is_alive((await scene.tokens(integration)).access_token)


async def age(scene: Scene, profile: Profile) -> None:
    """Let tokens grow old: to their end, where they can be renewed then."""
    if profile.renewal.how == "refresh":
        scene.pass_a_life()
    else:
        scene.system.clock.advance(SOON)


@pytest.mark.conformance("renewed")
async def test_renewing_at_once_does_no_harm(scene: Scene) -> None:
    integration = await scene.connect()
    for _ in range(2):
        await scene.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scene.play.is_alive((await scene.tokens(integration)).access_token)
    assert scene.system.row(integration.integration_id).status(scene.system.clock()) is Status.ACTIVE


@pytest.mark.conformance("refreshed")
async def test_an_expired_token_is_renewed_before_it_is_given(scene: Scene) -> None:
    integration = await scene.connect()
    before = await scene.get_credentials(integration)
    scene.pass_a_life()
    after = await scene.get_credentials(integration)
    assert after != before
    assert scene.play.is_alive((await scene.tokens(integration)).access_token)


@pytest.mark.conformance("lasting")
async def test_a_token_that_does_not_expire_is_given_for_ever(scene: Scene) -> None:
    integration = await scene.connect()
    before = await scene.get_credentials(integration)
    scene.system.clock.advance(timedelta(days=1000))
    assert await scene.get_credentials(integration) == before
    assert scene.system.row(integration.integration_id).status(scene.system.clock()) is Status.ACTIVE


@pytest.mark.conformance("refreshed")
async def test_a_spent_refresh_token_works_as_long_as_is_declared(scene: Scene, profile: Profile) -> None:
    grace = scene.provider.refresh_token_grace
    if not profile.renewal.rotates:
        assert grace == timedelta(0) or grace == timedelta.max
        return
    integration = await scene.connect()
    spent = await scene.tokens(integration)
    await scene.provider.renew(spent)
    if grace > timedelta(0):
        scene.system.clock.advance(min(grace, timedelta(days=1)) - timedelta(seconds=1))
        assert (await scene.provider.renew(spent)).access_token
    else:
        with pytest.raises(ProviderError):
            await scene.provider.renew(spent)


@pytest.mark.conformance("renewed")
async def test_a_grant_taken_back_ends_the_integration(scene: Scene, profile: Profile) -> None:
    integration = await scene.connect()
    scene.play.withdraw()
    await age(scene, profile)
    error: Exception | None = None
    for _ in range(10):  # a provider without error codes has to say it many times
        scene.system.clock.advance(timedelta(minutes=10))
        with pytest.raises((ProviderError, ReauthorizationRequired)) as raised:
            await scene.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
        error = raised.value
        if isinstance(error, ReauthorizationRequired):
            break
    assert isinstance(error, ReauthorizationRequired)
    assert scene.system.row(integration.integration_id).status(scene.system.clock()) is Status.EXPIRED


@pytest.mark.conformance("renewed")
@pytest.mark.parametrize("answer", [down, html])
async def test_a_refresh_that_meets_an_outage_is_tried_again(
    scene: Scene, profile: Profile, answer: Callable[[], Response]
) -> None:
    integration = await scene.connect()
    await age(scene, profile)
    scene.play.fault = answer()
    error = await scene.failure_of(integration)
    assert isinstance(error, ProviderUnavailable)
    assert "s3cret" not in str(error)
    if answer is down:
        assert error.retry_after == timedelta(seconds=7)
    scene.play.fault = None
    scene.system.clock.advance(timedelta(seconds=10))
    await scene.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scene.play.is_alive((await scene.tokens(integration)).access_token)


@pytest.mark.conformance("renewed")
async def test_our_client_refused_at_a_refresh_leaves_the_grant_alone(scene: Scene, profile: Profile) -> None:
    if profile.renewal.how == "exchange" and not all(exchange.needs_client for exchange in profile.exchange):
        pytest.skip("renews without our client")
    require_secret(profile)
    integration = await scene.connect()
    await age(scene, profile)
    scene.with_client_secret("another-secret")
    error = await scene.failure_of(integration)
    told_apart = profile.token is not None and profile.token.invalid_client != profile.token.invalid_grant
    assert isinstance(error, ProviderMisconfigured if told_apart else ProviderUnavailable)
    scene.with_client_secret(CLIENT_SECRET)
    scene.system.clock.advance(timedelta(minutes=10))
    await scene.system.credentials.refresh_token(integration.integration_id, ADA, force=True)
    assert scene.play.is_alive((await scene.tokens(integration)).access_token)


# --- verifying -----------------------------------------------------------------------------------------------------


@oauth2
async def test_a_check_follows_the_provider(scene: Scene, profile: Profile) -> None:
    integration = await scene.connect()
    assert (await scene.system.monitoring.check_health(integration.integration_id, ADA)).healthy
    if profile.verify is None:
        return  # there is nothing to ask: what a check can tell is whether there is a token that has not expired
    for answer in (down(), html()):
        scene.play.fault = answer
        check = await scene.system.monitoring.check_health(integration.integration_id, ADA)
        assert (check.healthy, check.error_class) == (False, ProviderUnavailable.reason)
        assert "s3cret" not in check.message
    scene.play.fault = None
    scene.play.withdraw()
    check = await scene.system.monitoring.check_health(integration.integration_id, ADA)
    assert (check.healthy, check.error_class) == (False, ProviderRejected.reason)


# --- revoking ------------------------------------------------------------------------------------------------------


@oauth2
@pytest.mark.parametrize("when", ["at once", "after the token's life"])
async def test_a_disconnection_ends_the_grant(scene: Scene, profile: Profile, when: str) -> None:
    integration = await scene.connect()
    tokens = await scene.tokens(integration)
    if when != "at once" and profile.renewal.how == "refresh":
        scene.pass_a_life()
    state = await scene.system.revoking.disconnect_integration(integration.integration_id, ADA)
    if profile.revoke is None:
        assert state is RevocationState.NOT_SUPPORTED
        return
    assert state is RevocationState.REVOKED
    assert not any(scene.play.sandbox.grants_of(account.sub) for account in scene.play.accounts)
    assert not scene.play.is_alive(tokens.access_token)


@pytest.mark.conformance("revoked")
async def test_a_revocation_that_fails_is_tried_again(scene: Scene) -> None:
    integration = await scene.connect()
    tokens = await scene.tokens(integration)
    scene.play.fault = down()
    state = await scene.system.revoking.disconnect_integration(integration.integration_id, ADA)
    assert (state, scene.play.is_alive(tokens.access_token)) == (RevocationState.PENDING, True)
    scene.play.fault = None
    scene.system.clock.advance(timedelta(minutes=5))
    await scene.system.revoking.revoke_due()
    async with asyncio.timeout(10):
        while scene.play.is_alive(tokens.access_token):  # noqa: ASYNC110  # it is another server's state
            await asyncio.sleep(0.01)


@pytest.mark.conformance("revoked")
async def test_what_is_dead_already_counts_as_revoked(scene: Scene) -> None:
    integration = await scene.connect()
    scene.play.withdraw()
    state = await scene.system.revoking.disconnect_integration(integration.integration_id, ADA)
    assert state is RevocationState.REVOKED


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.conformance("key")
async def test_a_key_is_kept_and_given(scene: Scene, profile: Profile) -> None:
    integration = await scene.connect_key()
    assert integration.status(scene.system.clock()) is Status.ACTIVE
    assert (integration.account_id or "") == scene.expected(profile.account_id)
    assert (integration.account_label or "") == scene.expected(profile.account_label)
    key = profile.key
    assert key is not None
    assert await scene.get_credentials(integration) == auth_of(key)
    assert scene.provider.api_url(ApiKey(key.api_key, key.api_secret)) == profile.api_url
    state = await scene.system.revoking.disconnect_integration(integration.integration_id, ADA)
    assert state is RevocationState.NOT_SUPPORTED


@pytest.mark.conformance("verified key")
async def test_a_wrong_key_is_refused_and_leaves_nothing(scene: Scene, profile: Profile) -> None:
    key = profile.key
    assert key is not None
    wrong: dict[str, Any] = {"api_secret": "another"} if key.api_secret else {"api_key": key.api_key + "x"}
    with pytest.raises(ProviderRejected):
        await scene.connect_key(**wrong)
    assert scene.system.ids() == []


@pytest.mark.conformance("verified key")
async def test_a_key_is_not_judged_in_an_outage(scene: Scene) -> None:
    scene.play.fault = down()
    with pytest.raises(ProviderUnavailable) as raised:
        await scene.connect_key()
    assert raised.value.retry_after == timedelta(seconds=7)
    assert scene.system.ids() == []


# --- the stage can refuse: without this, all of the above would prove little ---------------------------------------


@oauth2
async def test_the_stage_refuses_another_client_authentication(scene: Scene, profile: Profile) -> None:
    assert profile.token is not None
    other = "client_secret_basic" if profile.token.client == "post" else "client_secret_post"
    scene.use(scene.provider.with_attributes(token_auth=other))
    with pytest.raises(ProviderError):
        await scene.go_through()
    assert len(scene.play.complaints) == 1
    scene.expected_complaints = scene.play.complaints


@pytest.mark.conformance("several scopes")
async def test_the_stage_refuses_another_separator_of_scopes(scene: Scene, profile: Profile) -> None:
    assert profile.authorize is not None
    if len(scene.provider.required_scopes) < 2:
        pytest.skip("asks for one scope only")
    other = " " if profile.authorize.scope_separator == "," else ","
    scene.use(scene.provider.with_attributes(scope_separator=other))
    with pytest.raises(AssertionError, match="scopes that are not known"):
        await scene.go_through()
    scene.expected_complaints = scene.play.complaints


@pytest.mark.conformance("particular")
async def test_the_stage_refuses_what_lacks_a_parameter(scene: Scene, profile: Profile) -> None:
    located = scene.provider.at(profile.config)
    url = located.with_attributes(authorize_params={}).authorization_url(
        redirect_uri="https://hooks.example/x", state="s", scopes=located.required_scopes, code_challenge="c" * 43
    )
    assert (await scene.play_page(url)).status_code == 400
    scene.expected_complaints = scene.play.complaints


@pytest.mark.conformance("any")
async def test_bad_settings_of_a_live_integration_are_refused(scene: Scene, profile: Profile) -> None:
    integration = await (scene.connect() if profile.authorize else scene.connect_key())
    for field, config in profile.bad_config.items():
        with pytest.raises(InvalidField) as raised:
            await scene.system.managing.update_integration(integration.integration_id, ADA, Change(config=config))
        assert raised.value.field == field
    assert scene.system.row(integration.integration_id).config == dict(profile.config)
