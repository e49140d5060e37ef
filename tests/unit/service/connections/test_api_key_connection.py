import asyncio
from typing import Any

import pytest

from integration_server.domain.credentials import ApiKey, AuthMethod
from integration_server.domain.errors import (
    AccountMismatch,
    IntegrationNotFound,
    InvalidField,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
    UnknownIntegrationType,
)
from integration_server.domain.integration import IntegrationId, Status
from integration_server.providers.declaration_tables import FieldDeclaration
from integration_server.service.connections.api_key_connection import ApiKeyConnectionRequest
from integration_server.service.integrations.ports import NewAccount
from tests.fakes.system import ADA, EVE, FakeSystem


async def stored_key(system: FakeSystem, integration_id: int) -> ApiKey:
    key = await system.cipher.decrypt(system.stored(integration_id))
    assert isinstance(key, ApiKey)
    return key


async def test_a_key_is_verified_and_stored_encrypted(system: FakeSystem) -> None:
    fields: dict[str, Any] = {"api_secret": "secret-1", "webhook_secret": "hook-1", "name": "Mine", "config": {"a": 1}}
    row = await system.connect_key(api_key="key-1", **fields)
    key = ApiKey("key-1", "secret-1", "hook-1")

    assert system.key_provider.verifications == [key]
    assert await stored_key(system, row.integration_id) == key
    encrypted = system.stored(row.integration_id).encrypted_credentials or b""
    assert not any(secret in encrypted for secret in (b"key-1", b"secret-1", b"hook-1"))
    assert row.status(system.clock()) is Status.ACTIVE
    assert (row.auth_method, row.account_id) == (AuthMethod.API_KEY, "account-1")
    assert (row.name, row.config, row.scopes) == ("Mine", {"a": 1}, ())


@pytest.mark.parametrize("error", [ProviderRejected("key"), ProviderUnavailable()])
async def test_a_key_that_cannot_be_verified_is_not_stored(system: FakeSystem, error: Exception) -> None:
    system.key_provider.verify_error = error
    with pytest.raises(type(error)):
        await system.connect_key()
    assert not system.ids()


async def test_a_key_for_an_oauth_type_is_rejected(system: FakeSystem) -> None:
    with pytest.raises(InvalidField, match="integration_type"):
        await system.api_key_connection.connect_with_api_key(ApiKeyConnectionRequest(ADA, "fake", "key"))


async def test_an_unknown_type_is_rejected(system: FakeSystem) -> None:
    with pytest.raises(UnknownIntegrationType):
        await system.api_key_connection.connect_with_api_key(ApiKeyConnectionRequest(ADA, "unknown", "key"))


async def test_a_key_for_an_unconfigured_type_is_rejected(system: FakeSystem) -> None:
    system.key_provider.missing_settings = ["FAKE_KEY_URL"]
    with pytest.raises(ProviderNotConfigured):
        await system.connect_key()
    assert not system.key_provider.verifications


@pytest.mark.parametrize("missing", ["api_key", "api_secret"])
async def test_the_error_names_the_missing_field(system: FakeSystem, missing: str) -> None:
    system.key_provider.required_fields = ("api_key", "api_secret")
    fields: dict[str, Any] = {"api_key": "key", "api_secret": "secret", missing: ""}
    with pytest.raises(InvalidField) as caught:
        await system.connect_key(**fields)
    assert caught.value.field == missing
    assert not system.key_provider.verifications


@pytest.mark.parametrize("fields", [{"api_key": ""}, {"api_key": "", "api_secret": ""}])
async def test_a_key_has_at_least_one_part(system: FakeSystem, fields: dict[str, Any]) -> None:
    system.key_provider.required_fields = ()
    with pytest.raises(InvalidField) as caught:
        await system.connect_key(**fields)
    assert caught.value.field == "api_key"
    await system.connect_key(api_key="", api_secret="secret")


@pytest.mark.parametrize("field", ["api_key", "api_secret", "webhook_secret"])
async def test_what_cannot_be_a_key_is_not_sent_to_the_provider(system: FakeSystem, field: str) -> None:
    system.key_provider.key_problems = {"bad": "is bad"}
    fields: dict[str, Any] = {"api_key": "key", field: "bad"}
    with pytest.raises(InvalidField) as caught:
        await system.connect_key(**fields)
    assert caught.value.field == field
    assert not system.key_provider.verifications


