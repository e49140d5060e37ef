"""Lists due rows in SQL, for operators: implements the port `DueRows`. `due_work.py` says which rows are due.

Rows that a process has claimed are in progress, and not listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, String, bindparam, func, literal, select, tuple_

from integration_server.domain.integration import IntegrationId, UserId
from integration_server.service.background.ports import JobKind
from integration_server.service.operators.ports import MAX_DUE_COUNT, DueItem, DuePosition
from integration_server.storage.due_work import rows_of
from integration_server.storage.due_work_claims import NOW
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.tables import authorization_attempts, integrations, revocations

_I = integrations.c
_R = revocations.c
_A = authorization_attempts.c

_NO_ID, _NO_USER, _NEVER = literal(0), literal(""), literal(0)

_DESCRIPTIONS: Mapping[JobKind, tuple[ColumnElement[Any], ColumnElement[Any], ColumnElement[Any]]] = {
    JobKind.REFRESH: (_I.integration_id, _I.user_id, _I.refresh_failures),
    JobKind.CHECK: (_I.integration_id, _I.user_id, _NEVER),
    JobKind.REVOCATION: (_NO_ID, _R.user_id, _R.attempts),
    JobKind.DEVICE_POLL: (_A.integration_id, _A.user_id, _A.poll_failures),
    JobKind.KEY_ROTATION: (_NO_ID, _NO_USER, _NEVER),
}
"""What is listed of the rows of each job: the integration, the user, and the attempts without success."""


def due_rows_statement(job_kind: JobKind, job_type: str, after: DuePosition | None, limit: int) -> Select[Any]:
    """The statement that lists rows in the order of the index on (type, due time, id), with the time now.

    Also those that are not due yet: PostgreSQL expects few rows between a time and an unknown one, and would sort all.
    """
    row_id, due_time, claimable_time, conditions = rows_of(job_kind, bindparam("job_type", job_type, String))
    integration_id, user_id, attempts = _DESCRIPTIONS[job_kind]
    columns = (
        *(row_id.label("row_id"), due_time.label("due_time"), claimable_time.label("claimable_time")),
        DatabaseTime().label("now"),
        *(integration_id.label("integration_id"), user_id.label("user_id"), attempts.label("attempts")),
    )
    statement = select(*columns).where(*conditions, due_time.is_not(None)).order_by(due_time, row_id).limit(limit)
    if after is None:
        return statement
    # One comparison of rows, which an index serves from the position on, also among equal times.
    position = literal(after.due_time, due_time.type), literal(after.row_id, row_id.type)
    return statement.where(tuple_(due_time, row_id) > tuple_(*position))


def due_count_statement(job_kind: JobKind, job_type: str) -> Select[Any]:
    """The statement that counts the due rows of a type, up to the maximum."""
    row_id, due_time, claimable_time, conditions = rows_of(job_kind, bindparam("job_type", job_type, String))
    rows = select(row_id).where(*conditions, due_time <= NOW, claimable_time <= NOW)
    return select(func.count()).select_from(rows.limit(MAX_DUE_COUNT).subquery())


_MIN_READ = 32  # rows: the longest due ones are often claimed


class SqlDueRows:
    """`DueRows` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_due(
        self, job_kind: JobKind, job_type: str, after: DuePosition | None, limit: int
    ) -> Sequence[DueItem]:
        """The due rows of a job and type after a position, the longest due first."""
        items: list[DueItem] = []
        while len(items) < limit:
            read_count = max(limit, _MIN_READ)
            rows = await self._database.fetch(due_rows_statement(job_kind, job_type, after, read_count))
            due = [row for row in rows if row.due_time <= row.now]
            items += [_item_of(job_kind, job_type, row) for row in due if row.claimable_time <= row.now]
            if len(due) < read_count:
                break
            after = DuePosition(job_kind, job_type, due[-1].due_time, due[-1].row_id)
        return items[:limit]

    async def oldest_due(self, job_kind: JobKind, job_type: str) -> Sequence[DueItem]:
        """The longest due row of a job and type, with the number of its due rows."""
        items = await self.list_due(job_kind, job_type, None, 1)
        if not items:
            return []
        count = await self._database.fetch_value(due_count_statement(job_kind, job_type))
        return [replace(item, due_count=count) for item in items]


def _item_of(job_kind: JobKind, job_type: str, row: Row[Any]) -> DueItem:
    return DueItem(
        job_kind=job_kind,
        job_type=job_type,
        due_time=row.due_time,
        row_id=row.row_id,
        integration_id=IntegrationId(row.integration_id or 0),
        user_id=UserId(row.user_id),
        attempts=row.attempts,
    )
