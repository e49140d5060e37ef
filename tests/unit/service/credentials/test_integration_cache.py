"""Tests of the integration cache: its entries expire, changes invalidate them, and a stale change feed disables it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast

import pytest

from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.credentials.integration_cache import MAX_STALENESS, CachedLookup, RaceSafeCache
from integration_server.service.events.change_feed_reader import ChangeFeedReader
from integration_server.service.events.ports import ChangeBatch, ChangeCursor
from integration_server.service.integrations.ports import IntegrationLookup, StoredIntegration
from tests.fakes.change_feed import FakeChangeFeed
from tests.fakes.system import ADA, EVE, FakeSystem

MILLISECOND = timedelta(milliseconds=1)


@dataclass
class ManualMonotonicClock:
    """A monotonic clock that a test advances."""

    seconds: float = 0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.seconds

    def advance(self, by: timedelta) -> None:
        """Advance the clock."""
        self.seconds += by.total_seconds()


@dataclass
class CountingLookup:
    """A lookup that counts its reads, and waits for `gate` after each."""

    rows: dict[int, StoredIntegration] = field(default_factory=dict)
    reads: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def get(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        """The row as it was before the wait."""
        self.reads += 1
        found = self.rows.get(integration_id)
        await self.gate.wait()
        if found is None or found.integration.user_id != user_id:
            raise IntegrationNotFound
        return found


class RacyCache(RaceSafeCache):
    """Negative control: a cache that stores the result of every read."""

    def end_read(self, integration_id: IntegrationId, read_token: object, found: StoredIntegration | None) -> None:
        """Cache the result."""
        if found is not None:
            self._entries[integration_id] = found


class CacheFixture:
    """A cached lookup with its reader, over a feed in memory."""

    def __init__(
        self,
        row: StoredIntegration,
        cache: Callable[[int, Callable[[], float]], RaceSafeCache] = RaceSafeCache,
        size: int = 10,
    ) -> None:
        self.clock = ManualMonotonicClock()
        self.store = CountingLookup({row.integration.integration_id: row})
        self.change_feed = FakeChangeFeed()
        self.cache = cache(size, self.clock)
        self.reader = ChangeFeedReader(self.change_feed, self.cache, self.clock)
        self.lookup = CachedLookup(self.cache, cast("IntegrationLookup", self.store))

    async def find(self, row: StoredIntegration, user_id: UserId = ADA) -> StoredIntegration | None:
        """The result for a user; None if it is not found."""
        try:
            return await self.lookup.get(row.integration.integration_id, user_id)
        except IntegrationNotFound:
            return None

    def remove(self, row: StoredIntegration) -> None:
        """Remove the row, as another replica does."""
        del self.store.rows[row.integration.integration_id]
        self.change_feed.changed_ids.append(row.integration.integration_id)


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect()


@pytest.fixture
def row(system: FakeSystem, integration: Integration) -> StoredIntegration:
    return system.stored(integration.integration_id)


async def test_repeated_lookups_read_the_store_once(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    assert [await fixture.find(row) for _ in range(3)] == [row] * 3
    assert fixture.store.reads == 1


async def test_another_user_does_not_find_the_cached_row(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    for _ in range(2):
        assert await fixture.find(row) == row
        assert await fixture.find(row, EVE) is None
    assert fixture.store.reads == 3  # the other user's time is that of an integration that does not exist


async def test_reads_of_another_user_do_not_keep_the_row_out_of_the_cache(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    fixture.store.gate.clear()
    tasks = [asyncio.create_task(fixture.find(row, user_id)) for user_id in (EVE, ADA, EVE)]
    await asyncio.sleep(0)
    fixture.store.gate.set()
    assert await asyncio.gather(*tasks) == [None, row, None]
    assert await fixture.find(row) == row
    assert fixture.store.reads == 3
    assert not fixture.cache._pending_reads


async def test_missing_integrations_are_not_cached(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    removed = fixture.store.rows.pop(row.integration.integration_id)
    assert await fixture.find(row) is None
    fixture.store.rows[row.integration.integration_id] = removed
    assert await fixture.find(row) == row


@pytest.mark.parametrize(("max_config_length", "reads"), [(1024, 2), (100_000, 1)], ids=["limited", "negative control"])
async def test_integrations_with_large_configs_are_not_cached(
    row: StoredIntegration, max_config_length: int, reads: int
) -> None:
    hoarder = replace(row, integration=replace(row.integration, config={"values": [[]] * 400}))
    fixture = CacheFixture(hoarder)
    fixture.lookup = CachedLookup(
        fixture.cache, cast("IntegrationLookup", fixture.store), max_config_length=max_config_length
    )
    await fixture.reader.poll()
    assert [await fixture.find(hoarder) for _ in range(2)] == [hoarder] * 2
    assert fixture.store.reads == reads


async def test_integrations_with_the_settings_of_a_provider_are_cached(row: StoredIntegration) -> None:
    config = {"shop": "example.myshopify.com", "calendar_id": "c" * 200, "scopes": ["read", "write"] * 20}
    usual = replace(row, integration=replace(row.integration, config=config))
    fixture = CacheFixture(usual)
    await fixture.reader.poll()
    assert [await fixture.find(usual) for _ in range(2)] == [usual] * 2
    assert fixture.store.reads == 1


@pytest.mark.parametrize(
    "unusable", [{"is_active": False}, {"reauthorization_required": True}, {"connect_time": None}], ids=str
)
async def test_unusable_integrations_are_not_cached(row: StoredIntegration, unusable: dict[str, Any]) -> None:
    unusable_row = replace(row, integration=replace(row.integration, **unusable))
    fixture = CacheFixture(unusable_row)
    await fixture.reader.poll()
    assert await fixture.find(unusable_row) == unusable_row
    fixture.store.rows[row.integration.integration_id] = row
    assert await fixture.find(row) == row


async def test_a_change_invalidates_the_cached_row(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.remove(row)
    assert await fixture.find(row) == row
    await fixture.reader.poll()
    assert await fixture.find(row) is None


async def test_changes_by_this_process_invalidate_at_once(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.store.rows.clear()
    fixture.cache.invalidate(row.integration.integration_id)
    assert await fixture.find(row) is None


async def test_the_cache_is_not_used_before_the_first_poll(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.find(row)
    fixture.remove(row)  # the first poll reads no change
    assert await fixture.find(row) is None
    await fixture.reader.poll()
    assert await fixture.find(row) is None


async def test_entries_from_before_the_first_poll_are_not_served(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.find(row)
    fixture.remove(row)
    await fixture.reader.poll()
    assert await fixture.find(row) is None


async def test_the_cache_is_not_used_when_the_change_feed_is_stale(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.change_feed.is_unavailable = True
    fixture.store.rows.clear()
    fixture.clock.advance(MAX_STALENESS - MILLISECOND)
    with pytest.raises(StoreUnavailable):
        await fixture.reader.poll()
    assert await fixture.find(row) == row
    fixture.clock.advance(2 * MILLISECOND)
    assert await fixture.find(row) is None


async def test_staleness_is_measured_from_the_start_of_a_poll(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)

    class SlowChangeFeed(FakeChangeFeed):
        async def poll(self, cursor: ChangeCursor | None, limit: int) -> ChangeBatch:
            batch = await super().poll(cursor, limit)
            fixture.clock.advance(MAX_STALENESS)
            return batch

    fixture.reader = ChangeFeedReader(SlowChangeFeed(), fixture.cache, fixture.clock)
    await fixture.reader.poll()
    await fixture.find(row)
    await fixture.find(row)
    assert fixture.store.reads == 2


async def test_missed_changes_are_read_when_polling_works_again(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.change_feed.is_unavailable = True
    fixture.clock.advance(MAX_STALENESS)
    fixture.remove(row)
    fixture.change_feed.is_unavailable = False
    await fixture.reader.poll()
    assert await fixture.find(row) is None


async def test_entries_expire(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.clock.advance(timedelta(seconds=5))
    await fixture.reader.poll()
    await fixture.find(row)
    assert fixture.store.reads == 2


async def read_during_removal(fixture: CacheFixture, row: StoredIntegration) -> None:
    """Read the row, and remove it before the read ends."""
    await fixture.reader.poll()
    fixture.store.gate.clear()
    read_task = asyncio.create_task(fixture.find(row))
    await asyncio.sleep(0)
    fixture.remove(row)
    await fixture.reader.poll()
    fixture.store.gate.set()
    assert await read_task == row


async def test_a_read_superseded_by_a_change_is_not_cached(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await read_during_removal(fixture, row)
    assert await fixture.find(row) is None


async def test_negative_control_without_begin_read_a_superseded_row_is_cached(row: StoredIntegration) -> None:
    fixture = CacheFixture(row, RacyCache)
    await read_during_removal(fixture, row)
    assert await fixture.find(row) == row


async def test_one_of_two_concurrent_reads_is_cached(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    fixture.store.gate.clear()
    read_tasks = [asyncio.create_task(fixture.find(row)) for _ in range(2)]
    await asyncio.sleep(0)
    fixture.store.gate.set()
    await asyncio.gather(*read_tasks)
    await fixture.find(row)
    assert fixture.store.reads == 2


async def test_a_cancelled_read_is_not_cached(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    fixture.store.gate.clear()
    read_task = asyncio.create_task(fixture.find(row))
    await asyncio.sleep(0)
    read_task.cancel()
    await asyncio.gather(read_task, return_exceptions=True)
    fixture.store.gate.set()
    assert await fixture.find(row) == row
    assert not fixture.cache._pending_reads


async def test_the_least_recently_used_row_is_evicted_first(row: StoredIntegration) -> None:
    fixture = CacheFixture(row, size=2)
    rows = [
        replace(row, integration=replace(row.integration, integration_id=IntegrationId(number))) for number in (1, 2, 3)
    ]
    fixture.store.rows = {stored.integration.integration_id: stored for stored in rows}
    await fixture.reader.poll()
    for number in (0, 1, 0, 2):
        await fixture.find(rows[number])
    assert fixture.store.reads == 3
    await fixture.find(rows[0])
    assert fixture.store.reads == 3
    await fixture.find(rows[1])
    assert fixture.store.reads == 4


async def test_cached_rows_hide_their_credentials(row: StoredIntegration) -> None:
    assert repr(row.encrypted_credentials) not in repr(row)
