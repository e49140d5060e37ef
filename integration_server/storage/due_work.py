"""SQL implementation of `DueWork`: the only statements that find, claim and postpone due work.

Due times stay in the tables of the jobs, so that the outcome of a job and its next due time are one statement. Each
table is declared once below. Every job has an index on (type, due time, id): the types are found by a loose index scan,
and each claim reads the rows that it takes and those before them that are claimed, so that the cost of a poll does not
depend on the number of due rows. `due_work_claims.py` says what a claim is.

All times are the database's. The refresh lease (`refresh_leases.py`) is a different mechanism: it protects a call that
may run on demand, not a due row, and must record whether a refresh token may be spent.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
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
    UpdateBase,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from integration_server.service.background.ports import Claim, JobKind
from integration_server.storage.connections import attempt_of
from integration_server.storage.driver_queries import DriverQuery
from integration_server.storage.due_work_claims import (
    OUTDATED,
    claimable_time,
    is_due,
    is_held,
    is_of,
    kind_literal,
    release,
    values_of_next_claim,
)
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.integrations import stored_integration_of
from integration_server.storage.list_parameters import is_one_of
from integration_server.storage.pruning import BATCH_SIZE, prune
from integration_server.storage.revocations import revocation_of
from integration_server.storage.tables import (
    authorization_attempts,
    due_work_claims,
    integrations,
    is_polled,
    is_usable,
    revocations,
    singleton_jobs,
)

T = TypeVar("T")

_MAX_CLAIMED = 32
"""The most rows that a statement claims. A constant of the statement: for a number that it does not know, PostgreSQL
expects to read a tenth of the due rows, and plans each claim anew instead of keeping the plan. That takes longer."""

_I = integrations.c
_R = revocations.c
_A = authorization_attempts.c


@dataclass(frozen=True, slots=True)
class _DueTable:
    """The columns that hold one job's due times.

    `item_of` maps a row to the item of its claim. Rows that do not match `is_enabled` are never due. `outcome_values`
    are further columns that `postpone` sets.
    """

    job_kind: JobKind
    type: Column[str]
    due_time: Column[datetime]
    item_of: Callable[[Row[Any]], Any]
    is_enabled: ColumnElement[bool] = field(default_factory=true)
    outcome_values: Mapping[str, ColumnElement[Any]] = field(default_factory=dict)

    @property
    def row_id(self) -> Column[Any]:
        """The primary key column."""
        (column,) = self.type.table.primary_key
        return column

    def due_rows(self, job_type: ColumnElement[str]) -> Sequence[ColumnElement[bool]]:
        """The conditions of the due rows of a type that are not claimed."""
        return self.is_enabled, self.type == job_type, *is_due(self.job_kind, self.row_id, self.due_time)


_TABLES: Mapping[JobKind, _DueTable] = {
    table.job_kind: table
    for table in (
        _DueTable(JobKind.REFRESH, _I.client_key, _I.refresh_due_time, stored_integration_of, is_enabled=is_usable),
        _DueTable(JobKind.CHECK, _I.client_key, _I.check_due_time, stored_integration_of, is_enabled=is_usable),
        _DueTable(
            JobKind.REVOCATION,
            *(_R.client_key, _R.due_time, revocation_of),
            outcome_values={"attempts": _R.attempts + 1},
        ),
        _DueTable(JobKind.DEVICE_POLL, _A.integration_type, _A.poll_due_time, attempt_of, is_enabled=is_polled),
        _DueTable(JobKind.KEY_ROTATION, singleton_jobs.c.job_name, singleton_jobs.c.due_time, lambda _: None),
    )
}


def rows_of(
    job_kind: JobKind, job_type: ColumnElement[str]
) -> tuple[Column[Any], Column[datetime], ColumnElement[datetime], Sequence[ColumnElement[bool]]]:
    """The key of a job's rows, their due and claimable times, and the conditions of those of a type that become due."""
    table = _TABLES[job_kind]
    claimable = claimable_time(job_kind, table.row_id, table.due_time)
    return table.row_id, table.due_time, claimable, (table.is_enabled, table.type == job_type)


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
        """Claim at most `limit` due rows, the longest due first. Of concurrent claims of a row, one succeeds."""
        claims: list[Claim[Any]] = []
        has_more = True
        while has_more and len(claims) < limit:
            batch = await self._claim_batch(job_kind, job_type, limit - len(claims), claim_duration)
            claims += batch
            has_more = len(batch) == _MAX_CLAIMED
        return claims

    async def _claim_batch(
        self, job_kind: JobKind, job_type: str, limit: int, claim_duration: timedelta
    ) -> Sequence[Claim[Any]]:
        table = _TABLES[job_kind]
        claim = _claim_query(job_kind, claim_duration, self._database.dialect_name)
        claimed = await self._database.run(claim, job_type=job_type, limit=limit)
        if not claimed:
            return []
        to_row_id = table.row_id.type.python_type
        claims = {to_row_id(text): values for text, *values in claimed}
        # Read after the claim, so that the work sees what has changed since the row was found to be due.
        read = _read_query(job_kind)
        found = read.as_records(await self._database.read(read, row_ids=list(claims)))
        rows = {getattr(row, table.row_id.key): row for row in found}
        return [
            Claim(job_kind, row_id, due_time, expire_time, table.item_of(rows[row_id]), expired_claims)
            for row_id, (due_time, expire_time, expired_claims) in claims.items()
            if row_id in rows and getattr(rows[row_id], table.due_time.key) == due_time
        ]

    async def postpone(self, claim: Claim[T], delay: timedelta) -> Claim[T] | None:
        """Make the claimed row due after `delay`, unless another process has claimed it."""
        table = _TABLES[claim.job_kind]
        postpone = (
            update(table.row_id.table)
            .where(*is_held(claim, table.row_id, table.due_time))
            .values({table.due_time.name: DatabaseTime(delay), **table.outcome_values})
            .returning(table.due_time)
        )
        row = await self._database.write_one(postpone)
        return None if row is None else claim.renewed(row[0])

    async def release(self, claims: Collection[Claim[Any]]) -> None:
        """End claims whose work has not begun, unless another process has claimed their rows."""
        for claim in claims:
            await self._database.write(release(claim))

    async def prune(self) -> int:
        """Delete the claims that have expired, in batches, and not those that are about to be claimed again."""
        total, count = 0, BATCH_SIZE
        while count == BATCH_SIZE:  # not until none is left: others expire meanwhile
            count = await prune(self._database, due_work_claims.c.expire_time, OUTDATED)
            total += count
        return total


