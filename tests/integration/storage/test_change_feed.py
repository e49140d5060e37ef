"""The change feed: triggers record each change in its transaction; readers read each change once, in commit order."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import delete, insert, select, text, update

from integration_server.domain.errors import IntegrationNotFound
from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.background.ports import JobKind
from integration_server.service.events.change_feed_reader import ChangeFeedReader, Subscription
from integration_server.service.events.ports import (
    ChangeBatch,
    ChangeCursor,
    ChangeRange,
    EventFilter,
    LoggedEvent,
)
from integration_server.service.health.ports import CompletedCheck
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.storage import engine
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.change_ordering import (
    ChangeOrdering,
    SequenceOrdering,
    SnapshotOrdering,
    distributed_ordering,
)
from integration_server.storage.connections import SqlAuthorizationAttempts
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import integration_of
from integration_server.storage.tables import integration_changes, integrations
from tests.contracts.integration_rows import (
    ANN,
    FAILURE,
    LATER,
    SqlRows,
    account,
    create_connected,
    create_pending,
    failed_check,
    new_attempt,
    new_credentials,
    successful_check,
    update_settings,
)

ALL = EventFilter()
NO_LIMIT = 10_000

open_database = partial(engine.open_database, monitor_timeout=60)  # for slow machines

Write = Callable[[SqlRows, Integration], Awaitable[object]]

CHANGES: dict[str, Write] = {
    "refreshed": lambda store, integration: store.commit_refresh(integration, new_credentials(b"newer"), LATER),
    "reconnected": lambda store, integration: store.commit_connection(
        integration, account(None), new_credentials(), LATER
    ),
    "deactivated": lambda store, integration: update_settings(store, integration, IntegrationUpdate(is_active=False)),
    "reauthorization required": lambda store, integration: store.record_failure(
        integration, FAILURE, reauthorization_required=True
    ),
    "disconnected": lambda store, integration: store.remove(integration.integration_id, ANN),
}


class Poller:
    """A reader of the feed that keeps its cursor."""

    def __init__(self, database: Database, ordering: ChangeOrdering | None = None) -> None:
        self._feed = SqlChangeFeed(database, ordering)
        self.cursor: ChangeCursor | None = None

    async def poll(self) -> ChangeBatch:
        """The next batch."""
        batch = await self._feed.poll(self.cursor, NO_LIMIT)
        self.cursor = batch.cursor
        return batch

    async def changed_ids(self) -> Collection[IntegrationId]:
        """The integrations that changed since the last poll."""
        return (await self.poll()).changed_ids or frozenset()

    async def events(self) -> list[IntegrationEvent]:
        """The events since the last poll, in order."""
        batch = await self.poll()
        return [logged.event for logged in sorted(batch.events, key=lambda logged: logged.number)]


def waiting_events(subscription: Subscription) -> list[IntegrationEvent]:
    """The events that wait for a stream."""
    events = []
    while (shared := subscription.next_event()) is not None:
        events.append(shared.logged.event)
    return events


async def read_log(database: Database) -> list[LoggedEvent]:
    """All events up to the horizon, in order."""
    feed = SqlChangeFeed(database)
    horizon = (await feed.poll(None, NO_LIMIT)).cursor.horizon
    return list(await feed.read_events(ChangeRange(0, horizon), 0, ALL, NO_LIMIT))


def set_values(integration: Integration, **values: Any) -> Any:
    """A statement that changes one integration."""
    return update(integrations).where(integrations.c.integration_id == integration.integration_id).values(values)


@pytest.fixture
def store(database: Database) -> SqlRows:
    return SqlRows(database)


@pytest.fixture
async def poller(database_url: str) -> AsyncIterator[Poller]:
    """A reader in another process that polled before the first change."""
    async with open_database(database_url) as other:
        poller = Poller(other)
        await poller.poll()
        yield poller


class TestTriggers:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    async def test_a_change_reaches_other_processes_and_the_local_callback(
        self, database: Database, poller: Poller, change: Write
    ) -> None:
        reported: list[IntegrationId] = []
        store = SqlRows(database, reported.append)
        integration, _other = await create_connected(store), await create_connected(store)
        await poller.poll()
        reported.clear()
        await change(store, integration)
        assert reported == [integration.integration_id]
        assert await poller.changed_ids() == {integration.integration_id}
        assert await poller.changed_ids() == frozenset()

    async def test_reencryption_invalidates_caches_and_records_no_event(
        self, database: Database, store: SqlRows, poller: Poller
    ) -> None:
        integration = await create_connected(store)
        await poller.poll()
        async with database.write_transaction() as connection:
            await connection.execute(update(integrations).values(encrypted_credentials=b"re-encrypted"))
        batch = await poller.poll()
        assert (list(batch.changed_ids or ()), list(batch.events)) == ([integration.integration_id], [])
        assert [logged.event.kind for logged in await read_log(database)] == [EventKind.CREATED]

    async def test_a_change_that_does_not_change_the_status_invalidates_caches(
        self, database: Database, store: SqlRows, poller: Poller
    ) -> None:
        integration = await create_connected(store)
        await update_settings(store, integration, IntegrationUpdate(is_active=False))
        await poller.poll()
        async with database.write_transaction() as connection:
            await connection.execute(update(integrations).values(reauthorization_required=True))
        batch = await poller.poll()
        assert (list(batch.changed_ids or ()), list(batch.events)) == ([integration.integration_id], [])

    async def test_checks_and_claims_are_not_recorded(self, database: Database, store: SqlRows, poller: Poller) -> None:
        integration = await create_connected(store)
        history = SqlHealthHistory(database)
        for _ in range(2):
            await history.record([CompletedCheck(failed_check(integration), LATER)])
        await poller.poll()
        await history.record([CompletedCheck(failed_check(integration), LATER)])  # the status is ERROR already
        assert await SqlDueWork(database).claim(
            JobKind.CHECK, integration.integration_type, 1, claim_duration=timedelta(minutes=1)
        )
        assert (await poller.poll()).changed_ids == frozenset()
        await history.record([CompletedCheck(successful_check(integration), LATER)])
        assert [event.kind for event in await poller.events()] == [EventKind.STATUS_CHANGED]

    async def test_writes_without_effect_are_not_recorded(self, store: SqlRows, poller: Poller) -> None:
        integration = await create_connected(store)
        await poller.poll()
        await update_settings(store, integration, IntegrationUpdate(is_active=True))
        with pytest.raises(IntegrationNotFound):
            await store.remove(IntegrationId(integration.integration_id + 1), ANN)
        assert (await poller.poll()).changed_ids == frozenset()

    async def test_expired_attempts_are_recorded(self, database: Database, store: SqlRows, poller: Poller) -> None:
        removed = await create_pending(store, SqlAuthorizationAttempts(database))
        await SqlAuthorizationAttempts(database).remove_expired(new_attempt().expire_time + timedelta(days=1))
        assert await poller.changed_ids() == {removed.integration_id}

    async def test_changes_by_other_sql_clients_are_recorded(
        self, database: Database, store: SqlRows, poller: Poller
    ) -> None:
        await create_connected(store)
        await poller.poll()
        async with database.write_transaction() as connection:
            await connection.execute(update(integrations).values(account_label="other"))
            await connection.execute(text("DELETE FROM integrations"))
        assert [event.kind for event in await poller.events()] == [EventKind.UPDATED, EventKind.DISCONNECTED]

    async def test_rolled_back_changes_are_not_recorded(
        self, database: Database, store: SqlRows, poller: Poller
    ) -> None:
        integration = await create_connected(store)
        await poller.poll()
        with suppress(ZeroDivisionError):
            async with database.write_transaction() as connection:
                await connection.execute(text("DELETE FROM integrations"))
                raise ZeroDivisionError
        assert (await poller.poll()).changed_ids == frozenset()
        await update_settings(store, integration, IntegrationUpdate(name="after"))
        assert len(await poller.events()) == 1

    async def test_event_times_are_database_times(self, database: Database, store: SqlRows) -> None:
        async with database.read_connection() as connection:
            before = await connection.scalar(select(DatabaseTime()))
        await create_connected(store)
        (logged,) = await read_log(database)
        batch = await SqlChangeFeed(database).poll(None, NO_LIMIT)
        assert before is not None
        assert before <= logged.event.event_time <= batch.time

    async def test_recorded_statuses_equal_those_of_the_domain(self, database: Database, store: SqlRows) -> None:
        """Compare the triggers' SQL with `Integration.status`, for all fields but the expire time."""
        await create_connected(store)
        now = datetime.now(UTC)
        cases = itertools.product((None, now), *[(True, False)] * 3, (None, "X"))
        names = ("connect_time", "is_active", "reauthorization_required", "lacks_required_scope")
        recorded_statuses = set()
        for *flags, error in cases:
            values = {
                **dict(zip(names, flags, strict=True)),
                "last_error_class": error,
                "last_error_time": error and now,
                "last_error_message": error,
            }
            async with database.write_transaction() as connection:
                await connection.execute(update(integrations).values(connect_time=now))
                await connection.execute(delete(integration_changes))
                await connection.execute(update(integrations).values({**values, "version": integrations.c.version + 1}))
                row = (await connection.execute(select(integrations))).one()
                recorded = set(await connection.scalars(select(integration_changes.c.status_after).distinct()))
            assert recorded == {replace(integration_of(row), access_token_expire_time=None).status(now).value}, values
            recorded_statuses |= recorded
        assert len(recorded_statuses) == 5


