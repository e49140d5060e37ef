"""While the audit log is written too slowly, the server makes no entries of its own: nothing begins that makes one.

The other cases are the negative controls: without the wait, each refresh appends an entry to a queue that is full.
"""

from datetime import timedelta

import pytest

from integration_server.domain.audit import Action
from integration_server.domain.errors import StoreUnavailable
from tests.fakes.provider import wait_until
from tests.fakes.system import ADA, FakeSystem
from tests.fakes.workers import is_busy

CASES = pytest.mark.parametrize("waits", [True, False], ids=["", "negative control"])


def count_refreshes(system: FakeSystem) -> int:
    return [entry.action for entry in system.trail.entries].count(Action.REFRESH)


async def poll(system: FakeSystem) -> None:
    await system.worker.poll()
    await wait_until(lambda: not is_busy(system.worker))


@CASES
async def test_no_background_work_begins(system: FakeSystem, waits: bool) -> None:
    await system.connect()
    system.clock.advance(timedelta(minutes=54))
    system.trail.refuses_when_full, system.trail.queue.is_full = waits, True
    await poll(system)
    assert len(system.provider.refreshes) == count_refreshes(system) == (0 if waits else 1)
    system.trail.queue.is_full = False
    await poll(system)  # it was not claimed: no claim has to expire first
    assert len(system.provider.refreshes) == count_refreshes(system) == 1


@CASES
async def test_no_refresh_begins_that_a_call_needs(system: FakeSystem, waits: bool) -> None:
    integration = await system.connect()
    system.clock.advance(timedelta(hours=2))
    system.trail.refuses_when_full, system.trail.queue.is_full = waits, True
    if waits:
        with pytest.raises(StoreUnavailable):
            await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
        system.trail.queue.is_full = False
    await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert len(system.provider.refreshes) == count_refreshes(system) == 1
