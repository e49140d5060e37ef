import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    UnknownIntegrationType,
)
from integration_server.domain.integration import Integration, IntegrationId, Status, UserId
from integration_server.service.managing import Change
from integration_server.service.ports import NewAccount
from tests.fakes.provider import until
from tests.fakes.system import ADA, EVE, FakeSystem

# --- listing -------------------------------------------------------------------------------------------------------


async def ids_page_by_page(system: FakeSystem, page_size: int, integration_type: str = "") -> Sequence[Sequence[int]]:
    pages, token = [], ""
    while True:
        page = await system.managing.list_integrations(ADA, integration_type, page_size, token)
        pages.append([row.integration_id for row in page.integrations])
        token = page.next_page_token
        if not token:
            return pages


@pytest.mark.parametrize(
    ("page_size", "pages"),
    [(1, [[1], [2], [3], [4]]), (3, [[1, 2, 3], [4]]), (4, [[1, 2, 3, 4]]), (5, [[1, 2, 3, 4]])],
)
async def test_lists_page_by_page_and_the_last_page_says_so(
    system: FakeSystem, page_size: int, pages: Sequence[Sequence[int]]
) -> None:
    for number in range(4):
        await system.connect_account(f"account-{number}")
    await system.connect_account("hers", EVE)
    assert await ids_page_by_page(system, page_size) == pages


async def test_lists_one_type_and_pending_ones_too(system: FakeSystem) -> None:
    await system.connect_key()
    begun = await system.begin()
    assert await ids_page_by_page(system, 10, "fake") == [[begun.integration_id]]
    assert await ids_page_by_page(system, 10) == [[1, begun.integration_id]]


async def test_a_row_that_goes_between_pages_is_no_trouble(system: FakeSystem) -> None:
    rows = [await system.connect_account(f"account-{number}") for number in range(4)]
    first = await system.managing.list_integrations(ADA, "", 2, "")
    await system.managing.disconnect_integration(rows[1].integration_id, ADA)
    second = await system.managing.list_integrations(ADA, "", 2, first.next_page_token)
    assert [row.integration_id for row in second.integrations] == [3, 4]


async def test_an_unknown_type_is_told(system: FakeSystem) -> None:
    with pytest.raises(UnknownIntegrationType):
        await system.managing.list_integrations(ADA, "unheard_of", 10, "")


async def page_token(system: FakeSystem) -> str:
    for number in range(2):
        await system.connect_account(f"account-{number}")
    return (await system.managing.list_integrations(ADA, "fake", 1, "")).next_page_token


@pytest.mark.parametrize(("user_id", "integration_type"), [(EVE, "fake"), (ADA, ""), (ADA, "fake_key")])
async def test_a_page_token_continues_its_own_list_only(
    system: FakeSystem, user_id: UserId, integration_type: str
) -> None:
    token = await page_token(system)
    with pytest.raises(InvalidField) as refused:
        await system.managing.list_integrations(user_id, integration_type, 1, token)
    assert refused.value.field == "page_token"


async def test_a_forged_page_token_is_refused(system: FakeSystem) -> None:
    token = await page_token(system)
    state = (await system.begin()).state
    for forged in ("x", "=", "é", token[:-1], token + "A", token[::-1], state):
        with pytest.raises(InvalidField, match="page_token"):
            await system.managing.list_integrations(ADA, "fake", 1, forged)


def test_lists_every_type_by_name(system: FakeSystem) -> None:
    system.add_provider("another")
    names = [provider.integration_type for provider in system.managing.list_integration_types()]
    assert names == ["another", "fake", "fake_key"]


# --- looking and changing ------------------------------------------------------------------------------------------


async def test_a_pending_integration_can_be_looked_at_but_not_changed(system: FakeSystem) -> None:
    begun = await system.begin()
    row = await system.managing.get_integration(begun.integration_id, ADA)
    assert row.status(system.clock()) is Status.PENDING
    with pytest.raises(IntegrationPending):
        await system.managing.update_integration(begun.integration_id, ADA, Change(name="x"))


@pytest.mark.parametrize(
    "change", [{"name": "New"}, {"name": ""}, {"config": {"b": [1, None]}}, {"config": {}}, {"is_active": False}, {}]
)
async def test_changes_what_is_given_and_nothing_else(system: FakeSystem, change: dict[str, Any]) -> None:
    integration = await system.connect(name="Old", config={"a": 1})
    changed = await system.managing.update_integration(integration.integration_id, ADA, Change(**change))
    wanted = {"name": "Old", "config": {"a": 1}, "is_active": True, **change}
    assert changed == system.row(integration.integration_id)
    assert {name: getattr(changed, name) for name in wanted} == wanted
    assert changed.version == integration.version


async def test_switching_off_and_on_again(system: FakeSystem) -> None:
    integration = await system.connect()
    for is_active, status in ((False, Status.INACTIVE), (True, Status.ACTIVE)):
        changed = await system.managing.update_integration(integration.integration_id, ADA, Change(is_active=is_active))
        assert changed.status(system.clock()) is status


