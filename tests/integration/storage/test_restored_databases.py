"""Cursors of a database are refused by one that was restored from its backup; without the binding events are missed."""

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from integration_server.domain.errors import CursorExpired, StoreUnavailable
from integration_server.domain.integration import IntegrationId
from integration_server.service.events.change_feed_reader import ChangeFeedReader
from integration_server.service.events.event_stream import EventStream, StreamItem
from integration_server.service.events.watched_changes import ChangeDispatcher
from integration_server.service.integrations.ports import NewCredentials
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.database_identity import declare_restored, read_database_id
from integration_server.storage.engine import Database, open_database
from tests.contracts.integration_rows import SqlRows, account, new_integration
from tests.fakes.aead import FakeAead
from tests.postgres import PostgresServer, run_postgres

DAY = timedelta(days=1)
Restore = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Backup:
    """A database, what makes another database of its present content, and whether the database tells the two apart."""

    url: str
    restore: Restore
    is_automatic: bool


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backup]:
    """A migrated database of each kind."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url: str = request.getfixturevalue("sqlite_url")
            copy = tmp_path / "restored.db"
            yield Backup(
                url, lambda: f"sqlite:///{shutil.copy(url.removeprefix('sqlite:///'), copy)}", is_automatic=False
            )
        else:
            server: PostgresServer = request.getfixturevalue("postgres_server")
            url = request.getfixturevalue("postgres_url")
            name = url.partition("?")[0].rpartition("/")[2]
            yield Backup(url, lambda: stack.enter_context(server.new_database(name)), is_automatic=True)


@dataclass(frozen=True, slots=True)
class Opened:
    """The streams of a database. With `binds_cursors` off (negative control) cursors of any database are taken."""

    database: Database
    reader: ChangeFeedReader
    events: EventStream
    watched: ChangeDispatcher

    async def connect(self, account_id: str) -> IntegrationId:
        """Connect an account."""
        credentials = NewCredentials(b"encrypted")
        row = await SqlRows(self.database).add_connected(
            new_integration(), account(account_id), credentials, datetime.now(UTC)
        )
        assert row is not None
        return row.integration_id

    async def next(self, items: AsyncGenerator[StreamItem]) -> StreamItem:
        """The next item of a stream, for which the feed is read."""
        reading = asyncio.ensure_future(anext(items))
        async with asyncio.timeout(60):
            while not reading.done():
                await self.reader.poll()
                await asyncio.sleep(0.02)
        return reading.result()

    async def resumed(self, cursor: str) -> list[IntegrationId]:
        """The integrations of the events after a cursor, up to a new one that is connected for this."""
        found: list[IntegrationId] = []
        async with aclosing(self.events.watch(None, "", cursor)) as items:
            await self.next(items)
            last = await self.connect(f"last-{len(cursor)}-{time.monotonic_ns()}")
            while not found or found[-1] != last:
                item = await self.next(items)
                assert item.event is not None
                found.append(item.event.integration_id)
        return found[:-1]


@asynccontextmanager
async def opened(
    url: str, monotonic: Callable[[], float] = time.monotonic, *, binds_cursors: bool = True
) -> AsyncIterator[Opened]:
    async with open_database(url) as database:
        feed, aead, providers = SqlChangeFeed(database), FakeAead(), Any
        reader = ChangeFeedReader(feed, None, monotonic)
        events = EventStream(
            feed,
            reader,
            providers,  # type: ignore[arg-type]  # without a type it is not used
            aead,
            retention=DAY,
            heartbeat=DAY,
            binds_cursors=binds_cursors,
        )
        watched = ChangeDispatcher(feed, reader, aead, retention=DAY, binds_cursors=binds_cursors)
        yield Opened(database, reader, events, watched)


@dataclass(frozen=True, slots=True)
class Cursors:
    """Cursors of the lost database, for the event stream and for `WatchCredentials`."""

    events: str
    watched: str


async def lose(backup: Backup) -> tuple[str, Cursors, IntegrationId]:
    """Restore a backup, change the restored database, and then take the last cursors of the lost one.

    Returns the URL of the restored database, the cursors, and the integration whose event they precede.
    """
    async with opened(backup.url) as lost:
        await lost.connect("before")
    restored_url = await asyncio.to_thread(backup.restore)
    async with opened(restored_url) as restored:
        missed = await restored.connect("only-restored")
        for number in range(3):
            await restored.connect(f"more-{number}")
    async with opened(backup.url) as lost, aclosing(lost.events.watch(None, "", "")) as items:
        await lost.next(items)
        last = await lost.connect("lost")
        while (item := await lost.next(items)).event is None or item.event.integration_id != last:
            pass
        async with lost.watched.watching([last], "") as changes:
            await lost.reader.poll()
            watched = await lost.watched.text_of(changes.position)
    return restored_url, Cursors(item.cursor, watched), missed


async def test_cursors_from_before_a_restore_are_refused(backup: Backup) -> None:
    url, cursors, _ = await lose(backup)
    async with opened(url) as restored:
        if not backup.is_automatic:
            await declare_restored(restored.database)
        with pytest.raises(CursorExpired):
            await restored.resumed(cursors.events)
        async with restored.watched.watching([IntegrationId(1)], cursors.watched) as changes:
            assert changes.resumed_position is None  # all credentials are sent again
        # A client begins with an empty cursor, and its cursors work.
        async with aclosing(restored.events.watch(None, "", "")) as items:
            cursor = (await restored.next(items)).cursor
        seen = await restored.connect("new")
        assert set(await restored.resumed(cursor)) == {seen}


async def test_negative_control_without_the_binding_events_are_missed(backup: Backup) -> None:
    url, cursors, missed = await lose(backup)
    async with opened(url, binds_cursors=False) as restored:
        await restored.connect("later")
        resumed = await restored.resumed(cursors.events)
        assert resumed
        assert missed not in resumed
        async with restored.watched.watching([missed], cursors.watched) as changes:
            assert changes.resumed_position is not None
            assert missed not in changes.changed


async def test_the_identity_stays_until_a_restore_is_declared(backup: Backup) -> None:
    """Also after a restart, in which the operator's command is not run."""
    ids = []
    for _ in range(2):
        async with opened(backup.url) as one:
            ids.append(await one.reader.read_database_id())
            await one.connect(f"account-{len(ids)}")
    assert ids[0] == ids[1]
    async with opened(backup.url) as one:
        for _ in range(2):
            await declare_restored(one.database)
            ids.append(await read_database_id(one.database))
    assert len(set(ids)) == 3


