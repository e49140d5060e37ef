"""The reader of the change feed, and the buffer of events that wait for the horizon."""

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest

from integration_server.domain.errors import StoreUnavailable
from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.integration_cache import MAX_STALENESS
from integration_server.service.events.change_feed_reader import (
    MIN_POLL_INTERVAL,
    POLL_INTERVAL,
    ChangeFeedReader,
    EventBuffer,
    Subscription,
)
from integration_server.service.events.ports import ChangeBatch, ChangeCursor, EventFilter, LoggedEvent
from integration_server.shared_memory import SharedFeedState, SharedMemory
from tests.fakes.change_feed import FakeChangeFeed
from tests.fakes.clock import NOON


def logged(number: int, position: int) -> LoggedEvent:
    event = IntegrationEvent(EventKind.UPDATED, NOON, IntegrationId(number), UserId("ada"), "fake")
    return LoggedEvent(number, position, event)


def batch(end: int, events: Sequence[LoggedEvent] = (), open_positions: Collection[int] = ()) -> ChangeBatch:
    return ChangeBatch(ChangeCursor(end, dict.fromkeys(open_positions, NOON)), NOON, frozenset(), events)


def numbers(subscription: Subscription) -> list[int]:
    """The numbers of the events that wait."""
    taken = []
    while (shared := subscription.next_event()) is not None:
        taken.append(shared.logged.number)
    return taken


