"""Delivery of webhook events: in order, at least once, from each consumer's own offset."""

import pytest
from sqlalchemy import select, update

from integration_server.domain.errors import CredentialsUnreadable, IntegrationNotFound, InvalidField
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.integrations.page_tokens import Page
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.webhooks.webhook_delivery import NumberedEvent
from integration_server.storage.tables import webhook_events
from tests.fakes.system import ADA, EVE, MAX_PAGE_BYTES, FakeSystem
from tests.unit.service.webhooks.test_webhook_ingestion import SECRET, deliver


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect_key(webhook_secret=SECRET)


async def send(system: FakeSystem, integration: Integration, count: int, size: int = 0) -> None:
    """Deliver `count` events with a payload of `size` bytes."""
    for number in range(count):
        await deliver(system, integration, {"id": f"e-{number}", "text": "x" * size})


async def page_of(
    system: FakeSystem, integration: Integration, consumer: str = "mail", page_size: int = 200, token: str = ""
) -> Page[NumberedEvent]:
    return await system.webhook_delivery.list_webhook_events(
        integration.integration_id, integration.user_id, consumer, page_size, token
    )


def numbers(page: Page[NumberedEvent]) -> list[int]:
    return [event.number for event in page.items]


async def test_events_are_listed_again_until_they_are_acknowledged(
    system: FakeSystem, integration: Integration
) -> None:
    await send(system, integration, 3)
    acknowledge = system.webhook_delivery.acknowledge_webhook_events
    assert numbers(await page_of(system, integration)) == [1, 2, 3]
    assert numbers(await page_of(system, integration)) == [1, 2, 3]
    assert await acknowledge(integration.integration_id, ADA, "mail", 2) == 2
    assert numbers(await page_of(system, integration)) == [3]
    assert await acknowledge(integration.integration_id, ADA, "mail", 1) == 2
    assert numbers(await page_of(system, integration)) == [3]
    assert numbers(await page_of(system, integration, "billing")) == [1, 2, 3]


async def test_pages_continue_regardless_of_acknowledgements(system: FakeSystem, integration: Integration) -> None:
    await send(system, integration, 5)
    first = await page_of(system, integration, page_size=2)
    await system.webhook_delivery.acknowledge_webhook_events(integration.integration_id, ADA, "mail", 2)
    second = await page_of(system, integration, page_size=2, token=first.next_page_token)
    third = await page_of(system, integration, page_size=2, token=second.next_page_token)
    assert [numbers(page) for page in (first, second, third)] == [[1, 2], [3, 4], [5]]
    assert third.next_page_token == ""


@pytest.mark.slow
async def test_a_page_has_a_maximum_size(system: FakeSystem, integration: Integration) -> None:
    await send(system, integration, 10, size=1024 * 1024)
    seen, token = [], ""
    while True:
        page = await page_of(system, integration, token=token)
        assert sum(len(event.payload) for event in page.items) <= MAX_PAGE_BYTES
        seen += numbers(page)
        token = page.next_page_token
        if not token:
            break
    assert seen == list(range(1, 11))


@pytest.mark.parametrize("number", [4, 2**62])
async def test_a_number_without_an_event_is_not_acknowledged(
    system: FakeSystem, integration: Integration, number: int
) -> None:
    await send(system, integration, 3)
    with pytest.raises(InvalidField, match="number"):
        await system.webhook_delivery.acknowledge_webhook_events(integration.integration_id, ADA, "mail", number)
    assert numbers(await page_of(system, integration)) == [1, 2, 3]


async def test_a_page_token_is_bound_to_integration_user_and_consumer(
    system: FakeSystem, integration: Integration
) -> None:
    system.key_provider.account = NewAccount("account-2", None)
    other = await system.connect_key(api_key="key-2", webhook_secret=SECRET)
    for row in (integration, other):
        await send(system, row, 3)
    token = (await page_of(system, integration, page_size=1)).next_page_token
    for row, consumer in ((other, "mail"), (integration, "billing")):
        with pytest.raises(InvalidField, match="page_token"):
            await page_of(system, row, consumer, token=token)


async def test_only_the_user_of_the_integration_reads_its_events(system: FakeSystem, integration: Integration) -> None:
    await send(system, integration, 1)
    for integration_id, user_id in ((integration.integration_id, EVE), (IntegrationId(999), ADA)):
        with pytest.raises(IntegrationNotFound):
            await system.webhook_delivery.list_webhook_events(integration_id, user_id, "mail", 10, "")
        with pytest.raises(IntegrationNotFound):
            await system.webhook_delivery.acknowledge_webhook_events(integration_id, user_id, "mail", 1)


async def test_a_payload_decrypts_as_its_own_event_only(system: FakeSystem, integration: Integration) -> None:
    await send(system, integration, 2)
    first, second = system.database.rows(select(webhook_events).order_by(webhook_events.c.number))
    for row, other in ((first, second), (second, first)):
        system.database.execute(
            update(webhook_events)
            .where(webhook_events.c.number == row.number)
            .values(encrypted_payload=other.encrypted_payload)
        )
    with pytest.raises(CredentialsUnreadable):
        await page_of(system, integration)
