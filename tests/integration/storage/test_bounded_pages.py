"""Pages that are bounded in bytes by their query: how much a database reads for one."""

from typing import Any

import pytest
from sqlalchemy import Select, bindparam, func, insert, select, text

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.integrations.ports import NewIntegration
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.bounded_pages import is_last_page, page_of, page_parameters, row_bytes
from integration_server.storage.engine import Database
from integration_server.storage.integrations import STORED_COLUMNS, new_integration_values
from integration_server.storage.tables import integrations
from integration_server.wiring.system import utc_now
from tests.fakes.system import ADA

_T = integrations.c
_OF_ADA = select(*STORED_COLUMNS).where(_T.user_id == ADA)
_PAGE = page_of(_OF_ADA, _T.integration_id, row_bytes(_T))
_LAST_PAGE = page_of(_OF_ADA, _T.integration_id, row_bytes(_T), descending=True)
_MANY_BYTES = 10**9
_ROWS = 240


@pytest.fixture
async def connection_with_rows(database: Database) -> Any:
    now, config = utc_now(), {"text": "x" * 200}
    new = [
        NewIntegration(f"uid-{n}", UserId(ADA), "fake", AuthMethod.OAUTH2, "", config, IntegrationId(0))
        for n in range(_ROWS)
    ]
    async with database.write_transaction() as connection:
        await connection.execute(insert(integrations), [new_integration_values(one, now) for one in new])
        yield connection


async def work_of(connection: AsyncConnection, query: Select[Any], limit: int) -> float:
    """How much the database reads: rows of the table in PostgreSQL, steps of the program in SQLite."""
    parameters = page_parameters(limit, _MANY_BYTES)
    if connection.dialect.name == "postgresql":
        counters = text(
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables "
            "WHERE relname = 'integrations'"
        )
        before = float(await connection.scalar(counters) or 0)
        await connection.execute(query, parameters)
        return float(await connection.scalar(counters) or 0) - before
    driver: Any = (await connection.get_raw_connection()).driver_connection
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    await driver.set_progress_handler(count, 100)
    await connection.execute(query, parameters)
    await driver.set_progress_handler(None, 0)
    return steps


@pytest.mark.parametrize("query", [_PAGE, _LAST_PAGE], ids=["ascending", "descending"])
async def test_the_work_for_a_page_grows_with_its_rows(
    connection_with_rows: AsyncConnection, query: Select[Any]
) -> None:
    """Also before the database has statistics: it expects one row then, and computes for it what it reads once."""
    small, large = [await work_of(connection_with_rows, query, limit) for limit in (20, 200)]
    assert 5 <= large / small <= 15


async def test_what_is_computed_again_for_each_row_is_counted(connection_with_rows: AsyncConnection) -> None:
    """The control of the measurement."""
    rows = select(_T.integration_id).order_by(_T.integration_id).limit(bindparam("page_limit")).subquery()
    earlier = select(func.sum(row_bytes(_T))).where(_T.integration_id <= rows.c.integration_id).scalar_subquery()
    quadratic = select(rows.c.integration_id, earlier)
    once, repeatedly = [await work_of(connection_with_rows, query, 200) for query in (_PAGE, quadratic)]
    assert repeatedly / once > 15


@pytest.mark.parametrize("limit", [1, 7, 239, 240, 300])
async def test_pages_by_rows_and_by_bytes(connection_with_rows: AsyncConnection, limit: int) -> None:
    all_rows = (await connection_with_rows.execute(_OF_ADA.order_by(_T.integration_id))).all()
    rows = (await connection_with_rows.execute(_PAGE, page_parameters(limit, _MANY_BYTES))).all()
    assert [row[:-1] for row in rows] == [tuple(row) for row in all_rows[:limit]]
    assert is_last_page(rows) == (limit >= _ROWS)
    rows = (await connection_with_rows.execute(_LAST_PAGE, page_parameters(limit, _MANY_BYTES))).all()
    assert [row[:-1] for row in rows] == [tuple(row) for row in all_rows[::-1][:limit]]
    size = await connection_with_rows.scalar(select(row_bytes(_T)).where(_T.uid == "uid-0")) or 0
    for budget, expected in ((0, 1), (size, 1), (3 * size + 20, 3)):
        rows = (await connection_with_rows.execute(_PAGE, page_parameters(limit, budget))).all()
        assert len(rows) == min(expected, limit)
        assert is_last_page(rows) is False
