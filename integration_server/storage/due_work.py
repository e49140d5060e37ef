"""SQL implementation of `DueWork`: the only statements that find, claim and postpone due work.

Due times stay in the tables of the jobs, so that the outcome of a job and its next due time are one statement. Each
table is declared once below. Every job has an index on (type, due time): the types are found by a loose index scan and
each claim reads only the rows that it takes, so that the cost of a poll does not depend on the number of due rows.

All times are the database's. The refresh lease (`refresh_leases.py`) is a different mechanism: it protects a call that
may run on demand, not a due row, and must record whether a refresh token may be spent.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    Integer,
    Row,
    ScalarSelect,
    Select,
    String,
    bindparam,
    func,
    literal,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from integration_server.service.background.ports import Claim, JobKind
from integration_server.storage.authorization_attempts import attempt_of
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.integrations import stored_integration_of
from integration_server.storage.revocations import revocation_of
from integration_server.storage.tables import (
    authorization_attempts,
    integrations,
    is_polled,
    is_usable,
    revocations,
    singleton_jobs,
)

T = TypeVar("T")

_I = integrations.c
_R = revocations.c
_A = authorization_attempts.c

_NOW = select(DatabaseTime()).scalar_subquery()  # evaluated once per statement: PostgreSQL can then use the index


@dataclass(frozen=True, slots=True)
class _DueTable:
    """The columns that hold one job's due times.

    `item_of` maps a row to the item of its claim. Rows that do not match `is_enabled` are never due. `claim_values` are
    further columns that a claim sets.
    """

    type: Column[str]
    due_time: Column[datetime]
    item_of: Callable[[Row[Any]], Any]
    is_enabled: ColumnElement[bool] = field(default_factory=true)
    claim_values: Mapping[str, ColumnElement[Any]] = field(default_factory=dict)

    @property
    def row_id(self) -> Column[Any]:
        """The primary key column."""
        (column,) = self.type.table.primary_key
        return column

    def due_rows(self, job_type: ColumnElement[str]) -> Sequence[ColumnElement[bool]]:
        """The conditions of the due rows of a type."""
        return self.is_enabled, self.type == job_type, self.due_time <= _NOW


_TABLES: Mapping[JobKind, _DueTable] = {
    JobKind.REFRESH: _DueTable(_I.client_key, _I.refresh_due_time, stored_integration_of, is_enabled=is_usable),
    JobKind.CHECK: _DueTable(_I.client_key, _I.check_due_time, stored_integration_of, is_enabled=is_usable),
    JobKind.REVOCATION: _DueTable(
        _R.client_key, _R.due_time, revocation_of, claim_values={"attempts": _R.attempts + 1}
    ),
    JobKind.DEVICE_POLL: _DueTable(_A.integration_type, _A.poll_due_time, attempt_of, is_enabled=is_polled),
    JobKind.KEY_ROTATION: _DueTable(singleton_jobs.c.job_name, singleton_jobs.c.due_time, lambda _: None),
}


def rows_of(
    job_kind: JobKind, job_type: ColumnElement[str]
) -> tuple[Column[Any], Column[datetime], Sequence[ColumnElement[bool]]]:
    """The key and the due time of a job's rows, and the conditions of those of a type that become due."""
    table = _TABLES[job_kind]
    return table.row_id, table.due_time, (table.is_enabled, table.type == job_type)


