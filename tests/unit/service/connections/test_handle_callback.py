import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    InvalidField,
    IssuerMismatch,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StateExpired,
    StateInvalid,
    StateUsed,
    UserMismatch,
)
from integration_server.domain.integration import IntegrationId, Status
from integration_server.service.audit.audit_trail import get_audit_user
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.tables import AttemptState, authorization_attempts
from tests.fakes.provider import parameter, until
from tests.fakes.stores import with_racy_attempts
from tests.fakes.system import ADA, APP_CALLBACK, EVE, RETURN_URL, FakeSystem

TEN_MINUTES = timedelta(minutes=10)


async def test_connects(system: FakeSystem) -> None:
    begun = await system.begin(redirect_uri=APP_CALLBACK, name="Work")
    outcome = await system.call_back(begun.state, code="the code")
    row = system.row(outcome.integration_id)

    assert outcome.success
    assert (outcome.integration_id, outcome.reason, outcome.redirect_url) == (begun.integration_id, "", "")
    assert system.provider.exchanges == [("the code", APP_CALLBACK)]
    assert row.status(system.clock()) is Status.ACTIVE
    assert (row.account_id, row.account_label, row.name) == ("account-1", "ada@example.com", "Work")
    assert row.access_token_expire_time == system.clock() + timedelta(hours=1)
    assert (await system.tokens(outcome.integration_id)).access_token == "access-1"


async def test_tokens_are_stored_encrypted(system: FakeSystem) -> None:
    integration = await system.connect()
    encrypted = system.stored(integration.integration_id).encrypted_credentials or b""
    assert encrypted
    assert b"access-1" not in encrypted
    assert b"refresh-1" not in encrypted


async def test_the_app_gets_its_browser_back_with_the_outcome(system: FakeSystem) -> None:
    begun = await system.begin(return_url=RETURN_URL)
    outcome = await system.call_back(begun.state)
    assert outcome.redirect_url.startswith(RETURN_URL + "&")
    assert parameter(outcome.redirect_url, "success") == "true"
    assert parameter(outcome.redirect_url, "integration_id") == str(outcome.integration_id)
    assert parameter(outcome.redirect_url, "integration_type") == "fake"
    assert parameter(outcome.redirect_url, "tab") == "integrations"


async def test_what_only_this_provider_sends_is_kept_with_the_credentials(system: FakeSystem) -> None:
    begun = await system.begin()
    outcome = await system.call_back(begun.state, query={"realmId": "9", "junk": "x"})
    assert (await system.tokens(outcome.integration_id)).extras == {"realmId": "9"}


# --- the state -------------------------------------------------------------------------------------------------------


async def test_fifty_callbacks_make_one_exchange(system: FakeSystem) -> None:
    begun = await system.begin()
    outcomes = await asyncio.gather(*(system.call_back(begun.state) for _ in range(50)), return_exceptions=True)
    assert len(system.provider.exchanges) == 1
    assert sum(isinstance(outcome, StateUsed) for outcome in outcomes) == 49
    assert len(system.ids()) == 1


async def test_a_store_that_does_not_take_at_once_would_let_many_exchange() -> None:
    system = FakeSystem(wrap_stores=with_racy_attempts)
    begun = await system.begin()
    await asyncio.gather(*(system.call_back(begun.state) for _ in range(50)), return_exceptions=True)
    assert len(system.provider.exchanges) > 1


async def test_a_state_is_good_once_even_after_a_failed_exchange(system: FakeSystem) -> None:
    begun = await system.begin()
    system.provider.exchange_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.call_back(begun.state)
    system.provider.exchange_error = None
    with pytest.raises(StateUsed):
        await system.call_back(begun.state)


async def test_the_audit_log_has_whose_callback_it_was_however_it_ends(system: FakeSystem) -> None:
    begun = await system.begin()
    with pytest.raises(StateInvalid):
        await system.call_back(begun.state + "A")
    assert get_audit_user() == ""
    system.provider.exchange_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.call_back(begun.state)
    assert get_audit_user() == ADA


