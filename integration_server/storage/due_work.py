"""What is due, in SQL: fulfils the port `DueWork`.

A claim moves the due time ahead. It needs no owner and no end: what is not done in time is due again.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Column, select, update

from integration_server.service.background.ports import JobKind
from integration_server.service.integrations.ports import StoredIntegration
from integration_server.storage.engine import Database
from integration_server.storage.integrations import stored_integration_of
from integration_server.storage.tables import integrations, is_usable

_T = integrations.c

_DUE_TIMES: Mapping[JobKind, Column[datetime]] = {
    JobKind.REFRESH: _T.refresh_due_time,
    JobKind.CHECK: _T.check_due_time,
}


class SqlDueWork:
    """An `DueWork` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due_types(self, kind: JobKind, now: datetime) -> Sequence[str]:
        """The integration types with due work."""
        query = select(_T.integration_type).distinct().where(is_usable, _DUE_TIMES[kind] <= now)
        async with self._database.read_connection() as connection:
            return (await connection.scalars(query)).all()

    async def claim(
        self, kind: JobKind, integration_type: str, now: datetime, next_due_time: datetime, limit: int
    ) -> Sequence[StoredIntegration]:
        """At most `limit` of what is due, what has waited longest first. What others are about to claim is left out."""
        due_time = _DUE_TIMES[kind]
        picked = (
            select(_T.integration_id)
            .where(is_usable, due_time <= now, _T.integration_type == integration_type)
            .order_by(due_time)
            .limit(limit)
            .with_for_update(skip_locked=True)  # on SQLite the transaction has the database to itself
            .cte("picked")
        )
        claim = (
            update(integrations)
            .where(_T.integration_id.in_(select(picked.c.integration_id)))
            .values({due_time.name: next_due_time})
            .returning(integrations)
        )
        async with self._database.write_statement() as connection:
            rows = (await connection.execute(claim)).all()
        return [stored_integration_of(row) for row in rows]
