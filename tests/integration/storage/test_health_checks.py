"""`CheckAllHealth` over a real database: its statements do not depend on the number of integrations."""

from collections.abc import Mapping

import pytest

from integration_server.domain.errors import ProviderMisconfigured, ProviderRejected, ProviderUnavailable
from integration_server.domain.integration import Integration
from integration_server.service.integrations.ports import IntegrationUpdate, NewAccount
from integration_server.storage.engine import Database
from integration_server.wiring.storage import sql_stores
from tests.fakes.system import ADA, FakeSystem, default_settings
from tests.statements import captured_statements

PAGE = 50


@pytest.fixture
def system(database: Database) -> FakeSystem:
    return FakeSystem(wrap_stores=lambda _stores, _database: sql_stores(default_settings(), database, lambda _: None))


async def connect(system: FakeSystem, count: int) -> list[Integration]:
    connected = []
    for number in range(count):
        system.key_provider.account = NewAccount(f"account-{number}", None)
        connected.append(await system.connect_key())
    return connected


async def check_all(system: FakeSystem) -> tuple[int, Mapping[int, str | None]]:
    """The number of statements, and the error of each integration."""
    with captured_statements() as captured:
        report = await system.health_checker.check_all_health(ADA, PAGE, "")
    return len(captured), {check.integration.integration_id: check.error_class for check in report.items}


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, ProviderUnavailable(), ProviderRejected("key"), ProviderMisconfigured()])
async def test_the_number_of_statements_does_not_depend_on_the_number_of_checks(
    system: FakeSystem, error: Exception | None
) -> None:
    await connect(system, 1)
    system.key_provider.verify_error = error
    of_one, checked = await check_all(system)
    assert len(checked) == 1
    system.key_provider.verify_error = None
    rows = await connect(system, PAGE)  # the first one again
    system.key_provider.verify_error = error
    of_all, checked = await check_all(system)
    assert len(checked) == PAGE
    assert of_all == of_one
    for row in rows:
        history = await system.health_checker.list_health_checks(row.integration_id, ADA, 10, "")
        assert [check.error_class for check in history.items][:1] == [checked[row.integration_id]]


async def test_different_outcomes_are_stored_in_the_same_statements(system: FakeSystem) -> None:
    rows = await connect(system, 6)
    of_healthy, _ = await check_all(system)
    await system.integration_manager.update_integration(rows[0].integration_id, ADA, IntegrationUpdate(is_active=False))
    system.key_provider.verify_errors = [ProviderUnavailable(), None, ProviderRejected("key")]
    of_mixed, checked = await check_all(system)
    assert of_mixed == of_healthy
    for row in rows:
        stored = (await system.integrations.get(row.integration_id, ADA)).integration
        error = checked[row.integration_id]
        assert (stored.last_error.error_class if stored.last_error else None) == error
        assert stored.error_count == (error is not None)


async def test_negative_control_single_checks_run_statements_for_each(system: FakeSystem) -> None:
    rows = await connect(system, 5)
    with captured_statements() as captured:
        for row in rows:
            await system.health_checker.check_health(row.integration_id, ADA)
    assert len(captured) > 5 * 3
