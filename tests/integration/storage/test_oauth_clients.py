"""The store of OAuth clients on both databases."""

import asyncio
from dataclasses import replace

import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import CallerNotAllowed, OAuthClientInUse, QuotaExceeded
from integration_server.service.oauth_clients.ports import SecretState, StoredOAuthClient
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.oauth_clients import SqlOAuthClients
from tests.contracts.integration_rows import ANN, NOW, new_attempt, new_integration


def new_client(name: str = "tenant", integration_type: str = "acme", **changes: object) -> StoredOAuthClient:
    client = StoredOAuthClient(
        f"uid-{integration_type}-{name}", integration_type, name, f"id-{name}", ("app",), 1, b"encrypted", NOW, NOW
    )
    return replace(client, **changes)  # type: ignore[arg-type]  # fields of any type


@pytest.fixture
def store(database: Database) -> SqlOAuthClients:
    return SqlOAuthClients(database)


async def begin(database: Database, number: int, oauth_client: str = "tenant") -> int:
    """Store a pending integration with a client."""
    new = replace(new_integration(ANN), uid=f"uid-{number}", oauth_client=oauth_client)
    attempt = replace(new_attempt(ANN), attempt_id=f"attempt-{number}")
    return await SqlAuthorizationAttempts(database).begin(attempt, new)


async def test_stores_changes_and_deletes_a_client(store: SqlOAuthClients) -> None:
    assert await store.add(new_client(), 10)
    assert not await store.add(new_client(uid="another"), 10)
    assert await store.find("acme", "tenant") == new_client()
    changed = new_client(version=2, callers=("app", "b"), client_id="other", encrypted_secrets=b"next")
    assert await store.replace(changed, 1)
    assert not await store.replace(replace(changed, version=3), 1)  # another operator was first
    assert await store.find("acme", "tenant") == changed
    assert await store.delete("acme", "tenant")
    assert not await store.delete("acme", "tenant")
    assert await store.find("acme", "tenant") is None


async def test_lists_by_type_and_name_and_finds_by_client_id(store: SqlOAuthClients) -> None:
    for name, integration_type in (("b", "acme"), ("a", "acme"), ("c", "beta")):
        await store.add(new_client(name, integration_type), 10)

    async def names(*arguments: object) -> list[str]:
        return [one.name for one in await store.list(*arguments)]  # type: ignore[arg-type]

    assert await names("", ALL_INTEGRATION_TYPES, ("", ""), 10) == ["a", "b", "c"]
    assert await names("", ALL_INTEGRATION_TYPES, ("acme", "a"), 1) == ["b"]
    assert await names("beta", ALL_INTEGRATION_TYPES, ("", ""), 10) == ["c"]
    assert await names("", AllowedTypes(frozenset({"acme"})), ("", ""), 10) == ["a", "b"]
    assert await store.names_of(["acme", "beta"], "id-c") == [("beta", "c")]
    assert await store.names_of(["acme"], "id-c") == []
    with pytest.raises(QuotaExceeded):
        await store.add(new_client("d"), 3)


async def test_versions_never_become_lower(store: SqlOAuthClients) -> None:
    first = await store.next_version(0)
    assert await store.next_version(first + 10**9) == first + 10**9 + 1
    assert await store.next_version(0) >= first


async def test_a_client_with_integrations_is_neither_deleted_nor_given_another_client_id(
    database: Database, store: SqlOAuthClients
) -> None:
    await store.add(new_client(), 10)
    integration_id = await begin(database, 1)
    for change in (store.delete("acme", "tenant"), store.replace(new_client(version=2, client_id="other"), 1)):
        with pytest.raises(OAuthClientInUse, match="1 integrations"):
            await change
    assert await store.replace(new_client(version=2, callers=()), 1)
    await SqlIntegrations(database).remove(integration_id, ANN)  # type: ignore[arg-type]  # an id
    assert await store.delete("acme", "tenant")


async def test_a_connection_and_the_deletion_of_its_client_exclude_each_other(
    database: Database, store: SqlOAuthClients
) -> None:
    for number in range(10):
        await store.add(new_client(), 10)
        results = await asyncio.gather(begin(database, number), store.delete("acme", "tenant"), return_exceptions=True)
        begun, deleted = results
        # Either the client is kept for the integration, or there is none of a client that is gone.
        if deleted is True:
            assert isinstance(begun, CallerNotAllowed)
        else:
            assert isinstance(deleted, OAuthClientInUse)
            await SqlIntegrations(database).remove(begun, ANN)  # type: ignore[arg-type]  # an id
            await store.delete("acme", "tenant")


async def test_an_alarm_keeps_the_time_of_its_first_refusal(store: SqlOAuthClients) -> None:
    await store.set_alarm("acme", "tenant", SecretState.REFUSED)
    first = (await store.alarms())["acme", "tenant"]
    await store.set_alarm("acme", "tenant", SecretState.REFUSED)
    assert (await store.alarms())["acme", "tenant"] == first
    await store.set_alarm("acme", "tenant", SecretState.PREVIOUS_USED)
    assert (await store.alarms())["acme", "tenant"].state is SecretState.PREVIOUS_USED
    await store.set_alarm("acme", "", SecretState.REFUSED)
    await store.set_alarm("acme", "tenant", None)
    assert set(await store.alarms()) == {("acme", "")}