class SqlDueWork:
    """A `DueWork` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due_types(self) -> Collection[tuple[JobKind, str]]:
        """The jobs with due rows, each with the types of those rows."""
        return [(JobKind(kind), job_type) for kind, job_type in await self._database.read(_DRIVER_DUE_TYPES)]

    async def oldest_ages(self) -> Mapping[tuple[JobKind, str], timedelta]:
        """For each job and type with rows, for how long the oldest due row has been due; 0 if none is due."""
        return {
            (JobKind(row.job_kind), row.job_type): max(row.now - row.earliest, timedelta(0))
            if row.earliest
            else timedelta(0)
            for row in await self._database.fetch(OLDEST_DUE)
        }

    async def claim(
        self, job_kind: JobKind, job_type: str, limit: int, *, claim_duration: timedelta
    ) -> Sequence[Claim[Any]]:
        """Claim at most `limit` due rows, the longest due first. Skips rows that another claim has locked."""
        table, query = _TABLES[job_kind], _claim_query(job_kind, claim_duration)
        row_id, due_time = attrgetter(table.row_id.key), attrgetter(table.due_time.key)
        rows = query.named(await self._database.run(query, job_type=job_type, limit=limit))
        return [Claim(job_kind, row_id(row), due_time(row), table.item_of(row)) for row in rows]

    async def postpone(self, claim: Claim[T], delay: timedelta) -> Claim[T] | None:
        """Make the claimed row due after `delay`, unless another process has claimed it."""
        table = _TABLES[claim.job_kind]
        postpone = (
            update(table.row_id.table)
            .where(table.row_id == claim.row_id, table.due_time == claim.due_time)
            .values({table.due_time.name: DatabaseTime(delay)})
            .returning(table.due_time)
        )
        row = await self._database.write_one(postpone)
        return None if row is None else replace(claim, due_time=row[0])


@lru_cache(maxsize=32)
def _claim_query(job_kind: JobKind, claim_duration: timedelta) -> DriverQuery:
    """Cached, because building the statement costs more than running it."""
    job_type, limit = bindparam("job_type", type_=String), bindparam("limit", type_=Integer)
    return DriverQuery(claim_statement(job_kind, job_type, limit, claim_duration))


def claim_statement(
    job_kind: JobKind, job_type: ColumnElement[str], limit: ColumnElement[int], claim_duration: timedelta
) -> ReturningUpdate[Any]:
    """The statement that claims due rows of any job."""
    table = _TABLES[job_kind]
    due = (
        select(table.row_id)
        .where(*table.due_rows(job_type))
        .order_by(table.due_time)
        .limit(limit)
        .with_for_update(skip_locked=True)  # SQLite serializes write transactions instead
        .cte("due")
    )
    return (
        update(table.row_id.table)
        .where(table.row_id.in_(select(due.c[table.row_id.name])))
        .values({table.due_time.name: DatabaseTime(claim_duration), **table.claim_values})
        .returning(*table.row_id.table.c, DatabaseTime().label("now"))
    )


def _types(job_kind: JobKind, table: _DueTable) -> CTE:
    """The job's types: one index probe finds the next type."""
    first_type = select(func.min(table.type).label("job_type")).where(table.is_enabled)
    types = first_type.cte(f"{job_kind.value}_types", recursive=True)
    next_type = select(func.min(table.type)).where(table.is_enabled, table.type > types.c.job_type).scalar_subquery()
    return types.union_all(select(next_type).where(types.c.job_type.is_not(None)))


def _earliest(table: _DueTable, types: CTE) -> ScalarSelect[Any]:
    """The earliest time of the due rows of a type: one index probe finds it."""
    # Not EXISTS: PostgreSQL may turn it into a join that reads every due row.
    return select(func.min(table.due_time)).where(*table.due_rows(types.c.job_type)).scalar_subquery()


def _due_types(job_kind: JobKind, table: _DueTable) -> Select[Any]:
    """The job's types with due rows."""
    types = _types(job_kind, table)
    earliest = _earliest(table, types)
    return select(literal(job_kind.value).label("job_kind"), types.c.job_type).where(earliest.is_not(None))


def _oldest_due(job_kind: JobKind, table: _DueTable) -> Select[Any]:
    """The job's types, each with the earliest time of its due rows."""
    types = _types(job_kind, table)
    columns = types.c.job_type, _earliest(table, types).label("earliest"), DatabaseTime().label("now")
    return select(literal(job_kind.value).label("job_kind"), *columns).where(types.c.job_type.is_not(None))


OLDEST_DUE = union_all(*(_oldest_due(job_kind, table) for job_kind, table in _TABLES.items()))
"""The statement for the age of the oldest due row of each job and type."""

DUE_TYPES = union_all(*(_due_types(job_kind, table) for job_kind, table in _TABLES.items()))
"""The statement that lists the jobs and types with due rows."""

_DRIVER_DUE_TYPES = DriverQuery(DUE_TYPES)  # every second
