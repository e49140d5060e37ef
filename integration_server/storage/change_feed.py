"""The change feed in SQL: reads the log that triggers write in the transaction that changes an integration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    any_,
    bindparam,
    cast,
    exists,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import IntegrationId, Status
from integration_server.service.events.ports import (
    ChangeBatch,
    ChangeCursor,
    ChangeRange,
    EventFilter,
    LoggedEvent,
)
from integration_server.storage.change_ordering import ChangeOrdering, detect_ordering
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.engine import Database, DatabaseTime, from_row
from integration_server.storage.pruning import prune
from integration_server.storage.tables import integration_changes

_C = integration_changes.c
_INTERNAL_KIND = "internal"
_UNCACHED_KINDS = {EventKind.CREATED.value, EventKind.WEBHOOK_RECEIVED.value}  # change nothing that a cache may have


class SqlChangeFeed:
    """A `ChangeFeed` over a SQL database. `ordering` is detected from the engine if None."""

    def __init__(self, database: Database, ordering: ChangeOrdering | None = None) -> None:
        self._database = database
        self._ordering = ordering
        self._queries: dict[tuple[Any, ...], DriverQuery] = {}

    async def wait_for_change(self) -> None:
        """Return when the database notifies of a change."""
        await self._database.change_notified.wait()
        self._database.change_notified.clear()

    async def poll(self, cursor: ChangeCursor | None, limit: int) -> ChangeBatch:
        """The changes that became visible since the poll that returned `cursor`."""
        self._database.change_notified.clear()  # before reading: a later notification is about a later change
        quiet = await self._poll_quiet(cursor)
        if quiet is not None:
            return quiet
        ordering, data_version = self._ordering, None
        rows: Sequence[Any]
        if ordering is not None and self._database.dialect_name == "postgresql":
            query, parameters = self._query(_poll_query, ordering, cursor)
            rows = query.named(await self._database.monitor(query, **parameters, limit=limit + 1))
        else:
            async with self._database.monitor_connection() as connection:
                data_version = await self._database.data_version(connection)
                if cursor is not None and data_version is not None and data_version == cursor.data_version:
                    time = (await connection.execute(select(DatabaseTime()))).scalar_one()
                    return ChangeBatch(cursor, time, frozenset())
                ordering = await self._get_ordering(connection)
                query, parameters = self._query(_poll_query, ordering, cursor)
                rows = (await connection.execute(query.statement, {**parameters, "limit": limit + 1})).all()
        snapshot, time = rows[0].snapshot, rows[0].time
        if cursor is not None and len(rows) <= limit:
            rows = [row for row in rows if row.change_id is not None]
            after = ordering.advance(cursor, snapshot, {_position(row, ordering) for row in rows}, time)
            if after.end >= cursor.end:  # else an older database was restored
                return ChangeBatch(
                    replace(after, data_version=data_version),
                    time,
                    frozenset(IntegrationId(row.integration_id) for row in rows if row.kind not in _UNCACHED_KINDS),
                    [_logged_event(row, ordering) for row in rows if row.kind != _INTERNAL_KIND],
                )
        return ChangeBatch(replace(ordering.advance(None, snapshot, (), time), data_version=data_version), time)

    async def _poll_quiet(self, cursor: ChangeCursor | None) -> ChangeBatch | None:
        """The result of a poll if nothing has changed; None if something has, or if this is not known.

        Most polls find nothing. The driver does that for a fifth of the CPU.
        """
        ordering = self._ordering
        if cursor is None or ordering is None or self._database.dialect_name != "postgresql":
            return None
        query, parameters = self._query(_quiet_query, ordering, cursor)
        ((snapshot, time, has_changes),) = await self._database.monitor(query, **parameters)
        if has_changes:
            return None
        after = ordering.advance(cursor, snapshot, (), time)
        return ChangeBatch(after, time, frozenset()) if after.end >= cursor.end else None

    async def read_events(
        self, positions: ChangeRange, after: int, event_filter: EventFilter, limit: int
    ) -> Sequence[LoggedEvent]:
        """The events of a range with a number above `after`."""
        async with self._database.read_connection() as connection:
            ordering = await self._get_ordering(connection)
            query = select(integration_changes).where(
                _C.kind != _INTERNAL_KIND,
                _C.change_id > after,
                ordering.position >= positions.low,
                ordering.position < positions.high,
            )
            if event_filter.user_id is not None:
                query = query.where(_C.user_id == event_filter.user_id)
            if event_filter.integration_types is not None:
                query = query.where(_C.integration_type.in_(sorted(event_filter.integration_types)))
            rows = await connection.execute(query.order_by(_C.change_id).limit(limit))
            return [_logged_event(row, ordering) for row in rows]

    async def read_changed_ids(self, position: int, limit: int) -> frozenset[IntegrationId] | None:
        """The integrations with changes for caches at a position and above; None if there are too many changes."""
        async with self._database.read_connection() as connection:
            ordering = await self._get_ordering(connection)
            query = select(_C.integration_id, _C.kind).where(ordering.position >= position)
            rows = (await connection.execute(query.order_by(ordering.position).limit(limit + 1))).all()
        if len(rows) > limit:
            return None
        return frozenset(IntegrationId(row.integration_id) for row in rows if row.kind not in _UNCACHED_KINDS)

    async def prune(self, retention: timedelta) -> int:
        """Delete some of the rows that are older; returns how many."""
        return await prune(self._database, _C.change_time, select(DatabaseTime(-retention)).scalar_subquery())

    def _query(
        self, make: Callable[..., DriverQuery], ordering: ChangeOrdering, cursor: ChangeCursor | None
    ) -> tuple[DriverQuery, Mapping[str, Any]]:
        """A query for what is after a cursor, built once, and its parameters but the limit."""
        if cursor is None:
            names: Sequence[str] = ()
        else:
            names = ("end", "missing") if cursor.missing else ("end",)
        query = self._queries.get((make, names))
        if query is None:
            query = self._queries[make, names] = make(ordering, names)
        return query, {name: list(cursor.missing) if name == "missing" else cursor.end for name in names if cursor}

    async def _get_ordering(self, connection: AsyncConnection) -> ChangeOrdering:
        if self._ordering is None:
            self._ordering = await detect_ordering(connection)
        return self._ordering


def _poll_query(ordering: ChangeOrdering, names: Sequence[str]) -> DriverQuery:
    """One statement, so that the rows and the snapshot are of the same moment; without rows, one row with NULLs."""
    marks = select(ordering.snapshot.label("snapshot"), DatabaseTime().label("time")).subquery()
    if not names:
        return DriverQuery(select(marks))
    limit = bindparam("limit", type_=Integer)
    # Each condition alone and in order, so that PostgreSQL reads the index of the positions whatever its statistics.
    unread = union_all(
        *(
            select(select(integration_changes).where(condition).order_by(ordering.position).limit(limit).subquery())
            for condition in _unread(ordering, names)
        )
    ).subquery()
    return DriverQuery(select(marks, unread).select_from(marks.outerjoin(unread, true())))


def _unread(ordering: ChangeOrdering, names: Sequence[str]) -> Sequence[ColumnElement[bool]]:
    """The conditions of rows after a cursor, with the parameters that `names` has: `end`, `missing`."""
    is_new = ordering.position >= bindparam("end", type_=BigInteger)
    missing = cast(bindparam("missing", type_=ARRAY(BigInteger)), ARRAY(BigInteger))
    return [is_new, ordering.position == any_(missing)] if "missing" in names else [is_new]


def _quiet_query(ordering: ChangeOrdering, names: Sequence[str]) -> DriverQuery:
    """Whether there is a change after a cursor, with the snapshot of the same moment."""
    # As in `_poll_query`: each condition alone and in order.
    newest = (
        select(ordering.position).where(one).order_by(ordering.position).limit(1).subquery()
        for one in _unread(ordering, names)
    )
    has_changes = or_(*(exists(select(one)) for one in newest))
    columns: Sequence[ColumnElement[Any]] = (ordering.snapshot, DatabaseTime(), has_changes)
    return DriverQuery(select(*columns))


def _position(row: Any, ordering: ChangeOrdering) -> int:  # noqa: ANN401  # a row with the columns as attributes
    return int(getattr(row, ordering.position.key))


def _logged_event(row: Any, ordering: ChangeOrdering) -> LoggedEvent:  # noqa: ANN401  # as above
    event = from_row(
        IntegrationEvent,
        row,
        kind=EventKind(row.kind),
        event_time=row.change_time,
        status_before=None if row.status_before is None else Status(row.status_before),
        status_after=None if row.status_after is None else Status(row.status_after),
    )
    return LoggedEvent(row.change_id, _position(row, ordering), event)
