from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from integration_server.domain.associated_data import AssociatedData, bound_values_of
from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import CredentialsUnreadable, IntegrationPending
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.service.credentials.credential_cipher import (
    CredentialCipher,
    EncryptedTokens,
)
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
OTHER_ASSOCIATED_DATA: list[dict[str, Any]] = [
    {"uid": "other"},
    {"user_id": "eve"},
    {"integration_type": "other"},
    {"integration_id": IntegrationId(2)},
    {"auth_method": AuthMethod.API_KEY},
    {"version": 1},
    {"settings_version": 1},
    {"webhook_secret_id": "other"},
    {"account_id": "other"},
    {"account_label": "other"},
    {"name": "other"},
    {"config": {"host": "other"}},
    {"oauth_client": "other"},
    {"is_active": False},
    {"scopes": ("admin",)},
    {"missing_scopes": ("admin",)},
    {"lacks_required_scope": True},
    {"is_renewable": True},
    {"access_token_expire_time": NOON},
    {"refresh_token_expire_time": NOON},
    {"connect_time": NOON},
]
UNBOUND = {
    *("create_time", "update_time", "last_error", "error_count", "last_health_check", "reauthorization_required"),
    *("refresh_retry_time", "refresh_failures", "refresh_due_time", "check_due_time"),
}
"""What changes without the credentials; docs/database-tampering.md has the effect of altering each."""


def test_every_field_is_bound_or_changes_without_the_credentials() -> None:
    assert {name for changes in OTHER_ASSOCIATED_DATA for name in changes} | UNBOUND == {
        field.name for field in fields(Integration)
    }


@pytest.mark.parametrize(
    "credentials",
    [FULL, OAuthTokens("access"), replace(FULL, scopes=()), ApiKey("key"), ApiKey("key", "secret", "hook")],
    ids=["full", "minimal", "no scopes", "key", "key and secrets"],
)
async def test_decryption_returns_the_encrypted_credentials(credentials: Credentials) -> None:
    cipher = CredentialCipher(FakeAead())
    assert await cipher.decrypt(StoredIntegration(ROW, await cipher.encrypt(ROW, credentials))) == credentials


@pytest.mark.parametrize("changes", OTHER_ASSOCIATED_DATA, ids=str)
async def test_credentials_do_not_decrypt_as_those_of_another_row(changes: dict[str, Any]) -> None:
    cipher = CredentialCipher(FakeAead())
    encrypted = await cipher.encrypt(ROW, FULL)
    with pytest.raises(CredentialsUnreadable):
        await cipher.decrypt(StoredIntegration(replace(ROW, **changes), encrypted))


@pytest.mark.parametrize("changes", OTHER_ASSOCIATED_DATA, ids=str)
async def test_negative_control_without_associated_data_credentials_of_another_row_decrypt(
    changes: dict[str, Any],
) -> None:
    cipher = CredentialCipher(FakeAead(checks_associated_data=False))
    encrypted = await cipher.encrypt(ROW, FULL)
    assert await cipher.decrypt(StoredIntegration(replace(ROW, **changes), encrypted)) == FULL


async def test_of_an_altered_row_only_the_identity_is_shown() -> None:
    cipher = CredentialCipher(FakeAead())
    row = replace(ROW, name="Work", config={"host": "acme"}, account_id="a", account_label="a@b.example", scopes=("r",))
    stored = StoredIntegration(row, await cipher.encrypt(row, FULL))
    assert await cipher.redacted(stored) == row
    altered = replace(stored, integration=replace(row, user_id=UserId("eve")))
    shown = await cipher.redacted(altered)
    assert (shown.name, shown.config, shown.account_id, shown.account_label, shown.scopes) == ("", {}, None, None, ())
    assert (shown.integration_id, shown.uid, shown.version) == (row.integration_id, row.uid, row.version)
    assert shown.last_error is not None
    assert shown.last_error.error_class == "CREDENTIALS_UNREADABLE"


@pytest.mark.parametrize("plaintext", [b"", b"{}", b"[]", b"\xff", b'{"access_token": 1, "hush": "hush"}'])
async def test_an_invalid_plaintext_is_unreadable_and_not_in_the_error(plaintext: bytes) -> None:
    aead = FakeAead()
    associated_data = AssociatedData(
        "integrations", "encrypted_credentials", ROW.uid, ROW.user_id, ROW.integration_type, bound_values_of(ROW)
    )
    with pytest.raises(CredentialsUnreadable) as caught:
        await CredentialCipher(aead).decrypt(StoredIntegration(ROW, await aead.encrypt(plaintext, associated_data)))
    assert caught.value.__cause__ is None
    assert "hush" not in str(caught.value)


async def test_a_pending_integration_cannot_be_decrypted() -> None:
    cipher = CredentialCipher(FakeAead())
    with pytest.raises(IntegrationPending):
        await cipher.decrypt(StoredIntegration(ROW, await cipher.encrypt(ROW, None)))
    with pytest.raises(CredentialsUnreadable):
        await cipher.decrypt(StoredIntegration(ROW, None))


# --- encrypted tokens ------------------------------------------------------------------------------------------------


async def test_a_token_is_rejected_for_another_purpose() -> None:
    aead = FakeAead()
    token = await EncryptedTokens(aead, "state", int).make(7)
    assert await EncryptedTokens(aead, "state", int).read(token) == 7
    assert await EncryptedTokens(aead, "page", int).read(token) is None


async def test_a_token_with_content_of_another_type_is_rejected() -> None:
    aead = FakeAead()
    token = await EncryptedTokens(aead, "state", str).make("seven")
    assert await EncryptedTokens(aead, "state", int).read(token) is None


@settings(deadline=None)
@given(st.text())
async def test_arbitrary_text_is_not_a_valid_token(text: str) -> None:
    assert await EncryptedTokens(FakeAead(), "state", str).read(text) is None


@settings(deadline=None)
@given(st.text())
async def test_only_the_canonical_form_of_a_token_is_valid(content: str) -> None:
    tokens = EncryptedTokens(FakeAead(), "state", str)
    token = await tokens.make(content)
    assert await tokens.read(token) == content
    for variant in (token + "=", token + "==", token + "\n", "\n" + token, token + "!"):
        assert await tokens.read(variant) is None