async def test_somebody_elses_is_as_absent_as_what_never_was(system: FakeSystem) -> None:
    integration = await system.connect(ADA)
    for integration_id, user_id in ((integration.integration_id, EVE), (IntegrationId(999), ADA)):
        with pytest.raises(IntegrationNotFound):
            await system.managing.get_integration(integration_id, user_id)
        with pytest.raises(IntegrationNotFound):
            await system.managing.update_integration(integration_id, user_id, Change(name="x"))
        with pytest.raises(IntegrationNotFound):
            await system.managing.disconnect_integration(integration_id, user_id)
    assert system.row(integration.integration_id) == integration
    assert not system.provider.revocations


# --- disconnecting -------------------------------------------------------------------------------------------------


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect()


async def test_disconnecting_removes_and_revokes(system: FakeSystem, integration: Integration) -> None:
    tokens = await system.tokens(integration.integration_id)
    assert await system.managing.disconnect_integration(integration.integration_id, ADA)
    assert not system.ids()
    assert system.provider.revocations == [tokens]
    with pytest.raises(IntegrationNotFound):
        await system.managing.disconnect_integration(integration.integration_id, ADA)


@pytest.mark.parametrize("error", [ProviderUnavailable(), ProviderRejected("revocation"), ProviderMisconfigured()])
async def test_it_is_gone_here_whatever_the_provider_answers(
    system: FakeSystem, integration: Integration, error: Exception
) -> None:
    system.provider.revoke_error = error
    assert not await system.managing.disconnect_integration(integration.integration_id, ADA)
    assert not system.ids()


async def test_it_is_gone_here_before_the_provider_is_asked(system: FakeSystem, integration: Integration) -> None:
    system.provider.gate = asyncio.Event()
    disconnecting = asyncio.create_task(system.managing.disconnect_integration(integration.integration_id, ADA))
    await until(lambda: system.provider.revocations)
    assert not system.ids()
    system.provider.gate.set()
    assert await disconnecting


async def test_a_provider_without_revocation_is_told_apart(system: FakeSystem, integration: Integration) -> None:
    system.provider.can_revoke = False
    assert not await system.managing.disconnect_integration(integration.integration_id, ADA)


async def test_spoilt_credentials_and_forgotten_types_can_be_disconnected(
    system: FakeSystem, integration: Integration
) -> None:
    other = await system.connect_account("other")
    system.spoil(integration.integration_id)
    assert not await system.managing.disconnect_integration(integration.integration_id, ADA)
    del system.providers.by_type["fake"]
    assert not await system.managing.disconnect_integration(other.integration_id, ADA)
    assert not system.ids()


async def test_a_pending_integration_goes_without_a_call(system: FakeSystem) -> None:
    begun = await system.begin()
    assert not await system.managing.disconnect_integration(begun.integration_id, ADA)
    assert not system.ids()
    assert not system.provider.revocations


async def test_a_database_that_goes_away_after_the_removal_does_not_undo_it(
    system: FakeSystem, integration: Integration
) -> None:
    disconnecting = asyncio.create_task(system.managing.disconnect_integration(integration.integration_id, ADA))
    await until(lambda: not system.ids())
    system.rows.away = True
    assert not await disconnecting


async def test_a_grant_is_revoked_though_the_caller_is_gone(system: FakeSystem, integration: Integration) -> None:
    caller = asyncio.create_task(system.managing.disconnect_integration(integration.integration_id, ADA))
    await until(lambda: not system.ids())
    caller.cancel()
    await until(lambda: system.provider.revocations)


async def test_a_shared_grant_is_revoked_with_the_last_of_those_who_share_it(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake", "sister")
    sister = system.add_provider("sister", shares_grants_with=("fake", "sister"))
    mine = await system.connect(ADA)
    hers = await system.connect(EVE)
    related = await system.connect(EVE, "sister")

    assert not await system.managing.disconnect_integration(mine.integration_id, ADA)
    assert not await system.managing.disconnect_integration(hers.integration_id, EVE)
    assert not system.provider.revocations
    assert await system.managing.disconnect_integration(related.integration_id, EVE)
    assert len(sister.revocations) == 1


async def test_a_grant_that_is_not_shared_is_revoked_at_once(system: FakeSystem) -> None:
    mine, hers = await system.connect(ADA), await system.connect(EVE)
    assert await system.managing.disconnect_integration(mine.integration_id, ADA)
    assert system.ids() == [hers.integration_id]


async def test_of_two_last_ones_at_once_the_grant_is_revoked(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake",)
    mine, hers = await system.connect(ADA), await system.connect(EVE)
    revoked = await asyncio.gather(
        system.managing.disconnect_integration(mine.integration_id, ADA),
        system.managing.disconnect_integration(hers.integration_id, EVE),
    )
    assert any(revoked)


async def test_another_account_does_not_share_the_grant(system: FakeSystem) -> None:
    system.provider.shares_grants_with = ("fake",)
    one = await system.connect_account("one")
    await system.connect_account("two")
    assert await system.managing.disconnect_integration(one.integration_id, ADA)


async def test_a_key_is_revoked_as_it_is(system: FakeSystem) -> None:
    system.key_provider.account = NewAccount(None, None)
    row = await system.connect_key(api_key="key-1")
    assert await system.managing.disconnect_integration(row.integration_id, ADA)
    assert len(system.key_provider.revocations) == 1
