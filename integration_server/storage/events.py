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
from integration_server.service.ports import EventBatch, EventWish, Glance, LoggedEvent
from integration_server.storage.clock import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.tables import integration_events

_E = integration_events.c

_END = {
    "postgresql": text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"),
    # The last number ever given: the highest that is there would go back when the newest are pruned.
    "sqlite": text("SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'integration_events'"),
}

_ORDER: Mapping[str, Column[int]] = {"postgresql": _E.transaction_id, "sqlite": _E.event_number}

_PRUNED_AT_ONCE = 1000  # short transactions, so that nobody waits for them


class SqlEventLog:
    """An `EventLog` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def end(self) -> tuple[int, datetime]:
        """Where a batch that ends now has its end, and the database's time."""
        async with self._database.reading() as connection:
            return await _end(connection)

    async def glance(self, low: int, limit: int) -> Glance:
        """The batch from there up to now, with the first of its events."""
        async with self._database.watching() as connection:
            end, now = await _end(connection)
            batch = EventBatch(low, end)
            return Glance(batch, now, await _fetch(connection, batch, _in_order(limit)))

    async def read(self, batch: EventBatch, after: int, wish: EventWish, limit: int) -> Sequence[LoggedEvent]:
        """Events of a batch with a number above `after`."""
        query = _in_order(limit).where(_E.event_number > after)
        if wish.user_id is not None:
            query = query.where(_E.user_id == wish.user_id)
        if wish.integration_types is not None:
            query = query.where(_E.integration_type.in_(sorted(wish.integration_types)))
        async with self._database.reading() as connection:
            return await _fetch(connection, batch, query)

    async def prune(self, keep: timedelta) -> int:
        """Forget some of what is older; how much it was."""
        old = select(_E.event_number).where(_E.event_time < select(DatabaseTime(-keep)).scalar_subquery())
        some = old.order_by(_E.event_time).limit(_PRUNED_AT_ONCE).with_for_update(skip_locked=True)
        async with self._database.writing() as connection:
            forget = delete(integration_events).where(_E.event_number.in_(some))
            return (await connection.execute(forget)).rowcount


async def _end(connection: AsyncConnection) -> tuple[int, datetime]:
    # The time before the end: what is said to be as new as this time must not be older.
    now = (await connection.execute(select(DatabaseTime()))).scalar_one()
    return int((await connection.execute(_END[connection.dialect.name])).scalar_one()), now


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
