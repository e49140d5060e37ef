"""The change feed in SQL: reads the log that triggers write in the transaction that changes an integration."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, overload

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    any_,
    bindparam,
    cast,
    exists,
    or_,
    select,
    true,
    union_all,
)

from integration_server.domain.events import EventKind, IntegrationEvent
from integration_server.domain.integration import IntegrationId, Status, UserId
from integration_server.service.events.ports import (
    ChangeBatch,
    ChangeCursor,
    ChangeRange,
    EventFilter,
    LoggedEvent,
)
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.change_ordering import ChangeOrdering, detect_ordering
from integration_server.storage.database_identity import read_database_id
from integration_server.storage.driver_queries import DriverQuery, Values
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.pruning import prune
from integration_server.storage.tables import integration_changes

_C = integration_changes.c
_COLUMNS: Sequence[Column[Any]] = (
    _C.change_id,
    _C.transaction_id,
    _C.integration_id,
    _C.user_id,
    _C.integration_type,
    _C.kind,
    _C.status_before,
    _C.status_after,
    _C.webhook_number,
    _C.change_time,
)
_INDEXES = {column.key: index for index, column in enumerate(_COLUMNS)}
_ID, _KIND = _INDEXES["integration_id"], _INDEXES["kind"]
_KINDS = {kind.value: kind for kind in EventKind}
_STATUSES: dict[str | None, Status | None] = {None: None, **{status.value: status for status in Status}}
_INTERNAL_KIND = "internal"
_UNCACHED_KINDS = {EventKind.CREATED.value, EventKind.WEBHOOK_RECEIVED.value}  # change nothing that a cache may have


class SqlChangeFeed:
    """A `ChangeFeed` over a SQL database. `ordering` is detected from the engine if None."""

    def __init__(self, database: Database, ordering: ChangeOrdering | None = None) -> None:
        self._database = database
        self._ordering = ordering
        self._quiet_queries: dict[bool, DriverQuery] = {}
        self._poll_queries: dict[bool, DriverQuery] = {}

    @property
    def connection(self) -> int:
        """The number of the connection that polls; a new one may lead to another database."""
        return self._database.monitor_connections

    async def wait_for_change(self) -> None:
        """Return when the database notifies of a change."""
        await self._database.change_notified.wait()
        self._database.change_notified.clear()

    async def poll(self, cursor: ChangeCursor | None, limit: int) -> ChangeBatch:
        """The changes that became visible since the poll that returned `cursor`."""
        is_notified = self._database.change_notified.is_set()
        self._database.change_notified.clear()  # before reading: a later notification is about a later change
        ordering = self._ordering
        if cursor is not None and ordering is not None and self._database.dialect_name == "postgresql":
            quiet = None if is_notified else await self._poll_quiet(ordering, cursor)
            return await self._poll_driver(ordering, cursor, limit) if quiet is None else quiet
        async with self._database.monitor_connection() as connection:
            data_version = await self._database.data_version(connection)
            if cursor is not None and data_version is not None and data_version == cursor.data_version:
                time = (await connection.execute(select(DatabaseTime()))).scalar_one()
                return ChangeBatch(cursor, time, frozenset())
            ordering = await self._get_ordering(connection)
            query = _marks_query(ordering) if cursor is None else self._poll_query(ordering, cursor)
            parameters = {} if cursor is None else {**_parameters_of(cursor), "limit": limit + 1}
            rows = (await connection.execute(query.statement, parameters)).all()
        return _batch_of(rows, ordering, cursor, limit, data_version)

    async def _poll_driver(self, ordering: ChangeOrdering, cursor: ChangeCursor, limit: int) -> ChangeBatch:
        """The result of a poll that finds changes, on PostgreSQL: the driver does it for half of the CPU."""
        query = self._poll_query(ordering, cursor)
        rows = await self._database.monitor(query, **_parameters_of(cursor), limit=limit + 1)
        return _batch_of(rows, ordering, cursor, limit, None)

    def _poll_query(self, ordering: ChangeOrdering, cursor: ChangeCursor) -> DriverQuery:
        has_missing = bool(cursor.missing)
        query = self._poll_queries.get(has_missing)
        if query is None:
            query = self._poll_queries[has_missing] = _poll_query(ordering, has_missing=has_missing)
        return query

    async def _poll_quiet(self, ordering: ChangeOrdering, cursor: ChangeCursor) -> ChangeBatch | None:
        """The result of a poll if nothing has changed; None if something has.

        Most polls find nothing. The driver does that for a fifth of the CPU.
        """
        query = self._quiet_queries.get(bool(cursor.missing))
        if query is None:
            query = self._quiet_queries[bool(cursor.missing)] = _quiet_query(ordering, has_missing=bool(cursor.missing))
        ((snapshot, time, has_changes),) = await self._database.monitor(query, **_parameters_of(cursor))
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
            query = select(*_COLUMNS).where(
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
            position = _INDEXES[ordering.position.key]
            return [_logged_event(row, position) for row in rows]

    async def read_changed_ids(self, position: int, limit: int) -> frozenset[IntegrationId] | None:
        """The integrations with changes for caches at a position and above; None if there are too many changes."""
        async with self._database.read_connection() as connection:
            ordering = await self._get_ordering(connection)
            query = select(_C.integration_id, _C.kind).where(ordering.position >= position)
            rows = (await connection.execute(query.order_by(ordering.position).limit(limit + 1))).all()
        if len(rows) > limit:
            return None
        return frozenset(IntegrationId(row.integration_id) for row in rows if row.kind not in _UNCACHED_KINDS)

    async def read_database_id(self) -> str:
        """The identity of the database."""
        return await read_database_id(self._database)

    async def prune(self, retention: timedelta) -> int:
        """Delete some of the rows that are older; returns how many."""
        return await prune(self._database, _C.change_time, select(DatabaseTime(-retention)).scalar_subquery())

    async def _get_ordering(self, connection: AsyncConnection) -> ChangeOrdering:
        if self._ordering is None:
            self._ordering = await detect_ordering(connection)
        return self._ordering


def _marks_query(ordering: ChangeOrdering) -> DriverQuery:
    """The snapshot and the time, for a first poll."""
    marks: Sequence[ColumnElement[Any]] = (ordering.snapshot, DatabaseTime())
    return DriverQuery(select(*marks))


def _poll_query(ordering: ChangeOrdering, *, has_missing: bool) -> DriverQuery:
    """The changes after a cursor, each after the snapshot and the time: one statement, so that all are of one moment.

    Without changes, one row with NULLs. Parameters: `end`, `missing`, `limit`.
    """
    marks = select(ordering.snapshot.label("snapshot"), DatabaseTime().label("time")).subquery()
    # Each condition alone and in order, so that PostgreSQL reads the index of the positions whatever its statistics.
    limit = bindparam("limit", type_=BigInteger)
    unread = union_all(
        *(
            select(select(*_COLUMNS).where(condition).order_by(ordering.position).limit(limit).subquery())
            for condition in _unread(ordering, has_missing=has_missing)
        )
    ).subquery()
    return DriverQuery(select(marks, unread).select_from(marks.outerjoin(unread, true())))


def _unread(ordering: ChangeOrdering, *, has_missing: bool) -> Sequence[ColumnElement[bool]]:
    conditions = [ordering.position >= bindparam("end", type_=BigInteger)]
    if has_missing:
        missing = bindparam("missing", type_=ARRAY(BigInteger))
        conditions.append(ordering.position == any_(cast(missing, ARRAY(BigInteger))))
    return conditions


def _parameters_of(cursor: ChangeCursor) -> dict[str, Any]:
    return {"end": cursor.end, **({"missing": list(cursor.missing)} if cursor.missing else {})}


def _quiet_query(ordering: ChangeOrdering, *, has_missing: bool) -> DriverQuery:
    """Whether there is a change after a cursor, with the snapshot of the same moment. Parameters: `end`, `missing`."""
    # As in `_poll_query`: each condition alone and in order.
    newest = (
        select(ordering.position).where(condition).order_by(ordering.position).limit(1).subquery()
        for condition in _unread(ordering, has_missing=has_missing)
    )
    has_changes = or_(*(exists(select(subquery)) for subquery in newest))
    columns: Sequence[ColumnElement[Any]] = (ordering.snapshot, DatabaseTime(), has_changes)
    return DriverQuery(select(*columns))


def _batch_of(
    rows: Sequence[Values], ordering: ChangeOrdering, cursor: ChangeCursor | None, limit: int, data_version: object
) -> ChangeBatch:
    snapshot, time, *_ = rows[0]
    if cursor is not None and len(rows) <= limit:
        changes = [row[2:] for row in rows if row[2] is not None]
        position = _INDEXES[ordering.position.key]
        after = ordering.advance(cursor, snapshot, {row[position] for row in changes}, time)
        if after.end >= cursor.end:  # else an older database was restored
            return ChangeBatch(
                replace(after, data_version=data_version),
                time,
                frozenset(IntegrationId(row[_ID]) for row in changes if row[_KIND] not in _UNCACHED_KINDS),
                _Events([row for row in changes if row[_KIND] != _INTERNAL_KIND], position),
            )
    return ChangeBatch(replace(ordering.advance(None, snapshot, (), time), data_version=data_version), time)


class _Events(Sequence[LoggedEvent]):
    """The events in rows, which are made when they are used: without event streams they are not."""

    def __init__(self, rows: Sequence[Values], position: int) -> None:
        self._rows = rows
        self._position = position

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> LoggedEvent: ...

    @overload
    def __getitem__(self, index: slice) -> "_Events": ...

    def __getitem__(self, index: int | slice) -> "LoggedEvent | _Events":
        if isinstance(index, slice):
            return _Events(self._rows[index], self._position)
        return _logged_event(self._rows[index], self._position)


def _logged_event(row: Values, position: int) -> LoggedEvent:
    number, _, integration_id, user_id, integration_type, kind, before, after, webhook_number, time = row
    event = IntegrationEvent(
        _KINDS[kind],
        time,
        IntegrationId(integration_id),
        UserId(user_id),
        integration_type,
        _STATUSES[before],
        _STATUSES[after],
        webhook_number,
    )
    return LoggedEvent(number, row[position], event)
