"""The claims of due work: which rows have one, and the fence of a claim.

A claim is a row of a small table, so that the row of the job is written once, with the outcome of the work. A claim
counts until its `expire_time`, and while the row has the due time that it had when it was claimed: whatever sets
another due time ends the claim, and the claim of a process that died ends by itself.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, String, and_, cast, exists, func, literal_column, select

from integration_server.service.background.ports import Claim, JobKind
from integration_server.storage.engine import DatabaseTime
from integration_server.storage.tables import due_work_claims

NOW = select(DatabaseTime()).scalar_subquery()  # evaluated once per statement: PostgreSQL can then use an index

_C = due_work_claims.c


def kind_literal(job_kind: JobKind) -> ColumnElement[str]:
    """The job as a constant of a statement. Without parameters, PostgreSQL plans the statement once for a session."""
    return literal_column(f"'{job_kind.value}'", String)


def is_of(job_kind: JobKind, row_id: Column[Any]) -> ColumnElement[bool]:
    """The condition for the claim of a row, whether or not it counts."""
    return and_(_C.job_kind == kind_literal(job_kind), _C.row_id == cast(row_id, String))


def claimable_time(job_kind: JobKind, row_id: Column[Any], due_time: Column[datetime]) -> ColumnElement[datetime]:
    """The time from which on a row may be claimed: the end of its claim, or its due time if it has none that counts."""
    claim_end = (
        select(_C.expire_time).where(is_of(job_kind, row_id), _C.due_time == due_time).correlate(row_id.table)
    ).scalar_subquery()
    # Not EXISTS, which PostgreSQL may turn into a join that reads every due row, nor IS NULL: it would expect few rows
    # to match, and sort them.
    return func.coalesce(claim_end, due_time)


def is_due(job_kind: JobKind, row_id: Column[Any], due_time: Column[datetime]) -> Sequence[ColumnElement[bool]]:
    """The conditions for the rows that are due and have no claim that counts."""
    return due_time <= NOW, claimable_time(job_kind, row_id, due_time) <= NOW


def is_held(claim: Claim[Any], row_id: Column[Any], due_time: Column[datetime]) -> Sequence[ColumnElement[bool]]:
    """The conditions for the row of a claim that has not been replaced, whether or not it has expired."""
    later = exists().where(is_of(claim.job_kind, row_id), _C.due_time == due_time, _C.expire_time != claim.expire_time)
    return row_id == claim.row_id, due_time == claim.due_time, ~later
