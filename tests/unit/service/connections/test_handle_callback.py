import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from integration_server.domain.errors import (
    ConfirmationInvalid,
    IntegrationNotFound,
    IntegrationServerError,
    InvalidField,
    IssuerMismatch,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    RedirectUriNotAllowed,
    StateExpired,
    StateInvalid,
    StateUsed,
    UserMismatch,
)
from integration_server.domain.integration import IntegrationId, Status, UserId
from integration_server.domain.redirect_allowlist import RedirectAllowlist
from integration_server.service.audit.audit_trail import audit_user
from integration_server.service.connections.oauth_callback import Callback
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.tables import AttemptState, authorization_attempts
from tests.fakes.provider import parameter, wait_until
from tests.fakes.stores import with_racy_attempts
from tests.fakes.system import ADA, APP_CALLBACK, CONFIRMING, EVE, PUBLIC_URL, RETURN_URL, FakeSystem

TEN_MINUTES = timedelta(minutes=10)


async def test_a_callback_connects_the_integration(system: FakeSystem) -> None:
    authorization = await system.begin(redirect_uri=APP_CALLBACK, name="Work")
    result = await system.call_back(authorization.state, code="the code")
    row = system.row(result.integration_id)

    assert result.success
    assert (result.integration_id, result.reason, result.redirect_url) == (authorization.integration_id, "", "")
    assert system.provider.exchanges == [("the code", APP_CALLBACK)]
    assert row.status(system.clock()) is Status.ACTIVE
    assert (row.account_id, row.account_label, row.name) == ("account-1", "ada@example.com", "Work")
    assert row.access_token_expire_time == system.clock() + timedelta(hours=1)
    assert (await system.tokens(result.integration_id)).access_token == "access-1"


async def test_tokens_are_stored_encrypted(system: FakeSystem) -> None:
    integration = await system.connect()
    encrypted = system.stored(integration.integration_id).encrypted_credentials or b""
    assert encrypted
    assert b"access-1" not in encrypted
    assert b"refresh-1" not in encrypted


async def test_the_redirect_url_contains_the_result(system: FakeSystem) -> None:
    authorization = await system.begin(return_url=RETURN_URL)
    result = await system.call_back(authorization.state)
    assert result.redirect_url.startswith(RETURN_URL + "&")
    assert parameter(result.redirect_url, "success") == "true"
    assert parameter(result.redirect_url, "integration_id") == str(result.integration_id)
    assert parameter(result.redirect_url, "integration_type") == "fake"
    assert parameter(result.redirect_url, "tab") == "integrations"


async def test_provider_specific_callback_parameters_are_stored_with_the_credentials(system: FakeSystem) -> None:
    authorization = await system.begin()
    result = await system.call_back(authorization.state, query={"realmId": "9", "junk": "x"})
    assert (await system.tokens(result.integration_id)).extras == {"realmId": "9"}


# --- the state -------------------------------------------------------------------------------------------------------


async def test_concurrent_callbacks_make_one_exchange(system: FakeSystem) -> None:
    authorization = await system.begin()
    results = await asyncio.gather(*(system.call_back(authorization.state) for _ in range(50)), return_exceptions=True)
    assert len(system.provider.exchanges) == 1
    assert {repr(result) for result in results} == {repr(results[0])}
    assert len(system.ids()) == 1


async def test_negative_control_without_atomic_consumption_concurrent_callbacks_make_many_exchanges() -> None:
    system = FakeSystem(wrap_stores=with_racy_attempts)
    authorization = await system.begin()
    await asyncio.gather(*(system.call_back(authorization.state) for _ in range(50)), return_exceptions=True)
    assert len(system.provider.exchanges) > 1


async def test_a_state_is_used_after_a_failed_exchange(system: FakeSystem) -> None:
    authorization = await system.begin()
    system.provider.exchange_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.call_back(authorization.state)
    system.provider.exchange_error = None
    with pytest.raises(StateUsed):
        await system.call_back(authorization.state, code="another")


async def test_the_audit_user_is_set_when_the_callback_fails(system: FakeSystem) -> None:
    authorization = await system.begin()
    with pytest.raises(StateInvalid):
        await system.call_back(authorization.state + "A")
    assert audit_user.get() == ""
    system.provider.exchange_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.call_back(authorization.state)
    assert audit_user.get() == ADA


