"""Lists of integrations in SQL: implements the port `IntegrationLists`."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, bindparam, case, select

from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration, UserId
from integration_server.service.integrations.ports import (
    StoredPage,
)
from integration_server.storage.bounded_pages import is_last_page, page_of, page_parameters, row_bytes
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.engine import Database
from integration_server.storage.integrations import (
    PLAINTEXT_COLUMNS,
    STORED_COLUMNS,
    integration_of,
    stored_integration_at,
)
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.tables import integrations, is_usable

_T = integrations.c
_ROW_BYTES = row_bytes(_T)


def _list_query(*conditions: ColumnElement[bool]) -> DriverQuery:
    following = (_T.user_id == bindparam("user_id"), _T.integration_id > bindparam("after"))
    return DriverQuery(page_of(select(*STORED_COLUMNS).where(*following, *conditions), _T.integration_id, _ROW_BYTES))


_is_connected, _has_type = _T.connect_time.is_not(None), is_one_of(_T.integration_type, "integration_types")
_LIST, _LIST_OF_TYPES = _list_query(), _list_query(_has_type)
_LIST_CONNECTED, _LIST_CONNECTED_OF_TYPES = _list_query(_is_connected), _list_query(_has_type, _is_connected)


class SqlIntegrationLists:
    """An `IntegrationLists` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self,
        user_id: UserId,
        integration_types: Collection[str] | None,
        after: IntegrationId,
        limit: int,
        max_bytes: int,
    ) -> StoredPage[StoredIntegration]:
        """The user's integrations of these types (None: of all) with an id above `after`, ordered by id."""
        query = _LIST if integration_types is None else _LIST_OF_TYPES
        return await self._list(query, user_id, integration_types, after, limit, max_bytes)

    async def list_connected(
        self,
        user_id: UserId,
        integration_types: Collection[str] | None,
        after: IntegrationId,
        limit: int,
        max_bytes: int,
    ) -> StoredPage[StoredIntegration]:
        """Of `list`, the connected integrations."""
        query = _LIST_CONNECTED if integration_types is None else _LIST_CONNECTED_OF_TYPES
        return await self._list(query, user_id, integration_types, after, limit, max_bytes)

    async def _list(
        self,
        query: DriverQuery,
        user_id: UserId,
        integration_types: Collection[str] | None,
        after: IntegrationId,
        limit: int,
        max_bytes: int,
    ) -> StoredPage[StoredIntegration]:
        rows = await self._database.read(
            query,
            user_id=user_id,
            integration_types=sorted(integration_types or ()),
            after=after,
            **page_parameters(limit, max_bytes),
        )
        return StoredPage([stored_integration_at(row) for row in rows], is_last_page(rows))

    async def list_expiring(self, before: datetime, limit: int) -> Sequence[Integration]:
        """The usable integrations of all users whose grant expires before that time, soonest first."""
        grant_expire_time = case(
            (_T.is_renewable.is_(True), _T.refresh_token_expire_time), else_=_T.access_token_expire_time
        )
        query = (
            select(*PLAINTEXT_COLUMNS)
            .where(is_usable, grant_expire_time < before)
            .order_by(grant_expire_time, _T.integration_id)
        )
        return [integration_of(row) for row in await self._database.fetch(query.limit(limit))]
