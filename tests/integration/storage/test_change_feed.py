"""Every change of what a backend is given is noted, in the transaction that makes it, and seen by all who look."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select, text, update

from integration_server.domain.integration import Failure, Integration, IntegrationId
from integration_server.service.background.ports import JobKind
from integration_server.service.integrations.ports import ChangeCursor
from integration_server.storage.authorization_attempts import SqlAuthorizationAttempts
from integration_server.storage.change_feed import SqlChangeFeed
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.engine import Database, open_database
from integration_server.storage.health_checks import SqlHealthHistory
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.tables import integration_changes, integrations
from tests.contracts.store_contract import (
    ANN,
    FAILURE,
    LATER,
    NOW,
    account,
    check_of,
    connected,
    failed_check_of,
    new_attempt,
    new_credentials,
    pending,
)

Write = Callable[[SqlIntegrations, Integration], Awaitable[object]]

CHANGES: dict[str, Write] = {
    "refreshed": lambda store, it: store.commit_refresh(it, new_credentials(b"newer"), LATER),
    "connected again": lambda store, it: store.commit_connection(it, account(None), new_credentials(), LATER),
    "switched off": lambda store, it: store.update(it.integration_id, ANN, LATER, is_active=False),
    "lost its grant": lambda store, it: store.record_failure(it, FAILURE, reauthorization_required=True),
    "disconnected": lambda store, it: store.remove(it.integration_id, ANN),
}

IRRELEVANT_WRITES: dict[str, Write] = {
    "renamed": lambda store, it: store.update(it.integration_id, ANN, LATER, name="other"),
    "failed in passing": lambda store, it: store.record_failure(it, Failure("X", NOW, "x"), retry_time=LATER),
    "found": lambda store, it: store.find(it.integration_id, ANN),
}


class ChangeReader:
    """Somebody who looks at the changes again and again."""

    def __init__(self, database: Database) -> None:
        self._changes = SqlChangeFeed(database)
        self._cursor: ChangeCursor | None = None

    async def poll(self) -> set[IntegrationId]:
        """What they are told."""
        change_batch = await self._changes.since(self._cursor)
        self._cursor = change_batch.cursor
        return set(change_batch.integration_ids)


@pytest.fixture
def store(database: Database) -> SqlIntegrations:
    return SqlIntegrations(database)


@pytest.fixture
async def change_reader(database_url: str) -> AsyncIterator[ChangeReader]:
    """In another process, as it were, since before anything happened."""
    async with open_database(database_url) as other:
        change_reader = ChangeReader(other)
        assert await change_reader.poll() == set()
        yield change_reader


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_reaches_other_processes_and_the_local_callback(
    database: Database, change_reader: ChangeReader, change: Write
) -> None:
    reported: list[IntegrationId] = []
    store = SqlIntegrations(database, reported.append)
    integration, _bystander = await connected(store), await connected(store)
    await change_reader.poll()
    reported.clear()
    await change(store, integration)
    assert reported == [integration.integration_id]
    assert await change_reader.poll() == {integration.integration_id}
    await connected(store)  # the place moves on; what was told is not told for ever
    await change_reader.poll()
    assert await change_reader.poll() == set()


@pytest.mark.parametrize("write", IRRELEVANT_WRITES.values(), ids=IRRELEVANT_WRITES)
async def test_what_matters_to_no_backend_is_not_noted(
    store: SqlIntegrations, change_reader: ChangeReader, write: Write
) -> None:
    integration = await connected(store)
    await change_reader.poll()
    await write(store, integration)
    assert await change_reader.poll() == set()


async def test_checks_and_claims_are_not_in_the_feed(database: Database) -> None:
    store, change_reader = SqlIntegrations(database), ChangeReader(database)
    integration = await connected(store)
    await change_reader.poll()
    for check in (check_of(integration), failed_check_of(integration)):
        await SqlHealthHistory(database).record(check, NOW)
    assert await SqlDueWork(database).claim(JobKind.CHECK, integration.integration_type, NOW, LATER, 1)
    assert await change_reader.poll() == set()


async def test_a_change_of_nothing_is_not_noted(store: SqlIntegrations, change_reader: ChangeReader) -> None:
    integration = await connected(store)
    await change_reader.poll()
    await store.update(integration.integration_id, ANN, LATER, is_active=True)
    await store.remove(IntegrationId(integration.integration_id + 1), ANN)
    assert await change_reader.poll() == set()


async def test_pending_ones_that_go_are_noted_too(
    database: Database, store: SqlIntegrations, change_reader: ChangeReader
) -> None:
    gone = await pending(store, SqlAuthorizationAttempts(database))
    await SqlAuthorizationAttempts(database).remove_expired(new_attempt().expire_time + timedelta(days=1))
    assert await change_reader.poll() == {gone.integration_id}


async def test_changes_by_other_sql_clients_are_in_the_feed(
    database: Database, store: SqlIntegrations, change_reader: ChangeReader
) -> None:
    integration = await connected(store)
    await change_reader.poll()
    async with database.write_transaction() as connection:
        await connection.execute(update(integrations).values(encrypted_credentials=b"flipped"))
    assert await change_reader.poll() == {integration.integration_id}


async def test_rolled_back_changes_are_not_recorded(
    database: Database, store: SqlIntegrations, change_reader: ChangeReader
) -> None:
    await connected(store)
    await change_reader.poll()
    with suppress(ZeroDivisionError):
        async with database.write_transaction() as connection:
            await connection.execute(text("DELETE FROM integrations"))
            raise ZeroDivisionError
    assert await change_reader.poll() == set()


async def test_notices_are_on_the_databases_clock(database: Database, store: SqlIntegrations) -> None:
    integration = await connected(store)
    async with database.write_transaction() as connection:
        before = await connection.scalar(select(DatabaseTime()))
        await connection.execute(text("DELETE FROM integrations"))
        after = await connection.scalar(select(DatabaseTime()))
        change_row = (await connection.execute(select(integration_changes))).one()
    assert change_row.integration_id == integration.integration_id
    assert before is not None
    assert after is not None
    assert before <= change_row.change_time <= after


@pytest.mark.postgres
class TestLateCommits:
    """Identity values become visible in another order than they are given."""

    async def commit_two_changes_out_of_order(self, url: str, between: Callable[[], Awaitable[object]]) -> list[int]:
        async with AsyncExitStack() as stack:
            early, late = [await stack.enter_async_context(open_database(url)) for _ in range(2)]
            first, second = await connected(SqlIntegrations(early)), await connected(SqlIntegrations(early))
            await between()
            async with early.write_transaction() as connection:
                await connection.execute(
                    update(integrations)
                    .where(integrations.c.integration_id == first.integration_id)
                    .values(is_active=False)
                )
                await SqlIntegrations(late).remove(second.integration_id, ANN)
                await between()
        return [first.integration_id, second.integration_id]

    async def test_are_reported(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            change_reader = ChangeReader(database)
            polled: list[set[IntegrationId]] = []

            async def poll() -> None:
                polled.append(await change_reader.poll())

            first, second = await self.commit_two_changes_out_of_order(postgres_url, poll)
            assert polled[-1] == {second}
            assert first in await change_reader.poll()

    async def test_would_be_missed_by_who_goes_by_the_last_one_seen(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            last = 0

            async def poll_above_last_id() -> set[int]:
                nonlocal last
                async with database.read_connection() as connection:
                    rows = (
                        await connection.execute(
                            select(integration_changes).where(integration_changes.c.change_id > last)
                        )
                    ).all()
                last = max([last, *(row.change_id for row in rows)])
                return {row.integration_id for row in rows}

            await self.commit_two_changes_out_of_order(postgres_url, poll_above_last_id)
            assert await poll_above_last_id() == set()


async def count_changes(database: Database) -> int:
    """How many are kept."""
    async with database.read_connection() as connection:
        return await connection.scalar(select(func.count()).select_from(integration_changes)) or 0


async def insert_change(database: Database) -> None:
    """A notice of something."""
    async with database.write_transaction() as connection:
        await connection.execute(insert(integration_changes).values(integration_id=7, change_time=DatabaseTime()))


async def test_old_notices_are_pruned_and_nobody_misses_any(database: Database, change_reader: ChangeReader) -> None:
    changes = SqlChangeFeed(database)
    for _ in range(3):
        await insert_change(database)
    await changes.prune()
    assert await count_changes(database) == 3  # others may not have looked yet
    await insert_change(database)
    await changes.prune()
    assert await count_changes(database) == 1
    assert await change_reader.poll() == {7}
    await insert_change(database)
    for _ in range(2):
        await changes.prune()
    assert await count_changes(database) == 0
    await change_reader.poll()
    await insert_change(database)
    assert await change_reader.poll() == {7}


@pytest.mark.postgres
async def test_a_notice_that_is_committed_late_is_not_pruned_unseen(postgres_url: str) -> None:
    async with open_database(postgres_url) as database, open_database(postgres_url) as other:
        changes, change_reader = SqlChangeFeed(database), ChangeReader(other)
        await change_reader.poll()
        async with database.write_transaction() as connection:
            await connection.execute(insert(integration_changes).values(integration_id=7, change_time=DatabaseTime()))
            await changes.prune()
            await insert_change(database)
            await change_reader.poll()
        await changes.prune()
        assert 7 in await change_reader.poll()
