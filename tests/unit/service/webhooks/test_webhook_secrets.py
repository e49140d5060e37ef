"""Webhook secrets of integrations: during a rotation two are valid."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    WebhooksNotSupported,
)
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.webhooks.webhook_ingestion import UNAUTHORIZED
from integration_server.service.webhooks.webhook_secrets import WebhookAddress
from tests.fakes.system import ADA, EVE, PUBLIC_URL, SECRET_GRACE, FakeSystem
from tests.unit.service.webhooks.test_webhook_ingestion import SECRET, deliver

HOUR = timedelta(hours=1)


async def set_secret(
    system: FakeSystem, integration: Integration, secret: str = "", grace: timedelta | None = None
) -> WebhookAddress:
    done = await system.webhook_secrets.set_webhook_secret(integration.integration_id, ADA, secret, grace)
    system.clock.advance(timedelta(seconds=1))  # the cached endpoint has expired
    return done


async def good(system: FakeSystem, integration: Integration, *secrets: str) -> list[bool]:
    """Whether each secret verifies a webhook."""
    responses = [await deliver(system, integration, {"id": "e"}, secret=secret) for secret in secrets]
    return [response != UNAUTHORIZED for response in responses]


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect_key()


async def test_an_integration_has_its_own_address(system: FakeSystem, integration: Integration) -> None:
    address = await system.webhook_secrets.get_webhook_endpoint(integration.integration_id, ADA)
    assert address.url == f"{PUBLIC_URL}/api/v1/webhooks/fake_key/{integration.uid}"
    assert (address.has_secret, address.secret_set_time, address.previous_expire_time) == (False, None, None)
    now = system.clock()
    done = await set_secret(system, integration, "first")
    assert (done.url, done.generated_secret, done.previous_expire_time) == (address.url, "", None)
    address = await system.webhook_secrets.get_webhook_endpoint(integration.integration_id, ADA)
    assert (address.has_secret, address.secret_set_time, address.previous_expire_time) == (True, now, None)


async def test_the_previous_secret_is_valid_for_the_grace_period(system: FakeSystem, integration: Integration) -> None:
    await set_secret(system, integration, "first")
    now = system.clock()
    assert (await set_secret(system, integration, "second")).previous_expire_time == now + SECRET_GRACE
    assert await good(system, integration, "first", "second", "third") == [True, True, False]
    system.clock.now = now + SECRET_GRACE
    assert await good(system, integration, "first", "second") == [False, True]
    address = await system.webhook_secrets.get_webhook_endpoint(integration.integration_id, ADA)
    assert address.previous_expire_time is None


async def test_at_most_two_secrets_are_valid(system: FakeSystem, integration: Integration) -> None:
    for secret in ("first", "second", "third"):
        await set_secret(system, integration, secret)
    assert await good(system, integration, "first", "second", "third") == [False, True, True]


@pytest.mark.parametrize(("grace", "is_good"), [(timedelta(0), False), (HOUR, True)])
async def test_a_call_can_set_the_grace_period(
    system: FakeSystem, integration: Integration, grace: timedelta, is_good: bool
) -> None:
    await set_secret(system, integration, "first")
    await set_secret(system, integration, "second", grace)
    assert await good(system, integration, "first", "second") == [is_good, True]
    system.clock.advance(HOUR)
    assert await good(system, integration, "first", "second") == [False, True]


async def test_the_same_secret_again_changes_nothing(system: FakeSystem, integration: Integration) -> None:
    await set_secret(system, integration, "first")
    until = (await set_secret(system, integration, "second")).previous_expire_time
    again = await set_secret(system, integration, "second")
    assert (again.generated_secret, again.previous_expire_time) == ("", until)
    assert await good(system, integration, "first", "second") == [True, True]


async def test_a_malformed_secret_is_rejected(system: FakeSystem, integration: Integration) -> None:
    for setting in (set_secret(system, integration, "bad"), system.connect_key(webhook_secret="bad")):
        with pytest.raises(InvalidField) as rejected:
            await setting
        assert rejected.value.field == "webhook_secret"
    assert system.ids() == [integration.integration_id]


async def test_a_secret_is_generated_if_none_is_given_and_returned_once(
    system: FakeSystem, integration: Integration
) -> None:
    first, second = await set_secret(system, integration), await set_secret(system, integration)
    assert first.generated_secret != second.generated_secret
    assert first.generated_secret.startswith("whsec_")
    assert await good(system, integration, first.generated_secret, second.generated_secret) == [True, True]
    assert first.generated_secret not in repr(first)


async def test_the_secret_of_the_connection_becomes_the_previous_one(system: FakeSystem) -> None:
    integration = await system.connect_key(webhook_secret=SECRET)
    now = system.clock()
    assert await good(system, integration, SECRET) == [True]
    assert (await set_secret(system, integration, "second")).previous_expire_time == now + SECRET_GRACE
    assert await good(system, integration, SECRET, "second") == [True, True]
    system.clock.now = now + SECRET_GRACE
    assert await good(system, integration, SECRET, "second") == [False, True]


async def test_a_secret_of_a_new_key_replaces_an_earlier_one(system: FakeSystem, integration: Integration) -> None:
    await set_secret(system, integration, "first")
    begun = system.clock()
    again: dict[str, Any] = {"integration_id": integration.integration_id}
    await system.connect_key(api_key="key-2", webhook_secret="second", **again)
    system.clock.advance(timedelta(seconds=1))
    assert await good(system, integration, "first", "second") == [True, True]
    system.clock.now = begun + SECRET_GRACE
    assert await good(system, integration, "first", "second") == [False, True]
    await set_secret(system, integration, "third")
    assert await good(system, integration, "first", "second", "third") == [False, True, True]
    await system.connect_key(api_key="key-3", **again)  # a key without a secret keeps the current one
    system.clock.advance(timedelta(seconds=1))
    assert await good(system, integration, "third") == [True]


async def test_concurrent_changes_leave_two_secrets(system: FakeSystem, integration: Integration) -> None:
    generated_secret = await asyncio.gather(
        *(system.webhook_secrets.set_webhook_secret(integration.integration_id, ADA, "", None) for _ in range(3))
    )
    system.clock.advance(timedelta(seconds=1))
    assert (await good(system, integration, *(one.generated_secret for one in generated_secret))).count(True) == 2


async def test_integrations_without_an_address(system: FakeSystem, integration: Integration) -> None:
    pending = (await system.begin()).integration_id
    secrets = system.webhook_secrets
    for integration_id, user_id, error in (
        (integration.integration_id, EVE, IntegrationNotFound),
        (IntegrationId(999), ADA, IntegrationNotFound),
        (pending, ADA, IntegrationPending),
    ):
        with pytest.raises(error):
            await secrets.get_webhook_endpoint(integration_id, user_id)
        with pytest.raises(error):
            await secrets.set_webhook_secret(integration_id, user_id, "secret", None)
    system.key_provider.supports_webhooks = False
    with pytest.raises(WebhooksNotSupported):
        await secrets.set_webhook_secret(integration.integration_id, ADA, "secret", None)


async def test_a_previous_secret_expires(system: FakeSystem, integration: Integration) -> None:
    with pytest.raises(InvalidField, match="previous_ttl"):
        await set_secret(system, integration, "first", timedelta(days=30, seconds=1))