async def test_connecting_the_same_account_updates_its_row(system: FakeSystem) -> None:
    first = await system.connect_key(api_key="old", name="Mine")
    updated = await system.connect_key(api_key="new", name="Other")
    assert updated.integration_id == first.integration_id
    assert updated.name == "Mine"
    assert (await stored_key(system, first.integration_id)).api_key == "new"


async def test_concurrent_connections_of_an_account_share_one_row(system: FakeSystem) -> None:
    rows = await asyncio.gather(*(system.connect_key() for _ in range(5)))
    assert len({row.integration_id for row in rows}) == len(system.ids()) == 1


async def test_reconnecting_replaces_the_key(system: FakeSystem) -> None:
    row = await system.connect_key(api_key="old", name="Mine")
    updated = await system.connect_key(api_key="new", name="Other", integration_id=row.integration_id)
    assert (updated.integration_id, updated.name) == (row.integration_id, "Mine")
    assert (await stored_key(system, row.integration_id)).api_key == "new"


@pytest.mark.parametrize("account_id", ["another", None])
async def test_a_key_of_another_account_does_not_replace_the_key(system: FakeSystem, account_id: str | None) -> None:
    row = await system.connect_key(api_key="old")
    system.key_provider.account = NewAccount(account_id, None)
    with pytest.raises(AccountMismatch):
        await system.connect_key(api_key="new", integration_id=row.integration_id)
    assert (await stored_key(system, row.integration_id)).api_key == "old"


async def test_another_user_cannot_replace_the_key(system: FakeSystem) -> None:
    row = await system.connect_key(ADA)
    for integration_id in (row.integration_id, IntegrationId(999)):
        with pytest.raises(IntegrationNotFound):
            await system.connect_key(EVE, integration_id=integration_id)
    assert len(system.key_provider.verifications) == 1


async def test_a_key_does_not_replace_an_oauth_grant(system: FakeSystem) -> None:
    row = await system.connect()
    with pytest.raises(InvalidField, match="integration_type"):
        await system.connect_key(integration_id=row.integration_id)


# --- declared secrets ------------------------------------------------------------------------------------------------

SECRET_FIELDS = {
    "client_id": FieldDeclaration(pattern="[a-z]{3,8}"),
    "client_secret": FieldDeclaration(),
    "region": FieldDeclaration(choices=["eu", "us"], default="eu"),
    "note": FieldDeclaration(required=False),
}
GOOD_SECRETS = {"client_id": "abc", "client_secret": "-----BEGIN\nlines\n-----END"}


async def test_declared_secrets_are_stored_encrypted_with_their_defaults(system: FakeSystem) -> None:
    system.key_provider.secret_fields = SECRET_FIELDS
    system.key_provider.required_fields = ()
    row = await system.connect_key(api_key="", secret_fields=GOOD_SECRETS)
    assert (await stored_key(system, row.integration_id)).secret_fields == {**GOOD_SECRETS, "region": "eu"}
    assert b"lines" not in (system.stored(row.integration_id).encrypted_credentials or b"")
    assert "lines" not in repr(await stored_key(system, row.integration_id))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"client_secret": ""}, "secret_fields.client_secret"),
        ({"client_id": "ABC"}, "secret_fields.client_id"),
        ({"client_id": "abc\x00"}, "secret_fields.client_id"),
        ({"region": "asia"}, "secret_fields.region"),
        ({"password": "x"}, "secret_fields.password"),
    ],
)
async def test_a_wrong_secret_is_refused_by_its_name(system: FakeSystem, change: dict[str, str], field: str) -> None:
    system.key_provider.secret_fields = SECRET_FIELDS
    system.key_provider.required_fields = ()
    with pytest.raises(InvalidField) as raised:
        await system.connect_key(api_key="", secret_fields={**GOOD_SECRETS, **change})
    assert raised.value.field == field
    assert "BEGIN" not in str(raised.value)
    assert not system.ids()


async def test_a_type_without_declared_secrets_takes_none(system: FakeSystem) -> None:
    with pytest.raises(InvalidField, match=r"secret_fields\.any"):
        await system.connect_key(secret_fields={"any": "x"})