async def test_a_state_expires_after_ten_minutes(system: FakeSystem) -> None:
    in_time, too_late = await system.begin(), await system.begin()
    system.clock.advance(TEN_MINUTES - timedelta.resolution)
    assert (await system.call_back(in_time.state)).success
    system.clock.advance(timedelta.resolution)
    with pytest.raises(StateExpired):
        await system.call_back(too_late.state)
    assert len(system.provider.exchanges) == 1


async def test_an_expired_state_is_reported_after_cleanup_too(system: FakeSystem) -> None:
    authorization = await system.begin()
    system.clock.advance(timedelta(days=1))
    await system.oauth_connection.remove_abandoned()
    with pytest.raises(StateExpired):
        await system.call_back(authorization.state)


@pytest.mark.parametrize("state", ["", "x", "====", "é", "a b", "A" * 400, "name-1"])
async def test_an_invalid_state_is_rejected(system: FakeSystem, state: str) -> None:
    with pytest.raises(StateInvalid):
        await system.call_back(state)


async def test_a_state_altered_at_any_position_is_rejected(system: FakeSystem) -> None:
    state = (await system.begin()).state
    for position, letter in enumerate(state):
        altered = state[:position] + ("A" if letter != "A" else "B") + state[position + 1 :]
        with pytest.raises(StateInvalid):
            await system.call_back(altered)
    for altered in (state + "A", state[:-1], state + "=", state + "\n", " " + state):
        with pytest.raises(StateInvalid):
            await system.call_back(altered)
    assert (await system.call_back(state)).success


async def test_a_state_of_another_type_is_rejected_and_stays_valid(system: FakeSystem) -> None:
    system.add_provider("other")
    authorization = await system.begin()
    with pytest.raises(StateInvalid):
        await system.call_back(authorization.state, integration_type="other")
    assert (await system.call_back(authorization.state, integration_type="fake")).success


async def test_a_confirmation_token_is_not_a_state(confirming_system: FakeSystem) -> None:
    pending = await confirming_system.call_back((await confirming_system.begin()).state)
    with pytest.raises(StateInvalid):
        await confirming_system.call_back(pending.confirmation_token)


async def test_negative_control_without_associated_data_a_confirmation_token_is_a_state() -> None:
    system = FakeSystem(dict(CONFIRMING), associated_data_is_checked=False)
    pending = await system.call_back((await system.begin()).state)
    with pytest.raises(StateUsed):  # not StateInvalid: it decrypts as a state
        await system.call_back(pending.confirmation_token, code="another")


@pytest.mark.parametrize("other_user", [ADA, EVE])
async def test_the_details_of_another_attempt_do_not_decrypt(system: FakeSystem, other_user: UserId) -> None:
    for state in await _attempts_with_swapped_details(system, other_user):
        with pytest.raises(IntegrationServerError) as caught:
            await system.call_back(state)
        assert caught.value.reason == "CREDENTIALS_UNREADABLE"
    assert not system.provider.exchanges


async def test_negative_control_without_associated_data_the_details_of_another_attempt_decrypt() -> None:
    system = FakeSystem(associated_data_is_checked=False)
    adas_state, _ = await _attempts_with_swapped_details(system)
    assert (await system.call_back(adas_state)).success


async def _attempts_with_swapped_details(system: FakeSystem, other_user: UserId = ADA) -> tuple[str, str]:
    states = (await system.begin(ADA)).state, (await system.begin(other_user)).state
    first, second = system.attempt_rows()
    for row, other in ((first, second), (second, first)):
        system.database.execute(
            update(authorization_attempts)
            .where(authorization_attempts.c.attempt_id == row.attempt_id)
            .values(encrypted_details=other.encrypted_details)
        )
    return states


@pytest.mark.parametrize("setting", ["redirect_uri", "return_url"])
@pytest.mark.parametrize("path", ["callback", "denial", "confirmation"])
async def test_a_url_that_is_no_longer_allowed_is_not_used(
    system: FakeSystem, confirming_system: FakeSystem, setting: str, path: str
) -> None:
    """The allow-lists are compared again when the URL is used."""
    system = confirming_system if path == "confirmation" else system
    url = APP_CALLBACK if setting == "redirect_uri" else RETURN_URL
    fields: dict[str, Any] = {setting: url}
    authorization = await system.begin(**fields)
    without = RedirectAllowlist(PUBLIC_URL, [], [])
    later = system.another_process_with(redirects=without).use_cases.oauth_callback
    with pytest.raises(RedirectUriNotAllowed):
        await later.handle_callback(
            Callback(state=authorization.state, code="code", error="access_denied" if path == "denial" else "")
        )
    assert not system.provider.exchanges


