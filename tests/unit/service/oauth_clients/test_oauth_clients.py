"""OAuth clients as rows: who may name them, what uses them, and when they cannot be changed or deleted."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES as _ALL
from integration_server.domain.errors import (
    CallerNotAllowed,
    CredentialsUnreadable,
    IntegrationServerError,
    InvalidField,
    OAuthClientInUse,
    OAuthClientNotFound,
    ProviderNotConfigured,
    ProviderUnavailable,
    QuotaExceeded,
)
from integration_server.domain.integration import Status
from integration_server.domain.revocation import RevocationState
from integration_server.storage.tables import oauth_clients
from tests.fakes.provider import OWN_CLIENT
from tests.fakes.stores import count_calls
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.fakes.workers import is_busy
from tests.unit.service.oauth_clients.support import client, list_clients, put_client

OWN = (OWN_CLIENT.client_id, OWN_CLIENT.secret)
TENANT = ("id-of-tenant", "secret-1")


@pytest.fixture
async def system() -> FakeSystem:
    return FakeSystem()


async def failure(system: FakeSystem, name: str, caller: str | None, **fields: Any) -> IntegrationServerError:
    """The error of `Connect` with a client."""
    with pytest.raises(IntegrationServerError) as refused:
        await system.begin(oauth_client=name, caller=caller, **fields)
    return refused.value


# --- use -------------------------------------------------------------------------------------------------------------


async def test_the_client_of_an_integration_makes_every_authenticated_call(system: FakeSystem) -> None:
    await put_client(system)
    row = await system.connect(oauth_client="tenant", caller="backend")
    assert row.oauth_client == "tenant"
    await system.credentials.refresh_token(row.integration_id, ADA, force=True)
    await system.revocation_service.disconnect_integration(row.integration_id, ADA)
    assert system.provider.used_clients == [TENANT] * 3
    own = await system.connect()
    assert (own.oauth_client, system.provider.used_clients[3:]) == ("", [OWN])


async def test_tokens_that_no_integration_keeps_are_revoked_with_their_client(system: FakeSystem) -> None:
    await put_client(system)
    system.provider.verify_error = ProviderUnavailable()
    attempt = await system.begin(oauth_client="tenant", caller="backend")
    with pytest.raises(ProviderUnavailable):
        await system.call_back(attempt.state, user_id=ADA)
    (waiting,) = system.revocation_rows()
    assert (waiting.oauth_client, waiting.client_key) == ("tenant", "fake/tenant")


async def test_one_account_of_two_clients_is_two_integrations(system: FakeSystem) -> None:
    await put_client(system)
    own = await system.connect_account("a-1")
    other = await system.connect_account("a-1", oauth_client="tenant", caller="backend")
    again = await system.connect_account("a-1", oauth_client="tenant", caller="backend")
    assert own.integration_id != other.integration_id == again.integration_id


@pytest.mark.parametrize("named", ["", "tenant"])
async def test_a_reconnection_keeps_the_client(system: FakeSystem, named: str) -> None:
    await put_client(system)
    row = await system.connect(oauth_client="tenant", caller="backend")
    system.provider.used_clients.clear()
    again = await system.connect(integration_id=row.integration_id, oauth_client=named, caller="backend")
    assert again.oauth_client == "tenant"
    assert again.integration_id == row.integration_id
    assert system.provider.used_clients == [TENANT]


async def test_a_reconnection_cannot_take_another_client(system: FakeSystem) -> None:
    await put_client(system)
    await put_client(system, "other")
    own = await system.connect()
    tenants = await system.connect(EVE, oauth_client="tenant", caller="backend")
    for row, name in ((own, "tenant"), (tenants, "other")):
        error = await failure(system, name, "backend", user_id=row.user_id, integration_id=row.integration_id)
        assert isinstance(error, InvalidField)
        assert error.field == "oauth_client"


async def test_an_altered_integration_is_reconnected_with_the_client_that_is_named(system: FakeSystem) -> None:
    await put_client(system)
    row = await system.connect(oauth_client="tenant", caller="backend")
    system.corrupt(row.integration_id)
    again = await system.connect(integration_id=row.integration_id, oauth_client="tenant", caller="backend")
    assert again.oauth_client == "tenant"
    assert (await system.tokens(row.integration_id)).access_token == "access-2"


# --- callers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", ["other", "Backend", "backend ", "", "user"])
async def test_a_caller_that_is_not_named_cannot_tell_whether_a_client_exists(system: FakeSystem, caller: str) -> None:
    await put_client(system)
    errors, calls = [], []
    for name in ("tenant", "absent"):
        before = count_calls(system.stores.oauth_clients, "find"), count_calls(system.attempts, "begin")
        error = await failure(system, name, caller)
        after = count_calls(system.stores.oauth_clients, "find"), count_calls(system.attempts, "begin")
        errors.append((type(error), str(error), error.metadata))
        calls.append([later - earlier for later, earlier in zip(after, before, strict=True)])
    assert errors[0] == errors[1] == (CallerNotAllowed, CallerNotAllowed.message, None)
    assert calls == [[1, 0], [1, 0]]
    assert system.ids() == []


async def test_negative_control_without_the_check_every_caller_uses_a_client() -> None:
    system = FakeSystem(options={"checks_client_callers": False})
    await put_client(system)
    assert (await system.connect(oauth_client="tenant", caller="other")).oauth_client == "tenant"


async def test_the_callers_are_those_of_the_newest_change(system: FakeSystem) -> None:
    await put_client(system, callers=("backend", "second"))
    await system.begin(oauth_client="tenant", caller="second")
    await put_client(system, callers=("user",))
    assert isinstance(await failure(system, "tenant", "second"), CallerNotAllowed)
    await system.begin(oauth_client="tenant", caller="user")
    await put_client(system, callers=())
    assert isinstance(await failure(system, "tenant", "user"), CallerNotAllowed)
    # Where callers are not authenticated, there is no name to compare.
    await system.begin(oauth_client="tenant", caller=None)
    assert isinstance(await failure(system, "absent", None), CallerNotAllowed)


async def test_a_caller_that_is_not_named_cannot_reconnect(system: FakeSystem) -> None:
    await put_client(system)
    row = await system.connect(oauth_client="tenant", caller="backend")
    for name in ("", "tenant"):
        assert isinstance(await failure(system, name, "other", integration_id=row.integration_id), CallerNotAllowed)


async def test_a_type_whose_own_client_is_not_configured_is_connected_with_another(system: FakeSystem) -> None:
    system.provider.missing_settings = ["FAKE_CLIENT_ID"]
    own = await failure(system, "", "backend")
    assert own.reason == "PROVIDER_NOT_CONFIGURED"


# --- changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"client_id": OWN_CLIENT.client_id}, "client_id"),
        ({"client_id": "id-of-other"}, "client_id"),
        ({"integration_type": "fake_key"}, "integration_type"),
        ({"webhook_secret": "bad"}, "webhook_secret"),
        ({"client_secret": ""}, "client_secret"),
    ],
)
async def test_an_invalid_client_is_refused_with_its_field(
    system: FakeSystem, fields: dict[str, Any], problem: str
) -> None:
    await put_client(system, "other")
    with pytest.raises(InvalidField) as refused:
        await put_client(system, **fields)
    assert refused.value.field == problem
    assert [one.name for one in await list_clients(system)] == ["", "other"]


async def test_a_type_without_secrets_takes_none(system: FakeSystem) -> None:
    system.provider.takes_client_secret = False
    with pytest.raises(InvalidField):
        await put_client(system)
    await put_client(system, secret="")
    await system.connect(oauth_client="tenant", caller="backend")
    assert system.provider.used_clients == [("id-of-tenant", "")]


async def test_a_client_in_use_is_neither_deleted_nor_given_another_client_id(system: FakeSystem) -> None:
    await put_client(system)
    delete_client = system.use_cases.oauth_clients.delete_oauth_client
    await system.begin(EVE, oauth_client="tenant", caller="backend")  # a pending one counts too
    row = await system.connect(oauth_client="tenant", caller="backend")
    for change in (delete_client("fake", "tenant"), put_client(system, client_id="another")):
        with pytest.raises(OAuthClientInUse, match="2 integrations"):
            await change
    system.provider.revoke_error = ProviderUnavailable()
    await system.revocation_service.disconnect_integration(row.integration_id, ADA)
    with pytest.raises(OAuthClientInUse, match="1 integrations, and 1 grants"):
        await delete_client("fake", "tenant")
    system.provider.revoke_error = None
    system.clock.advance(timedelta(hours=1))
    await system.oauth_connection.remove_abandoned()
    await system.worker.poll()
    while is_busy(system.worker):
        await system.pause(0)
    await delete_client("fake", "tenant")
    assert isinstance(await failure(system, "tenant", "backend"), CallerNotAllowed)
    with pytest.raises(OAuthClientNotFound):
        await delete_client("fake", "tenant")


async def test_a_client_that_is_deleted_during_connect_is_not_connected(system: FakeSystem) -> None:
    await put_client(system)
    row = system.database.rows(select(oauth_clients))[0]
    provider = await system.another_process().use_cases.oauth_connection.providers.for_client("fake", "tenant")
    assert provider.oauth_client.name == "tenant"
    attempt = await system.begin(oauth_client="tenant", caller="backend")
    system.database.execute(delete(oauth_clients))  # past the check of `delete_oauth_client`
    system.clock.advance(timedelta(seconds=1))
    with pytest.raises(ProviderNotConfigured, match="OAuth client"):
        await system.call_back(attempt.state, user_id=ADA)
    assert row.name == "tenant"


async def test_there_is_a_maximum_of_clients(system: FakeSystem) -> None:
    system.use_cases.oauth_clients.max_clients = 2
    for name in ("first", "second", "first"):
        await put_client(system, name)
    with pytest.raises(QuotaExceeded):
        await put_client(system, "third")


async def test_lists_the_own_client_and_pages_the_others(system: FakeSystem) -> None:
    for name in ("c", "a", "b"):
        await put_client(system, name)
    system.add_provider("another")
    names, token = [], ""
    while True:
        clients = system.use_cases.oauth_clients
        page = await clients.list_oauth_clients("", 2, token, _ALL)
        names += [(item.integration_type, item.name) for item in page.items]
        token = page.next_page_token
        if not token:
            break
    assert names == [("another", ""), ("fake", ""), ("fake", "a"), ("fake", "b"), ("fake", "c")]
    with pytest.raises(InvalidField):
        await system.use_cases.oauth_clients.list_oauth_clients("fake", 2, "made up", _ALL)


# --- replicas and tampering ------------------------------------------------------------------------------------------


async def test_every_replica_has_a_change_within_a_second(system: FakeSystem) -> None:
    await put_client(system)
    replica = system.another_process()
    row = await system.connect(oauth_client="tenant", caller="backend")
    await replica.use_cases.credentials.refresh_token(row.integration_id, ADA, force=True)
    await put_client(system, secret="secret-2")
    system.clock.advance(timedelta(seconds=31))  # the interval of forced refreshes; a second is enough for the client
    await replica.use_cases.credentials.refresh_token(row.integration_id, ADA, force=True)
    assert system.provider.used_clients[-1] == ("id-of-tenant", "secret-2")


@pytest.mark.parametrize(
    "altered", [{"client_id": "evil"}, {"callers": ["evil"]}, {"version": 1}, {"name": "moved"}, {"uid": "u"}]
)
async def test_an_altered_row_is_not_used(system: FakeSystem, altered: dict[str, Any]) -> None:
    await put_client(system)
    row = await system.connect(oauth_client="tenant", caller="backend")
    system.database.execute(update(oauth_clients).values(altered))
    name = altered.get("name", "tenant")
    caller = "evil" if "callers" in altered else "backend"
    error = await failure(system, name, caller)
    assert isinstance(error, CredentialsUnreadable)
    listed = await client(system, name)
    assert (listed.is_altered, listed.client_id, listed.callers) == (True, "", ())
    system.clock.advance(timedelta(seconds=31))
    system.provider.used_clients.clear()
    with pytest.raises(IntegrationServerError):
        await system.credentials.refresh_token(row.integration_id, ADA, force=True)
    assert system.provider.used_clients == []
    assert system.row(row.integration_id).status(system.clock()) is Status.ACTIVE


async def test_an_older_row_that_is_put_back_is_not_used(system: FakeSystem) -> None:
    await put_client(system, callers=("backend", "former"))
    (old,) = [dict(row._mapping) for row in system.database.rows(select(oauth_clients))]
    await put_client(system, secret="secret-2")
    row = await system.connect(oauth_client="tenant", caller="backend")
    await put_client(system, secret="secret-3", ends_rotation=True)
    system.database.execute(update(oauth_clients).values(old))
    assert isinstance(await failure(system, "tenant", "former"), CredentialsUnreadable)
    system.clock.advance(timedelta(seconds=31))
    with pytest.raises(CredentialsUnreadable):
        await system.credentials.refresh_token(row.integration_id, ADA, force=True)
    # Negative control: a process that has not read the newer one cannot tell.
    restarted = system.another_process()
    await restarted.use_cases.credentials.refresh_token(row.integration_id, ADA, force=True)
    assert system.provider.used_clients[-1] == ("id-of-tenant", "secret-1")


async def test_a_deleted_row_that_is_put_back_is_not_used_and_a_new_one_is(system: FakeSystem) -> None:
    await put_client(system)
    await system.begin(oauth_client="tenant", caller="backend")
    (old,) = [dict(row._mapping) for row in system.database.rows(select(oauth_clients))]
    system.clock.advance(timedelta(minutes=20))
    await system.oauth_connection.remove_abandoned()
    await system.use_cases.oauth_clients.delete_oauth_client("fake", "tenant")
    assert isinstance(await failure(system, "tenant", "backend"), CallerNotAllowed)
    system.database.execute(insert(oauth_clients).values(old))
    assert isinstance(await failure(system, "tenant", "backend"), CredentialsUnreadable)
    await system.use_cases.oauth_clients.delete_oauth_client("fake", "tenant")
    await put_client(system, secret="secret-9")
    await system.connect(oauth_client="tenant", caller="backend")
    assert system.provider.used_clients[-1] == ("id-of-tenant", "secret-9")


async def test_secrets_are_not_in_any_value_of_the_list(system: FakeSystem) -> None:
    await put_client(system, secret="s3cr3t-value", webhook_secret="wh-s3cr3t")
    await put_client(system, secret="s3cr3t-next")
    listed = await client(system, "tenant")
    assert "s3cr3t" not in repr(listed)
    assert (listed.has_previous_secret, listed.has_webhook_secret) == (True, True)
    ended = await put_client(system, secret="", ends_rotation=True)
    assert not ended.has_previous_secret


# --- revocation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["grant", "account"])
async def test_a_revocation_is_sent_unless_it_ends_a_grant_of_its_client(system: FakeSystem, ends: str) -> None:
    system.provider.shares_grants_with, system.provider.revocation_ends = ("fake",), ends
    await put_client(system)
    await put_client(system, "other")
    rows = {
        name: await system.connect_account("a-1", EVE if name == "other" else ADA, oauth_client=name, caller="backend")
        for name in ("", "tenant", "other")
    }
    state = await system.revocation_service.disconnect_integration(rows["tenant"].integration_id, ADA)
    sent = ends == "grant"
    assert (len(system.provider.revocations) == 1) is sent
    assert state is (RevocationState.REVOKED if sent else RevocationState.GRANT_SHARED)


async def test_a_revocation_counts_the_grants_of_the_same_app_at_another_type(system: FakeSystem) -> None:
    """Google's types share one app, also one of a tenant."""
    for provider in (system.provider, system.add_provider("sister")):
        provider.shares_grants_with = ("fake", "sister")
    await put_client(system, client_id="app-of-tenant")
    await put_client(system, "same-app", integration_type="sister", client_id="app-of-tenant")
    row = await system.connect_account("a-1", oauth_client="tenant", caller="backend")
    await system.connect(integration_type="sister", oauth_client="same-app", caller="backend")
    state = await system.revocation_service.disconnect_integration(row.integration_id, ADA)
    assert state is RevocationState.GRANT_SHARED
    assert system.provider.revocations == []
    own = await system.connect_account("a-1")
    state = await system.revocation_service.disconnect_integration(own.integration_id, ADA)
    assert state is RevocationState.REVOKED


def test_fields_of_a_change_with_secrets_are_hidden() -> None:
    assert "secret" not in repr(replace(OWN_CLIENT, webhook_verify_token="secret"))