async def test_a_state_ends_with_its_ten_minutes(system: FakeSystem) -> None:
    in_time, too_late = await system.begin(), await system.begin()
    system.clock.advance(TEN_MINUTES - timedelta.resolution)
    assert (await system.call_back(in_time.state)).success
    system.clock.advance(timedelta.resolution)
    with pytest.raises(StateExpired):
        await system.call_back(too_late.state)
    assert len(system.provider.exchanges) == 1


async def test_an_expired_state_is_reported_after_cleanup_too(system: FakeSystem) -> None:
    begun = await system.begin()
    system.clock.advance(timedelta(days=1))
    await system.oauth_connection.remove_abandoned()
    with pytest.raises(StateExpired):
        await system.call_back(begun.state)


@pytest.mark.parametrize("state", ["", "x", "====", "é", "a b", "A" * 400, "name-1"])
async def test_a_forged_state_is_refused(system: FakeSystem, state: str) -> None:
    with pytest.raises(StateInvalid):
        await system.call_back(state)


async def test_a_state_altered_anywhere_is_refused(system: FakeSystem) -> None:
    state = (await system.begin()).state
    for place, letter in enumerate(state):
        altered = state[:place] + ("A" if letter != "A" else "B") + state[place + 1 :]
        with pytest.raises(StateInvalid):
            await system.call_back(altered)
    for altered in (state + "A", state[:-1], state + "=", state + "\n", " " + state):
        with pytest.raises(StateInvalid):
            await system.call_back(altered)
    assert (await system.call_back(state)).success


async def test_a_state_of_another_type_is_refused_and_not_used_up(system: FakeSystem) -> None:
    system.add_provider("other")
    begun = await system.begin()
    with pytest.raises(StateInvalid):
        await system.call_back(begun.state, integration_type="other")
    assert (await system.call_back(begun.state, integration_type="fake")).success


async def test_a_confirmation_token_is_no_state(confirming_system: FakeSystem) -> None:
    held = await confirming_system.call_back((await confirming_system.begin()).state)
    with pytest.raises(StateInvalid):
        await confirming_system.call_back(held.confirmation_token)


async def test_without_associated_data_a_confirmation_token_is_a_state() -> None:
    system = FakeSystem({"skip_confirmation": False}, associated_data_is_checked=False)
    held = await system.call_back((await system.begin()).state)
    with pytest.raises(StateUsed):  # it opened
        await system.call_back(held.confirmation_token)


async def test_a_verifier_belongs_to_its_attempt(system: FakeSystem) -> None:
    mine, theirs = await _attempts_with_swapped_verifiers(system)
    for state in (mine, theirs):
        with pytest.raises(IntegrationServerError) as refused:
            await system.call_back(state)
        assert refused.value.reason == "CREDENTIALS_UNREADABLE"
    assert not system.provider.exchanges


async def test_without_associated_data_a_verifier_can_be_moved() -> None:
    system = FakeSystem(associated_data_is_checked=False)
    mine, _ = await _attempts_with_swapped_verifiers(system)
    assert (await system.call_back(mine)).success


async def _attempts_with_swapped_verifiers(system: FakeSystem) -> tuple[str, str]:
    states = (await system.begin(ADA)).state, (await system.begin(EVE)).state
    one, two = system.attempt_rows()
    for row, other in ((one, two), (two, one)):
        system.database.execute(
            update(authorization_attempts)
            .where(authorization_attempts.c.attempt_id == row.attempt_id)
            .values(encrypted_verifier=other.encrypted_verifier)
        )
    return states


# --- who finishes, and whose answer it is ----------------------------------------------------------------------------


async def test_another_user_cannot_finish_and_does_not_use_the_state_up(system: FakeSystem) -> None:
    begun = await system.begin(ADA)
    with pytest.raises(UserMismatch):
        await system.call_back(begun.state, user_id=EVE)
    assert not system.provider.exchanges
    assert (await system.call_back(begun.state, user_id=ADA)).success


