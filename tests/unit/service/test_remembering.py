"""What is remembered is served for a moment, never after a change is known, and not while nobody tells of changes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.ports import ChangePlace, News, StoredIntegration
from integration_server.service.remembering import LONGEST, PRUNE_EVERY, Memory, RememberingLookup
from tests.fakes.changes import FakeChanges
from tests.fakes.system import ADA, EVE, FakeSystem

LITTLE = timedelta(milliseconds=1)


@dataclass
class Elapsed:
    """Seconds that a test lets pass."""

    seconds: float = 0

    def __call__(self) -> float:
        """So many by now."""
        return self.seconds

    def advance(self, by: timedelta) -> None:
        """Let time pass."""
        self.seconds += by.total_seconds()


@dataclass
class Store:
    """A lookup that counts how often it is asked, and can be held up after it has read."""

    rows: dict[int, StoredIntegration] = field(default_factory=dict)
    asked: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration | None:
        """What the row was when it was read."""
        self.asked += 1
        found = self.rows.get(integration_id)
        await self.gate.wait()
        return found if found and found.integration.user_id == user_id else None


class ForgetfulOfRaces(Memory):
    """Without the defence: keeps whatever was read, however long ago."""

    def end_reading(self, integration_id: IntegrationId, reading: object, found: StoredIntegration | None) -> None:
        """Keep it."""
        if found is not None:
            self._kept[integration_id] = found


class Remembering:
    """A lookup that remembers, and all that it is made of."""

    def __init__(
        self, row: StoredIntegration, memory: Callable[[int, Callable[[], float]], Memory] = Memory, size: int = 10
    ) -> None:
        self.elapsed = Elapsed()
        self.store = Store({row.integration.integration_id: row})
        self.changes = FakeChanges()
        self.memory = memory(size, self.elapsed)
        self.lookup = RememberingLookup(self.memory, self.store, self.changes, self.elapsed)

    async def find(self, row: StoredIntegration, user_id: UserId = ADA) -> StoredIntegration | None:
        """What a backend gets."""
        return await self.lookup.find(row.integration.integration_id, user_id)

    def remove(self, row: StoredIntegration) -> None:
        """Another replica disconnects it."""
        del self.store.rows[row.integration.integration_id]
        self.changes.note(row.integration.integration_id)


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect()


@pytest.fixture
def row(system: FakeSystem, integration: Integration) -> StoredIntegration:
    return system.stored(integration.integration_id)


async def test_the_store_is_asked_once(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    assert [await it.find(row) for _ in range(3)] == [row] * 3
    assert it.store.asked == 1


async def test_another_user_gets_nothing_of_it(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    for _ in range(2):
        assert await it.find(row) == row
        assert await it.find(row, EVE) is None
    assert it.store.asked == 1


async def test_what_is_not_there_is_not_remembered(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    gone = it.store.rows.pop(row.integration.integration_id)
    assert await it.find(row) is None
    it.store.rows[row.integration.integration_id] = gone
    assert await it.find(row) == row


@pytest.mark.parametrize(
    "unusable", [{"is_active": False}, {"reauthorization_required": True}, {"connect_time": None}], ids=str
)
async def test_what_cannot_be_used_is_not_remembered_so_that_it_can_be_as_soon_as_it_can(
    row: StoredIntegration, unusable: dict[str, Any]
) -> None:
    off = replace(row, integration=replace(row.integration, **unusable))
    it = Remembering(off)
    await it.lookup.follow()
    assert await it.find(off) == off
    it.store.rows[row.integration.integration_id] = row
    assert await it.find(row) == row


async def test_a_change_is_forgotten_as_soon_as_it_is_told(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    await it.find(row)
    it.remove(row)
    assert await it.find(row) == row
    await it.lookup.follow()
    assert await it.find(row) is None


async def test_own_changes_are_known_at_once(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    await it.find(row)
    it.store.rows.clear()
    it.memory.forget(row.integration.integration_id)
    assert await it.find(row) is None


async def test_nothing_is_served_from_memory_before_the_first_look(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.find(row)
    it.remove(row)  # nobody tells: the first look only says where to begin
    assert await it.find(row) is None
    await it.lookup.follow()
    assert await it.find(row) is None


async def test_what_was_remembered_before_the_first_look_does_not_count(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.find(row)
    it.remove(row)
    await it.lookup.follow()
    assert await it.find(row) is None


async def test_nothing_is_served_from_memory_when_nobody_tells_of_changes(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    await it.find(row)
    it.changes.away = True
    it.store.rows.clear()
    it.elapsed.advance(LONGEST - LITTLE)
    with pytest.raises(StoreUnavailable):
        await it.lookup.follow()
    assert await it.find(row) == row
    it.elapsed.advance(2 * LITTLE)
    assert await it.find(row) is None


async def test_a_look_counts_from_when_it_began(row: StoredIntegration) -> None:
    it = Remembering(row)

    class SlowChanges(FakeChanges):
        async def since(self, place: ChangePlace | None) -> News:
            news = await super().since(place)
            it.elapsed.advance(LONGEST)
            return news

    it.lookup = RememberingLookup(it.memory, it.store, SlowChanges(), it.elapsed)
    await it.lookup.follow()
    await it.find(row)
    await it.find(row)
    assert it.store.asked == 2


async def test_what_was_missed_is_told_when_looking_works_again(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    await it.find(row)
    it.changes.away = True
    it.elapsed.advance(LONGEST)
    it.remove(row)
    it.changes.away = False
    await it.lookup.follow()
    assert await it.find(row) is None


async def test_nothing_is_remembered_for_as_long_as_notices_are_kept(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    await it.find(row)
    it.elapsed.advance(PRUNE_EVERY)
    await it.lookup.follow()
    await it.find(row)
    assert it.store.asked == 2


async def read_that_is_overtaken(it: Remembering, row: StoredIntegration) -> None:
    """The row is read, and before the reading ends it is removed, and everybody is told."""
    await it.lookup.follow()
    it.store.gate.clear()
    reading = asyncio.create_task(it.find(row))
    await asyncio.sleep(0)
    it.remove(row)
    await it.lookup.follow()
    it.store.gate.set()
    assert await reading == row


async def test_a_reading_that_a_change_has_overtaken_is_not_kept(row: StoredIntegration) -> None:
    it = Remembering(row)
    await read_that_is_overtaken(it, row)
    assert await it.find(row) is None


async def test_without_telling_of_readings_it_would_be(row: StoredIntegration) -> None:
    it = Remembering(row, ForgetfulOfRaces)
    await read_that_is_overtaken(it, row)
    assert await it.find(row) == row


async def test_the_later_of_two_readings_is_kept(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    it.store.gate.clear()
    readings = [asyncio.create_task(it.find(row)) for _ in range(2)]
    await asyncio.sleep(0)
    it.store.gate.set()
    await asyncio.gather(*readings)
    await it.find(row)
    assert it.store.asked == 2


async def test_a_reading_that_fails_leaves_nothing_behind(row: StoredIntegration) -> None:
    it = Remembering(row)
    await it.lookup.follow()
    it.store.gate.clear()
    reading = asyncio.create_task(it.find(row))
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    it.store.gate.set()
    assert await it.find(row) == row
    assert not it.memory._readings


async def test_the_least_recently_used_goes_first(row: StoredIntegration) -> None:
    it = Remembering(row, size=2)
    rows = [
        replace(row, integration=replace(row.integration, integration_id=IntegrationId(number))) for number in (1, 2, 3)
    ]
    it.store.rows = {stored.integration.integration_id: stored for stored in rows}
    await it.lookup.follow()
    for number in (0, 1, 0, 2):
        await it.find(rows[number])
    assert it.store.asked == 3
    await it.find(rows[0])
    assert it.store.asked == 3
    await it.find(rows[1])
    assert it.store.asked == 4


async def test_what_is_remembered_hides_its_credentials(row: StoredIntegration) -> None:
    assert repr(row.sealed_credentials) not in repr(row)