class TestEventBuffer:
    @pytest.fixture
    def buffer(self) -> EventBuffer:
        buffer = EventBuffer()
        buffer.add(ChangeBatch(ChangeCursor(10), NOON))
        assert buffer.horizon == 10
        return buffer

    @pytest.fixture
    def subscription(self, buffer: EventBuffer) -> Iterator[Subscription]:
        with buffer.subscribed(EventFilter()) as subscription:
            yield subscription

    def test_events_are_published_in_the_order_of_their_numbers(
        self, buffer: EventBuffer, subscription: Subscription
    ) -> None:
        buffer.add(batch(13, [logged(3, 10), logged(1, 12), logged(2, 11)]))
        assert numbers(subscription) == [1, 2, 3]

    def test_events_wait_for_open_transactions_below_them(
        self, buffer: EventBuffer, subscription: Subscription
    ) -> None:
        buffer.add(batch(13, [logged(2, 12), logged(3, 10)], open_positions=[11]))
        assert (buffer.horizon, numbers(subscription)) == (11, [3])
        buffer.add(batch(13, [logged(1, 11)]))
        assert (buffer.horizon, numbers(subscription)) == (13, [1, 2])

    def test_the_horizon_does_not_move_without_events(self, buffer: EventBuffer, subscription: Subscription) -> None:
        buffer.add(batch(20))
        assert (buffer.horizon, subscription.changed.is_set()) == (10, False)
        buffer.add(batch(21, [logged(1, 20)]))
        assert (buffer.horizon, subscription.changed.is_set(), numbers(subscription)) == (21, True, [1])

    def test_pending_events_are_bounded(self, buffer: EventBuffer, subscription: Subscription) -> None:
        for number in range(1, 601):
            buffer.add(batch(11 + number, [logged(number, 10 + number)], open_positions=[10]))
            assert len(buffer._pending) <= 500
        buffer.add(batch(611))
        assert (buffer.horizon, numbers(subscription), subscription.start) == (611, [], 611)  # streams read the log
        buffer.add(batch(612, [logged(601, 611)]))
        assert numbers(subscription) == [601]

    def test_events_from_before_the_first_poll_are_read_from_the_log(self) -> None:
        buffer = EventBuffer()
        buffer.add(ChangeBatch(ChangeCursor(10, {5: NOON}), NOON))
        with buffer.subscribed(EventFilter()) as subscription:
            buffer.add(batch(10, [logged(1, 5)]))
            assert (buffer.horizon, numbers(subscription), subscription.start) == (10, [], 10)

    def test_events_are_not_published_again_after_a_pause_of_the_reader(
        self, buffer: EventBuffer, subscription: Subscription
    ) -> None:
        events = [logged(1, 10), logged(2, 12)]
        buffer.add(batch(13, events))
        assert numbers(subscription) == [1, 2]
        buffer.add(ChangeBatch(ChangeCursor(13, dict.fromkeys([10, 11, 12], NOON)), NOON))
        buffer.add(batch(13, events))
        assert (buffer.horizon, numbers(subscription)) == (13, [])
        buffer.add(batch(14, [logged(3, 13)]))
        assert (buffer.horizon, numbers(subscription)) == (14, [3])

    def test_events_before_the_cursor_of_another_replica_are_not_repeated(self, buffer: EventBuffer) -> None:
        with buffer.subscribed(EventFilter(), begin=12) as subscription:
            buffer.add(batch(14, [logged(1, 10), logged(2, 12), logged(3, 13)]))
            assert numbers(subscription) == [2, 3]

    def test_after_the_restore_of_an_older_backup_the_events_begin_again(
        self, buffer: EventBuffer, subscription: Subscription
    ) -> None:
        buffer.add(ChangeBatch(ChangeCursor(5), NOON))
        assert (buffer.horizon, subscription.start, numbers(subscription)) == (5, 5, [])
        buffer.add(batch(6, [logged(1, 5)]))
        assert numbers(subscription) == [1]

    def test_what_waits_for_a_slow_stream_is_bounded(self, buffer: EventBuffer, subscription: Subscription) -> None:
        for first in range(10, 2010, 100):
            buffer.add(batch(first + 100, [logged(number, number) for number in range(first, first + 100)]))
            assert len(subscription._waiting) <= 1000
        assert subscription.start == 1110  # the stream reads the log up to there
        assert numbers(subscription) == list(range(1110, 2010))

    def test_an_event_concerns_only_the_streams_of_its_user(self, buffer: EventBuffer) -> None:
        """Also without a filter's comparison: the streams of other users are not visited."""
        with ExitStack() as stack:
            streams = {
                user_id: stack.enter_context(buffer.subscribed(EventFilter(user_id)))
                for user_id in (None, UserId("ada"), *(UserId(f"user-{number}") for number in range(100)))
            }
            visited = stack.enter_context(count_calls_of(Subscription.publish))
            buffer.add(batch(11, [logged(1, 10)]))
        assert {user_id for user_id, stream in streams.items() if numbers(stream)} == {None, "ada"}
        assert visited() == 2

    def test_a_filter_is_applied_once_for_all_its_streams(self, buffer: EventBuffer) -> None:
        fake = EventFilter(None, frozenset({"fake"}))
        with ExitStack() as stack:
            streams = [stack.enter_context(buffer.subscribed(fake)) for _ in range(100)]
            compared = stack.enter_context(count_calls_of(EventFilter.matches))
            buffer.add(batch(20, [logged(number, number) for number in range(10, 20)]))
        assert compared() == 10
        assert all(len(numbers(stream)) == 10 for stream in streams)


@contextmanager
def count_calls_of(function: Any) -> Iterator[Callable[[], int]]:
    """Count the calls of a function in this thread."""
    calls = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code is function.__code__

    sys.setprofile(count)
    try:
        yield lambda: calls
    finally:
        sys.setprofile(None)


