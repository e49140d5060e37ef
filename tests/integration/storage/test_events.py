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
from integration_server.service.ports import EventBatch, EventWish
from integration_server.storage.clock import DatabaseTime
from integration_server.storage.engine import Database, open_database
from integration_server.storage.events import SqlEventLog
from integration_server.storage.integrations import SqlIntegrations, integration_of
from integration_server.storage.tables import integration_events, integrations
from tests.contracts.store_contract import ANN, LATER, connected, new_credentials

ALL = EventWish()
MANY = 1000


class Reader:
    """Somebody who reads batch after batch."""

    def __init__(self, database: Database) -> None:
        self._log = SqlEventLog(database)
        self._low: int | None = None

    async def read(self) -> list[IntegrationEvent]:
        """What is new."""
        if self._low is None:
            self._low, _ = await self._log.end()
            return []
        glance = await self._log.glance(self._low, MANY)
        self._low = glance.batch.high
        return [logged.event for logged in glance.events]


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
        async with database.writing() as connection:
            await connection.execute(delete(integration_events))
            await connection.execute(update(integrations).values({**values, "version": integrations.c.version + 1}))
            row = (await connection.execute(select(integrations))).one()
            told = (await connection.execute(select(integration_events.c.status_after).distinct())).scalars().all()
        if values["connect_time"] is not None or told:
            assert set(told) <= {replace(integration_of(row), access_token_expire_time=None).status(now).value}, values
    assert integration.is_connected


async def test_each_status_is_told(database: Database) -> None:
    integration = await connected(SqlIntegrations(database))
    seen = set()
    for values in (
        {"connect_time": None},
        {"connect_time": LATER},
        {"is_active": False},
        {"is_active": True, "reauthorization_required": True},
        {"reauthorization_required": False, "lacks_required_scope": True},
    ):
        async with database.writing() as connection:
            await connection.execute(update(integrations).values(values))
        end, _ = await SqlEventLog(database).end()
        events = await SqlEventLog(database).read(EventBatch(0, end), 0, ALL, MANY)
        last = events[-1].event
        stored = await SqlIntegrations(database).find(integration.integration_id, ANN)
        assert stored is not None
        assert last.kind is EventKind.STATUS_CHANGED
        assert last.status_after is stored.integration.status(datetime.now(UTC))
        seen.add(last.status_after)
    assert len(seen) == 5


async def test_changes_behind_our_back_are_told(database: Database) -> None:
    reader = Reader(database)
    await connected(SqlIntegrations(database))
    await reader.read()
    async with database.writing() as connection:
        await connection.execute(update(integrations).values(account_label="other"))
        await connection.execute(text("DELETE FROM integrations"))
    assert [event.kind for event in await reader.read()] == [EventKind.UPDATED, EventKind.DISCONNECTED]


async def test_what_is_rolled_back_is_not_told(database: Database) -> None:
    reader = Reader(database)
    integration = await connected(SqlIntegrations(database))
    await reader.read()
    with suppress(ZeroDivisionError):
        async with database.writing() as connection:
            await connection.execute(rename(integration, "never"))
            raise ZeroDivisionError
    assert await reader.read() == []
    await renamed(database, integration, "after")
    assert len(await reader.read()) == 1


async def test_events_are_on_the_databases_clock(database: Database) -> None:
    async with database.reading() as connection:
        before = await connection.scalar(select(DatabaseTime()))
    await connected(SqlIntegrations(database))
    end, now = await SqlEventLog(database).end()
    ((event),) = await SqlEventLog(database).read(EventBatch(0, end), 0, ALL, MANY)
    assert before is not None
    assert before <= event.event.event_time <= now


async def test_re_sealing_tells_nobody(database: Database) -> None:
    reader = Reader(database)
    await connected(SqlIntegrations(database))
    await reader.read()
    async with database.writing() as connection:
        await connection.execute(update(integrations).values(sealed_credentials=b"re-sealed"))
    assert await reader.read() == []


