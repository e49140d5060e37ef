"""What operators list of the audit log, page by page, and the rows that it reads."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.operators.ports import AuditFilter, AuditPosition, ListedEntry
from integration_server.storage.audit import SqlAuditLog
from integration_server.storage.audit_reading import page_statement, window_statement
from integration_server.storage.engine import Database, open_database
from integration_server.storage.tables import audit_entries
from tests.audit_lists import list_entries
from tests.integration.storage.test_due_work import compiled, rows_read
from tests.keyrings import open_test_keyring

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def entry(number: int) -> AuditEntry:
    """An entry. Three of them have the same time."""
    return AuditEntry(
        NOON + number // 3 * SECOND,
        f"caller-{number % 2}",
        (Action.CONNECT, Action.REFRESH, Action.CALL)[number % 3],
        UserId(f"user-{number % 4}"),
        number % 5,
        details=str(number),
    )


async def write(database: Database, count: int) -> Sequence[AuditEntry]:
    """Write entries in two chains, alternately."""
    keyring = await open_test_keyring(database)
    logs = [SqlAuditLog(database, keyring) for _ in range(2)]
    entries = [entry(number) for number in range(count)]
    for number, log in enumerate(logs):
        await log.append(entries[number::2])
    return entries


FILTERS = [
    AuditFilter(UserId(user), IntegrationId(integration_id), caller, action)
    for user, integration_id, caller, action in itertools.product(
        ("", "user-3", "nobody"), (0, 2), ("", "caller-1"), ("", "refresh")
    )
] + [
    AuditFilter(start_time=NOON + 2 * SECOND, end_time=NOON + 5 * SECOND),
    AuditFilter(UserId("user-1"), end_time=NOON + 5 * SECOND, action="connect"),
    AuditFilter(start_time=NOON + 1000 * SECOND),
]


def meets(one: AuditEntry, condition: AuditFilter) -> bool:
    """Whether an entry meets the condition."""
    return (
        condition.user_id in {"", one.user_id}
        and condition.integration_id in {0, one.integration_id}
        and condition.caller in {"", one.caller}
        and condition.action in {"", one.action}
        and (condition.start_time is None or one.time >= condition.start_time)
        and (condition.end_time is None or one.time < condition.end_time)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("page_size", "max_examined"), [(100, 10_000), (1, 10_000), (3, 7), (2, 1)])
async def test_the_pages_have_each_entry_once_the_newest_first(
    database: Database, page_size: int, max_examined: int
) -> None:
    entries = await write(database, 40)
    for condition in FILTERS:
        pages = await list_entries(database, condition, page_size, max_examined)
        assert max(map(len, pages)) <= page_size
        found = [listed.entry for page in pages for listed in page if listed.entry is not None]
        expected = [one for one in entries if meets(one, condition)]
        assert sorted(found, key=lambda one: int(one.details)) == expected, condition
        assert [one.time for one in found] == sorted((one.time for one in expected), reverse=True)


async def test_a_page_without_an_entry_is_followed_by_another(database: Database) -> None:
    await write(database, 30)
    pages = await list_entries(database, AuditFilter(action="read_webhooks"), 10, max_examined=10)
    assert list(map(len, pages)) == [0, 0, 0, 0]


@pytest.mark.quick_on("postgres")
@pytest.mark.parametrize("altered", ["sequence > 15", "sequence BETWEEN 3 AND 8", "sequence IN (4, 9)", "sequence > 0"])
@pytest.mark.parametrize("page_size", [1, 4, 100])
async def test_entries_that_cannot_be_read_hide_no_others(database: Database, altered: str, page_size: int) -> None:
    entries = await write(database, 40)
    async with database.write_transaction() as connection:
        # PostgreSQL stores this time and Python cannot represent it; SQLite stores any text.
        await connection.execute(text(f"UPDATE audit_entries SET time = '0044-03-15 BC' WHERE {altered}"))
        readable = await connection.scalars(select(audit_entries.c.details).where(text(f"NOT ({altered})")))
        expected = sorted(map(int, readable))
    for condition, max_examined in ((AuditFilter(), 10_000), (AuditFilter(caller="caller-0"), 5)):
        pages = await list_entries(database, condition, page_size, max_examined)
        found = [listed for page in pages for listed in page]
        details = sorted(int(listed.entry.details) for listed in found if listed.entry is not None)
        wanted = [number for number in expected if meets(entries[number], condition)]
        assert details == wanted
        if condition == AuditFilter():
            assert found.count(ListedEntry(None)) == len(entries) - len(expected)


async def test_texts_are_compared_as_they_are_recorded(database: Database) -> None:
    keyring = await open_test_keyring(database)
    one = replace(entry(0), caller="a\\b", user_id=UserId("ada\u200b"))
    await SqlAuditLog(database, keyring).append([one])
    for condition in (AuditFilter(UserId("ada\u200b")), AuditFilter(caller="a\\b")):
        ((listed,),) = await list_entries(database, condition)
        assert listed.entry == one.escaped()
    for condition in (AuditFilter(UserId("ada\\u{200b}")), AuditFilter(UserId("ada"))):
        assert await list_entries(database, condition) == [[]]


def test_sqlite_searches_a_user_from_the_position_on() -> None:
    after, end = AuditPosition(NOON, "chain", 9), AuditPosition(NOON - SECOND, "chain", 5)
    condition = AuditFilter(UserId("ada"))
    by_user = select(audit_entries).where(audit_entries.c.user_id == "ada")  # negative control
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        audit_entries.create(connection)
        for statement, search in (
            (page_statement(condition, after, end), "(user_id,time)>(?,?) AND (user_id,time)<(?,?)"),
            (page_statement(condition, after, None), "user_id>? AND (user_id,time)<(?,?)"),
            (window_statement(condition, after, 5), "user_id>? AND (user_id,time)<(?,?)"),
            (by_user.order_by(audit_entries.c.time.desc()), "user_id=?"),
        ):
            sql, parameters = compiled(statement, sqlite_dialect.dialect())
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", tuple(map(str, parameters))).all()
            assert f"ix_audit_entries_user_id_time ({search})" in steps[0][3]
    engine.dispose()


@pytest.mark.postgres
async def test_a_page_reads_a_bounded_number_of_rows_on_postgres(postgres_url: str) -> None:
    many, old, examined, page_size = 5000, 1000, 100, 20
    async with open_database(postgres_url) as database:
        common = {"chain_id": "chain", "caller": "a", "action": "call", "integration_id": 1, "integration_type": ""}
        common |= {"integration_version": 0, "call_count": 1, "outcome": "OK", "purpose": "", "details": ""}
        values = [
            {
                **common,
                "commitment": b"",
                "mac": b"",
                "user_id": "user-of-old" if n < old else f"user-{n % 50}",
                "time": NOON + n * SECOND,
                "sequence": n,
            }
            for n in range(many)
        ]
        async with database.write_transaction() as transaction:
            for begin in range(0, many, 500):
                await transaction.execute(insert(audit_entries), values[begin : begin + 500])
    connection = await asyncpg.connect(postgres_url)

    async def explain(statement: Any) -> int:
        sql, parameters = compiled(statement, asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *parameters)
        return rows_read(json.loads(plan)[0]["Plan"])

    after = AuditPosition(NOON + 3000 * SECOND, "chain", 3000)
    end = AuditPosition(NOON + (3000 - examined) * SECOND, "chain", 3000 - examined)
    try:
        await connection.execute("ANALYZE")
        for user in ("", "user-1"):
            condition = AuditFilter(UserId(user), action="read_webhooks")  # no entry has it
            assert await explain(window_statement(condition, after, examined)) <= examined + 2
            assert await explain(page_statement(condition, after, end).limit(page_size + 1)) <= examined + 2
            every = AuditFilter(UserId(user))
            assert await explain(page_statement(every, after, None).limit(page_size)) <= examined + 2
        # The last entries of a user who had many are long ago.
        condition = AuditFilter(UserId("user-of-old"), action="read_webhooks")
        for position, last in ((AuditPosition(None), old), (AuditPosition(NOON + 500 * SECOND, "chain", 500), 500)):
            end = AuditPosition(NOON + (last - examined) * SECOND, "chain", last - examined)
            assert await explain(window_statement(condition, position, examined)) <= examined + 2
            assert await explain(page_statement(condition, position, end).limit(page_size + 1)) <= examined + 2
            every = AuditFilter(condition.user_id)
            assert await explain(page_statement(every, position, None).limit(page_size)) <= examined + 2
        # Negative controls: in the order of the time alone, all newer entries are read; without the bound, all older.
        by_time = select(audit_entries).where(audit_entries.c.user_id == "user-of-old")
        assert await explain(by_time.order_by(audit_entries.c.time.desc()).limit(page_size)) >= many - old
        rare = AuditFilter(action="read_webhooks")
        assert await explain(page_statement(rare, after, None).limit(page_size + 1)) >= 2999
    finally:
        await connection.close()
