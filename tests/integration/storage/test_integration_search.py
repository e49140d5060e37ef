"""The search for integrations across users: what it finds, page by page, and the rows that it reads."""

import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect

from integration_server.domain.integration import Integration, IntegrationId, Status
from integration_server.service.operators.ports import IntegrationFilter
from integration_server.storage.engine import Database, open_database
from integration_server.storage.integration_search import (
    SqlIntegrationSearch,
    count_query,
    find_query,
    window_query,
)
from integration_server.storage.integrations import STORED_COLUMNS, integration_of
from integration_server.storage.tables import integrations
from integration_server.storage.webhook_inbox import RECIPIENTS
from tests.integration.storage.test_due_work import rows_read
from tests.integration.storage.test_integration_counts import CHOICES, NOW, ROW, add

MAX_BYTES = 1_000_000
CASES: Sequence[Mapping[str, Any]] = [
    dict(itertools.chain(*(choice.items() for choice in case))) for case in itertools.product(*CHOICES.values())
]
TYPES, ACCOUNTS = ("acme", "beta", "gamma"), ("one", "two", None)
FILTERS = [
    IntegrationFilter(types, status, account)
    for types in (None, {"acme"}, {"beta", "gamma"}, {"unknown"}, set[str]())
    for status in (None, Status.ERROR, Status.PENDING)
    for account in ("", "one", "nobody's")
]


def meets(integration: Integration, condition: IntegrationFilter) -> bool:
    """The condition as the domain has it."""
    types, status, account_id = condition.integration_types, condition.status, condition.account_id
    return (
        (types is None or integration.integration_type in types)
        and status in {None, integration.status(NOW)}
        and account_id in {"", integration.account_id}
    )


