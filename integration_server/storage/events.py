"""What happened to integrations, in SQL: fulfils the port `EventLog`.

Triggers write the events, in the transaction that does it. Numbers become visible in another order than they are given,
so "all above the last one seen" would miss those who commit late. Instead events are read in batches that end where
nothing can appear any more:

- on PostgreSQL at the oldest transaction that is under way. Every event has its transaction's number, and those below
  are all over. Within a batch the events' own numbers count: of two transactions that change one integration, the one
  that has to wait may have begun first, but it gives its numbers last. Such two are never in different batches, since
  the one that waits is under way until both are over.
- on SQLite writers come one after another, so that the events' numbers tell both.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, Row, Select, delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import IntegrationId, Status, UserId
from integration_server.service.events.ports import EventBatch, EventFilter, EventPage, LoggedEvent
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import integration_events

_E = integration_events.c

_HIGH_WATER_MARK = {
    "postgresql": text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"),
    # The last number ever given: the highest that is there would go back when the newest are pruned.
    "sqlite": text("SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'integration_events'"),
}

_ORDER: Mapping[str, Column[int]] = {"postgresql": _E.transaction_id, "sqlite": _E.event_number}

_PRUNE_BATCH_SIZE = 1000  # short transactions, so that nobody waits for them


class SqlEventLog:
    """An `EventLog` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def high_water_mark(self) -> tuple[int, datetime]:
        """Where a batch that ends now has its end, and the database's time."""
        async with self._database.read_connection() as connection:
            return await _high_water_mark(connection)

    async def read_page(self, low: int, limit: int) -> EventPage:
        """The batch from there up to now, with the first of its events."""
        async with self._database.monitor_connection() as connection:
            high_water_mark, now = await _high_water_mark(connection)
            batch = EventBatch(low, high_water_mark)
            return EventPage(batch, now, await _fetch(connection, batch, _in_order(limit)))

    async def read(self, batch: EventBatch, after: int, event_filter: EventFilter, limit: int) -> Sequence[LoggedEvent]:
        """Events of a batch with a number above `after`."""
        query = _in_order(limit).where(_E.event_number > after)
        if event_filter.user_id is not None:
            query = query.where(_E.user_id == event_filter.user_id)
        if event_filter.integration_types is not None:
            query = query.where(_E.integration_type.in_(sorted(event_filter.integration_types)))
        async with self._database.read_connection() as connection:
            return await _fetch(connection, batch, query)

    async def prune(self, retention: timedelta) -> int:
        """Forget some of what is older; how much it was."""
        old = select(_E.event_number).where(_E.event_time < select(DatabaseTime(-retention)).scalar_subquery())
        some = old.order_by(_E.event_time).limit(_PRUNE_BATCH_SIZE).with_for_update(skip_locked=True)
        async with self._database.write_transaction() as connection:
            statement = delete(integration_events).where(_E.event_number.in_(some))
            return (await connection.execute(statement)).rowcount


async def _high_water_mark(connection: AsyncConnection) -> tuple[int, datetime]:
    # The time before the end: what is said to be as new as this time must not be older.
    now = (await connection.execute(select(DatabaseTime()))).scalar_one()
    return int((await connection.execute(_HIGH_WATER_MARK[connection.dialect.name])).scalar_one()), now


def _in_order(limit: int) -> Select[Any]:
    return select(integration_events).order_by(_E.event_number).limit(limit)


async def _fetch(connection: AsyncConnection, batch: EventBatch, query: Select[Any]) -> Sequence[LoggedEvent]:
    order = _ORDER[connection.dialect.name]
    rows = await connection.execute(query.where(order >= batch.low, order < batch.high))
    return [LoggedEvent(row.event_number, _event(row)) for row in rows.all()]


def _event(row: Row[Any]) -> IntegrationEvent:
    return IntegrationEvent(
        kind=EventKind(row.kind),
        event_time=row.event_time,
        integration_id=IntegrationId(row.integration_id),
        user_id=UserId(row.user_id),
        integration_type=row.integration_type,
        status_before=None if row.status_before is None else Status(row.status_before),
        status_after=None if row.status_after is None else Status(row.status_after),
        webhook_number=row.webhook_number,
    )