@lru_cache(maxsize=32)
def _claim_query(job_kind: JobKind, claim_duration: timedelta, dialect: str) -> DriverQuery:
    """Cached, because building the statement costs more than running it."""
    job_type, limit = bindparam("job_type", type_=String), bindparam("limit", type_=Integer)
    return DriverQuery(claim_statement(job_kind, job_type, limit, claim_duration, dialect))


def claim_statement(
    job_kind: JobKind, job_type: ColumnElement[str], limit: ColumnElement[int], claim_duration: timedelta, dialect: str
) -> UpdateBase:
    """The statement that claims due rows of any job. It returns their ids and due times, the ends of the claims, and
    how many claims have expired before."""
    table, claims = _TABLES[job_kind], due_work_claims.c
    replaced = select(claims.expire_time).where(is_of(job_kind, table.row_id)).correlate(table.row_id.table)
    values = {
        claims.job_kind: kind_literal(job_kind).label("job_kind"),
        claims.row_id: cast(table.row_id, String),
        claims.due_time: table.due_time,
        claims.expire_time: DatabaseTime(claim_duration),
        claims.replaced_expire_time: replaced.scalar_subquery(),
    }
    # No row locks, which would write to the rows.
    due = (
        select(*values.values())
        .where(*table.due_rows(job_type))
        .order_by(table.due_time)
        .limit(literal_column(str(_MAX_CLAIMED)))
    )
    due = select(due.subquery()).where(true()).limit(limit)  # SQLite needs a WHERE before the conflict clause
    insert: Any = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[dialect](due_work_claims)
    new = insert.from_select([column.name for column in values], due)
    claim: UpdateBase = new.on_conflict_do_update(
        index_elements=[claims.job_kind, claims.row_id],
        set_=values_of_next_claim(new.excluded, claim_duration, dialect),
        # If another process has claimed the row since this statement began, it keeps it.
        where=claims.expire_time == new.excluded.replaced_expire_time,
    ).returning(claims.row_id, claims.due_time, claims.expire_time, claims.expired_claims)
    return claim


@lru_cache
def _read_query(job_kind: JobKind) -> DriverQuery:
    """The query for claimed rows."""
    table = _TABLES[job_kind]
    columns = *table.row_id.table.c, DatabaseTime().label("now")
    return DriverQuery(select(*columns).where(is_one_of(table.row_id, "row_ids"), table.is_enabled))


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
    return select(kind_literal(job_kind).label("job_kind"), types.c.job_type).where(earliest.is_not(None))


def _oldest_due(job_kind: JobKind, table: _DueTable) -> Select[Any]:
    """The job's types, each with the earliest time of its due rows."""
    types = _types(job_kind, table)
    columns = types.c.job_type, _earliest(table, types).label("earliest"), DatabaseTime().label("now")
    return select(kind_literal(job_kind).label("job_kind"), *columns).where(types.c.job_type.is_not(None))


OLDEST_DUE = union_all(*(_oldest_due(job_kind, table) for job_kind, table in _TABLES.items()))
"""The statement for the age of the oldest due row of each job and type."""

DUE_TYPES = union_all(*(_due_types(job_kind, table) for job_kind, table in _TABLES.items()))
"""The statement that lists the jobs and types with due rows."""

_DRIVER_DUE_TYPES = DriverQuery(DUE_TYPES)  # every second
