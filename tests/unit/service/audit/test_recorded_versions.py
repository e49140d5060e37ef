"""The audit log has the version of all credentials that are stored, so that an older row is detected."""

from integration_server.domain.audit import SERVER, Action
from tests.fakes.system import ADA, FakeSystem


def recorded(system: FakeSystem) -> list[tuple[str, str, int, int]]:
    actions = {Action.STORE_CREDENTIALS, Action.REFRESH}
    return [
        (entry.action, entry.caller, entry.integration_id, entry.integration_version)
        for entry in system.trail.entries
        if entry.action in actions
    ]


async def test_connections_and_refreshes_record_the_version_that_they_store() -> None:
    system = FakeSystem()
    connected = await system.connect()
    refreshed = await system.refresher.refresh(connected)
    again = await system.connect(integration_id=connected.integration_id)
    assert connected.version < refreshed.integration.version < again.version
    assert recorded(system) == [
        (Action.STORE_CREDENTIALS, SERVER, connected.integration_id, connected.version),
        (Action.REFRESH, SERVER, connected.integration_id, refreshed.integration.version),
        (Action.STORE_CREDENTIALS, SERVER, connected.integration_id, again.version),
    ]


async def test_a_replaced_api_key_records_its_version() -> None:
    system = FakeSystem()
    connected = await system.connect_key()
    replaced = await system.connect_key(ADA, "key-2", integration_id=connected.integration_id)
    assert [version for *_, version in recorded(system)] == [connected.version, replaced.version]
    assert replaced.version > connected.version
