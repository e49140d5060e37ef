"""The order of the change log: the part of the change feed that depends on the engine.

Ids and transaction ids become visible in another order than they are given, because transactions overlap. An ordering
gives each row a position, and knows which positions below the newest may still get a visible row. A reader that asks
for these positions and for everything newer misses nothing and reads nothing twice. Events of one integration are never
reversed: they come from transactions that waited for each other, so their ids ascend.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import Column, ColumnElement, Text, cast, func, literal_column, select
from sqlalchemy.exc import DBAPIError

from integration_server.service.events.ports import ChangeCursor
from integration_server.storage.async_engine import AsyncConnection
from integration_server.storage.tables import integration_changes

_MAX_TRANSACTION = timedelta(seconds=10)  # the longest that a server waits for a statement
_MAX_SKIPPED = 100_000  # ids in one poll; a transaction that changes more rows than this may be missed
_FIRST_SKIPPED = 100  # ids at the end of the log that a first poll takes for skipped: it does not read the rows
_UNSUPPORTED_SQLSTATES = ("0A000", "42883")  # feature_not_supported, undefined_function


class ChangeOrdering(Protocol):
    """How an engine orders the change log."""

    @property
    def position(self) -> Column[int]:
        """The column with a row's position."""

    @property
    def snapshot(self) -> ColumnElement[str]:
        """What `advance` takes, as SQL for the statement that reads the rows."""

    def advance(
        self, cursor: ChangeCursor | None, snapshot: str, positions: Collection[int], time: datetime
    ) -> ChangeCursor:
        """The cursor after a statement that read rows at `positions`. None as `cursor` begins at the end of the log."""


class SnapshotOrdering:
    """PostgreSQL: the position is the writing transaction, and the snapshot names the transactions in progress.

    A transaction that stays open costs its reader one more index lookup in each poll.
    """

    position: Column[int] = integration_changes.c.transaction_id
    snapshot: ColumnElement[str] = cast(func.pg_current_snapshot(), Text)

    def advance(
        self, _cursor: ChangeCursor | None, snapshot: str, _positions: Collection[int], time: datetime
    ) -> ChangeCursor:
        """The snapshot as a cursor: `xmin:xmax:xip,…` (PostgreSQL, §9.27.11)."""
        _xmin, xmax, in_progress = snapshot.split(":")
        return ChangeCursor(
            int(xmax), {int(transaction_id): time for transaction_id in in_progress.split(",") if transaction_id}
        )


class SequenceOrdering:
    """Engines without snapshots: the position is the row's id, and a skipped id may appear for `max_transaction`.

    On SQLite writers come one after another, so that it is 0. Elsewhere the sequence must not be cached: ids of a cache
    may be given at any time.
    """

    position: Column[int] = integration_changes.c.change_id

    def __init__(self, last_id: str, max_transaction: timedelta) -> None:
        self.snapshot: ColumnElement[str] = cast(literal_column(f"({last_id})"), Text)
        self._max_transaction = max_transaction

    def advance(
        self, cursor: ChangeCursor | None, snapshot: str, positions: Collection[int], time: datetime
    ) -> ChangeCursor:
        """The id after the last one that the sequence gave, and the skipped ids."""
        end = int(snapshot) + 1
        if cursor is None:
            skipped = dict.fromkeys(range(max(1, end - _FIRST_SKIPPED), end), time)
        else:
            skipped = {**dict.fromkeys(range(max(cursor.end, end - _MAX_SKIPPED), end), time), **cursor.missing}
        return ChangeCursor(
            end,
            {
                position: since
                for position, since in skipped.items()
                if position not in positions and time - since < self._max_transaction
            },
        )


def sqlite_ordering() -> ChangeOrdering:
    """The ordering for SQLite."""
    # Not the highest id there is: that goes back when the newest rows are pruned.
    last_id = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'integration_changes'"
    return SequenceOrdering(last_id, timedelta(0))


def distributed_ordering(max_transaction: timedelta = _MAX_TRANSACTION) -> ChangeOrdering:
    """The ordering for PostgreSQL-compatible engines without `pg_current_snapshot`."""
    last_id = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM integration_changes_change_id_seq"
    return SequenceOrdering(last_id, max_transaction)


async def detect_ordering(connection: AsyncConnection) -> ChangeOrdering:
    """The ordering that the engine supports."""
    if connection.dialect.name == "sqlite":
        return sqlite_ordering()
    try:
        version = await connection.scalar(select(func.version(), func.pg_current_snapshot()))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in _UNSUPPORTED_SQLSTATES:
            raise
        return distributed_ordering()
    # YugabyteDB has the function, but its transactions have no ids that are ordered over all nodes.
    return distributed_ordering() if "-YB-" in str(version) else SnapshotOrdering()
