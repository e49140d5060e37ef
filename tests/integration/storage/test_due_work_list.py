"""The list of due work: the rows of each job, in the order of its index."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text, update
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import InvalidField
from integration_server.service.background.ports import JobKind
from integration_server.service.operators.due_work_list import DueWorkList
from integration_server.service.operators.ports import MAX_DUE_COUNT, DueItem, DuePosition
from integration_server.storage.due_work import SqlDueWork
from integration_server.storage.due_work_list import SqlDueRows, due_count_statement, due_rows_statement
from integration_server.storage.engine import Database, open_database
from integration_server.storage.tables import integrations, revocations
from tests.fakes.aead import FakeAead
from tests.integration.storage.test_due_work import (
    INTEGRATION_JOBS,
    MINUTE,
    PAST,
    TYPES,
    add_due_rows,
    compiled,
    count_steps,
    rows_read,
)

OF_INTEGRATIONS = (JobKind.REFRESH, JobKind.CHECK, JobKind.DEVICE_POLL)


def due_work_list(database: Database) -> DueWorkList:
    """The use case over a database."""
    return DueWorkList(SqlDueWork(database), SqlDueRows(database), FakeAead())


async def pages_of(
    due_work: DueWorkList,
    page_size: int,
    job_kind: JobKind | None = None,
    integration_type: str = "",
    allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    *,
    oldest_only: bool = False,
) -> Sequence[Sequence[DueItem]]:
    """The pages of a list."""
    pages, token = [], ""
    while True:
        page = await due_work.list_due_work(
            job_kind, integration_type, page_size, token, allowed_types, oldest_only=oldest_only
        )
        pages.append(page.items)
        token = page.next_page_token
        if not token:
            return pages


@pytest.mark.parametrize("page_size", [1, 7, 200])
async def test_the_pages_have_all_due_rows_once_in_order(database: Database, page_size: int) -> None:
    await add_due_rows(database, 12)
    async with database.write_transaction() as connection:
        later = update(integrations).where(integrations.c.integration_id == 1)
        await connection.execute(later.values(refresh_due_time=PAST.replace(year=PAST.year + 1)))
        await connection.execute(later.values(check_due_time=None, refresh_failures=3))
        not_due = update(revocations).where(revocations.c.revocation_id == 2)
        await connection.execute(not_due.values(due_time=PAST.replace(year=2999), attempts=1))
    pages = await pages_of(due_work_list(database), page_size)
    assert max(map(len, pages)) <= page_size
    items = [item for page in pages for item in page]
    assert Counter(item.job_kind for item in items) == {
        JobKind.REFRESH: 12,
        JobKind.CHECK: 11,
        JobKind.REVOCATION: 11,
        JobKind.DEVICE_POLL: 12,
        JobKind.KEY_ROTATION: 1,
    }
    kinds = list(JobKind)
    places = [(kinds.index(item.job_kind), item.job_type, item.due_time) for item in items]
    assert places == sorted(places)
    assert len({(item.job_kind, item.row_id) for item in items}) == len(items)
    (failed,) = (item for item in items if item.attempts)
    assert (failed.job_kind, failed.integration_id, failed.attempts) == (JobKind.REFRESH, 1, 3)
    for item in items:
        is_of_installation = item.job_kind is JobKind.KEY_ROTATION
        assert bool(item.integration_id) == (item.job_kind in OF_INTEGRATIONS)
        assert bool(item.user_id) == bool(item.integration_type) == (not is_of_installation)


async def test_the_conditions_apply_together(database: Database) -> None:
    await add_due_rows(database, 12)
    due_work = due_work_list(database)
    for kind, name, allowed, expected in (
        (JobKind.REFRESH, "", ALL_INTEGRATION_TYPES, 12),
        (JobKind.REFRESH, "beta", ALL_INTEGRATION_TYPES, 4),
        (None, "beta", ALL_INTEGRATION_TYPES, 16),
        (None, "unknown", ALL_INTEGRATION_TYPES, 0),
        (None, "", AllowedTypes(frozenset({"beta"})), 16),  # not the job of the installation
        (None, "acme", AllowedTypes(frozenset({"beta"})), 0),
        (JobKind.KEY_ROTATION, "", ALL_INTEGRATION_TYPES, 1),
        (JobKind.KEY_ROTATION, "", AllowedTypes(frozenset({"beta"})), 0),
    ):
        pages = await pages_of(due_work, 5, kind, name, allowed)
        assert sum(map(len, pages)) == expected, (kind, name)


@pytest.mark.parametrize("page_size", [1, 3, 200])
async def test_only_the_longest_due_of_each_job_and_type_with_their_number(database: Database, page_size: int) -> None:
    await add_due_rows(database, 12)
    pages = await pages_of(due_work_list(database), page_size, oldest_only=True)
    items = [item for page in pages for item in page]
    groups = [(item.job_kind, item.job_type) for item in items]
    assert sorted(map(str, groups)) == sorted(map(str, await SqlDueWork(database).due_types()))
    assert len(set(groups)) == len(groups) == 4 * len(TYPES) + 1
    assert {item.due_count for item in items if item.job_kind is not JobKind.KEY_ROTATION} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1, 40, 200])
async def test_work_in_progress_is_not_listed(database: Database, page_size: int) -> None:
    await add_due_rows(database, 120)
    claims = SqlDueWork(database)
    for kind in OF_INTEGRATIONS:
        assert len(await claims.claim(kind, "beta", 38, claim_duration=MINUTE)) == 38
        assert len(await claims.claim(kind, "acme", 40, claim_duration=MINUTE)) == 40
        assert len(await claims.claim(kind, "gamma", 40, claim_duration=timedelta(0))) == 40  # have ended
    for kind in OF_INTEGRATIONS:
        items = [item for page in await pages_of(due_work_list(database), page_size, kind) for item in page]
        assert Counter(item.job_type for item in items) == {"beta": 2, "gamma": 40}
    oldest = [item for page in await pages_of(due_work_list(database), page_size, oldest_only=True) for item in page]
    counts = {item.job_type: item.due_count for item in oldest if item.job_kind in OF_INTEGRATIONS}
    assert counts == {"beta": 2, "gamma": 40}


async def test_a_page_token_is_of_one_list(database: Database) -> None:
    await add_due_rows(database, 6)
    due_work = due_work_list(database)
    token = (await due_work.list_due_work(None, "beta", 1, "", ALL_INTEGRATION_TYPES)).next_page_token
    assert (await due_work.list_due_work(None, "beta", 1, token, ALL_INTEGRATION_TYPES)).items
    for kind, name, oldest in ((JobKind.REFRESH, "beta", False), (None, "", False), (None, "beta", True)):
        with pytest.raises(InvalidField, match="page_token"):
            await due_work.list_due_work(kind, name, 1, token, ALL_INTEGRATION_TYPES, oldest_only=oldest)


async def list_statements(database: Database, limit: int) -> Sequence[Any]:
    """The statements for the first page and for one in the middle of each job, whose due times are all equal."""
    statements = []
    for kind in INTEGRATION_JOBS:
        rows = await database.fetch(due_rows_statement(kind, "beta", None, 1_000_000))
        assert {row.due_time for row in rows} == {PAST}
        middle = DuePosition(kind, "beta", PAST, rows[len(rows) // 2].row_id)
        statements += [due_rows_statement(kind, "beta", after, limit) for after in (None, middle)]
    return statements


@pytest.mark.slow
@pytest.mark.postgres
async def test_a_page_reads_its_rows_only_on_postgres(postgres_url: str) -> None:
    backlog, limit = 6000, 10
    async with open_database(postgres_url) as database:
        await add_due_rows(database, backlog)
        (oldest,) = await SqlDueRows(database).oldest_due(JobKind.CHECK, "beta")
        assert oldest.due_count == MAX_DUE_COUNT
        pages = await list_statements(database, limit)
    connection = await asyncpg.connect(postgres_url)

    async def explain(statement: Any) -> int:
        sql, parameters = compiled(statement, asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *parameters)
        return rows_read(json.loads(plan)[0]["Plan"])

    try:
        await connection.execute("ANALYZE")
        for statement in pages:
            assert await explain(statement) <= limit + 2
        for kind in INTEGRATION_JOBS:
            assert await explain(due_count_statement(kind, "beta")) <= MAX_DUE_COUNT
        # Negative control: the measure detects a scan.
        unordered = due_rows_statement(JobKind.CHECK, "beta", None, backlog)
        assert await explain(unordered) >= backlog // len(TYPES)
        # Negative control: without the id in the index, the rows of an equal time are read and sorted for each page.
        await connection.execute("DROP INDEX ix_revocations_client_key_due_time")
        await connection.execute("CREATE INDEX without_id ON revocations (client_key, due_time)")
        assert await explain(due_rows_statement(JobKind.REVOCATION, "beta", None, limit)) >= backlog // len(TYPES)
    finally:
        await connection.close()


@pytest.mark.slow
async def test_a_page_reads_its_rows_only_on_sqlite(sqlite_url: str) -> None:
    limit = 10
    async with open_database(sqlite_url) as database:
        await add_due_rows(database, 4 * limit * len(TYPES))
        few = [count_steps(sqlite_url, statement) for statement in await list_statements(database, limit)]
        await add_due_rows(database, 3000)
        pages = await list_statements(database, limit)
        many = [count_steps(sqlite_url, statement) for statement in pages]
        growth = [large / small for small, large in zip(few, many, strict=True)]
        assert max(growth) < 1.2, growth
        # Negative control: without the index, each page reads all rows of the type.
        async with database.write_transaction() as connection:
            await connection.execute(text("DROP INDEX ix_revocations_client_key_due_time"))
        of_revocations = 2 * INTEGRATION_JOBS.index(JobKind.REVOCATION)
        assert count_steps(sqlite_url, pages[of_revocations]) > 5 * many[of_revocations]
