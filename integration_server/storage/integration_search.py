"""The search for integrations across users in SQL: implements the port `IntegrationSearchStore`.

No index has the status, which depends on the time, and an index of the types alone would cost each refresh a write.
Therefore a page examines a bounded number of rows in the order of the primary key. A search for an account finds its
rows in an index, and examines only them.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, String, bindparam, func, select

from integration_server.domain.integration import IntegrationId, Status
from integration_server.service.operators.ports import (
    CountedPage,
    IntegrationCount,
    IntegrationFilter,
    SearchedPage,
)
from integration_server.storage.bounded_pages import is_last_page, page_of, page_parameters, row_bytes
from integration_server.storage.driver_queries import DriverQuery, UtcDateTime
from integration_server.storage.engine import Database
from integration_server.storage.integration_counts import status_at
from integration_server.storage.integrations import STORED_COLUMNS, stored_integration_at
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.tables import integrations

_T = integrations.c

MAX_EXAMINED = 10_000
"""Rows that one call reads, which take a database some tens of milliseconds: a million are searched with 100 calls."""


def _examined(by_account: bool) -> ColumnElement[bool]:
    following = _T.integration_id > bindparam("after", type_=BigInteger)
    return following & (_T.account_id == bindparam("account_id", type_=String)) if by_account else following


@lru_cache(maxsize=2)
def window_query(by_account: bool) -> DriverQuery:
    """The id of the last row that a call examines, and the number of rows up to it."""
    ids = select(_T.integration_id).where(_examined(by_account)).order_by(_T.integration_id)
    window = ids.limit(bindparam("max_examined", type_=Integer)).subquery()
    values: Sequence[ColumnElement[Any]] = (func.max(window.c.integration_id), func.count())
    return DriverQuery(select(*values).select_from(window))


def _conditions(by_type: bool, by_account: bool, by_status: bool) -> list[ColumnElement[bool]]:
    conditions = [_examined(by_account), _T.integration_id <= bindparam("through", type_=BigInteger)]
    if by_type:
        conditions.append(is_one_of(_T.integration_type, "integration_types"))
    if by_status:
        conditions.append(_status() == bindparam("status", type_=String))
    return conditions


def _status() -> ColumnElement[str]:
    return status_at(bindparam("now", type_=UtcDateTime))


@lru_cache(maxsize=8)
def find_query(by_type: bool, by_account: bool, by_status: bool) -> DriverQuery:
    """A page of the rows that a call examines."""
    rows = select(*STORED_COLUMNS).where(*_conditions(by_type, by_account, by_status))
    return DriverQuery(page_of(rows, _T.integration_id, row_bytes(_T)))


@lru_cache(maxsize=8)
def count_query(by_type: bool, by_account: bool, by_status: bool) -> DriverQuery:
    """The numbers of the rows that a call examines."""
    rows = (
        select(_T.integration_type, _status().label("status"))
        .where(*_conditions(by_type, by_account, by_status))
        .subquery()
    )
    return DriverQuery(
        select(rows.c.integration_type, rows.c.status, func.count()).group_by(rows.c.integration_type, rows.c.status)
    )


class SqlIntegrationSearch:
    """An `IntegrationSearchStore`. A call examines at most `max_examined` rows."""

    def __init__(self, database: Database, *, max_examined: int = MAX_EXAMINED) -> None:
        self._database = database
        self._max_examined = max_examined

    async def find(
        self, condition: IntegrationFilter, now: datetime, after: IntegrationId, limit: int, max_bytes: int
    ) -> SearchedPage:
        """Integrations with an id above `after` that meet the condition, ordered by id."""
        through, is_last = await self._window(condition, after)
        parameters = {**_parameters(condition, now), "after": after, "through": through}
        rows = await self._database.read(
            find_query(*_given(condition)), **parameters, **page_parameters(limit, max_bytes)
        )
        found = [stored_integration_at(row) for row in rows]
        if not is_last_page(rows):
            return SearchedPage(found, found[-1].integration.integration_id)
        return SearchedPage(found, None if is_last else through)

    async def count(self, condition: IntegrationFilter, now: datetime, after: IntegrationId) -> CountedPage:
        """The numbers of integrations with an id above `after` that meet the condition."""
        through, is_last = await self._window(condition, after)
        parameters = {**_parameters(condition, now), "after": after, "through": through}
        rows = await self._database.read(count_query(*_given(condition)), **parameters)
        counts = [IntegrationCount(name, Status(status), count) for name, status, count in sorted(map(tuple, rows))]
        return CountedPage(counts, None if is_last else through)

    async def _window(self, condition: IntegrationFilter, after: IntegrationId) -> tuple[IntegrationId, bool]:
        """The last id that a call examines, and whether no row follows it."""
        ((through, count),) = await self._database.read(
            window_query(bool(condition.account_id)),
            after=after,
            account_id=condition.account_id,
            max_examined=self._max_examined,
        )
        return IntegrationId(through or after), count < self._max_examined


def _given(condition: IntegrationFilter) -> tuple[bool, bool, bool]:
    return condition.integration_types is not None, bool(condition.account_id), condition.status is not None


def _parameters(condition: IntegrationFilter, now: datetime) -> dict[str, Any]:
    return {
        "integration_types": sorted(condition.integration_types or ()),
        "account_id": condition.account_id,
        "status": condition.status,
        "now": now,
    }
