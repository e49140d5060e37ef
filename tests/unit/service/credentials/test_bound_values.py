"""Credentials stay bound to the row while others change it, and a row that was altered is not used again."""

import asyncio
from datetime import timedelta

import pytest

from integration_server.domain.errors import CredentialsUnreadable, IntegrationInactive
from integration_server.domain.integration import Integration
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.storage.tables import webhook_secrets
from tests.fakes.provider import wait_until
from tests.fakes.system import ADA, EVE, FakeSystem

CHANGES = [
    IntegrationUpdate(name="renamed"),
    IntegrationUpdate(config={"host": "new"}),
    IntegrationUpdate(is_active=False),
]


async def update(system: FakeSystem, row: Integration, change: IntegrationUpdate) -> Integration:
    return await system.integration_manager.update_integration(row.integration_id, row.user_id, change)


@pytest.mark.parametrize("change", CHANGES, ids=str)
async def test_a_refresh_during_which_settings_change_loses_no_token(
    system: FakeSystem, change: IntegrationUpdate
) -> None:
    row = await system.connect(config={"host": "old"})
    system.provider.gate = asyncio.Event()
    refreshing = asyncio.create_task(system.credentials.refresh_token(row.integration_id, ADA, force=True))
    await wait_until(lambda: system.provider.in_flight)
    changed = await update(system, row, change)
    system.provider.gate.set()
    assert (await refreshing).refreshed
    stored = system.row(row.integration_id)
    assert (stored.name, stored.config, stored.is_active) == (changed.name, changed.config, changed.is_active)
    assert stored.version == row.version + 1
    assert (await system.tokens(row.integration_id)).refresh_token == "renewed-refresh-1"


@pytest.mark.parametrize("change", CHANGES, ids=str)
async def test_journaled_tokens_are_bound_to_the_present_settings(
    system: FakeSystem, change: IntegrationUpdate
) -> None:
    row = await system.connect(config={"host": "old"})
    system.provider.gate = asyncio.Event()
    refreshing = asyncio.create_task(system.credentials.refresh_token(row.integration_id, ADA, force=True))
    await wait_until(lambda: system.provider.in_flight)
    system.database.is_unavailable = True
    system.provider.gate.set()
    await asyncio.wait([refreshing])
    system.database.is_unavailable = False
    changed = await update(system, row, change)
    await system.another_process().refresher.recover()
    stored = system.row(row.integration_id)
    assert (stored.name, stored.config, stored.is_active) == (changed.name, changed.config, changed.is_active)
    assert (await system.tokens(row.integration_id)).refresh_token == "renewed-refresh-1"
    assert not system.journal.refreshes


async def test_concurrent_changes_of_different_settings_are_all_stored(system: FakeSystem) -> None:
    row = await system.connect()
    await asyncio.gather(*(update(system, row, change) for change in CHANGES))
    stored = system.row(row.integration_id)
    assert (stored.name, stored.config, stored.is_active) == ("renamed", {"host": "new"}, False)
    assert (await system.tokens(row.integration_id)).access_token == "access-1"


async def test_a_refresh_does_not_bind_tokens_to_an_altered_row(system: FakeSystem) -> None:
    row = await system.connect(config={"host": "good"})
    system.provider.gate = asyncio.Event()
    refreshing = asyncio.create_task(system.credentials.refresh_token(row.integration_id, ADA, force=True))
    await wait_until(lambda: system.provider.in_flight)
    system.alter(row.integration_id, config={"host": "evil"}, settings_version=7)
    system.provider.gate.set()
    with pytest.raises(CredentialsUnreadable):
        await refreshing
    with pytest.raises(CredentialsUnreadable):
        await system.tokens(row.integration_id)


async def test_an_integration_that_was_switched_off_cannot_be_switched_on_in_the_database(system: FakeSystem) -> None:
    row = await system.connect()
    await update(system, row, IntegrationUpdate(is_active=False))
    with pytest.raises(IntegrationInactive):
        await system.credentials.get_usable(row.integration_id, ADA)
    system.alter(row.integration_id, is_active=True)
    with pytest.raises(CredentialsUnreadable):
        await system.credentials.get_usable(row.integration_id, ADA)


async def test_an_altered_row_cannot_be_updated_and_its_config_is_not_used_again(system: FakeSystem) -> None:
    row = await system.connect_account("account-1", config={"host": "good"}, name="Work")
    system.alter(row.integration_id, config={"host": "evil"})
    with pytest.raises(CredentialsUnreadable):
        await update(system, row, IntegrationUpdate(name="other"))
    reconnected = await system.connect(integration_id=row.integration_id)
    assert (reconnected.integration_id, reconnected.config, reconnected.name) == (row.integration_id, {}, "")
    assert (await system.credentials.get_usable(row.integration_id, ADA)).integration.config == {}


async def test_a_new_connection_of_the_account_of_an_altered_row_uses_its_own_config(system: FakeSystem) -> None:
    row = await system.connect_account("account-1", config={"host": "good"})
    system.alter(row.integration_id, config={"host": "evil"})
    connected = await system.connect_account("account-1", config={"host": "mine"})
    assert (connected.integration_id, connected.config) == (row.integration_id, {"host": "mine"})
    assert (await system.credentials.get_usable(row.integration_id, ADA)).integration.config == {"host": "mine"}


async def test_an_altered_pending_row_names_no_host_for_the_exchange(system: FakeSystem) -> None:
    authorization = await system.begin(config={"host": "good"})
    system.alter(authorization.integration_id, config={"host": "evil"})
    await system.call_back(authorization.state)
    assert system.row(authorization.integration_id).config == {}


async def test_a_row_moved_to_another_user_shows_nothing_and_can_be_disconnected(system: FakeSystem) -> None:
    row = await system.connect(name="private", config={"host": "private"})
    system.alter(row.integration_id, user_id=EVE)
    shown = await system.integration_manager.get_integration(row.integration_id, EVE)
    (listed,) = (await system.integration_manager.list_integrations(EVE, "", 10, "")).items
    for integration in (shown, listed):
        assert (integration.name, integration.config, integration.account_label) == ("", {}, None)
    await system.revocation_service.disconnect_integration(row.integration_id, EVE)
    assert not system.provider.revocations


async def test_a_confirmed_removal_still_revokes_after_settings_changed(system: FakeSystem) -> None:
    row = await system.connect(config={"host": "old"})
    await update(system, row, IntegrationUpdate(config={"host": "new"}))
    system.clock.advance(timedelta(minutes=1))
    await system.revocation_service.disconnect_integration(row.integration_id, ADA)
    assert len(system.provider.revocations) == 1


async def test_the_webhook_secret_that_was_replaced_is_not_revived_by_deleting_the_newer_one(
    system: FakeSystem,
) -> None:
    row = await system.connect_key(webhook_secret="of the key")
    await system.webhook_secrets.set_webhook_secret(row.integration_id, ADA, "newer", timedelta(0))
    endpoint = await system.endpoints.find("fake_key", row.uid)
    assert endpoint is not None
    assert await system.webhook_secrets.valid(endpoint) == ("newer",)
    system.database.execute(webhook_secrets.delete())
    endpoint = await system.endpoints.find("fake_key", row.uid)
    assert endpoint is not None
    with pytest.raises(CredentialsUnreadable):
        await system.webhook_secrets.valid(endpoint)