async def test_another_users_refusal_does_not_end_the_attempt(system: FakeSystem) -> None:
    begun = await system.begin(ADA)
    with pytest.raises(UserMismatch):
        await system.call_back(begun.state, user_id=EVE, error="access_denied")
    assert (await system.call_back(begun.state, user_id=ADA)).success


async def test_the_user_who_began_finishes_without_confirmation(confirming_system: FakeSystem) -> None:
    begun = await confirming_system.begin(ADA)
    with pytest.raises(UserMismatch):
        await confirming_system.call_back(begun.state, user_id=EVE)
    assert (await confirming_system.call_back(begun.state, user_id=ADA)).success


@pytest.mark.parametrize("iss", ["", "https://evil.example", "https://fake.example/", "HTTPS://FAKE.EXAMPLE"])
@pytest.mark.parametrize("given", [{}, {"error": "access_denied"}, {"user_id": ADA}], ids=str)
async def test_another_issuer_is_refused_before_any_call_and_does_not_use_the_state_up(
    system: FakeSystem, iss: str, given: dict[str, Any]
) -> None:
    system.provider.issuer = "https://fake.example"
    begun = await system.begin()
    with pytest.raises(IssuerMismatch):
        await system.call_back(begun.state, iss=iss, **given)
    assert not system.provider.exchanges
    assert (await system.call_back(begun.state, iss="https://fake.example")).success


async def test_an_issuer_is_ignored_where_none_is_declared(system: FakeSystem) -> None:
    begun = await system.begin()
    assert (await system.call_back(begun.state, iss="https://evil.example")).success


async def test_a_callback_without_code_or_error_does_not_use_the_state_up(system: FakeSystem) -> None:
    begun = await system.begin()
    with pytest.raises(InvalidField, match="code"):
        await system.call_back(begun.state, code="")
    assert (await system.call_back(begun.state)).success


# --- refusals and failures -------------------------------------------------------------------------------------------


async def test_an_error_response_is_a_result(system: FakeSystem) -> None:
    begun = await system.begin(return_url=RETURN_URL)
    outcome = await system.call_back(begun.state, code="", error="access_denied")
    assert not outcome.success
    assert (outcome.reason, outcome.integration_id) == ("access_denied", 0)
    assert parameter(outcome.redirect_url, "success") == "false"
    assert parameter(outcome.redirect_url, "reason") == "access_denied"
    assert not system.ids()
    assert not system.provider.exchanges


async def test_a_refusal_ends_the_attempt(system: FakeSystem) -> None:
    begun = await system.begin()
    await system.call_back(begun.state, error="access_denied")
    for error in ("access_denied", ""):
        with pytest.raises(StateUsed):
            await system.call_back(begun.state, error=error)


@pytest.mark.parametrize("error", ["<script>", "Access Denied", "a" * 65, "é", "x\ny"])
async def test_a_refusal_in_the_providers_own_words_is_not_passed_on(system: FakeSystem, error: str) -> None:
    begun = await system.begin(return_url=RETURN_URL)
    outcome = await system.call_back(begun.state, error=error)
    assert outcome.reason == "unknown_error"
    assert parameter(outcome.redirect_url, "reason") == "unknown_error"


@pytest.mark.parametrize(
    "error", [ProviderRejected("code"), ProviderUnavailable(), ProviderMisconfigured(), RuntimeError("a bug")]
)
@pytest.mark.parametrize("where", ["exchange_error", "verify_error"])
async def test_a_failed_exchange_leaves_no_pending_row(system: FakeSystem, where: str, error: Exception) -> None:
    begun = await system.begin()
    setattr(system.provider, where, error)
    with pytest.raises(type(error)):
        await system.call_back(begun.state)
    assert not system.ids()


async def test_an_integration_removed_meanwhile_stays_removed(system: FakeSystem) -> None:
    begun = await system.begin()
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(system.call_back(begun.state))
    await until(lambda: system.provider.exchanges)
    await system.revocation_service.disconnect_integration(begun.integration_id, ADA)
    system.provider.gate.set()
    with pytest.raises(IntegrationNotFound):
        await waiting
    assert not system.ids()