class TestPolling:
    async def test_a_cursor_beyond_the_end_restarts_at_the_end(self, database: Database, store: SqlRows) -> None:
        """As after a restore of an older database."""
        feed = SqlChangeFeed(database)
        batch = await feed.poll(ChangeCursor(10**15), NO_LIMIT)
        assert batch.changed_ids is None
        integration = await create_connected(store)
        assert [logged.event.integration_id for logged in (await feed.poll(batch.cursor, NO_LIMIT)).events] == [
            integration.integration_id
        ]

    async def test_sqlite_reads_the_log_only_after_a_commit(self, sqlite_url: str) -> None:
        async with open_database(sqlite_url) as database, open_database(sqlite_url) as other:
            poller = Poller(database)
            for write_to in (database, other):
                await poller.poll()
                cursor = poller.cursor
                await poller.poll()
                assert poller.cursor is cursor
                await create_connected(SqlRows(write_to))
                assert len(await poller.events()) == 1

    @pytest.mark.postgres
    async def test_a_commit_ends_the_wait_of_other_processes(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database, open_database(postgres_url) as other:
            feed = SqlChangeFeed(database)
            await feed.poll(None, NO_LIMIT)
            for _ in range(2):
                async with asyncio.timeout(30):
                    waiting = asyncio.create_task(feed.wait_for_change())
                    await create_connected(SqlRows(other))
                    await waiting
                await feed.poll(None, NO_LIMIT)
                await self.close_sessions(other)  # the replacement connection also listens
                with suppress(Exception):
                    await feed.poll(None, NO_LIMIT)
                await feed.poll(None, NO_LIMIT)

    async def close_sessions(self, other: Database) -> None:
        """Close all sessions of the database but one."""
        others = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        async with other.read_connection() as connection:
            await connection.execute(text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity {others}"))

    @pytest.mark.postgres
    async def test_concurrent_commits_without_notification_are_found_by_polling(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database, open_database(postgres_url) as other:
            first, second = (
                await create_connected(SqlRows(other)),
                await create_connected(SqlRows(other)),
            )
            poller = Poller(database)
            await poller.poll()
            async with other.write_transaction() as connection:
                await connection.execute(set_values(first, is_active=False))
                await SqlRows(other).remove(second.integration_id, ANN)
                assert await poller.changed_ids() == {second.integration_id}
                assert not database.change_notified.is_set()
            async with asyncio.timeout(60):
                await database.change_notified.wait()
            assert await poller.changed_ids() == {first.integration_id}

    @pytest.mark.postgres
    @pytest.mark.parametrize(
        "error",
        [
            asyncpg.FeatureNotSupportedError("LISTEN is not supported"),
            asyncpg.ReadOnlySQLTransactionError("cannot execute LISTEN during recovery"),
            asyncpg.InterfaceError("connection is closed"),
        ],
        ids=["distributed", "standby", "closed"],
    )
    async def test_without_listen_changes_are_found_by_polling(
        self, postgres_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        async def refuse(*_: object) -> None:
            raise error

        monkeypatch.setattr(asyncpg.Connection, "add_listener", refuse)
        async with open_database(postgres_url) as database:
            poller = Poller(database)
            await poller.poll()
            integration = await create_connected(SqlRows(database))
            assert [event.integration_id for event in await poller.events()] == [integration.integration_id]


class RereadingOrdering(SnapshotOrdering):
    """Negative control: each poll reads from the oldest transaction in progress."""

    def advance(
        self, cursor: ChangeCursor | None, snapshot: str, positions: Collection[int], time: datetime
    ) -> ChangeCursor:
        """A cursor at the horizon, without the positions above it."""
        return ChangeCursor(super().advance(cursor, snapshot, positions, time).horizon)


class HighestIdOrdering(SequenceOrdering):
    """Negative control: continues from the highest id that was read, without the skipped ids."""

    def __init__(self) -> None:
        super().__init__("SELECT coalesce(max(change_id), 0) FROM integration_changes", timedelta(0))


ORDERINGS = pytest.mark.parametrize("ordering", [SnapshotOrdering, distributed_ordering], ids=["snapshot", "sequence"])


@pytest.mark.postgres
class TestOverlappingTransactions:
    """Ids and transaction ids become visible in another order than they are assigned."""

    ROWS = 20
    POLLS = 10

    async def count_rows_read_during_a_long_transaction(self, url: str, ordering: ChangeOrdering) -> int:
        async with open_database(url) as database, open_database(url) as other:
            ids = {(await create_connected(SqlRows(database))).integration_id for _ in range(self.ROWS)}
            poller = Poller(database, ordering)
            await poller.poll()
            await poller.poll()  # a first poll of a sequence treats the last ids as skipped
            rows = 0
            async with other.write_transaction() as connection:
                await connection.execute(text("SELECT pg_current_xact_id()"))
                for _ in range(self.POLLS):
                    async with database.write_transaction() as writer:
                        await writer.execute(update(integrations).values(version=integrations.c.version + 1))
                    batch = await poller.poll()
                    assert set(batch.changed_ids or ()) == ids
                    rows += len(batch.events)
            return rows

    @ORDERINGS
    async def test_a_long_transaction_does_not_delay_invalidations_or_repeat_rows(
        self, postgres_url: str, ordering: Callable[[], ChangeOrdering]
    ) -> None:
        rows = await self.count_rows_read_during_a_long_transaction(postgres_url, ordering())
        assert rows == self.ROWS * self.POLLS

    async def test_negative_control_reading_from_the_oldest_transaction_repeats_rows(self, postgres_url: str) -> None:
        rows = await self.count_rows_read_during_a_long_transaction(postgres_url, RereadingOrdering())
        assert rows == self.ROWS * sum(range(self.POLLS + 1))

    async def test_events_are_published_after_a_long_transaction_ends(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database, open_database(postgres_url) as other:
            reader = ChangeFeedReader(SqlChangeFeed(database), None, lambda: 0)
            await reader.poll()
            with reader.events.subscribed(EventFilter()) as subscription:
                async with other.write_transaction() as connection:
                    await connection.execute(text("SELECT pg_current_xact_id()"))
                    rows = [await create_connected(SqlRows(database)) for _ in range(3)]
                    await reader.poll()
                    assert subscription.next_event() is None
                await reader.poll()
                published = waiting_events(subscription)
            assert [event.integration_id for event in published] == [row.integration_id for row in rows]

    async def commit_out_of_order(self, url: str, poll: Callable[[], Awaitable[object]]) -> tuple[int, int]:
        """Commit two changes in the reverse order of their ids; call `poll` before, between and after the commits."""
        async with open_database(url) as first_database, open_database(url) as second_database:
            first, second = (
                await create_connected(SqlRows(first_database)),
                await create_connected(SqlRows(first_database)),
            )
            await poll()
            async with first_database.write_transaction() as connection:
                await connection.execute(set_values(first, name="first"))
                await update_settings(SqlRows(second_database), second, IntegrationUpdate(name="second"))
                await poll()
            await poll()
            await poll()
            return first.integration_id, second.integration_id

    async def poll_out_of_order(self, url: str, ordering: ChangeOrdering) -> tuple[list[ChangeBatch], tuple[int, int]]:
        async with open_database(url) as database:
            poller, batches = Poller(database, ordering), list[ChangeBatch]()
            await poller.poll()

            async def poll() -> None:
                batches.append(await poller.poll())

            return batches, await self.commit_out_of_order(url, poll)

    @ORDERINGS
    async def test_a_late_commit_is_read_once_and_later_ids_wait_for_it(
        self, postgres_url: str, ordering: Callable[[], ChangeOrdering]
    ) -> None:
        (created, during, after, last), (first, second) = await self.poll_out_of_order(postgres_url, ordering())
        assert len(created.events) == 2
        assert list(during.changed_ids or ()) == [second]
        assert during.events[0].position >= during.cursor.horizon  # not published yet
        assert list(after.changed_ids or ()) == [first]
        assert during.events[0].position < after.cursor.horizon
        assert last.changed_ids == frozenset()

    async def test_negative_control_reading_from_the_highest_id_misses_a_late_commit(self, postgres_url: str) -> None:
        (_, during, after, last), (_, second) = await self.poll_out_of_order(postgres_url, HighestIdOrdering())
        assert list(during.changed_ids or ()) == [second]
        assert (after.changed_ids, last.changed_ids) == (frozenset(), frozenset())

    async def test_events_of_one_integration_are_in_commit_order(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as older, open_database(postgres_url) as younger:
            integration = await create_connected(SqlRows(older))
            async with older.write_transaction() as connection:
                await connection.execute(text("SELECT pg_current_xact_id()"))  # as a transaction that waits for the row
                await update_settings(SqlRows(younger), integration, IntegrationUpdate(name="younger"))
                await connection.execute(set_values(integration, name="older"))
            transactions = [logged.position for logged in await read_log(older)][1:]
            assert transactions == sorted(transactions, reverse=True)
            # Negative control: the order of transaction ids is wrong.
            assert transactions != sorted(transactions)

    @ORDERINGS
    async def test_concurrent_writers_are_published_completely(
        self, postgres_url: str, ordering: Callable[[], ChangeOrdering]
    ) -> None:
        async with open_database(postgres_url) as database, open_database(postgres_url) as other:
            rows = [await create_connected(SqlRows(database)) for _ in range(5)]
            feed = SqlChangeFeed(database, ordering())
            reader = ChangeFeedReader(feed, None, lambda: 0)
            await reader.poll()
            low = (await reader.poll()).cursor.end
            published: list[IntegrationEvent] = []
            done = asyncio.Event()

            async def read(subscription: Subscription) -> None:
                nonlocal low
                while True:
                    is_last, batch = done.is_set(), await reader.poll()
                    while (high := subscription.start) > low:
                        events = await feed.read_events(ChangeRange(low, high), 0, ALL, NO_LIMIT)
                        published.extend(logged.event for logged in events)
                        low = high
                    published.extend(waiting_events(subscription))
                    if is_last and batch.cursor.horizon == batch.cursor.end:
                        return

            async def write(store: SqlRows, row: Integration) -> None:
                for _ in range(10):
                    await store.commit_refresh(row, new_credentials(), LATER)
                    found = await store.find(row.integration_id, ANN)
                    assert found is not None
                    row = found.integration

            stores = [SqlRows(database), SqlRows(other)]
            with reader.events.subscribed(EventFilter(), begin=low) as subscription:
                reading = asyncio.create_task(read(subscription))
                await asyncio.gather(*(write(store, row) for row in rows for store in stores))
                done.set()
                await reading
            assert {event.kind for event in published} == {EventKind.CREDENTIALS_REFRESHED}
            for row in rows:
                found = await stores[0].find(row.integration_id, ANN)
                assert found is not None
                assert sum(event.integration_id == row.integration_id for event in published) == (
                    found.integration.version
                )


@pytest.mark.postgres
class TestOrderingDetection:
    """The ordering is chosen by what the engine supports."""

    async def position_column(self, url: str) -> str:
        async with open_database(url) as database:
            feed = SqlChangeFeed(database)
            await feed.poll(None, NO_LIMIT)
            assert feed._ordering is not None
            return feed._ordering.position.key

    async def test_postgresql_orders_by_transaction(self, postgres_url: str) -> None:
        assert await self.position_column(postgres_url) == "transaction_id"

    @pytest.mark.parametrize(
        "function",
        [
            "pg_current_snapshot() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE feature_not_supported; END $$",
            "version() RETURNS text LANGUAGE sql AS $$ SELECT 'PostgreSQL 15.2-YB-2025.1' $$",
        ],
        ids=["without snapshots", "YugabyteDB"],
    )
    async def test_engines_without_snapshots_order_by_sequence(self, postgres_url: str, function: str) -> None:
        async with open_database(postgres_url) as database, database.write_transaction() as connection:
            await connection.execute(text(f"CREATE FUNCTION public.{function}"))
        # The functions in `public` hide the built-in ones.
        url = f"{postgres_url}&options=-c%20search_path%3Dpublic,pg_catalog"
        assert await self.position_column(url) == "change_id"


async def test_pruning_deletes_old_changes_in_batches(database: Database) -> None:
    change = {"integration_id": 7, "user_id": ANN, "integration_type": "acme", "kind": "internal"}
    async with database.write_transaction() as connection:
        await connection.execute(insert(integration_changes).values(change_time=DatabaseTime()), [change] * 1100)
    feed = SqlChangeFeed(database)
    assert [await feed.prune(timedelta(0)) for _ in range(3)] == [1000, 100, 0]