class RecordingCache:
    """A `ChangeListener` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Collection[IntegrationId] | None, float]] = []

    def apply_changes(self, integration_ids: Collection[IntegrationId] | None, poll_time: float) -> None:
        """Record the call."""
        self.calls.append((integration_ids, poll_time))


class TestChangeFeedReader:
    @pytest.fixture
    def feed(self) -> FakeChangeFeed:
        return FakeChangeFeed()

    async def test_the_cache_receives_the_start_time_of_each_poll(self, feed: FakeChangeFeed) -> None:
        cache, times = RecordingCache(), iter([1.0, 2.0])
        reader = ChangeFeedReader(feed, cache, lambda: next(times))
        for _ in range(2):
            await reader.poll()
        assert cache.calls == [(None, 1.0), (frozenset(), 2.0)]

    async def test_a_failed_poll_is_repeated_from_the_same_cursor(self, feed: FakeChangeFeed) -> None:
        cache = RecordingCache()
        reader = ChangeFeedReader(feed, cache, lambda: 0)
        await reader.poll()
        feed.changed_ids.append(IntegrationId(7))
        feed.is_unavailable = True
        with pytest.raises(StoreUnavailable):
            await reader.poll()
        feed.is_unavailable = False
        await reader.poll()
        assert [changed for changed, _ in cache.calls] == [None, {7}]

    async def test_after_an_outage_everything_counts_as_changed_if_another_database_responds(
        self, feed: FakeChangeFeed
    ) -> None:
        cache = RecordingCache()
        reader = ChangeFeedReader(feed, cache, lambda: 0)
        await reader.read_database_id()
        await reader.poll()
        for feed.database_id in ("one", "another"):
            feed.is_unavailable = True
            with pytest.raises(StoreUnavailable):
                await reader.poll()
            feed.is_unavailable = False
            for _ in range(2):
                await reader.poll()
        assert [changed for changed, _ in cache.calls] == [None, set(), set(), None, set()]
        assert reader.database_id == "another"

    @pytest.mark.parametrize("is_noticed", [True, False], ids=["", "negative control"])
    async def test_a_failover_between_two_polls_is_noticed_by_the_new_connection(
        self, feed: FakeChangeFeed, is_noticed: bool
    ) -> None:
        """No poll fails, and the identity that was read is less than ten seconds old."""
        cache = RecordingCache()
        reader = ChangeFeedReader(feed, cache, lambda: 0)
        await reader.read_database_id()
        for _ in range(2):
            await reader.poll()
        feed.database_id = "another"
        feed.connection += is_noticed
        for _ in range(2):
            await reader.poll()
        after = None if is_noticed else set[IntegrationId]()
        assert [changed for changed, _ in cache.calls] == [None, set(), after, set()]
        assert (reader.database_id == "another") == is_noticed

    async def test_a_notification_ends_the_wait(self, feed: FakeChangeFeed) -> None:
        pauses: list[float] = []
        reader = ChangeFeedReader(feed, RecordingCache(), lambda: 0, pause=recorded(pauses))
        waiting = asyncio.create_task(reader.poll_when_notified())
        await asyncio.sleep(0)
        assert (waiting.done(), feed.polls) == (False, 0)
        feed.notified.set()
        await waiting
        assert (feed.polls, pauses) == (1, [MIN_POLL_INTERVAL.total_seconds()])

    async def test_the_next_notification_is_waited_for_without_consumers_too(self, feed: FakeChangeFeed) -> None:
        reader = ChangeFeedReader(feed, None, lambda: 0, pause=recorded([]))
        feed.notified.set()
        await reader.poll_when_notified()
        waiting = asyncio.create_task(reader.poll_when_notified())
        await asyncio.sleep(0)
        assert (waiting.done(), feed.polls) == (False, 0)
        waiting.cancel()

    async def test_a_failed_poll_for_a_notification_is_followed_by_the_pause(self, feed: FakeChangeFeed) -> None:
        pauses: list[float] = []
        reader = ChangeFeedReader(feed, RecordingCache(), lambda: 0, pause=recorded(pauses))
        feed.is_unavailable = True
        feed.notified.set()
        with pytest.raises(StoreUnavailable):
            await reader.poll_when_notified()
        assert pauses == [MIN_POLL_INTERVAL.total_seconds()]

    async def test_without_consumers_nothing_is_polled(self, feed: FakeChangeFeed) -> None:
        reader = ChangeFeedReader(feed, None, lambda: 0)
        await reader.poll_when_due()
        assert feed.polls == 0
        with reader.reading():
            await reader.poll_when_due()
        await reader.poll_when_due()
        batch = await reader.poll()
        assert (feed.polls, batch.changed_ids) == (2, None)  # it restarts at the end of the log


def recorded(pauses: list[float]) -> Callable[[float], Awaitable[None]]:
    """A pause that takes no time."""

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    return pause


class Host:
    """Three processes of one machine that read the same feed, each with a cache. `leader` polls for the others."""

    def __init__(self, *, shares: bool = True) -> None:
        memory = SharedMemory(3)
        self.now = 100.0
        self.feeds = [FakeChangeFeed() for _ in range(3)]
        self.caches = [RecordingCache() for _ in range(3)]
        for feed in self.feeds:
            feed.changed_ids = self.feeds[0].changed_ids
        self.readers = [
            ChangeFeedReader(
                feed, cache, lambda: self.now, SharedFeedState(memory, leads=number == 0) if shares else None
            )
            for number, (feed, cache) in enumerate(zip(self.feeds, self.caches, strict=True))
        ]

    async def tick(self, *numbers: int) -> None:
        """Let the time of an interval pass, after which these processes, by default all, poll if they have to."""
        self.now += POLL_INTERVAL.total_seconds()
        for number in numbers or range(3):
            await self.readers[number].poll_when_due()

    @property
    def polls(self) -> list[int]:
        return [feed.polls for feed in self.feeds]

    def invalidated(self, number: int) -> list[int]:
        """What a process has removed from its cache."""
        return [one for ids, _ in self.caches[number].calls for one in ids or ()]


class TestSharedFeed:
    async def test_one_process_polls_for_all_and_all_stay_current(self) -> None:
        host = Host()
        for _ in range(21):
            await host.tick()
        assert host.polls == [21, 1, 1]
        assert [cache.calls[-1][1] for cache in host.caches] == [host.now] * 3

    async def test_negative_control_alone_each_process_polls_at_each_interval(self) -> None:
        host = Host(shares=False)
        for _ in range(21):
            await host.tick()
        assert host.polls == [21, 21, 21]

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    async def test_a_change_reaches_every_cache_within_two_intervals_in_any_order(self, order: Sequence[int]) -> None:
        host = Host()
        for number in range(10):
            host.feeds[0].changed_ids.append(IntegrationId(number))
            await host.tick(*order)
            await host.tick(*order)
            for process in range(3):
                assert number in host.invalidated(process) or number == 0
        await host.tick(*order)
        before = host.polls
        await host.tick(*order)
        assert [after - first for after, first in zip(host.polls, before, strict=True)] == [1, 0, 0]

    async def test_a_change_between_the_polls_of_two_processes_is_not_missed(self) -> None:
        host = Host()
        await host.tick()
        for number in range(20):  # visible to one process before the other, and the other way round
            first, second = (0, 1) if number % 2 else (1, 0)
            await host.readers[first].poll()
            host.feeds[0].changed_ids.append(IntegrationId(number))
            await host.readers[second].poll()
            await host.tick()
            await host.tick()
        assert sorted(host.invalidated(1)) == sorted(host.invalidated(0)) == list(range(20))

    async def test_the_others_poll_by_themselves_while_the_one_that_polls_for_them_does_not(self) -> None:
        host = Host()
        await host.tick()
        for _ in range(8):  # it hangs, or the database does not respond to it
            await host.tick(1, 2)
        assert host.polls[0] == 1
        assert min(host.polls[1:]) >= 3
        host.feeds[0].changed_ids.append(IntegrationId(7))
        for _ in range(3):
            await host.tick(1, 2)
        assert (host.invalidated(1), host.invalidated(2)) == ([7], [7])
        # At no time is what a cache serves older than it may be.
        times = [poll_time for _, poll_time in host.caches[1].calls]
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < MAX_STALENESS.total_seconds()

    async def test_a_notification_is_not_delayed_by_what_another_process_knows(self) -> None:
        host = Host()
        await host.tick()
        host.feeds[0].changed_ids.append(IntegrationId(7))
        host.feeds[1].notified.set()
        await host.readers[1].poll_when_notified()
        assert host.invalidated(1) == [7]

    async def test_each_process_polls_now_and_then_whatever_it_is_told(self) -> None:
        host = Host()
        for _ in range(100):  # 25 seconds
            await host.tick()
        assert host.polls == [100, 3, 3]


def test_the_cache_tolerates_late_polls() -> None:
    assert 3 * POLL_INTERVAL < MAX_STALENESS < timedelta(seconds=1)
