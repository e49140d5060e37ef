from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.ports import Place, StoredIntegration
from integration_server.service.sealing import SealedTokens, Vault
from tests.fakes.clock import NOON
from tests.fakes.sealer import FakeSealer

ROW = Integration(
    integration_id=IntegrationId(1),
    uid="uid",
    user_id=UserId("ada"),
    integration_type="fake",
    auth_method=AuthMethod.OAUTH2,
    create_time=NOON,
    update_time=NOON,
)
FULL = OAuthTokens(
    access_token="access 🦆",
    refresh_token="refresh",
    expire_time=NOON,
    lifetime=timedelta(seconds=1, microseconds=1),
    refresh_token_expire_time=NOON + timedelta(days=60),
    scopes=("read", "write"),
    extras={"realmId": "9"},
)
OTHER_PLACES: list[dict[str, Any]] = [{"uid": "other"}, {"user_id": "eve"}, {"integration_type": "other"}]


@pytest.mark.parametrize(
    "credentials",
    [FULL, OAuthTokens("access"), replace(FULL, scopes=()), ApiKey("key"), ApiKey("key", "secret", "hook")],
    ids=["full", "least", "no scopes", "key", "key and secrets"],
)
async def test_credentials_come_back_as_they_were(credentials: Credentials) -> None:
    vault = Vault(FakeSealer())
    assert await vault.open(StoredIntegration(ROW, await vault.seal(ROW, credentials))) == credentials


@pytest.mark.parametrize("changes", OTHER_PLACES, ids=str)
async def test_credentials_do_not_open_as_those_of_another_row(changes: dict[str, Any]) -> None:
    vault = Vault(FakeSealer())
    sealed = await vault.seal(ROW, FULL)
    with pytest.raises(CredentialsUnreadable):
        await vault.open(StoredIntegration(replace(ROW, **changes), sealed))


@pytest.mark.parametrize("changes", OTHER_PLACES, ids=str)
async def test_they_would_if_places_were_not_checked(changes: dict[str, Any]) -> None:
    vault = Vault(FakeSealer(checks_places=False))
    sealed = await vault.seal(ROW, FULL)
    assert await vault.open(StoredIntegration(replace(ROW, **changes), sealed)) == FULL


async def test_the_number_of_a_row_is_no_part_of_its_place() -> None:
    """It is not known before the row is stored; `uid` is."""
    vault = Vault(FakeSealer())
    sealed = await vault.seal(ROW, FULL)
    assert await vault.open(StoredIntegration(replace(ROW, integration_id=IntegrationId(2)), sealed)) == FULL


@pytest.mark.parametrize("plaintext", [b"", b"{}", b"[]", b"\xff", b'{"access_token": 1, "hush": "hush"}'])
async def test_what_opens_to_something_else_is_unreadable_and_not_quoted(plaintext: bytes) -> None:
    sealer = FakeSealer()
    place = Place("integrations", "sealed_credentials", ROW.uid, ROW.user_id, ROW.integration_type)
    with pytest.raises(CredentialsUnreadable) as refused:
        await Vault(sealer).open(StoredIntegration(ROW, await sealer.seal(plaintext, place)))
    assert refused.value.__cause__ is None
    assert "hush" not in str(refused.value)


async def test_a_pending_integration_has_nothing_to_open() -> None:
    with pytest.raises(IntegrationPending):
        await Vault(FakeSealer()).open(StoredIntegration(ROW, None))


# --- tokens that we hand out ---------------------------------------------------------------------------------------


async def test_a_token_is_for_one_purpose() -> None:
    sealer = FakeSealer()
    token = await SealedTokens(sealer, "state", int).make(7)
    assert await SealedTokens(sealer, "state", int).read(token) == 7
    assert await SealedTokens(sealer, "page", int).read(token) is None


async def test_a_token_of_another_content_is_not_ours() -> None:
    sealer = FakeSealer()
    token = await SealedTokens(sealer, "state", str).make("seven")
    assert await SealedTokens(sealer, "state", int).read(token) is None


@given(st.text())
async def test_no_text_is_a_token_by_chance(text: str) -> None:
    assert await SealedTokens(FakeSealer(), "state", str).read(text) is None


@given(st.text())
async def test_only_one_spelling_of_a_token_is_ours(content: str) -> None:
    tokens = SealedTokens(FakeSealer(), "state", str)
    token = await tokens.make(content)
    assert await tokens.read(token) == content
    for spelling in (token + "=", token + "==", token + "\n", "\n" + token, token + "!"):
        assert await tokens.read(spelling) is None