async def test_a_confirmation_expires_whatever_the_row_says(confirming_system: FakeSystem) -> None:
    system = confirming_system
    authorization = await system.begin()
    held = await system.call_back(authorization.state)
    far = system.clock() + timedelta(days=30)
    system.database.execute(update(authorization_attempts).values(expire_time=far))
    system.clock.advance(timedelta(minutes=10))
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_callback.confirm_connection(held.confirmation_token, ADA)


# --- users and issuers -----------------------------------------------------------------------------------------------


async def test_a_callback_of_another_user_is_rejected_and_the_state_stays_valid(system: FakeSystem) -> None:
    authorization = await system.begin(ADA)
    with pytest.raises(UserMismatch):
        await system.call_back(authorization.state, user_id=EVE)
    assert not system.provider.exchanges
    assert (await system.call_back(authorization.state, user_id=ADA)).success


async def test_an_error_callback_of_another_user_does_not_end_the_attempt(system: FakeSystem) -> None:
    authorization = await system.begin(ADA)
    with pytest.raises(UserMismatch):
        await system.call_back(authorization.state, user_id=EVE, error="access_denied")
    assert (await system.call_back(authorization.state, user_id=ADA)).success


async def test_a_callback_of_the_attempts_user_needs_no_confirmation(confirming_system: FakeSystem) -> None:
    authorization = await confirming_system.begin(ADA)
    with pytest.raises(UserMismatch):
        await confirming_system.call_back(authorization.state, user_id=EVE)
    assert (await confirming_system.call_back(authorization.state, user_id=ADA)).success


@pytest.mark.parametrize("iss", ["", "https://evil.example", "https://fake.example/", "HTTPS://FAKE.EXAMPLE"])
@pytest.mark.parametrize("fields", [{}, {"error": "access_denied"}, {"user_id": ADA}], ids=str)
async def test_another_issuer_is_rejected_before_any_call_and_the_state_stays_valid(
    system: FakeSystem, iss: str, fields: dict[str, Any]
) -> None:
    system.provider.issuer = "https://fake.example"
    authorization = await system.begin()
    with pytest.raises(IssuerMismatch):
        await system.call_back(authorization.state, iss=iss, **fields)
    assert not system.provider.exchanges
    assert (await system.call_back(authorization.state, iss="https://fake.example")).success


async def test_an_issuer_is_ignored_where_none_is_declared(system: FakeSystem) -> None:
    authorization = await system.begin()
    assert (await system.call_back(authorization.state, iss="https://evil.example")).success


async def test_a_callback_without_code_or_error_is_rejected_and_the_state_stays_valid(system: FakeSystem) -> None:
    authorization = await system.begin()
    with pytest.raises(InvalidField, match="code"):
        await system.call_back(authorization.state, code="")
    assert (await system.call_back(authorization.state)).success


# --- error responses and failures ------------------------------------------------------------------------------------


async def test_an_error_response_is_a_result(system: FakeSystem) -> None:
    authorization = await system.begin(return_url=RETURN_URL)
    result = await system.call_back(authorization.state, code="", error="access_denied")
    assert not result.success
    assert (result.reason, result.integration_id) == ("access_denied", 0)
    assert parameter(result.redirect_url, "success") == "false"
    assert parameter(result.redirect_url, "reason") == "access_denied"
    assert system.row(authorization.integration_id).status(system.clock()) is Status.PENDING
    assert not system.provider.exchanges
    system.clock.advance(timedelta(minutes=11))
    await system.oauth_connection.remove_abandoned()
    assert not system.ids()


@pytest.mark.parametrize("error", ["<script>", "Access Denied", "a" * 65, "é", "x\ny"])
async def test_a_nonstandard_error_code_is_not_passed_on(system: FakeSystem, error: str) -> None:
    authorization = await system.begin(return_url=RETURN_URL)
    result = await system.call_back(authorization.state, error=error)
    assert result.reason == "unknown_error"
    assert parameter(result.redirect_url, "reason") == "unknown_error"


