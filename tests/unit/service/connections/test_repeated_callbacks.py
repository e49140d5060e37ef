"""Callbacks that arrive more than once: reloaded, prefetched by something that says nothing about it, or after Back."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.errors import (
    AccountMismatch,
    ConfirmationInvalid,
    CredentialsUnreadable,
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
from integration_server.domain.integration import Status
from integration_server.rpc.errors import status_of
from integration_server.service.connections.oauth_callback import (
    REPETITION_WINDOW,
    Callback,
    ConnectionResult,
    OAuthCallbackService,
)
from integration_server.service.connections.ports import ATTEMPT_LIFETIME
from integration_server.service.integrations.ports import NewAccount
from tests.fakes.provider import parameter, wait_until
from tests.fakes.system import (
    ADA,
    APP_CALLBACK,
    CONFIRMING,
    DEFAULT_RETURN_URL,
    EVE,
    OWN_CALLBACK,
    RETURN_URL,
    FakeSystem,
)

MOMENT = timedelta(microseconds=1)


async def outcome_of(service: OAuthCallbackService, callback: Callback) -> ConnectionResult | bytes:
    """The result of a callback, or the status of its error as callers receive it."""
    try:
        return await service.handle_callback(callback)
    except IntegrationServerError as error:
        return status_of(error).SerializeToString(deterministic=True)


def replica(system: FakeSystem, **options: Any) -> OAuthCallbackService:
    return system.another_process_with(**options).use_cases.oauth_callback


# --- the outcome of the first ----------------------------------------------------------------------------------------


async def test_a_repeated_callback_has_the_same_result_on_every_replica(system: FakeSystem) -> None:
    callback = Callback((await system.begin(return_url=RETURN_URL)).state, "code")
    first = await system.oauth_callback.handle_callback(callback)
    assert first.success
    for pause in (timedelta(0), timedelta(seconds=5), REPETITION_WINDOW - timedelta(seconds=5) - MOMENT):
        system.clock.advance(pause)
        assert await outcome_of(replica(system), callback) == first
    assert len(system.provider.exchanges) == 1


async def test_a_repeated_callback_has_the_same_confirmation_token_also_after_the_confirmation(
    confirming_system: FakeSystem,
) -> None:
    system = confirming_system
    callback = Callback((await system.begin(return_url=RETURN_URL)).state, "code")
    first = await system.oauth_callback.handle_callback(callback)
    assert first.confirmation_token
    assert await outcome_of(replica(system), callback) == first
    assert (await system.oauth_callback.confirm_connection(first.confirmation_token, ADA)).success
    assert await outcome_of(replica(system), callback) == first
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_callback.confirm_connection(first.confirmation_token, ADA)
    assert len(system.provider.exchanges) == 1


FAILURES = [
    ProviderRejected("code", oauth_error="invalid_grant"),
    ProviderUnavailable(),
    ProviderUnavailable("the provider asks to wait", retry_after=timedelta(seconds=7)),
    ProviderMisconfigured(),
    InvalidField("query", "has no realmId"),
]


@pytest.mark.parametrize("error", FAILURES, ids=repr)
@pytest.mark.parametrize("where", ["exchange_error", "verify_error"])
async def test_a_repeated_callback_has_the_same_error(system: FakeSystem, where: str, error: Exception) -> None:
    callback = Callback((await system.begin(return_url=RETURN_URL)).state, "code")
    setattr(system.provider, where, error)
    first = await outcome_of(system.oauth_callback, callback)
    setattr(system.provider, where, None)
    assert isinstance(first, bytes)
    assert await outcome_of(replica(system), callback) == first
    assert await outcome_of(system.oauth_callback, callback) == first
    assert len(system.provider.exchanges) == 1


async def test_a_provider_reason_and_another_account_are_repeated_too(system: FakeSystem) -> None:
    error = ProviderRejected("code")
    error.provider_reason = "org_suspended"
    system.provider.exchange_error = error
    callback = Callback((await system.begin()).state, "code")
    first = await outcome_of(system.oauth_callback, callback)
    assert isinstance(first, bytes)
    assert b"org_suspended" in first
    assert await outcome_of(replica(system), callback) == first

    system.provider.exchange_error = None
    live = await system.connect_account("account-1")
    other = Callback((await system.begin(integration_id=live.integration_id)).state, "code")
    system.provider.account = NewAccount("account-2", None)
    first = await outcome_of(system.oauth_callback, other)
    assert AccountMismatch.reason.encode() in bytes(first) if isinstance(first, bytes) else False
    assert await outcome_of(replica(system), other) == first


async def test_a_fault_of_this_program_is_not_repeated(system: FakeSystem) -> None:
    state = (await system.begin()).state
    system.provider.exchange_error = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        await system.call_back(state)
    with pytest.raises(StateUsed):
        await system.call_back(state)


@pytest.mark.parametrize("settings", [{}, CONFIRMING], ids=["direct", "confirming"])
async def test_another_code_or_a_late_repetition_finds_the_state_used(settings: Mapping[str, Any]) -> None:
    system = FakeSystem(dict(settings))
    state = (await system.begin()).state
    await system.call_back(state, code="first")
    for code in ("second", "first ", "First", "firs"):
        with pytest.raises(StateUsed):
            await system.call_back(state, code=code)
    system.clock.advance(REPETITION_WINDOW)
    with pytest.raises(StateUsed):
        await system.call_back(state, code="first")


async def test_a_repetition_of_a_callback_in_time_may_arrive_after_the_state_expired(system: FakeSystem) -> None:
    state = (await system.begin()).state
    system.clock.advance(ATTEMPT_LIFETIME - MOMENT)
    first = await system.call_back(state)
    system.clock.advance(REPETITION_WINDOW - MOMENT)
    await system.oauth_connection.remove_abandoned()
    assert await system.call_back(state) == first
    with pytest.raises(StateExpired):
        await system.call_back(state, code="another")
    system.clock.advance(MOMENT)
    with pytest.raises(StateExpired):
        await system.call_back(state)


async def test_a_repetition_is_checked_like_the_first(system: FakeSystem) -> None:
    system.add_provider("other")
    system.provider.issuer = "https://fake.example"
    state = (await system.begin(ADA)).state
    first = await system.call_back(state, iss="https://fake.example", user_id=ADA)
    for fields, error in (
        ({"iss": "https://evil.example"}, IssuerMismatch),
        ({"iss": "https://fake.example", "user_id": EVE}, UserMismatch),
        ({"iss": "https://fake.example", "integration_type": "other"}, StateInvalid),
    ):
        with pytest.raises(error):
            await system.call_back(state, **fields)
    assert await system.call_back(state, iss="https://fake.example", user_id=ADA) == first


async def test_the_stored_outcome_is_encrypted_and_removed_with_the_attempt(confirming_system: FakeSystem) -> None:
    system = confirming_system
    held = await system.call_back((await system.begin()).state, code="hushed")
    (row,) = system.attempt_rows()
    for secret in ("hushed", held.confirmation_token, system.provider.integration_type):
        assert secret.encode() not in row.encrypted_outcome
    system.clock.advance(ATTEMPT_LIFETIME + timedelta(minutes=1))
    await system.oauth_connection.remove_abandoned()
    assert not system.attempt_rows()


# --- at the same time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ProviderRejected("code")], ids=["success", "failure"])
async def test_a_repetition_on_another_replica_waits_for_the_outcome_of_the_first(
    system: FakeSystem, error: Exception | None
) -> None:
    callback = Callback((await system.begin(return_url=RETURN_URL)).state, "code")
    system.provider.gate, system.provider.exchange_error = asyncio.Event(), error
    first = asyncio.create_task(outcome_of(system.oauth_callback, callback))
    await wait_until(lambda: system.provider.exchanges)
    others = [asyncio.create_task(outcome_of(replica(system), callback)) for _ in range(3)]
    with pytest.raises(StateUsed):
        await system.call_back(callback.state, code="another")  # at once
    assert not any(task.done() for task in (first, *others))
    system.provider.gate.set()
    assert {repr(await task) for task in others} == {repr(await first)}
    assert len(system.provider.exchanges) == 1


async def test_a_repetition_does_not_wait_longer_than_the_window_for_a_replica_that_died() -> None:
    system = FakeSystem(sleep_advances_clock=True)
    state = (await system.begin()).state
    system.provider.gate = asyncio.Event()
    first = asyncio.create_task(system.call_back(state))
    await wait_until(lambda: system.provider.exchanges)
    with pytest.raises(StateUsed):
        await system.call_back(state)
    system.provider.gate.set()
    assert (await first).success


async def test_negative_control_without_kept_outcomes_a_reload_says_that_the_link_was_used(
    confirming_system: FakeSystem,
) -> None:
    state = (await confirming_system.begin()).state
    without = replica(confirming_system, keeps_outcomes=False)
    assert (await without.handle_callback(Callback(state, "code"))).confirmation_token
    with pytest.raises(StateUsed):
        await without.handle_callback(Callback(state, "code"))


async def test_the_outcome_of_another_attempt_does_not_decrypt(system: FakeSystem) -> None:
    mine, other = (await system.begin(ADA)).state, (await system.begin(EVE)).state
    for state in (mine, other):
        await system.call_back(state)
    await _exchange_outcomes(system)
    with pytest.raises(CredentialsUnreadable):
        await system.call_back(mine)


async def test_negative_control_without_associated_data_the_outcome_of_another_attempt_decrypts() -> None:
    system = FakeSystem(associated_data_is_checked=False)
    mine, other = (await system.begin(ADA)).state, (await system.begin(EVE)).state
    first, second = await system.call_back(mine), await system.call_back(other)
    await _exchange_outcomes(system)
    assert (await system.call_back(mine)).integration_id == second.integration_id != first.integration_id


async def _exchange_outcomes(system: FakeSystem) -> None:
    first, second = system.attempt_rows()
    for row, other in ((first, second), (second, first)):
        system.alter_attempt(row.attempt_id, encrypted_outcome=other.encrypted_outcome)


# --- denials ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, CONFIRMING], ids=["direct", "confirming"])
async def test_deny_back_deny_back_allow_connects(settings: Mapping[str, Any]) -> None:
    system = FakeSystem(dict(settings))
    authorization = await system.begin(return_url=RETURN_URL)
    denials = [await system.call_back(authorization.state, code="", error="access_denied") for _ in range(2)]
    assert denials[0] == denials[1]
    assert system.row(authorization.integration_id).status(system.clock()) is Status.PENDING
    allowed = await system.call_back(authorization.state)
    if token := allowed.confirmation_token:
        allowed = await system.oauth_callback.confirm_connection(token, ADA)
    assert (allowed.success, allowed.integration_id) == (True, authorization.integration_id)


@pytest.mark.parametrize("error", ["access_denied", "server_error", "consent_required"])
async def test_deny_after_allow_changes_nothing_and_returns_to_the_app(system: FakeSystem, error: str) -> None:
    state = (await system.begin(return_url=RETURN_URL)).state
    first = await system.call_back(state)
    with pytest.raises(StateUsed) as caught:
        await system.call_back(state, code="", error=error)
    assert parameter((caught.value.metadata or {})["redirect_url"], "reason") == "STATE_USED"
    assert await system.call_back(state) == first
    assert system.row(first.integration_id).is_connected


async def test_a_denial_after_the_state_expired_is_too_late(system: FakeSystem) -> None:
    state = (await system.begin()).state
    system.clock.advance(ATTEMPT_LIFETIME)
    with pytest.raises(StateExpired):
        await system.call_back(state, code="", error="access_denied")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"error_code": "1349048", "error_message": "App Not Setup"}, "1349048"),
        ({"error_reason": "user_denied", "error_description": "Permissions error"}, "user_denied"),
        ({"errorCode": "REFUSED", "errorMessage": "Not today"}, "unknown_error"),
        ({"errcode": "-2", "errmsg": "user cancelled"}, "-2"),
        ({"Error": "login_required"}, "login_required"),
        ({"error_message": "<script>alert(1)</script>"}, "unknown_error"),
    ],
)
async def test_an_error_under_another_name_is_a_denial_unless_there_is_a_code(
    system: FakeSystem, query: Mapping[str, str], reason: str
) -> None:
    state = (await system.begin(return_url=RETURN_URL)).state
    denied = await system.call_back(state, code="", query=query)
    assert (denied.success, denied.reason, parameter(denied.redirect_url, "reason")) == (False, reason, reason)
    assert (await system.call_back(state, query=query)).success


# --- where the browser continues -------------------------------------------------------------------------------------


async def failure_url(system: FakeSystem, state: str, **fields: Any) -> str:
    """Where the browser continues after a failed callback."""
    with pytest.raises(IntegrationServerError) as caught:
        await system.call_back(state, **fields)
    metadata = caught.value.metadata or {}
    assert metadata.get("display_name", "Fake") == "Fake"
    return metadata.get("redirect_url", "")


async def test_every_failure_of_a_genuine_state_names_the_return_url(system: FakeSystem) -> None:
    system.provider.issuer = "https://fake.example"
    iss = {"iss": "https://fake.example"}
    state = (await system.begin(return_url=RETURN_URL)).state
    prefix = f"{RETURN_URL}&success=false&reason="
    assert await failure_url(system, state) == f"{prefix}ISSUER_MISMATCH&integration_type=fake"
    assert await failure_url(system, state, code="", **iss) == f"{prefix}INVALID_FIELD&integration_type=fake"
    system.provider.exchange_error = ProviderRejected("code")
    for _ in range(2):
        assert await failure_url(system, state, **iss) == f"{prefix}PROVIDER_REJECTED&integration_type=fake"
    assert await failure_url(system, state, code="2", **iss) == f"{prefix}STATE_USED&integration_type=fake"
    system.clock.advance(ATTEMPT_LIFETIME)
    assert await failure_url(system, state, **iss) == f"{prefix}STATE_EXPIRED&integration_type=fake"


async def test_the_default_return_url_is_used_where_the_attempt_names_none_or_is_gone() -> None:
    system = FakeSystem({"default_return_url": DEFAULT_RETURN_URL})
    state = (await system.begin()).state
    assert (await system.call_back(state)).redirect_url.startswith(f"{DEFAULT_RETURN_URL}?success=true&")
    gone = (await system.begin(return_url=RETURN_URL)).state
    system.clock.advance(timedelta(days=1))
    await system.oauth_connection.remove_abandoned()
    assert (await failure_url(system, gone)).startswith(f"{DEFAULT_RETURN_URL}?success=false&reason=STATE_EXPIRED&")


async def test_a_forged_state_names_no_url_and_neither_does_another_user(system: FakeSystem) -> None:
    state = (await system.begin(ADA, return_url=RETURN_URL)).state
    assert await failure_url(system, state + "A") == ""
    assert await failure_url(system, state, integration_type="fake_key") == ""
    assert await failure_url(system, state, user_id=EVE) == ""


@pytest.mark.parametrize("redirect_uri", ["", OWN_CALLBACK], ids=["default", "own"])
async def test_a_connection_that_nobody_could_confirm_is_refused_at_once(redirect_uri: str) -> None:
    system = FakeSystem({"skip_confirmation": False})
    with pytest.raises(InvalidField, match="DEFAULT_RETURN_URL") as caught:
        await system.begin(redirect_uri=redirect_uri)
    assert caught.value.field == "return_url"
    assert not system.ids()
    # Whoever receives the browser can confirm, or the token reaches the app.
    assert (await system.begin(redirect_uri=APP_CALLBACK)).url
    assert (await system.begin(redirect_uri=redirect_uri, return_url=RETURN_URL)).url


@pytest.mark.parametrize("settings", [{"skip_confirmation": True}, CONFIRMING], ids=["skipped", "default"])
async def test_negative_control_where_the_token_is_not_needed_or_delivered_a_connection_begins(
    settings: Mapping[str, Any],
) -> None:
    assert (await FakeSystem(dict(settings)).begin()).url