@pytest.mark.postgres
class TestCommitsOutOfOrder:
    """Numbers become visible in another order than they are given."""

    async def first_commits_last(self, url: str, between: Callable[[], Awaitable[object]]) -> None:
        async with open_database(url) as early, open_database(url) as late:
            first, second = await connected(SqlIntegrations(early)), await connected(SqlIntegrations(early))
            await between()
            async with early.writing() as connection:
                await connection.execute(rename(first, "first"))
                await renamed(late, second, "second")
                await between()
            await between()

    async def test_none_is_missed(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            reader, seen = Reader(database), list[list[IntegrationEvent]]()
            await reader.read()

            async def look() -> None:
                seen.append(await reader.read())

            await self.first_commits_last(postgres_url, look)
            created, meanwhile, after = seen
            assert len(created) == 2
            assert meanwhile == []  # the later one waits for the earlier one
            assert [event.integration_id for event in after] == [event.integration_id for event in created]

    async def test_one_is_missed_by_who_goes_by_the_last_number_seen(self, postgres_url: str) -> None:
        """The twin."""
        async with open_database(postgres_url) as database:
            last, seen = 0, list[int]()

            async def above_the_last_one() -> None:
                nonlocal last
                query = select(integration_events).where(integration_events.c.event_number > last)
                async with database.reading() as connection:
                    rows = (await connection.execute(query)).all()
                last = max([last, *(row.event_number for row in rows)])
                seen.extend(row.event_number for row in rows)

            await self.first_commits_last(postgres_url, above_the_last_one)
            async with database.reading() as connection:
                assert await connection.scalar(select(func.count()).select_from(integration_events)) == 4
            assert len(seen) == 3

    async def one_integration_changed_by_the_younger_first(self, url: str) -> None:
        async with open_database(url) as older, open_database(url) as younger:
            integration = await connected(SqlIntegrations(older))
            async with older.writing() as connection:
                await connection.execute(text("SELECT pg_current_xact_id()"))  # begins, as one that waits for the row
                await renamed(younger, integration, "younger")
                await connection.execute(rename(integration, "older"))

    async def test_what_happens_to_one_integration_is_told_in_its_order(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            await self.one_integration_changed_by_the_younger_first(postgres_url)
            end, _ = await SqlEventLog(database).end()
            told = await SqlEventLog(database).read(EventBatch(0, end), 0, ALL, MANY)
            transactions = await self.transactions(database)
            assert [transactions[logged.number] for logged in told[1:]] == sorted(
                (transactions[logged.number] for logged in told[1:]), reverse=True
            )

    async def test_by_transaction_it_would_be_told_the_wrong_way_round(self, postgres_url: str) -> None:
        """The twin."""
        async with open_database(postgres_url) as database:
            await self.one_integration_changed_by_the_younger_first(postgres_url)
            transactions = await self.transactions(database)
            by_transaction = sorted(transactions, key=lambda number: (transactions[number], number))
            assert by_transaction != sorted(transactions)

    async def transactions(self, database: Database) -> dict[int, int]:
        async with database.reading() as connection:
            rows = (await connection.execute(select(integration_events))).all()
        return {row.event_number: row.transaction_id for row in rows}


async def test_many_writers_and_a_reader_miss_nothing(database_url: str) -> None:
    """Each integration's renames are told in their order, whoever commits when."""
    async with open_database(database_url) as database, open_database(database_url) as other:
        rows = [await connected(SqlIntegrations(database)) for _ in range(5)]
        log = SqlEventLog(database)
        low, _ = await log.end()
        told: list[IntegrationEvent] = []
        done = asyncio.Event()

        async def read() -> None:
            nonlocal low
            while True:
                is_last = done.is_set()
                glance = await log.glance(low, MANY)
                low = glance.batch.high
                told.extend(logged.event for logged in glance.events)
                if is_last and low == (await log.end())[0]:
                    return

        async def write(store: SqlIntegrations, row: Integration) -> None:
            for _ in range(15):
                await store.commit_refresh(row, new_credentials(), LATER)
                found = await store.find(row.integration_id, ANN)
                assert found is not None
                row = found.integration

        reading = asyncio.create_task(read())
        stores = [SqlIntegrations(database), SqlIntegrations(other)]
        await asyncio.gather(*(write(store, row) for row in rows for store in stores))
        done.set()
        await reading
        assert {event.kind for event in told} == {EventKind.CREDENTIALS_REFRESHED}
        for row in rows:
            found = await stores[0].find(row.integration_id, ANN)
            assert found is not None
            assert sum(event.integration_id == row.integration_id for event in told) == found.integration.version
