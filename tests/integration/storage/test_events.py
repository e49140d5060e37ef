"""Events are told by the database itself, in the order in which things happened, and none is missed."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update

from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import Integration
from integration_server.service.events.ports import EventBatch, EventFilter
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database, open_database
from integration_server.storage.events import SqlEventLog
from integration_server.storage.integrations import SqlIntegrations, integration_of
from integration_server.storage.tables import integration_events, integrations
from tests.contracts.store_contract import ANN, LATER, connected, new_credentials

ALL = EventFilter()
MANY = 1000


class Reader:
    """Somebody who reads batch after batch."""

    def __init__(self, database: Database) -> None:
        self._log = SqlEventLog(database)
        self._low: int | None = None

    async def read(self) -> list[IntegrationEvent]:
        """What is new."""
        if self._low is None:
            self._low, _ = await self._log.high_water_mark()
            return []
        read_page = await self._log.read_page(self._low, MANY)
        self._low = read_page.batch.high
        return [logged.event for logged in read_page.events]


async def renamed(database: Database, integration: Integration, name: str) -> None:
    """A change in a transaction of its own."""
    await SqlIntegrations(database).update(integration.integration_id, ANN, LATER, name=name)


def rename(integration: Integration, name: str) -> Any:
    """The same, as a statement."""
    return update(integrations).where(integrations.c.integration_id == integration.integration_id).values(name=name)


async def test_a_status_is_what_the_domain_says_it_is(database: Database) -> None:
    """The triggers' SQL against `Integration.status`, for everything that it depends on but the time."""
    integration = await connected(SqlIntegrations(database))
    now = datetime.now(UTC)
    cases = itertools.product(
        (None, now), (True, False), (True, False), (True, False), (True, False), (None, "X"),
        (None, now - timedelta(hours=1), now + timedelta(hours=1)),
    )  # fmt: skip
    names = ("connect_time", "is_active", "reauthorization_required", "lacks_required_scope", "is_renewable")
    for *flags, error, expiry in cases:
        values = {
            **dict(zip(names, flags, strict=True)),
            "last_error_class": error,
            "last_error_time": error and now,
            "last_error_message": error,
            "access_token_expire_time": expiry,
        }
        async with database.write_transaction() as connection:
            await connection.execute(delete(integration_events))
            await connection.execute(update(integrations).values({**values, "version": integrations.c.version + 1}))
            row = (await connection.execute(select(integrations))).one()
            reported = (await connection.execute(select(integration_events.c.status_after).distinct())).scalars().all()
        if values["connect_time"] is not None or reported:
            assert set(reported) <= {replace(integration_of(row), access_token_expire_time=None).status(now).value}, (
                values
            )
    assert integration.is_connected


async def test_each_status_change_is_recorded(database: Database) -> None:
    integration = await connected(SqlIntegrations(database))
    seen = set()
    for values in (
        {"connect_time": None},
        {"connect_time": LATER},
        {"is_active": False},
        {"is_active": True, "reauthorization_required": True},
        {"reauthorization_required": False, "lacks_required_scope": True},
    ):
        async with database.write_transaction() as connection:
            await connection.execute(update(integrations).values(values))
        high_water_mark, _ = await SqlEventLog(database).high_water_mark()
        events = await SqlEventLog(database).read(EventBatch(0, high_water_mark), 0, ALL, MANY)
        last = events[-1].event
        stored = await SqlIntegrations(database).find(integration.integration_id, ANN)
        assert stored is not None
        assert last.kind is EventKind.STATUS_CHANGED
        assert last.status_after is stored.integration.status(datetime.now(UTC))
        seen.add(last.status_after)
    assert len(seen) == 5


async def test_changes_by_other_sql_clients_are_recorded(database: Database) -> None:
    reader = Reader(database)
    await connected(SqlIntegrations(database))
    await reader.read()
    async with database.write_transaction() as connection:
        await connection.execute(update(integrations).values(account_label="other"))
        await connection.execute(text("DELETE FROM integrations"))
    assert [event.kind for event in await reader.read()] == [EventKind.UPDATED, EventKind.DISCONNECTED]


async def test_rolled_back_changes_are_not_recorded(database: Database) -> None:
    reader = Reader(database)
    integration = await connected(SqlIntegrations(database))
    await reader.read()
    with suppress(ZeroDivisionError):
        async with database.write_transaction() as connection:
            await connection.execute(rename(integration, "never"))
            raise ZeroDivisionError
    assert await reader.read() == []
    await renamed(database, integration, "after")
    assert len(await reader.read()) == 1


async def test_events_are_on_the_databases_clock(database: Database) -> None:
    async with database.read_connection() as connection:
        before = await connection.scalar(select(DatabaseTime()))
    await connected(SqlIntegrations(database))
    high_water_mark, now = await SqlEventLog(database).high_water_mark()
    ((event),) = await SqlEventLog(database).read(EventBatch(0, high_water_mark), 0, ALL, MANY)
    assert before is not None
    assert before <= event.event.event_time <= now


