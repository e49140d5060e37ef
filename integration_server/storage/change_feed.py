"""What changed of the integrations lately, in SQL: fulfils the port `ChangeFeed`.

Triggers write the notices, in the transaction that changes the integration. Identity values become visible in another
order than they are given, so "all above the last one seen" would miss those who commit late. Instead

- on PostgreSQL a place is the oldest transaction that was under way when one looked. Whatever was not visible then is
  that transaction's or a later one's, and its rows say so (`xmin`). Some are told twice, which does no harm.
- on SQLite writers come one after another, so that the next identity value is a place.
"""

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.domain.integration import IntegrationId
from integration_server.service.integrations.ports import ChangeBatch, ChangeCursor
from integration_server.storage.engine import Database
from integration_server.storage.tables import integration_changes

_CURSOR_QUERY = {
    "postgresql": text("SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text"),
    "sqlite": text("SELECT CAST(coalesce(max(change_id), 0) + 1 AS text) FROM integration_changes"),
}

_IS_SINCE_CURSOR = {
    # Transaction numbers go round; ages compare well for two thousand million transactions.
    "postgresql": "age(integration_changes.xmin) <= age(CAST(CAST(:cursor AS text) AS xid))",
    "sqlite": "change_id >= CAST(:cursor AS integer)",
}


class SqlChangeFeed:
    """`ChangeFeed` over a SQL database, looked at over its watching connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prune_before: ChangeCursor | None = None

    async def since(self, cursor: ChangeCursor | None) -> ChangeBatch:
        """What became visible since somebody looked and got `cursor`; with None nothing, but a place to begin at."""
        async with self._database.monitor_connection() as connection:
            # Before the rows: what becomes visible in between is told twice rather than never.
            next_cursor = await _current_cursor(connection)
            if cursor is None:
                return ChangeBatch(next_cursor, frozenset())
            changed = select(integration_changes.c.integration_id).where(
                text(_IS_SINCE_CURSOR[connection.dialect.name])
            )
            rows = await connection.scalars(changed, {"cursor": cursor})
            return ChangeBatch(next_cursor, frozenset(map(IntegrationId, rows)))

    async def prune(self) -> None:
        """Remove what was there at the last call: by then, everybody has seen it."""
        async with self._database.write_transaction() as connection:
            cursor = await _current_cursor(connection)
            if self._prune_before is not None:
                is_consumed = text(f"NOT ({_IS_SINCE_CURSOR[connection.dialect.name]})")
                await connection.execute(delete(integration_changes).where(is_consumed), {"cursor": self._prune_before})
        self._prune_before = cursor


async def _current_cursor(connection: AsyncConnection) -> ChangeCursor:
    return ChangeCursor(str(await connection.scalar(_CURSOR_QUERY[connection.dialect.name])))
