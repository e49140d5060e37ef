"""Counts integrations for the metrics, a batch after the other.

A count of all rows in one statement takes seconds with a million rows. Here each statement reads a bounded number of
rows, by their primary key, so that its cost does not depend on the size of the table; a complete count takes as many
statements as there are batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, Select, and_, case, cast, func, not_, or_, select

from integration_server.domain.integration import Status
from integration_server.storage.engine import Database, from_row
from integration_server.storage.tables import integrations, is_usable, webhook_consumer_offsets

_T = integrations.c
_O = webhook_consumer_offsets.c


@dataclass(frozen=True, slots=True)
class IntegrationCount:
    """A group of a batch. `last_id` is the largest id in it.

    `refresh_failing` of them are in status error because of failed refreshes; the grants of `ending_soon` and
    `ending_later` end within the two times that were asked for; `unacknowledged` webhook events wait for the slowest
    consumer of their integration.
    """

    integration_type: str
    status: str
    count: int
    refresh_failing: int
    ending_soon: int
    ending_later: int
    unacknowledged: int
    last_id: int

    def __add__(self, other: "IntegrationCount") -> "IntegrationCount":
        """The sum of two groups of the same type and status."""
        return replace(
            self,
            count=self.count + other.count,
            refresh_failing=self.refresh_failing + other.refresh_failing,
            ending_soon=self.ending_soon + other.ending_soon,
            ending_later=self.ending_later + other.ending_later,
            unacknowledged=self.unacknowledged + other.unacknowledged,
            last_id=max(self.last_id, other.last_id),
        )


async def count_batch(
    database: Database, after: int, limit: int, now: datetime, within: tuple[timedelta, timedelta]
) -> Sequence[IntegrationCount]:
    """Count the `limit` integrations that follow an id, by type and status. Raises `StoreUnavailable`."""
    rows: Sequence[Row[Any]] = await database.fetch(batch_statement(after, limit, now, within))
    return [from_row(IntegrationCount, row) for row in rows]


def batch_statement(after: int, limit: int, now: datetime, within: tuple[timedelta, timedelta]) -> Select[Any]:
    """The statement that counts a batch."""
    status = status_at(now)
    soon, later = (_number(_ends_between(now, now + time)) for time in within)
    batch = (
        select(
            _T.integration_id,
            _T.integration_type,
            status.label("status"),
            _number(and_(_T.refresh_failures > 0, status == Status.ERROR.value)).label("refresh_failing"),
            soon.label("ending_soon"),
            later.label("ending_later"),
            _unacknowledged().label("unacknowledged"),
        )
        .where(_T.integration_id > after)
        .order_by(_T.integration_id)
        .limit(limit)
        .subquery("batch")
    )
    b = batch.c
    sums = [func.sum(b[name]).label(name) for name in ("refresh_failing", "ending_soon", "ending_later")]
    return select(
        b.integration_type,
        b.status,
        func.count().label("count"),
        *sums,
        cast(func.sum(b.unacknowledged), BigInteger).label("unacknowledged"),  # PostgreSQL's sums are numeric
        func.max(b.integration_id).label("last_id"),
    ).group_by(b.integration_type, b.status)


def status_at(now: datetime | ColumnElement[datetime]) -> ColumnElement[str]:
    """`Integration.status` in SQL."""
    has_expired = and_(not_(_T.is_renewable), _T.access_token_expire_time <= now)
    return case(
        (_T.connect_time.is_(None), Status.PENDING.value),
        (not_(_T.is_active), Status.INACTIVE.value),
        (or_(_T.reauthorization_required, has_expired), Status.EXPIRED.value),
        (or_(_T.last_error_class.is_not(None), _T.lacks_required_scope), Status.ERROR.value),
        else_=Status.ACTIVE.value,
    )


def _ends_between(now: datetime, end: datetime) -> ColumnElement[bool]:
    """The condition for a usable integration whose grant ends in that time (`Integration.grant_expire_time`)."""
    expire_time = case((_T.is_renewable, _T.refresh_token_expire_time), else_=_T.access_token_expire_time)
    return and_(_T.connect_time.is_not(None), is_usable, expire_time > now, expire_time <= end)


def _unacknowledged() -> ColumnElement[int]:
    """The events that the slowest consumer has not acknowledged; 0 without events or consumers."""
    slowest = select(func.min(_O.number)).where(_O.integration_id == _T.integration_id).scalar_subquery()
    lag = _T.last_webhook_number - func.coalesce(slowest, _T.last_webhook_number)
    return case((_T.last_webhook_number > 0, lag), else_=0)  # others are not looked up


def _number(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)
