from collections.abc import Sequence
from typing import Any

import pytest

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    UnknownIntegrationType,
)
from integration_server.domain.integration import IntegrationId, Status, UserId
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.fakes.system import ADA, EVE, FakeSystem

# --- listing ---------------------------------------------------------------------------------------------------------


async def ids_page_by_page(system: FakeSystem, page_size: int, integration_type: str = "") -> Sequence[Sequence[int]]:
    pages, token = [], ""
    while True:
        page = await system.integration_manager.list_integrations(ADA, integration_type, page_size, token)
        pages.append([row.integration_id for row in page.items])
        token = page.next_page_token
        if not token:
            return pages


@pytest.mark.parametrize(
    ("page_size", "pages"),
    [(1, [[1], [2], [3], [4]]), (3, [[1, 2, 3], [4]]), (4, [[1, 2, 3, 4]]), (5, [[1, 2, 3, 4]])],
)
async def test_lists_in_pages_and_the_last_has_no_next_page_token(
    system: FakeSystem, page_size: int, pages: Sequence[Sequence[int]]
) -> None:
    for number in range(4):
        await system.connect_account(f"account-{number}")
    await system.connect_account("eves-account", EVE)
    assert await ids_page_by_page(system, page_size) == pages


async def test_lists_one_type_and_pending_integrations(system: FakeSystem) -> None:
    await system.connect_key()
    authorization = await system.begin()
    assert await ids_page_by_page(system, 10, "fake") == [[authorization.integration_id]]
    assert await ids_page_by_page(system, 10) == [[1, authorization.integration_id]]


async def test_a_row_removed_between_pages_does_not_affect_the_next_page(system: FakeSystem) -> None:
    rows = [await system.connect_account(f"account-{number}") for number in range(4)]
    first = await system.integration_manager.list_integrations(ADA, "", 2, "")
    await system.revocation_service.disconnect_integration(rows[1].integration_id, ADA)
    second = await system.integration_manager.list_integrations(ADA, "", 2, first.next_page_token)
    assert [row.integration_id for row in second.items] == [3, 4]


async def test_an_unknown_type_is_rejected(system: FakeSystem) -> None:
    with pytest.raises(UnknownIntegrationType):
        await system.integration_manager.list_integrations(ADA, "unknown", 10, "")


async def test_pages_of_large_configs_are_shorter_and_lose_no_row(system: FakeSystem) -> None:
    for number in range(6):
        await system.connect_account(f"account-{number}", config={"text": "x" * 60_000} if number != 3 else {})
    assert await ids_page_by_page(system, 10) == [[1, 2], [3, 4, 5], [6]]  # a JSON byte counts six times


async def page_token(system: FakeSystem) -> str:
    for number in range(2):
        await system.connect_account(f"account-{number}")
    return (await system.integration_manager.list_integrations(ADA, "fake", 1, "")).next_page_token


@pytest.mark.parametrize(("user_id", "integration_type"), [(EVE, "fake"), (ADA, ""), (ADA, "fake_key")])
async def test_a_page_token_is_valid_for_its_own_list_only(
    system: FakeSystem, user_id: UserId, integration_type: str
) -> None:
    token = await page_token(system)
    with pytest.raises(InvalidField) as caught:
        await system.integration_manager.list_integrations(user_id, integration_type, 1, token)
    assert caught.value.field == "page_token"


async def test_an_invalid_page_token_is_rejected(system: FakeSystem) -> None:
    token = await page_token(system)
    state = (await system.begin()).state
    for invalid in ("x", "=", "é", token[:-1], token + "A", token[::-1], state):
        with pytest.raises(InvalidField, match="page_token"):
            await system.integration_manager.list_integrations(ADA, "fake", 1, invalid)


async def type_names(system: FakeSystem, page_size: int) -> list[list[str]]:
    """The names of all types, page by page."""
    pages, token = [], ""
    while True:
        page = await system.integration_manager.list_integration_types(page_size, token)
        pages.append([provider.integration_type for provider in page.items])
        token = page.next_page_token
        if not token:
            return pages


async def test_lists_all_types_sorted_by_name_in_pages(system: FakeSystem) -> None:
    system.add_provider("another")
    assert await type_names(system, 10) == [["another", "fake", "fake_key"]]
    assert await type_names(system, 3) == [["another", "fake", "fake_key"]]
    assert await type_names(system, 2) == [["another", "fake"], ["fake_key"]]


async def test_a_page_token_of_another_list_of_types_is_rejected(system: FakeSystem) -> None:
    token = (await system.integration_manager.list_integration_types(1, "")).next_page_token
    system.add_provider("another")
    with pytest.raises(InvalidField, match="page_token"):
        await system.integration_manager.list_integration_types(1, token)


# --- reading and updating --------------------------------------------------------------------------------------------


async def test_a_pending_integration_can_be_read_but_not_updated(system: FakeSystem) -> None:
    authorization = await system.begin()
    row = await system.integration_manager.get_integration(authorization.integration_id, ADA)
    assert row.status(system.clock()) is Status.PENDING
    with pytest.raises(IntegrationPending):
        await system.integration_manager.update_integration(
            authorization.integration_id, ADA, IntegrationUpdate(name="x")
        )


@pytest.mark.parametrize(
    "change", [{"name": "New"}, {"name": ""}, {"config": {"b": [1, None]}}, {"config": {}}, {"is_active": False}, {}]
)
async def test_an_update_changes_only_the_given_fields(system: FakeSystem, change: dict[str, Any]) -> None:
    integration = await system.connect(name="Old", config={"a": 1})
    changed = await system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(**change)
    )
    expected = {"name": "Old", "config": {"a": 1}, "is_active": True, **change}
    assert changed == system.row(integration.integration_id)
    assert {name: getattr(changed, name) for name in expected} == expected
    assert changed.version == integration.version


async def test_an_integration_can_be_deactivated_and_activated(system: FakeSystem) -> None:
    integration = await system.connect()
    for is_active, status in ((False, Status.INACTIVE), (True, Status.ACTIVE)):
        changed = await system.integration_manager.update_integration(
            integration.integration_id, ADA, IntegrationUpdate(is_active=is_active)
        )
        assert changed.status(system.clock()) is status


async def test_integrations_of_other_users_and_unknown_ids_are_not_found(system: FakeSystem) -> None:
    integration = await system.connect(ADA)
    for integration_id, user_id in ((integration.integration_id, EVE), (IntegrationId(999), ADA)):
        with pytest.raises(IntegrationNotFound):
            await system.integration_manager.get_integration(integration_id, user_id)
        with pytest.raises(IntegrationNotFound):
            await system.integration_manager.update_integration(integration_id, user_id, IntegrationUpdate(name="x"))
        with pytest.raises(IntegrationNotFound):
            await system.revocation_service.disconnect_integration(integration_id, user_id)
    assert system.row(integration.integration_id) == integration
    assert not system.provider.revocations