@pytest.mark.parametrize(
    "error", [ProviderRejected("code"), ProviderUnavailable(), ProviderMisconfigured(), RuntimeError("a bug")]
)
@pytest.mark.parametrize("where", ["exchange_error", "verify_error"])
async def test_a_failed_exchange_leaves_no_pending_row(system: FakeSystem, where: str, error: Exception) -> None:
    authorization = await system.begin()
    setattr(system.provider, where, error)
    with pytest.raises(type(error)):
        await system.call_back(authorization.state)
    assert not system.ids()


async def test_an_integration_removed_meanwhile_stays_removed(system: FakeSystem) -> None:
    authorization = await system.begin()
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(system.call_back(authorization.state))
    await wait_until(lambda: system.provider.exchanges)
    await system.revocation_service.disconnect_integration(authorization.integration_id, ADA)
    system.provider.gate.set()
    with pytest.raises(IntegrationNotFound):
        await waiting
    assert not system.ids()


async def test_an_exchange_completes_after_its_caller_is_cancelled(system: FakeSystem) -> None:
    authorization = await system.begin()
    system.provider.gate = asyncio.Event()
    caller = asyncio.create_task(system.call_back(authorization.state))
    await wait_until(lambda: system.provider.exchanges)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    system.provider.gate.set()
    await wait_until(lambda: system.row(authorization.integration_id).is_connected)


async def test_an_attempt_completes_if_its_caller_is_cancelled_during_consumption(system: FakeSystem) -> None:
    authorization = await system.begin()
    caller = asyncio.create_task(system.call_back(authorization.state))
    await wait_until(lambda: any(row.state == AttemptState.CONSUMED.value for row in system.attempt_rows()))
    caller.cancel()
    await wait_until(lambda: system.row(authorization.integration_id).is_connected)
    assert len(system.provider.exchanges) == 1


# --- granted scopes --------------------------------------------------------------------------------------------------


async def test_a_token_response_without_scope_grants_the_requested_scopes(system: FakeSystem) -> None:
    integration = await system.connect(scopes=("write",))
    assert (integration.scopes, integration.missing_scopes) == (("read", "write"), ())