async def test_an_exchange_runs_to_its_end_though_its_caller_is_gone(system: FakeSystem) -> None:
    begun = await system.begin()
    system.provider.gate = asyncio.Event()
    caller = asyncio.create_task(system.call_back(begun.state))
    await until(lambda: system.provider.exchanges)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    system.provider.gate.set()
    await until(lambda: system.row(begun.integration_id).is_connected)


async def test_an_attempt_whose_caller_leaves_while_it_is_taken_is_finished(system: FakeSystem) -> None:
    begun = await system.begin()
    caller = asyncio.create_task(system.call_back(begun.state))
    await until(lambda: any(row.state == AttemptState.CONSUMED.value for row in system.attempt_rows()))
    caller.cancel()
    await until(lambda: system.row(begun.integration_id).is_connected)


# --- what was granted ------------------------------------------------------------------------------------------------


async def test_no_scope_in_the_token_response_means_as_requested(system: FakeSystem) -> None:
    integration = await system.connect(scopes=("write",))
    assert (integration.scopes, integration.missing_scopes) == (("read", "write"), ())


async def test_fewer_scopes_are_shown(system: FakeSystem) -> None:
    system.provider.granted = ("read",)
    integration = await system.connect(scopes=("write",))
    assert (integration.scopes, integration.missing_scopes) == (("read",), ("write",))
    assert integration.status(system.clock()) is Status.ACTIVE


async def test_more_scopes_are_shown_too(system: FakeSystem) -> None:
    system.provider.granted = ("read", "profile")
    assert (await system.connect()).scopes == ("read", "profile")


async def test_without_a_required_scope_the_status_is_error(system: FakeSystem) -> None:
    system.provider.granted = ("write",)
    integration = await system.connect(scopes=("write",))
    assert integration.missing_scopes == ("read",)
    assert integration.status(system.clock()) is Status.ERROR


@pytest.mark.parametrize(
    ("refresh_token_came", "scopes", "missing"),
    [(True, ("read", "offline_access"), ()), (False, ("read",), ("offline_access",))],
)
async def test_offline_access_is_judged_by_the_refresh_token(
    system: FakeSystem, refresh_token_came: bool, scopes: tuple[str, ...], missing: tuple[str, ...]
) -> None:
    system.provider.granted = ("read",)
    system.provider.gives_refresh_token = refresh_token_came
    integration = await system.connect(scopes=("offline_access",))
    assert (integration.scopes, integration.missing_scopes) == (scopes, missing)
    assert integration.is_renewable is refresh_token_came


async def test_the_scope_that_the_look_up_needs_may_be_left_out(system: FakeSystem) -> None:
    system.provider.granted = ("write",)
    system.provider.verify_error = ProviderRejected("credentials")
    integration = await system.connect(scopes=("write",))
    assert integration.is_connected
    assert integration.account_id is None
    assert integration.status(system.clock()) is Status.ERROR


# --- the same account ------------------------------------------------------------------------------------------------


async def test_the_same_account_updates_the_row_it_has(system: FakeSystem) -> None:
    older = await system.connect(name="Mine", config={"a": 1})
    system.clock.advance(timedelta(hours=2))
    newer = await system.begin(name="Again")
    outcome = await system.call_back(newer.state)
    row = system.row(older.integration_id)

    assert outcome.integration_id == older.integration_id != newer.integration_id
    assert system.ids() == [older.integration_id]
    assert (row.name, row.config, row.uid) == ("Mine", {"a": 1}, older.uid)
    assert (await system.tokens(row.integration_id)).access_token == "access-2"


async def test_the_second_callback_of_a_connection_that_merged_finds_the_state_used(system: FakeSystem) -> None:
    await system.connect()
    newer = await system.begin()
    await system.call_back(newer.state)
    with pytest.raises(StateUsed):
        await system.call_back(newer.state)


