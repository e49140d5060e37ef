"""The claims of due work: which rows have one, and the fence of a claim.

A claim is a row of a small table, so that the row of the job is written once, with the outcome of the work. A claim
counts until its `expire_time`, and while the row has the due time that it had when it was claimed: whatever sets
another due time ends the claim, and the claim of a process that died ends by itself. Then the row is claimed again, for
longer: if it is the row's work that ends processes, it does so ever less often.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    String,
    Update,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    select,
    update,
)

from integration_server.service.background.ports import LONGEST_CLAIM, Claim, JobKind
from integration_server.storage.engine import DatabaseTime
from integration_server.storage.tables import due_work_claims

NOW = select(DatabaseTime()).scalar_subquery()  # evaluated once per statement: PostgreSQL can then use an index

OUTDATED = select(DatabaseTime(-timedelta(minutes=1))).scalar_subquery()
"""The end of the last claim that is of no further use. Until then the next one counts it as expired: processes that
have died start again meanwhile, and poll each second."""

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


def values_of_next_claim(
    excluded: Mapping[str, ColumnElement[Any]], claim_duration: timedelta, dialect: str
) -> Mapping[str, ColumnElement[Any]]:
    """The values of a claim that replaces another.

    If the row has the same due time, the other one has expired without an outcome, and this one lasts longer: twice as
    long with each, times a random factor between 0.5 and 1 for each row. So rows that were claimed together with one
    whose work ends the process are not claimed together with it again and again. A claim that was released has one
    expired claim less, -1 if it was the first.
    """
    has_expired = _C.due_time == excluded["due_time"]
    longest = max(2 * claim_duration, LONGEST_CLAIM)  # the random factor does not make it shorter than the first
    durations = takewhile(lambda one: one <= longest, (claim_duration * 2.0**number for number in range(1, 17)))
    seconds = {number: one.total_seconds() for number, one in enumerate(durations)}
    doubled = case(seconds, value=_C.expired_claims, else_=longest.total_seconds())
    random = {"postgresql": func.random(), "sqlite": func.abs(func.random() % 1024) / literal(1024.0)}[dialect]
    return {
        "due_time": excluded["due_time"],
        "expire_time": case(
            (
                and_(has_expired, _C.expired_claims >= 0),
                DatabaseTime(doubled * (literal(0.5) + random * literal(0.5))),
            ),
            else_=excluded["expire_time"],
        ),
        "replaced_expire_time": excluded["replaced_expire_time"],
        "expired_claims": case((has_expired, _C.expired_claims + 1), else_=0),
    }


def renew(claim: Claim[Any], renewed: Claim[Any]) -> Update:
    """The statement that lets a claim count for the new due time of its row, which is not an outcome of the work."""
    return _update(claim).values(due_time=renewed.due_time, expire_time=renewed.expire_time)


def release(claim: Claim[Any]) -> Update:
    """The statement that ends a claim whose work has not begun. The next one has the same number of expired claims."""
    return _update(claim).values(expire_time=DatabaseTime(), expired_claims=_C.expired_claims - 1)


def _update(claim: Claim[Any]) -> Update:
    is_claim = _C.job_kind == claim.job_kind.value, _C.row_id == str(claim.row_id), _C.expire_time == claim.expire_time
    return update(due_work_claims).where(*is_claim)
