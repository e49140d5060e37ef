"""Tests of the integration cache: its entries expire, changes invalidate them, and a stale change feed disables it."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, cast

import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.domain.integration_cache import MAX_STALENESS, RaceSafeCache
from integration_server.service.credentials.integration_lookup import CachedLookup
from integration_server.service.events.change_feed_reader import ChangeFeedReader
from integration_server.service.events.ports import ChangeBatch, ChangeCursor
from integration_server.service.integrations.ports import (
    FoundIntegrations,
    IntegrationLookup,
    IntegrationTarget,
)
from tests.fakes.change_feed import FakeChangeFeed
from tests.fakes.system import ADA, EVE, FakeSystem

MILLISECOND = timedelta(milliseconds=1)
TTL = timedelta(minutes=5)


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
    batches: list[int] = field(default_factory=list)
    max_rows: int = 1000
    is_unavailable: bool = False
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

    async def find_many(
        self,
        targets: Collection[IntegrationTarget],
        max_bytes: int,
        _allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> FoundIntegrations:
        """The rows of the targets as they were before the wait, up to `max_bytes` or `max_rows`."""
        if self.is_unavailable:
            raise StoreUnavailable
        self.batches.append(len(targets))
        found = {one: self.rows[one] for one, _ in targets if one in self.rows}
        await self.gate.wait()
        omitted = list(found)[self.max_rows :]
        return FoundIntegrations({one: row for one, row in found.items() if one not in omitted}, omitted)


class RacyCache(RaceSafeCache):
    """Negative control: a cache that stores the result of every read."""

    def end_read(self, integration_id: IntegrationId, read_token: object, found: StoredIntegration | None) -> None:
        """Cache the result."""
        if found is not None:
            self._put(integration_id, found)


class CacheFixture:
    """A cached lookup with its reader, over a feed in memory."""

    def __init__(
        self,
        row: StoredIntegration,
        cache: Callable[[int, Callable[[], float]], RaceSafeCache] = RaceSafeCache,
        max_bytes: int = 2**20,
    ) -> None:
        self.clock = ManualMonotonicClock()
        self.store = CountingLookup({row.integration.integration_id: row})
        self.change_feed = FakeChangeFeed()
        self.cache = cache(max_bytes, self.clock)
        self.reader = ChangeFeedReader(self.change_feed, self.cache, self.clock)
        self.lookup = CachedLookup(self.cache, cast("IntegrationLookup", self.store))

    async def find(self, row: StoredIntegration, user_id: UserId = ADA) -> StoredIntegration | None:
        """The result for a user; None if it is not found."""
        try:
            return await self.lookup.get(row.integration.integration_id, user_id)
        except IntegrationNotFound:
            return None

    async def pass_time(self, duration: timedelta, *used: StoredIntegration, renews: bool = True) -> list[int]:
        """Use the rows every 10 s, and renew them every second. Returns the number of rows read in each second."""
        rows_read = []
        for second in range(round(duration.total_seconds())):
            self.clock.advance(timedelta(seconds=1))
            await self.reader.poll()
            if second % 10 == 0:
                for row in used:
                    await self.find(row)
            before = sum(self.store.batches)
            if renews:
                await self.lookup.renew()
            rows_read.append(sum(self.store.batches) - before)
        return rows_read

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


async def test_negative_control_with_a_high_staleness_an_old_row_is_served(row: StoredIntegration) -> None:
    fixture = CacheFixture(row, partial(RaceSafeCache, max_staleness=timedelta(hours=1)))
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.change_feed.is_unavailable = True
    fixture.store.rows.clear()
    fixture.clock.advance(2 * MAX_STALENESS)
    assert await fixture.find(row) == row


# --- age --------------------------------------------------------------------------------------------------------------


async def test_entries_that_are_not_used_expire_and_are_not_renewed(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    rows_read = await fixture.pass_time(TTL)
    assert sum(rows_read) == 0
    await fixture.find(row)
    assert fixture.store.reads == 2


@pytest.mark.parametrize(("renews", "misses"), [(True, 1), (False, 12)], ids=["renewed", "negative control"])
async def test_callers_never_wait_for_an_entry_in_use(row: StoredIntegration, renews: bool, misses: int) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    rows_read = await fixture.pass_time(12 * TTL - timedelta(minutes=1), row, renews=renews)
    assert fixture.lookup.misses == misses
    assert sum(rows_read) <= 24, "an entry is read at most twice in its lifetime"


def rows_like(row: StoredIntegration, count: int) -> list[StoredIntegration]:
    """Rows of other integrations, which share none of their values' objects."""
    rows = []
    for number in range(1, count + 1):
        own: dict[str, Any] = {
            "integration_id": IntegrationId(row.integration.integration_id + number),
            "uid": f"uid-{number}",
        }
        config = {"calendar_id": f"calendar-{number}", "days": [number, number + 1]}
        own |= {"name": f"Work calendar {number}", "config": config, "scopes": (f"calendar.{number}", f"mail.{number}")}
        rows.append(StoredIntegration(replace(row.integration, **own), b"%1000d" % number))
    return rows