async def test_missing_scopes_are_stored(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("read",)
    integration = await system.connect(scopes=("write",))
    assert (integration.scopes, integration.missing_scopes) == (("read",), ("write",))
    assert integration.status(system.clock()) is Status.ACTIVE


async def test_additional_scopes_are_stored(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("read", "profile")
    assert (await system.connect()).scopes == ("read", "profile")


async def test_without_a_required_scope_the_status_is_error(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("write",)
    integration = await system.connect(scopes=("write",))
    assert integration.missing_scopes == ("read",)
    assert integration.status(system.clock()) is Status.ERROR


@pytest.mark.parametrize(
    ("has_refresh_token", "scopes", "missing"),
    [(True, ("read", "offline_access"), ()), (False, ("read",), ("offline_access",))],
)
async def test_offline_access_is_granted_if_there_is_a_refresh_token(
    system: FakeSystem, has_refresh_token: bool, scopes: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    system.provider.granted_scopes = ("read",)
    system.provider.issues_refresh_token = has_refresh_token
    integration = await system.connect(scopes=("offline_access",))
    assert (integration.scopes, integration.missing_scopes) == (scopes, missing)
    assert integration.is_renewable is has_refresh_token


async def test_a_connection_succeeds_without_the_scope_of_the_account_lookup(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("write",)
    system.provider.verify_error = ProviderRejected("credentials")
    integration = await system.connect(scopes=("write",))
    assert integration.is_connected
    assert integration.account_id is None
    assert integration.status(system.clock()) is Status.ERROR


# --- accounts --------------------------------------------------------------------------------------------------------


async def test_connecting_the_same_account_updates_its_row(system: FakeSystem) -> None:
    older = await system.connect(name="Mine", config={"a": 1})
    system.clock.advance(timedelta(hours=2))
    newer = await system.begin(name="Again")
    result = await system.call_back(newer.state)
    row = system.row(older.integration_id)

    assert result.integration_id == older.integration_id != newer.integration_id
    assert system.ids() == [older.integration_id]
    assert (row.name, row.config, row.uid) == ("Mine", {"a": 1}, older.uid)
    assert (await system.tokens(row.integration_id)).access_token == "access-2"


async def test_a_second_callback_of_a_merged_connection_has_the_same_result(system: FakeSystem) -> None:
    older = await system.connect()
    newer = await system.begin()
    first = await system.call_back(newer.state)
    assert await system.call_back(newer.state) == first
    assert first.integration_id == older.integration_id
    with pytest.raises(StateUsed):
        await system.call_back(newer.state, code="another")


async def test_connecting_the_same_account_clears_its_errors(system: FakeSystem) -> None:
    older = await system.connect()
    system.set_columns(older.integration_id, is_active=False, reauthorization_required=True, error_count=3)
    reconnected = await system.connect()
    assert reconnected.integration_id == older.integration_id
    assert reconnected.status(system.clock()) is Status.ACTIVE
    assert reconnected.error_count == 0


async def test_each_account_has_its_own_row(system: FakeSystem) -> None:
    first = await system.connect_account("first")
    second = await system.connect_account("second")
    assert system.ids() == [first.integration_id, second.integration_id]


async def test_each_connection_of_an_unknown_account_has_its_own_row(system: FakeSystem) -> None:
    first = await system.connect_account(None)
    second = await system.connect_account(None)
    assert system.ids() == [first.integration_id, second.integration_id]


async def test_two_users_may_connect_one_account(system: FakeSystem) -> None:
    adas, eves = await system.connect(ADA), await system.connect(EVE)
    assert adas.integration_id != eves.integration_id
    assert (adas.user_id, eves.user_id) == (ADA, EVE)


async def test_one_account_may_be_connected_in_two_types(system: FakeSystem) -> None:
    system.add_provider("other")
    first, second = await system.connect(), await system.connect(integration_type="other")
    assert first.integration_id != second.integration_id


async def test_concurrent_connections_of_an_account_share_one_row(system: FakeSystem) -> None:
    authorizations = [await system.begin() for _ in range(5)]
    results = await asyncio.gather(*(system.call_back(authorization.state) for authorization in authorizations))
    (row,) = {result.integration_id for result in results}
    assert system.ids() == [row]


# --- abandoned attempts ----------------------------------------------------------------------------------------------


async def test_a_pending_row_is_removed_after_its_attempt_expires(system: FakeSystem) -> None:
    connected = await system.connect()
    await system.begin()
    system.clock.advance(TEN_MINUTES)
    await system.oauth_connection.remove_abandoned()
    assert len(system.ids()) == 2  # a callback in the last moment may still be in progress

    system.clock.advance(timedelta(minutes=1))
    await system.oauth_connection.remove_abandoned()
    assert system.ids() == [connected.integration_id]
    assert not system.attempt_rows()


async def test_an_expired_attempt_awaiting_confirmation_is_removed(confirming_system: FakeSystem) -> None:
    await confirming_system.call_back((await confirming_system.begin()).state)
    confirming_system.clock.advance(timedelta(minutes=11))
    assert await confirming_system.oauth_connection.remove_abandoned() == 1
    assert not confirming_system.ids()


async def test_an_abandoned_reconnection_does_not_change_the_row(system: FakeSystem) -> None:
    live = await system.connect()
    await system.begin(integration_id=live.integration_id)
    system.clock.advance(timedelta(minutes=11))
    await system.oauth_connection.remove_abandoned()
    assert system.row(live.integration_id) == live


# --- reconnection ----------------------------------------------------------------------------------------------------


async def test_reconnecting_keeps_id_name_and_config(system: FakeSystem) -> None:
    live = await system.connect(name="Mine", config={"a": 1})
    authorization = await system.begin(integration_id=live.integration_id, name="Other", config={"b": 2})
    result = await system.call_back(authorization.state)
    row = system.row(live.integration_id)
    assert authorization.integration_id == result.integration_id == live.integration_id
    assert (row.name, row.config, row.uid, row.create_time) == ("Mine", {"a": 1}, live.uid, live.create_time)
    assert (await system.tokens(live.integration_id)).access_token == "access-2"
    assert system.ids() == [live.integration_id]


async def test_reconnecting_changes_the_row_only_when_new_credentials_commit(system: FakeSystem) -> None:
    live = await system.connect()
    encrypted = system.stored(live.integration_id)
    authorization = await system.begin(integration_id=live.integration_id)
    assert system.stored(live.integration_id) == encrypted
    system.provider.exchange_error = ProviderRejected("code")
    with pytest.raises(ProviderRejected):
        await system.call_back(authorization.state)
    assert system.stored(live.integration_id) == encrypted


async def test_a_rejected_reconnection_does_not_change_the_row(system: FakeSystem) -> None:
    live = await system.connect()
    authorization = await system.begin(integration_id=live.integration_id)
    result = await system.call_back(authorization.state, error="access_denied")
    assert (result.success, result.integration_id) == (False, live.integration_id)
    assert system.row(live.integration_id) == live


async def test_reconnecting_replaces_an_invalid_grant(system: FakeSystem) -> None:
    live = await system.connect()
    system.set_columns(live.integration_id, reauthorization_required=True)
    await system.call_back((await system.begin(integration_id=live.integration_id)).state)
    assert system.row(live.integration_id).status(system.clock()) is Status.ACTIVE


@pytest.mark.parametrize("account_id", ["another", None])
async def test_a_reconnection_with_another_account_is_rejected(system: FakeSystem, account_id: str | None) -> None:
    live = await system.connect_account("account-1")
    encrypted = system.stored(live.integration_id)
    authorization = await system.begin(integration_id=live.integration_id)
    system.provider.account = NewAccount(account_id, None)
    with pytest.raises(IntegrationServerError) as caught:
        await system.call_back(authorization.state)
    assert caught.value.reason == "ACCOUNT_MISMATCH"
    assert system.stored(live.integration_id) == encrypted


async def test_a_reconnection_without_account_lookup_is_rejected(system: FakeSystem) -> None:
    live = await system.connect_account("account-1")
    authorization = await system.begin(integration_id=live.integration_id, scopes=("write",))
    system.provider.granted_scopes = ("write",)
    system.provider.verify_error = ProviderRejected("credentials")
    with pytest.raises(IntegrationServerError) as caught:
        await system.call_back(authorization.state)
    assert caught.value.reason == "ACCOUNT_MISMATCH"
    assert (await system.tokens(live.integration_id)).access_token == "access-1"


async def test_reconnecting_sets_an_unknown_account(system: FakeSystem) -> None:
    live = await system.connect_account(None)
    authorization = await system.begin(integration_id=live.integration_id)
    system.provider.account = NewAccount("account-1", "ada@example.com")
    await system.call_back(authorization.state)
    assert system.row(live.integration_id).account_id == "account-1"


async def test_a_reconnection_with_an_account_of_another_row_is_rejected(system: FakeSystem) -> None:
    unknown = await system.connect_account(None)
    await system.connect_account("account-2")
    authorization = await system.begin(integration_id=unknown.integration_id)
    with pytest.raises(IntegrationServerError) as caught:
        await system.call_back(authorization.state)
    assert caught.value.reason == "ACCOUNT_MISMATCH"


async def test_an_unknown_account_can_be_reconnected(system: FakeSystem) -> None:
    live = await system.connect_account(None)
    authorization = await system.begin(integration_id=live.integration_id)
    assert (await system.call_back(authorization.state)).integration_id == live.integration_id


async def test_another_user_cannot_reconnect_the_integration(system: FakeSystem) -> None:
    live = await system.connect(ADA)
    errors = []
    for integration_id in (live.integration_id, IntegrationId(999)):
        with pytest.raises(IntegrationNotFound) as caught:
            await system.begin(EVE, integration_id=integration_id)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert not [row for row in system.attempt_rows() if row.state == AttemptState.STARTED.value]


async def test_a_pending_integration_cannot_be_reconnected(system: FakeSystem) -> None:
    authorization = await system.begin()
    with pytest.raises(IntegrationServerError) as caught:
        await system.begin(integration_id=authorization.integration_id)
    assert caught.value.reason == "INTEGRATION_PENDING"


async def test_an_integration_is_not_reconnected_as_another_type(system: FakeSystem) -> None:
    system.add_provider("other")
    live = await system.connect()
    with pytest.raises(InvalidField, match="integration_type"):
        await system.begin(integration_type="other", integration_id=live.integration_id)