async def add_cases(database: Database) -> Sequence[Integration]:
    """Store integrations of several users, types and accounts in every status."""
    rows = [
        {
            **case,
            "integration_type": TYPES[number % 3],
            "account_id": ACCOUNTS[number // 3 % 3],
            "user_id": f"user-{number}",
        }
        for number, case in enumerate(CASES)
    ]
    await add(database, rows)
    return [
        integration_of(row)
        for row in await database.fetch(select(integrations).order_by(integrations.c.integration_id))
    ]


async def found_pages(
    search: SqlIntegrationSearch, condition: IntegrationFilter, limit: int, max_bytes: int = MAX_BYTES
) -> Sequence[Sequence[IntegrationId]]:
    """The ids of each page."""
    pages, after = [], IntegrationId(0)
    while True:
        page = await search.find(condition, NOW, after, limit, max_bytes)
        pages.append([stored.integration.integration_id for stored in page.items])
        if page.last is None:
            return pages
        assert page.last > after
        after = page.last


async def counted(search: SqlIntegrationSearch, condition: IntegrationFilter) -> Counter[tuple[str, Status]]:
    """The sums of the counts of all pages."""
    sums, after = Counter[tuple[str, Status]](), IntegrationId(0)
    while True:
        page = await search.count(condition, NOW, after)
        for count in page.counts:
            sums[count.integration_type, count.status] += count.count
        if page.last is None:
            return sums
        after = page.last


@pytest.mark.slow
async def test_what_is_found_and_counted_is_what_meets_the_conditions(database: Database) -> None:
    stored = await add_cases(database)
    for max_examined, limit in ((10_000, 200), (97, 10), (5, 200)):
        search = SqlIntegrationSearch(database, max_examined=max_examined)
        for condition in FILTERS if max_examined > 5 else FILTERS[1:3]:
            expected = [one for one in stored if meets(one, condition)]
            pages = await found_pages(search, condition, limit)
            assert [found for page in pages for found in page] == [one.integration_id for one in expected], condition
            assert max(map(len, pages)) <= limit
            assert await counted(search, condition) == Counter(
                (one.integration_type, one.status(NOW)) for one in expected
            )


async def test_a_page_without_a_result_is_followed_by_another(database: Database) -> None:
    await add(database, [{"user_id": "ann", "integration_type": "acme" if n < 30 else "beta"} for n in range(40)])
    search = SqlIntegrationSearch(database, max_examined=10)
    pages = await found_pages(search, IntegrationFilter({"beta"}), 200)
    assert list(map(len, pages)) == [0, 0, 0, 10, 0]


async def test_a_page_is_bounded_in_bytes_but_has_at_least_one(database: Database) -> None:
    await add(database, [{"user_id": "ann", "name": "n" * 2000} for _ in range(5)])
    search = SqlIntegrationSearch(database)
    assert list(map(len, await found_pages(search, IntegrationFilter(), 200, max_bytes=6000))) == [2, 2, 1]
    assert list(map(len, await found_pages(search, IntegrationFilter(), 200, max_bytes=1))) == [1] * 5


# --- plans -----------------------------------------------------------------------------------------------------------

MANY, EXAMINED, SHARED = 6000, 100, 3


@dataclass(frozen=True, slots=True)
class Plans:
    """A PostgreSQL database with many integrations, and the plans of statements."""

    connection: asyncpg.Connection

    async def of(self, statement: Any, mode: str, **parameters: Any) -> Mapping[str, Any]:
        """The plan of a prepared statement that has run."""
        result = statement.compile(dialect=asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
        values = {**result.params, **parameters}
        given = ", ".join(literal(values[name]) for name in result.positiontup or ())
        await self.connection.execute(f"SET plan_cache_mode = {mode}; PREPARE searched AS {result}")
        call = f"searched({given})" if given else "searched"
        plan = await self.connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {call}")
        await self.connection.execute("DEALLOCATE searched")
        found: Mapping[str, Any] = json.loads(plan)[0]["Plan"]
        return found


def literal(value: object) -> str:
    """A value in SQL, of the type that the statement expects."""
    return f"'{{{','.join(value)}}}'" if isinstance(value, list) else f"'{value}'"


def sequential_scans(plan: Mapping[str, Any]) -> Sequence[str]:
    """The tables that a plan reads as a whole."""
    own = [plan["Relation Name"]] if plan["Node Type"] == "Seq Scan" else []
    return [*own, *(name for child in plan.get("Plans", ()) for name in sequential_scans(child))]


@pytest.fixture
async def plans(postgres_url: str) -> AsyncIterator[Plans]:
    async with open_database(postgres_url) as database:
        rows = [
            {"user_id": f"user-{n}", "account_id": f"account-{n // SHARED}", "integration_type": TYPES[n % 3]}
            for n in range(MANY)
        ]
        async with database.write_transaction() as transaction:
            values = [
                {**ROW, **row, "uid": str(n), "client_key": row["integration_type"]} for n, row in enumerate(rows)
            ]
            for begin in range(0, MANY, 500):
                await transaction.execute(insert(integrations), values[begin : begin + 500])
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute("ANALYZE")
        yield Plans(connection)
    finally:
        await connection.close()


PARAMETERS: Mapping[str, Any] = {
    "after": MANY // 2,
    "through": MANY // 2 + EXAMINED,
    "max_examined": EXAMINED,
    "page_limit": 50,
    "page_bytes": MAX_BYTES,
    "integration_types": ["beta"],
    "status": "expired",
    "now": NOW,
    "account_id": "account-7",
}


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_no_search_reads_more_than_it_examines(plans: Plans, mode: str) -> None:
    for by_type, by_account, by_status in itertools.product((False, True), repeat=3):
        bound = 2 * (SHARED if by_account else EXAMINED)  # a row of a page is read twice
        parameters = {**PARAMETERS, "after": 0, "through": MANY} if by_account else PARAMETERS
        for query in (
            find_query(by_type, by_account, by_status),
            count_query(by_type, by_account, by_status),
            window_query(by_account),
        ):
            plan = await plans.of(query.statement, mode, **parameters)
            assert rows_read(dict(plan)) <= bound, (by_type, by_account, by_status, plan)
            assert sequential_scans(plan) == []


@pytest.mark.slow
@pytest.mark.postgres
async def test_negative_control_a_search_without_a_bound_reads_the_whole_table(plans: Plans) -> None:
    everything = select(*STORED_COLUMNS).where(integrations.c.name == "nobody")
    plan = await plans.of(everything, "auto")
    assert rows_read(dict(plan)) >= MANY
    assert sequential_scans(plan) == ["integrations"]


@pytest.mark.slow
@pytest.mark.postgres
async def test_the_recipients_of_a_webhook_are_found_by_the_same_index(plans: Plans) -> None:
    given = {"account_ids": ["account-1", "account-2"], "integration_ids": [9], "client_key": "key"}
    result = RECIPIENTS.compile(dialect=asyncpg_dialect.dialect())  # type: ignore[no-untyped-call]
    expanded = result.construct_expanded_state({**given, "after": 0, "limit": 100})
    parameters = expanded.positional_parameters
    explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {expanded.statement}"
    plan = json.loads(await plans.connection.fetchval(explain, *parameters))[0]["Plan"]
    assert rows_read(plan) <= 2 * (2 * SHARED + 1)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 12  # the whole index: 19