@pytest.mark.parametrize("is_spread", [True, False], ids=["spread", "negative control"])
async def test_entries_that_were_read_at_one_time_are_renewed_at_different_times(
    row: StoredIntegration, is_spread: bool
) -> None:
    jitter = Random(1).random if is_spread else lambda: 0.5
    fixture = CacheFixture(row, partial(RaceSafeCache, jitter=jitter))
    rows = rows_like(row, 200)
    fixture.store.rows = {one.integration.integration_id: one for one in rows}
    await fixture.reader.poll()
    for one in rows:
        await fixture.find(one)
    rows_read = await fixture.pass_time(TTL, *rows)
    assert fixture.lookup.misses == len(rows)
    assert sum(rows_read) >= len(rows)
    assert (max(rows_read) < len(rows) / 4) is is_spread
    assert max(fixture.store.batches) <= 100


@pytest.mark.parametrize(("ttl", "is_served"), [(TTL, False), (timedelta(days=1), True)], ids=["TTL", "control"])
@pytest.mark.parametrize("change", ["removed", "deactivated"])
async def test_a_change_that_the_feed_misses_is_known_when_the_entry_is_as_old_as_its_ttl(
    row: StoredIntegration, ttl: timedelta, is_served: bool, change: str
) -> None:
    fixture = CacheFixture(row, partial(RaceSafeCache, ttl=ttl))
    await fixture.reader.poll()
    await fixture.find(row)
    if change == "removed":
        fixture.store.rows.clear()
    else:
        inactive = replace(row, integration=replace(row.integration, is_active=False))
        fixture.store.rows[row.integration.integration_id] = inactive
    await fixture.pass_time(TTL, row)
    assert (await fixture.find(row) == row) is is_served


async def test_an_unchanged_row_stays_the_same_object(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    cached = await fixture.find(row)
    assert cached is not None
    fixture.store.rows[row.integration.integration_id] = replace(row, integration=replace(row.integration))
    assert sum(await fixture.pass_time(TTL, row)) >= 1
    assert fixture.lookup.is_current(cached.integration)
    fixture.store.rows[row.integration.integration_id] = replace(row, encrypted_credentials=b"newer")
    await fixture.pass_time(TTL, row)
    renewed = await fixture.find(row)
    assert renewed is not None
    assert renewed.encrypted_credentials == b"newer"


async def test_a_renewal_that_fails_is_repeated(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.clock.advance(0.85 * TTL)
    await fixture.reader.poll()
    for is_unavailable, max_rows in ((True, 1000), (False, 0), (False, 1000)):
        fixture.store.is_unavailable, fixture.store.max_rows = is_unavailable, max_rows
        assert await fixture.find(row) == row
        with suppress(StoreUnavailable):
            await fixture.lookup.renew()
        fixture.clock.advance(timedelta(seconds=10))
        await fixture.reader.poll()
    fixture.clock.advance(0.4 * TTL)
    await fixture.reader.poll()
    assert await fixture.find(row) == row
    assert fixture.lookup.misses == 1


async def test_a_renewal_does_not_put_back_what_has_changed_meanwhile(row: StoredIntegration) -> None:
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.clock.advance(0.85 * TTL)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture.store.gate.clear()
    renewal = asyncio.create_task(fixture.lookup.renew())
    await asyncio.sleep(0)
    fixture.remove(row)
    await fixture.reader.poll()
    fixture.store.gate.set()
    await renewal
    assert await fixture.find(row) is None


@pytest.mark.parametrize(
    "failing", [{"refresh_failures": 1}, {"refresh_retry_time": datetime(2026, 1, 1, tzinfo=UTC)}], ids=str
)
async def test_what_fails_to_refresh_is_read_again_soon(row: StoredIntegration, failing: dict[str, Any]) -> None:
    failing_row = replace(row, integration=replace(row.integration, **failing))
    fixture = CacheFixture(failing_row)
    await fixture.reader.poll()
    await fixture.find(failing_row)
    await fixture.pass_time(timedelta(seconds=4))
    await fixture.find(failing_row)
    assert fixture.store.reads == 1
    await fixture.pass_time(timedelta(seconds=1))
    await fixture.find(failing_row)
    assert fixture.store.reads == 2


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [2**20, 2**24], ids=["limited", "negative control"])
async def test_the_cache_takes_no_more_memory_than_its_size(row: StoredIntegration, max_bytes: int) -> None:
    fixture = CacheFixture(row, max_bytes=max_bytes)
    await fixture.reader.poll()
    gc.collect()
    tracemalloc.start()
    try:
        for one in rows_like(row, 2000):
            read_token = fixture.cache.begin_read(one.integration.integration_id)
            fixture.cache.end_read(one.integration.integration_id, read_token, one)
        del one
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (used <= 2**20) is (max_bytes == 2**20)
    assert used / 2 < fixture.cache.size <= max_bytes


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
    fixture = CacheFixture(row)
    await fixture.reader.poll()
    await fixture.find(row)
    fixture = CacheFixture(row, max_bytes=round(2.5 * fixture.cache.size))
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
