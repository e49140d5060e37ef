"""What changed of the integrations lately, in SQL: fulfils the port `Changes`.

Triggers write the notices, in the transaction that changes the integration. Identity values become visible in another
order than they are given, so "all above the last one seen" would miss those who commit late. Instead

- on PostgreSQL a place is the oldest transaction that was under way when one looked. Whatever was not visible then is
  that transaction's or a later one's, and its rows say so (`xmin`). Some are told twice, which does no harm.
- on SQLite writers come one after another, so that the next identity value is a place.
"""

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.domain.integration import IntegrationId
from integration_server.service.ports import ChangePlace, News
from integration_server.storage.engine import Database
from integration_server.storage.tables import integration_changes

_PLACE = {
    "postgresql": text("SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text"),
    "sqlite": text("SELECT CAST(coalesce(max(change_id), 0) + 1 AS text) FROM integration_changes"),
}

_IS_FROM = {
    # Transaction numbers go round; ages compare well for two thousand million transactions.
    "postgresql": "age(integration_changes.xmin) <= age(CAST(CAST(:place AS text) AS xid))",
    "sqlite": "change_id >= CAST(:place AS integer)",
}


class SqlChanges:
    """`Changes` over a SQL database, looked at over its watching connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prune_before: ChangePlace | None = None

    async def since(self, place: ChangePlace | None) -> News:
        """What became visible since somebody looked and got `place`; with None nothing, but a place to begin at."""
        async with self._database.watching() as connection:
            # Before the rows: what becomes visible in between is told twice rather than never.
            next_place = await _place(connection)
            if place is None:
                return News(next_place, frozenset())
            changed = select(integration_changes.c.integration_id).where(text(_IS_FROM[connection.dialect.name]))
            rows = await connection.scalars(changed, {"place": place})
            return News(next_place, frozenset(map(IntegrationId, rows)))

    async def prune(self) -> None:
        """Remove what was there at the last call: by then, everybody has seen it."""
        async with self._database.writing() as connection:
            place = await _place(connection)
            if self._prune_before is not None:
                seen = text(f"NOT ({_IS_FROM[connection.dialect.name]})")
                await connection.execute(delete(integration_changes).where(seen), {"place": self._prune_before})
        self._prune_before = place


async def _place(connection: AsyncConnection) -> ChangePlace:
    return ChangePlace(str(await connection.scalar(_PLACE[connection.dialect.name])))