async def test_the_same_account_connected_again_is_mended(system: FakeSystem) -> None:
    older = await system.connect()
    system.set_columns(older.integration_id, is_active=False, reauthorization_required=True, error_count=3)
    again = await system.connect()
    assert again.integration_id == older.integration_id
    assert again.status(system.clock()) is Status.ACTIVE
    assert again.error_count == 0


async def test_another_account_gets_a_row_of_its_own(system: FakeSystem) -> None:
    one = await system.connect_account("one")
    two = await system.connect_account("two")
    assert system.ids() == [one.integration_id, two.integration_id]


async def test_an_unnamed_account_gets_a_row_of_its_own(system: FakeSystem) -> None:
    one = await system.connect_account(None)
    two = await system.connect_account(None)
    assert system.ids() == [one.integration_id, two.integration_id]


async def test_two_users_may_connect_one_account(system: FakeSystem) -> None:
    one, two = await system.connect(ADA), await system.connect(EVE)
    assert one.integration_id != two.integration_id
    assert (one.user_id, two.user_id) == (ADA, EVE)


async def test_one_account_may_be_connected_in_two_types(system: FakeSystem) -> None:
    system.add_provider("other")
    one, two = await system.connect(), await system.connect(integration_type="other")
    assert one.integration_id != two.integration_id


async def test_two_connections_of_an_account_at_once_end_in_one_row(system: FakeSystem) -> None:
    begun = [await system.begin() for _ in range(5)]
    outcomes = await asyncio.gather(*(system.call_back(one.state) for one in begun))
    (row,) = {outcome.integration_id for outcome in outcomes}
    assert system.ids() == [row]


# --- abandoned -------------------------------------------------------------------------------------------------------


async def test_a_pending_row_goes_when_its_attempt_expires(system: FakeSystem) -> None:
    kept = await system.connect()
    await system.begin()
    system.clock.advance(TEN_MINUTES)
    await system.oauth_connection.remove_abandoned()
    assert len(system.ids()) == 2  # whoever took it in its last moment may still be finishing

    system.clock.advance(timedelta(minutes=1))
    await system.oauth_connection.remove_abandoned()
    assert system.ids() == [kept.integration_id]
    assert not system.attempt_rows()


async def test_an_attempt_awaiting_confirmation_is_removed_too(confirming_system: FakeSystem) -> None:
    await confirming_system.call_back((await confirming_system.begin()).state)
    confirming_system.clock.advance(timedelta(minutes=11))
    assert await confirming_system.oauth_connection.remove_abandoned() == 1
    assert not confirming_system.ids()


async def test_an_abandoned_reconnection_leaves_the_live_row(system: FakeSystem) -> None:
    live = await system.connect()
    await system.begin(integration_id=live.integration_id)
    system.clock.advance(timedelta(minutes=11))
    await system.oauth_connection.remove_abandoned()
    assert system.row(live.integration_id) == live


# --- reconnecting ----------------------------------------------------------------------------------------------------


async def test_reconnecting_keeps_id_name_and_config(system: FakeSystem) -> None:
    live = await system.connect(name="Mine", config={"a": 1})
    begun = await system.begin(integration_id=live.integration_id, name="Other", config={"b": 2})
    outcome = await system.call_back(begun.state)
    row = system.row(live.integration_id)
    assert begun.integration_id == outcome.integration_id == live.integration_id
    assert (row.name, row.config, row.uid, row.create_time) == ("Mine", {"a": 1}, live.uid, live.create_time)
    assert (await system.tokens(live.integration_id)).access_token == "access-2"
    assert system.ids() == [live.integration_id]


async def test_reconnecting_leaves_the_live_row_until_the_new_credentials_commit(system: FakeSystem) -> None:
    live = await system.connect()
    encrypted = system.stored(live.integration_id)
    begun = await system.begin(integration_id=live.integration_id)
    assert system.stored(live.integration_id) == encrypted
    system.provider.exchange_error = ProviderRejected("code")
    with pytest.raises(ProviderRejected):
        await system.call_back(begun.state)
    assert system.stored(live.integration_id) == encrypted


