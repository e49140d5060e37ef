from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import AssociatedData
from integration_server.service.credentials.credential_cipher import CredentialCipher, EncryptedTokens
from integration_server.service.integrations.ports import StoredIntegration
from tests.fakes.aead import FakeAead
from tests.fakes.clock import NOON

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
OTHER_ASSOCIATED_DATA: list[dict[str, Any]] = [{"uid": "other"}, {"user_id": "eve"}, {"integration_type": "other"}]


@pytest.mark.parametrize(
    "credentials",
    [FULL, OAuthTokens("access"), replace(FULL, scopes=()), ApiKey("key"), ApiKey("key", "secret", "hook")],
    ids=["full", "least", "no scopes", "key", "key and secrets"],
)
async def test_credentials_come_back_as_they_were(credentials: Credentials) -> None:
    cipher = CredentialCipher(FakeAead())
    assert await cipher.decrypt(StoredIntegration(ROW, await cipher.encrypt(ROW, credentials))) == credentials


@pytest.mark.parametrize("changes", OTHER_ASSOCIATED_DATA, ids=str)
async def test_credentials_do_not_decrypt_as_those_of_another_row(changes: dict[str, Any]) -> None:
    cipher = CredentialCipher(FakeAead())
    encrypted = await cipher.encrypt(ROW, FULL)
    with pytest.raises(CredentialsUnreadable):
        await cipher.decrypt(StoredIntegration(replace(ROW, **changes), encrypted))


@pytest.mark.parametrize("changes", OTHER_ASSOCIATED_DATA, ids=str)
async def test_without_associated_data_they_decrypt(changes: dict[str, Any]) -> None:
    cipher = CredentialCipher(FakeAead(checks_associated_data=False))
    encrypted = await cipher.encrypt(ROW, FULL)
    assert await cipher.decrypt(StoredIntegration(replace(ROW, **changes), encrypted)) == FULL


async def test_the_id_of_a_row_is_not_in_its_associated_data() -> None:
    """It is not known before the row is stored; `uid` is."""
    cipher = CredentialCipher(FakeAead())
    encrypted = await cipher.encrypt(ROW, FULL)
    assert await cipher.decrypt(StoredIntegration(replace(ROW, integration_id=IntegrationId(2)), encrypted)) == FULL


@pytest.mark.parametrize("plaintext", [b"", b"{}", b"[]", b"\xff", b'{"access_token": 1, "hush": "hush"}'])
async def test_an_unparsable_plaintext_is_unreadable_and_not_quoted(plaintext: bytes) -> None:
    aead = FakeAead()
    associated_data = AssociatedData(
        "integrations", "encrypted_credentials", ROW.uid, ROW.user_id, ROW.integration_type
    )
    with pytest.raises(CredentialsUnreadable) as refused:
        await CredentialCipher(aead).decrypt(StoredIntegration(ROW, await aead.encrypt(plaintext, associated_data)))
    assert refused.value.__cause__ is None
    assert "hush" not in str(refused.value)


async def test_a_pending_integration_has_nothing_to_decrypt() -> None:
    with pytest.raises(IntegrationPending):
        await CredentialCipher(FakeAead()).decrypt(StoredIntegration(ROW, None))


# --- tokens that we hand out ---------------------------------------------------------------------------------------


async def test_a_token_is_for_one_purpose() -> None:
    aead = FakeAead()
    token = await EncryptedTokens(aead, "state", int).make(7)
    assert await EncryptedTokens(aead, "state", int).read(token) == 7
    assert await EncryptedTokens(aead, "page", int).read(token) is None


async def test_a_token_of_another_content_is_not_ours() -> None:
    aead = FakeAead()
    token = await EncryptedTokens(aead, "state", str).make("seven")
    assert await EncryptedTokens(aead, "state", int).read(token) is None


@settings(deadline=None)
@given(st.text())
async def test_no_text_is_a_token_by_chance(text: str) -> None:
    assert await EncryptedTokens(FakeAead(), "state", str).read(text) is None


@settings(deadline=None)
@given(st.text())
async def test_only_one_spelling_of_a_token_is_ours(content: str) -> None:
    tokens = EncryptedTokens(FakeAead(), "state", str)
    token = await tokens.make(content)
    assert await tokens.read(token) == content
    for spelling in (token + "=", token + "==", token + "\n", "\n" + token, token + "!"):
        assert await tokens.read(spelling) is None
