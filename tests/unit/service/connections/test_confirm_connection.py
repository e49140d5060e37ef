import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from integration_server.domain.errors import (
    ConfirmationInvalid,
    CredentialsUnreadable,
    ProviderRejected,
    StateUsed,
    UserMismatch,
)
from integration_server.service.connections.oauth_callback import CONFIRMATION_REQUIRED
from integration_server.storage.tables import AttemptState, authorization_attempts
from tests.fakes.provider import parameter, wait_until
from tests.fakes.system import ADA, CONFIRMING, EVE, RETURN_URL, FakeSystem


@pytest.fixture
def system(confirming_system: FakeSystem) -> FakeSystem:
    return confirming_system


@pytest.fixture
async def token(system: FakeSystem) -> str:
    """A confirmation token for an attempt of Ada."""
    authorization = await system.begin(ADA, return_url=RETURN_URL)
    return (await system.call_back(authorization.state, code="hushed", query={"realmId": "9"})).confirmation_token


async def test_a_callback_without_a_user_waits_for_confirmation(system: FakeSystem) -> None:
    authorization = await system.begin(return_url=RETURN_URL)
    result = await system.call_back(authorization.state)
    assert (result.success, result.reason) == (False, CONFIRMATION_REQUIRED)
    assert result.integration_id == authorization.integration_id
    assert parameter(result.redirect_url, "confirmation_token") == result.confirmation_token
    assert "success" not in result.redirect_url
    assert not system.provider.exchanges
    assert not system.row(authorization.integration_id).is_connected


async def test_with_skip_confirmation_a_callback_completes_at_once() -> None:
    system = FakeSystem({"skip_confirmation": True})
    result = await system.call_back((await system.begin()).state)
    assert result.success
    assert not result.confirmation_token


async def test_the_user_of_the_attempt_confirms(system: FakeSystem, token: str) -> None:
    result = await system.oauth_callback.confirm_connection(token, ADA)
    assert result.success
    assert parameter(result.redirect_url, "success") == "true"
    assert [code for code, _ in system.provider.exchanges] == ["hushed"]
    assert (await system.tokens(result.integration_id)).extras == {"realmId": "9"}


async def test_another_user_cannot_confirm_and_the_attempt_stays_open(system: FakeSystem, token: str) -> None:
    with pytest.raises(UserMismatch):
        await system.oauth_callback.confirm_connection(token, EVE)
    assert not system.provider.exchanges
    assert (await system.oauth_callback.confirm_connection(token, ADA)).success


async def test_negative_control_without_confirmation_another_user_completes_the_attempt() -> None:
    """The attack that confirmation prevents. Eve begins an attempt, and Ada completes it at the provider."""
    system = FakeSystem({"skip_confirmation": True})
    authorization = await system.begin(EVE)
    assert (await system.call_back(authorization.state)).success
    assert system.row(authorization.integration_id).user_id == EVE


async def test_concurrent_confirmations_make_one_exchange(system: FakeSystem, token: str) -> None:
    results = await asyncio.gather(
        *(system.oauth_callback.confirm_connection(token, ADA) for _ in range(50)), return_exceptions=True
    )
    assert len(system.provider.exchanges) == 1
    assert sum(isinstance(result, ConfirmationInvalid) for result in results) == 49


async def test_concurrent_callbacks_have_one_confirmation_token(system: FakeSystem) -> None:
    authorization = await system.begin()
    results = await asyncio.gather(*(system.call_back(authorization.state) for _ in range(50)))
    assert {result.confirmation_token for result in results} == {results[0].confirmation_token}


async def test_an_attempt_awaiting_confirmation_rejects_a_second_callback(system: FakeSystem) -> None:
    authorization = await system.begin()
    await system.call_back(authorization.state, code="first")
    for user_id in (None, ADA):
        with pytest.raises(StateUsed):
            await system.call_back(authorization.state, code="second", user_id=user_id)
    assert not system.provider.exchanges


async def test_a_confirmation_token_expires_with_the_attempt(system: FakeSystem, token: str) -> None:
    system.clock.advance(timedelta(minutes=10))
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_callback.confirm_connection(token, ADA)
    assert not system.provider.exchanges


@pytest.mark.parametrize("invalid", ["", "x", "é", "A" * 300])
async def test_an_invalid_token_is_rejected(system: FakeSystem, invalid: str) -> None:
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_callback.confirm_connection(invalid, ADA)


async def test_an_altered_token_is_rejected(system: FakeSystem, token: str) -> None:
    for position, letter in enumerate(token):
        altered = token[:position] + ("A" if letter != "A" else "B") + token[position + 1 :]
        with pytest.raises(ConfirmationInvalid):
            await system.oauth_callback.confirm_connection(altered, ADA)


async def test_a_state_is_not_a_confirmation_token(system: FakeSystem) -> None:
    authorization = await system.begin()
    await system.call_back(authorization.state)
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_callback.confirm_connection(authorization.state, ADA)


async def test_negative_control_without_associated_data_a_state_is_a_confirmation_token() -> None:
    system = FakeSystem(dict(CONFIRMING), associated_data_is_checked=False)
    authorization = await system.begin()
    await system.call_back(authorization.state)
    assert (await system.oauth_callback.confirm_connection(authorization.state, ADA)).success


async def test_the_code_is_stored_encrypted(system: FakeSystem, token: str) -> None:
    (row,) = system.attempt_rows()
    assert row.encrypted_callback
    assert b"hushed" not in row.encrypted_callback
    assert "hushed" not in token


async def test_a_failed_exchange_leaves_no_pending_row(system: FakeSystem, token: str) -> None:
    system.provider.exchange_error = ProviderRejected("code")
    with pytest.raises(ProviderRejected):
        await system.oauth_callback.confirm_connection(token, ADA)
    assert not system.ids()


async def test_a_stored_code_that_does_not_decrypt_leaves_no_pending_row(system: FakeSystem, token: str) -> None:
    system.database.execute(update(authorization_attempts).values(encrypted_callback=b"corrupt"))
    with pytest.raises(CredentialsUnreadable):
        await system.oauth_callback.confirm_connection(token, ADA)
    assert not system.ids()
    assert not system.provider.exchanges


async def test_a_confirmation_completes_after_its_caller_is_cancelled(system: FakeSystem, token: str) -> None:
    caller = asyncio.create_task(system.oauth_callback.confirm_connection(token, ADA))
    await wait_until(lambda: any(row.state == AttemptState.CONSUMED.value for row in system.attempt_rows()))
    caller.cancel()
    await wait_until(lambda: system.row(system.ids()[0]).is_connected)
    assert len(system.provider.exchanges) == 1
