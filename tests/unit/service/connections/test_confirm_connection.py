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
from integration_server.service.connections.oauth_connection import CONFIRMATION_REQUIRED
from integration_server.storage.tables import AttemptState, authorization_attempts
from tests.fakes.provider import parameter, until
from tests.fakes.system import ADA, EVE, RETURN_URL, FakeSystem


@pytest.fixture
def system(confirming_system: FakeSystem) -> FakeSystem:
    return confirming_system


@pytest.fixture
async def token(system: FakeSystem) -> str:
    """A confirmation token for what Ada began."""
    begun = await system.begin(ADA, return_url=RETURN_URL)
    return (await system.call_back(begun.state, code="hushed", query={"realmId": "9"})).confirmation_token


async def test_a_callback_that_names_nobody_waits_for_confirmation(system: FakeSystem) -> None:
    begun = await system.begin(return_url=RETURN_URL)
    outcome = await system.call_back(begun.state)
    assert (outcome.success, outcome.reason) == (False, CONFIRMATION_REQUIRED)
    assert outcome.integration_id == begun.integration_id
    assert parameter(outcome.redirect_url, "confirmation_token") == outcome.confirmation_token
    assert "success" not in outcome.redirect_url
    assert not system.provider.exchanges
    assert not system.row(begun.integration_id).is_connected


async def test_with_direct_completion_it_does_not() -> None:
    system = FakeSystem({"skip_confirmation": True})
    outcome = await system.call_back((await system.begin()).state)
    assert outcome.success
    assert not outcome.confirmation_token


async def test_the_user_who_began_confirms(system: FakeSystem, token: str) -> None:
    outcome = await system.oauth_connection.confirm_connection(token, ADA)
    assert outcome.success
    assert parameter(outcome.redirect_url, "success") == "true"
    assert [code for code, _ in system.provider.exchanges] == ["hushed"]
    assert (await system.tokens(outcome.integration_id)).extras == {"realmId": "9"}


async def test_another_user_does_not_and_leaves_it_to_be_confirmed(system: FakeSystem, token: str) -> None:
    with pytest.raises(UserMismatch):
        await system.oauth_connection.confirm_connection(token, EVE)
    assert not system.provider.exchanges
    assert (await system.oauth_connection.confirm_connection(token, ADA)).success


async def test_without_the_check_whoever_finishes_connects_for_the_one_who_began() -> None:
    """The attack that the check is against: Eve begins, and has Ada finish at the provider."""
    system = FakeSystem({"skip_confirmation": True})
    begun = await system.begin(EVE)
    assert (await system.call_back(begun.state)).success
    assert system.row(begun.integration_id).user_id == EVE


async def test_fifty_confirmations_make_one_exchange(system: FakeSystem, token: str) -> None:
    outcomes = await asyncio.gather(
        *(system.oauth_connection.confirm_connection(token, ADA) for _ in range(50)), return_exceptions=True
    )
    assert len(system.provider.exchanges) == 1
    assert sum(isinstance(outcome, ConfirmationInvalid) for outcome in outcomes) == 49


async def test_fifty_callbacks_hold_one(system: FakeSystem) -> None:
    begun = await system.begin()
    outcomes = await asyncio.gather(*(system.call_back(begun.state) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(outcome, StateUsed) for outcome in outcomes) == 49


async def test_an_attempt_awaiting_confirmation_takes_no_second_callback(system: FakeSystem) -> None:
    begun = await system.begin()
    await system.call_back(begun.state, code="first")
    for user_id in (None, ADA):
        with pytest.raises(StateUsed):
            await system.call_back(begun.state, code="second", user_id=user_id)
    assert not system.provider.exchanges


async def test_a_confirmation_ends_with_the_attempt(system: FakeSystem, token: str) -> None:
    system.clock.advance(timedelta(minutes=10))
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_connection.confirm_connection(token, ADA)
    assert not system.provider.exchanges


@pytest.mark.parametrize("forged", ["", "x", "é", "A" * 300])
async def test_a_forged_token_is_refused(system: FakeSystem, forged: str) -> None:
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_connection.confirm_connection(forged, ADA)


async def test_an_altered_token_is_refused(system: FakeSystem, token: str) -> None:
    for place, letter in enumerate(token):
        altered = token[:place] + ("A" if letter != "A" else "B") + token[place + 1 :]
        with pytest.raises(ConfirmationInvalid):
            await system.oauth_connection.confirm_connection(altered, ADA)


async def test_a_state_confirms_nothing(system: FakeSystem) -> None:
    begun = await system.begin()
    await system.call_back(begun.state)
    with pytest.raises(ConfirmationInvalid):
        await system.oauth_connection.confirm_connection(begun.state, ADA)


async def test_without_associated_data_a_state_is_a_confirmation_token() -> None:
    system = FakeSystem({"skip_confirmation": False}, associated_data_is_checked=False)
    begun = await system.begin()
    await system.call_back(begun.state)
    assert (await system.oauth_connection.confirm_connection(begun.state, ADA)).success


async def test_the_code_is_stored_encrypted(system: FakeSystem, token: str) -> None:
    (row,) = system.attempt_rows()
    assert row.encrypted_callback
    assert b"hushed" not in row.encrypted_callback
    assert "hushed" not in token


async def test_a_failed_exchange_leaves_no_pending_row(system: FakeSystem, token: str) -> None:
    system.provider.exchange_error = ProviderRejected("code")
    with pytest.raises(ProviderRejected):
        await system.oauth_connection.confirm_connection(token, ADA)
    assert not system.ids()


async def test_a_stored_code_that_does_not_decrypt_leaves_no_pending_row(system: FakeSystem, token: str) -> None:
    system.database.execute(update(authorization_attempts).values(encrypted_callback=b"spoilt"))
    with pytest.raises(CredentialsUnreadable):
        await system.oauth_connection.confirm_connection(token, ADA)
    assert not system.ids()
    assert not system.provider.exchanges


async def test_a_confirmation_runs_to_its_end_though_its_caller_is_gone(system: FakeSystem, token: str) -> None:
    caller = asyncio.create_task(system.oauth_connection.confirm_connection(token, ADA))
    await until(lambda: any(row.state == AttemptState.CONSUMED.value for row in system.attempt_rows()))
    caller.cancel()
    await until(lambda: system.row(system.ids()[0]).is_connected)