async def test_a_refused_reconnection_leaves_the_live_row(system: FakeSystem) -> None:
    live = await system.connect()
    begun = await system.begin(integration_id=live.integration_id)
    outcome = await system.call_back(begun.state, error="access_denied")
    assert (outcome.success, outcome.integration_id) == (False, live.integration_id)
    assert system.row(live.integration_id) == live


async def test_reconnecting_replaces_an_invalid_grant(system: FakeSystem) -> None:
    live = await system.connect()
    system.set_columns(live.integration_id, reauthorization_required=True)
    await system.call_back((await system.begin(integration_id=live.integration_id)).state)
    assert system.row(live.integration_id).status(system.clock()) is Status.ACTIVE


@pytest.mark.parametrize("account_id", ["another", None])
async def test_a_row_does_not_become_another_accounts(system: FakeSystem, account_id: str | None) -> None:
    live = await system.connect_account("mine")
    encrypted = system.stored(live.integration_id)
    begun = await system.begin(integration_id=live.integration_id)
    system.provider.account = NewAccount(account_id, None)
    with pytest.raises(IntegrationServerError) as refused:
        await system.call_back(begun.state)
    assert refused.value.reason == "ACCOUNT_MISMATCH"
    assert system.stored(live.integration_id) == encrypted


async def test_leaving_out_the_scope_of_the_look_up_does_not_hide_another_account(system: FakeSystem) -> None:
    live = await system.connect_account("mine")
    begun = await system.begin(integration_id=live.integration_id, scopes=("write",))
    system.provider.granted = ("write",)
    system.provider.verify_error = ProviderRejected("credentials")
    with pytest.raises(IntegrationServerError) as refused:
        await system.call_back(begun.state)
    assert refused.value.reason == "ACCOUNT_MISMATCH"
    assert (await system.tokens(live.integration_id)).access_token == "access-1"


async def test_a_row_of_an_unknown_account_learns_it(system: FakeSystem) -> None:
    live = await system.connect_account(None)
    begun = await system.begin(integration_id=live.integration_id)
    system.provider.account = NewAccount("mine", "ada@example.com")
    await system.call_back(begun.state)
    assert system.row(live.integration_id).account_id == "mine"


async def test_a_row_does_not_take_an_account_that_has_its_own(system: FakeSystem) -> None:
    unknown = await system.connect_account(None)
    await system.connect_account("taken")
    begun = await system.begin(integration_id=unknown.integration_id)
    with pytest.raises(IntegrationServerError) as refused:
        await system.call_back(begun.state)
    assert refused.value.reason == "ACCOUNT_MISMATCH"


async def test_accounts_that_are_never_named_can_be_reconnected(system: FakeSystem) -> None:
    live = await system.connect_account(None)
    begun = await system.begin(integration_id=live.integration_id)
    assert (await system.call_back(begun.state)).integration_id == live.integration_id


async def test_nobody_reconnects_what_is_not_theirs(system: FakeSystem) -> None:
    live = await system.connect(ADA)
    errors = []
    for integration_id in (live.integration_id, IntegrationId(999)):
        with pytest.raises(IntegrationNotFound) as refused:
            await system.begin(EVE, integration_id=integration_id)
        errors.append(str(refused.value))
    assert errors[0] == errors[1]
    assert not [row for row in system.attempt_rows() if row.state == AttemptState.STARTED.value]


async def test_a_pending_integration_cannot_be_reconnected(system: FakeSystem) -> None:
    begun = await system.begin()
    with pytest.raises(IntegrationServerError) as refused:
        await system.begin(integration_id=begun.integration_id)
    assert refused.value.reason == "INTEGRATION_PENDING"


async def test_an_integration_is_not_reconnected_as_another_type(system: FakeSystem) -> None:
    system.add_provider("other")
    live = await system.connect()
    with pytest.raises(InvalidField, match="integration_type"):
        await system.begin(integration_type="other", integration_id=live.integration_id)