@pytest.mark.parametrize("binds_cursors", [True, False])
async def test_a_stream_of_a_database_that_was_replaced_ends(backup: Backup, *, binds_cursors: bool) -> None:
    """As after a failover. Its positions are not those of the other database, nor may its cursors seem to be.

    Negative control: without the binding it goes on.
    """
    elapsed = 0.0
    async with opened(backup.url, lambda: elapsed, binds_cursors=binds_cursors) as one:
        watched = await one.connect("watched")
        async with (
            aclosing(one.events.watch(None, "", "")) as items,
            one.watched.watching([watched], "") as changes,
        ):
            cursor = (await one.next(items)).cursor
            position = changes.position
            await declare_restored(one.database)
            elapsed = 11.0  # the identity is read again for the next stream
            async with one.watched.watching([watched], ""):
                pass
            await one.connect("later")
            if not binds_cursors:
                assert (await one.next(items)).event is not None
                return
            with pytest.raises(CursorExpired):
                await one.next(items)
            with pytest.raises(CursorExpired):
                await one.resumed(cursor)
            text = await one.watched.text_of(position)
            async with asyncio.timeout(60):
                while watched not in changes.changed:  # what is known of it was of the other database
                    await changes.wait(None)
        async with one.watched.watching([watched], text) as changes:
            assert changes.resumed_position is None


@pytest.mark.slow
@pytest.mark.postgres
async def test_a_standby_is_unavailable_and_another_database_once_it_is_promoted() -> None:
    with run_postgres() as server:
        url = server.url("postgres")
        await asyncio.to_thread(server.run, "CREATE TABLE restores (restore_id bigint, uid text)")
        before = await identity(url)
        await asyncio.to_thread(server.stop)
        (Path(server.process.pgdata) / "standby.signal").touch()
        await asyncio.to_thread(server.start)
        with pytest.raises(StoreUnavailable):
            await identity(url)
        await asyncio.to_thread(server.run, "SELECT pg_promote()")
        assert await identity(url) != before


@pytest.mark.postgres
async def test_a_role_without_privileges_reads_the_identity(postgres_url: str) -> None:
    plain_url = postgres_url.replace("postgres:@", "plain:@")
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(
            "DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
            "GRANT SELECT ON restores TO plain"
        )
        system, timeline, database_id, restore = (await identity(plain_url)).split(":")
        assert len(system) > 10
        assert int(timeline, 16) >= 1
        assert restore == ""
        # A service that does not give the function to others: what remains is the id of the database.
        await connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        assert await identity(plain_url) == f"{database_id}:"
    finally:
        await connection.close()


async def identity(url: str) -> str:
    """The identity of the database, as the role in the URL reads it."""
    async with open_database(url) as database:
        return await read_database_id(database)
