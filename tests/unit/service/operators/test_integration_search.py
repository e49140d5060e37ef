"""The operators' search and the list of audit entries over fakes."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import update

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import InvalidField, UnknownIntegrationType
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.service.operators.integration_search import IntegrationSearch
from integration_server.service.operators.ports import AuditFilter
from integration_server.storage.tables import integrations
from tests.fakes.system import ADA, EVE, FakeSystem

ONLY_KEYS = AllowedTypes(frozenset({"fake_key"}))


async def found(
    search: IntegrationSearch,
    integration_type: str = "",
    status: Status | None = None,
    account_id: str = "",
    allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
) -> Sequence[Integration]:
    page = await search.find_integrations(integration_type, status, account_id, 200, "", allowed_types)
    assert page.next_page_token == ""
    return page.items


async def test_integrations_of_all_users_are_found_by_type_status_and_account(system: FakeSystem) -> None:
    search = system.use_cases.integration_search
    ada, eve = await system.connect_account("shared"), await system.connect_account("shared", EVE)
    key = await system.connect_key()
    pending = await system.begin()
    ids = {"ada": ada.integration_id, "eve": eve.integration_id, "key": key.integration_id}
    assert [one.integration_id for one in await found(search)] == [*ids.values(), pending.integration_id]
    assert {one.user_id for one in await found(search, account_id="shared")} == {ADA, EVE}
    assert [one.integration_id for one in await found(search, "fake_key")] == [ids["key"]]
    assert [one.integration_id for one in await found(search, status=Status.PENDING)] == [pending.integration_id]
    assert await found(search, "fake_key", Status.PENDING) == []
    counts = (await search.count_integrations("", None, "", "", ALL_INTEGRATION_TYPES)).items
    assert {(count.integration_type, count.status): count.count for count in counts} == {
        ("fake", Status.ACTIVE): 2,
        ("fake", Status.PENDING): 1,
        ("fake_key", Status.ACTIVE): 1,
    }
    with pytest.raises(UnknownIntegrationType):
        await found(search, "unknown")


async def test_the_status_is_that_of_the_time_of_the_search(system: FakeSystem) -> None:
    search = system.use_cases.integration_search
    connected = await system.connect_account("one")
    statement = update(integrations).values(is_renewable=False)
    async with system.database.write_transaction() as connection:
        await connection.execute(statement)
    assert connected.access_token_expire_time is not None
    assert await found(search, status=Status.EXPIRED) == []
    system.clock.advance(connected.access_token_expire_time - system.clock() + timedelta(seconds=1))
    assert [one.integration_id for one in await found(search, status=Status.EXPIRED)] == [connected.integration_id]


async def test_types_that_are_not_allowed_are_neither_found_nor_counted(system: FakeSystem) -> None:
    search = system.use_cases.integration_search
    await system.connect_account("one")
    key = await system.connect_key()
    assert [one.integration_id for one in await found(search, allowed_types=ONLY_KEYS)] == [key.integration_id]
    assert await found(search, account_id="one", allowed_types=ONLY_KEYS) == []
    counts = (await search.count_integrations("", None, "", "", ONLY_KEYS)).items
    assert [count.integration_type for count in counts] == ["fake_key"]
    assert len(await found(search)) == 2  # negative control: with access to all types


@pytest.mark.parametrize(
    "other",
    [("fake", None, ""), ("", Status.ACTIVE, ""), ("", None, "one"), ("", None, "fake")],
)
async def test_a_page_token_is_of_one_search(system: FakeSystem, other: tuple[str, Status | None, str]) -> None:
    search = system.use_cases.integration_search
    for number in range(3):
        await system.connect_account(f"account-{number}")
    first = await search.find_integrations("", None, "", 1, "", ALL_INTEGRATION_TYPES)
    token = first.next_page_token
    second = await search.find_integrations("", None, "", 200, token, ALL_INTEGRATION_TYPES)
    assert [item.integration_id for item in second.items] == [2, 3]
    with pytest.raises(InvalidField, match="page_token"):
        await search.find_integrations(*other, 1, token, ALL_INTEGRATION_TYPES)
    with pytest.raises(InvalidField, match="page_token"):
        await search.count_integrations("", None, "", token, ALL_INTEGRATION_TYPES)
    entries = system.use_cases.audit_log_reader
    with pytest.raises(InvalidField, match="page_token"):
        await entries.list_audit_entries(AuditFilter(), 1, token)


async def test_of_an_integration_that_was_altered_only_what_identifies_it_is_returned(system: FakeSystem) -> None:
    connected = await system.connect_account("one")
    async with system.database.write_transaction() as connection:
        await connection.execute(update(integrations).values(account_id="two", name="forged"))
    (altered,) = await found(system.use_cases.integration_search)
    assert (altered.integration_id, altered.name, altered.account_id) == (connected.integration_id, "", None)
    assert altered.last_error is not None
    assert altered.last_error.error_class == "CREDENTIALS_UNREADABLE"


async def test_negative_control_without_the_check_altered_values_are_returned() -> None:
    system = FakeSystem(associated_data_is_checked=False)
    await system.connect_account("one")
    async with system.database.write_transaction() as connection:
        await connection.execute(update(integrations).values(name="forged"))
    (altered,) = await found(system.use_cases.integration_search)
    assert altered.name == "forged"


async def test_a_page_token_of_audit_entries_is_of_one_list(system: FakeSystem) -> None:
    reader = system.use_cases.audit_log_reader
    page = await reader.list_audit_entries(AuditFilter(UserId("ada")), 10, "")
    assert (page.items, page.next_page_token) == ([], "")
    with pytest.raises(InvalidField, match="page_token"):
        await reader.list_audit_entries(AuditFilter(), 10, "forged")