async def test_reencryption_emits_no_event(database: Database) -> None:
    reader = Reader(database)
    await connected(SqlIntegrations(database))
    await reader.read()
    async with database.write_transaction() as connection:
        await connection.execute(update(integrations).values(encrypted_credentials=b"re-sealed"))
    assert await reader.read() == []


@pytest.mark.postgres
class TestCommitsOutOfOrder:
    """Numbers become visible in another order than they are given."""

    async def commit_out_of_order(self, url: str, between: Callable[[], Awaitable[object]]) -> None:
        async with open_database(url) as early, open_database(url) as late:
            first, second = await connected(SqlIntegrations(early)), await connected(SqlIntegrations(early))
            await between()
            async with early.write_transaction() as connection:
                await connection.execute(rename(first, "first"))
                await renamed(late, second, "second")
                await between()
            await between()

    async def test_none_is_missed(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            reader, seen = Reader(database), list[list[IntegrationEvent]]()
            await reader.read()

            async def poll() -> None:
                seen.append(await reader.read())

            await self.commit_out_of_order(postgres_url, poll)
            created, meanwhile, after = seen
            assert len(created) == 2
            assert meanwhile == []  # the later one waits for the earlier one
            assert [event.integration_id for event in after] == [event.integration_id for event in created]

    async def test_one_is_missed_by_who_goes_by_the_last_number_seen(self, postgres_url: str) -> None:
        """The twin."""
        async with open_database(postgres_url) as database:
            last, seen = 0, list[int]()

            async def poll_above_last_id() -> None:
                nonlocal last
                query = select(integration_events).where(integration_events.c.event_number > last)
                async with database.read_connection() as connection:
                    rows = (await connection.execute(query)).all()
                last = max([last, *(row.event_number for row in rows)])
                seen.extend(row.event_number for row in rows)

            await self.commit_out_of_order(postgres_url, poll_above_last_id)
            async with database.read_connection() as connection:
                assert await connection.scalar(select(func.count()).select_from(integration_events)) == 4
            assert len(seen) == 3

    async def change_one_integration_out_of_order(self, url: str) -> None:
        async with open_database(url) as older, open_database(url) as younger:
            integration = await connected(SqlIntegrations(older))
            async with older.write_transaction() as connection:
                await connection.execute(text("SELECT pg_current_xact_id()"))  # begins, as one that waits for the row
                await renamed(younger, integration, "younger")
                await connection.execute(rename(integration, "older"))

    async def test_events_of_one_integration_are_in_order(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            await self.change_one_integration_out_of_order(postgres_url)
            high_water_mark, _ = await SqlEventLog(database).high_water_mark()
            reported = await SqlEventLog(database).read(EventBatch(0, high_water_mark), 0, ALL, MANY)
            transactions = await self.transactions(database)
            assert [transactions[logged.number] for logged in reported[1:]] == sorted(
                (transactions[logged.number] for logged in reported[1:]), reverse=True
            )

    async def test_ordering_by_transaction_reverses_events(self, postgres_url: str) -> None:
        """The twin."""
        async with open_database(postgres_url) as database:
            await self.change_one_integration_out_of_order(postgres_url)
            transactions = await self.transactions(database)
            by_transaction = sorted(transactions, key=lambda number: (transactions[number], number))
            assert by_transaction != sorted(transactions)

    async def transactions(self, database: Database) -> dict[int, int]:
        async with database.read_connection() as connection:
            rows = (await connection.execute(select(integration_events))).all()
        return {row.event_number: row.transaction_id for row in rows}


async def test_many_writers_and_a_reader_miss_nothing(database_url: str) -> None:
    """Each integration's renames are told in their order, whoever commits when."""
    async with open_database(database_url) as database, open_database(database_url) as other:
        rows = [await connected(SqlIntegrations(database)) for _ in range(5)]
        log = SqlEventLog(database)
        low, _ = await log.high_water_mark()
        reported: list[IntegrationEvent] = []
        done = asyncio.Event()

        async def read() -> None:
            nonlocal low
            while True:
                is_last = done.is_set()
                read_page = await log.read_page(low, MANY)
                low = read_page.batch.high
                reported.extend(logged.event for logged in read_page.events)
                if is_last and low == (await log.high_water_mark())[0]:
                    return

        async def write(store: SqlIntegrations, row: Integration) -> None:
            for _ in range(15):
                await store.commit_refresh(row, new_credentials(), LATER)
                found = await store.find(row.integration_id, ANN)
                assert found is not None
                row = found.integration

        read_connection = asyncio.create_task(read())
        stores = [SqlIntegrations(database), SqlIntegrations(other)]
        await asyncio.gather(*(write(store, row) for row in rows for store in stores))
        done.set()
        await read_connection
        assert {event.kind for event in reported} == {EventKind.CREDENTIALS_REFRESHED}
        for row in rows:
            found = await stores[0].find(row.integration_id, ANN)
            assert found is not None
            assert sum(event.integration_id == row.integration_id for event in reported) == found.integration.version
