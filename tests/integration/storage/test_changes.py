"""Every change of what a backend is given is noted, in the transaction that makes it, and seen by all who look."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select, text, update

from integration_server.domain.integration import Failure, Integration, IntegrationId
from integration_server.service.ports import ChangePlace, Work
from integration_server.storage.agenda import SqlAgenda
from integration_server.storage.attempts import SqlAttempts
from integration_server.storage.changes import SqlChanges
from integration_server.storage.clock import DatabaseTime
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

MATTERS_TO_NOBODY: dict[str, Write] = {
    "renamed": lambda store, it: store.update(it.integration_id, ANN, LATER, name="other"),
    "failed in passing": lambda store, it: store.record_failure(it, Failure("X", NOW, "x"), retry_time=LATER),
    "found": lambda store, it: store.find(it.integration_id, ANN),
}


class Looker:
    """Somebody who looks at the changes again and again."""

    def __init__(self, database: Database) -> None:
        self._changes = SqlChanges(database)
        self._place: ChangePlace | None = None

    async def look(self) -> set[IntegrationId]:
        """What they are told."""
        news = await self._changes.since(self._place)
        self._place = news.place
        return set(news.integration_ids)


@pytest.fixture
def store(database: Database) -> SqlIntegrations:
    return SqlIntegrations(database)


@pytest.fixture
async def looker(database_url: str) -> AsyncIterator[Looker]:
    """In another process, as it were, since before anything happened."""
    async with open_database(database_url) as other:
        looker = Looker(other)
        assert await looker.look() == set()
        yield looker


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_is_told_to_others_and_at_once_to_whoever_is_told_here(
    database: Database, looker: Looker, change: Write
) -> None:
    told: list[IntegrationId] = []
    store = SqlIntegrations(database, told.append)
    integration, _bystander = await connected(store), await connected(store)
    await looker.look()
    told.clear()
    await change(store, integration)
    assert told == [integration.integration_id]
    assert await looker.look() == {integration.integration_id}
    await connected(store)  # the place moves on; what was told is not told for ever
    await looker.look()
    assert await looker.look() == set()


@pytest.mark.parametrize("write", MATTERS_TO_NOBODY.values(), ids=MATTERS_TO_NOBODY)
async def test_what_matters_to_no_backend_is_not_noted(store: SqlIntegrations, looker: Looker, write: Write) -> None:
    integration = await connected(store)
    await looker.look()
    await write(store, integration)
    assert await looker.look() == set()


async def test_checks_and_claims_tell_nobody(database: Database) -> None:
    store, looker = SqlIntegrations(database), Looker(database)
    integration = await connected(store)
    await looker.look()
    for check in (check_of(integration), failed_check_of(integration)):
        await SqlHealthHistory(database).record(check, NOW)
    assert await SqlAgenda(database).claim(Work.CHECK, integration.integration_type, NOW, LATER, 1)
    assert await looker.look() == set()


async def test_a_change_of_nothing_is_not_noted(store: SqlIntegrations, looker: Looker) -> None:
    integration = await connected(store)
    await looker.look()
    await store.update(integration.integration_id, ANN, LATER, is_active=True)
    await store.remove(IntegrationId(integration.integration_id + 1), ANN)
    assert await looker.look() == set()


async def test_pending_ones_that_go_are_noted_too(database: Database, store: SqlIntegrations, looker: Looker) -> None:
    gone = await pending(store, SqlAttempts(database))
    await SqlAttempts(database).remove_expired(new_attempt().expire_time + timedelta(days=1))
    assert await looker.look() == {gone.integration_id}


async def test_changes_behind_our_back_are_noted(database: Database, store: SqlIntegrations, looker: Looker) -> None:
    integration = await connected(store)
    await looker.look()
    async with database.writing() as connection:
        await connection.execute(update(integrations).values(sealed_credentials=b"flipped"))
    assert await looker.look() == {integration.integration_id}


async def test_what_is_rolled_back_is_not_told(database: Database, store: SqlIntegrations, looker: Looker) -> None:
    await connected(store)
    await looker.look()
    with suppress(ZeroDivisionError):
        async with database.writing() as connection:
            await connection.execute(text("DELETE FROM integrations"))
            raise ZeroDivisionError
    assert await looker.look() == set()


async def test_notices_are_on_the_databases_clock(database: Database, store: SqlIntegrations) -> None:
    integration = await connected(store)
    async with database.writing() as connection:
        before = await connection.scalar(select(DatabaseTime()))
        await connection.execute(text("DELETE FROM integrations"))
        after = await connection.scalar(select(DatabaseTime()))
        notice = (await connection.execute(select(integration_changes))).one()
    assert notice.integration_id == integration.integration_id
    assert before is not None
    assert after is not None
    assert before <= notice.change_time <= after


@pytest.mark.postgres
class TestLateCommits:
    """Identity values become visible in another order than they are given."""

    async def two_changes_the_first_commits_last(self, url: str, between: Callable[[], Awaitable[object]]) -> list[int]:
        async with AsyncExitStack() as stack:
            early, late = [await stack.enter_async_context(open_database(url)) for _ in range(2)]
            first, second = await connected(SqlIntegrations(early)), await connected(SqlIntegrations(early))
            await between()
            async with early.writing() as connection:
                await connection.execute(
                    update(integrations)
                    .where(integrations.c.integration_id == first.integration_id)
                    .values(is_active=False)
                )
                await SqlIntegrations(late).remove(second.integration_id, ANN)
                await between()
        return [first.integration_id, second.integration_id]

    async def test_are_told(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            looker = Looker(database)
            seen: list[set[IntegrationId]] = []

            async def look() -> None:
                seen.append(await looker.look())

            first, second = await self.two_changes_the_first_commits_last(postgres_url, look)
            assert seen[-1] == {second}
            assert first in await looker.look()

    async def test_would_be_missed_by_who_goes_by_the_last_one_seen(self, postgres_url: str) -> None:
        async with open_database(postgres_url) as database:
            last = 0

            async def above_the_last_one() -> set[int]:
                nonlocal last
                async with database.reading() as connection:
                    rows = (
                        await connection.execute(
                            select(integration_changes).where(integration_changes.c.change_id > last)
                        )
                    ).all()
                last = max([last, *(row.change_id for row in rows)])
                return {row.integration_id for row in rows}

            await self.two_changes_the_first_commits_last(postgres_url, above_the_last_one)
            assert await above_the_last_one() == set()


async def notices(database: Database) -> int:
    """How many are kept."""
    async with database.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(integration_changes)) or 0


async def note(database: Database) -> None:
    """A notice of something."""
    async with database.writing() as connection:
        await connection.execute(insert(integration_changes).values(integration_id=7, change_time=DatabaseTime()))


async def test_old_notices_are_pruned_and_nobody_misses_any(database: Database, looker: Looker) -> None:
    changes = SqlChanges(database)
    for _ in range(3):
        await note(database)
    await changes.prune()
    assert await notices(database) == 3  # others may not have looked yet
    await note(database)
    await changes.prune()
    assert await notices(database) == 1
    assert await looker.look() == {7}
    await note(database)
    for _ in range(2):
        await changes.prune()
    assert await notices(database) == 0
    await looker.look()
    await note(database)
    assert await looker.look() == {7}


@pytest.mark.postgres
async def test_a_notice_that_is_committed_late_is_not_pruned_unseen(postgres_url: str) -> None:
    async with open_database(postgres_url) as database, open_database(postgres_url) as other:
        changes, looker = SqlChanges(database), Looker(other)
        await looker.look()
        async with database.writing() as connection:
            await connection.execute(insert(integration_changes).values(integration_id=7, change_time=DatabaseTime()))
            await changes.prune()
            await note(database)
            await looker.look()
        await changes.prune()
        assert 7 in await looker.look()
