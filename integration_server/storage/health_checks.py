"""SQL implementation of `HealthHistory`."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Insert,
    Row,
    Select,
    String,
    Update,
    and_,
    case,
    func,
    insert,
    select,
    update,
)

from integration_server.domain.errors import ProviderMisconfigured
from integration_server.domain.health import ErrorRate, HealthCheck, HealthCounts
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.service.health.ports import CompletedCheck
from integration_server.service.integrations.ports import StoredPage
from integration_server.storage.bounded_pages import is_last_page, page_of, page_parameters, row_bytes
from integration_server.storage.driver_queries import UtcDateTime
from integration_server.storage.engine import Database, from_row
from integration_server.storage.integrations import is_healthy, matches_integration
from integration_server.storage.pruning import prune
from integration_server.storage.tables import health_checks, integrations
from integration_server.storage.value_rows import ValueRows

_C = health_checks.c
_I = integrations.c


class SqlHealthHistory:
    """A `HealthHistory` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, checks: Sequence[CompletedCheck]) -> None:
        """Store checks, and set the last error and the due time of their integrations, in three statements."""
        async with self._database.write_transaction() as connection:
            statements = _recording(connection.dialect.name)
            parameters = statements.checks.parameters(map(_values, checks), connection.dialect)
            for statement in (statements.lock, statements.update, statements.insert):
                await connection.execute(statement, parameters)

    async def list(
        self, integration: Integration, before: int | None, limit: int, max_bytes: int
    ) -> StoredPage[tuple[int, HealthCheck]]:
        """The integration's checks with an id below `before`, each after its id, newest first."""
        query = _select_checks(integration)
        if before is not None:
            query = query.where(_C.health_check_id < before)
        page = page_of(query, _C.health_check_id, row_bytes(_C), descending=True)
        rows = await self._database.fetch(page, page_parameters(limit, max_bytes))
        return StoredPage([(row.health_check_id, _check(row, integration)) for row in rows], is_last_page(rows))

    async def counts(self, user_id: UserId, integration_types: Collection[str] | None, now: datetime) -> HealthCounts:
        """The numbers of the user's connected integrations by the outcome of their last checks, at `now`."""
        query = select(
            func.count().label("total"),
            func.count(case((_I.is_active.is_(True) & is_healthy(now), 1))).label("healthy"),
            func.count(case((_I.is_active.is_(False), 1))).label("inactive"),
        ).where(_I.user_id == user_id, _I.connect_time.is_not(None))
        if integration_types is not None:
            query = query.where(_I.integration_type.in_(sorted(integration_types)))
        (row,) = await self._database.fetch(query)
        return HealthCounts(row.total, row.healthy, row.total - row.healthy - row.inactive, row.inactive)

    async def error_rates(
        self, integration: Integration, windows: Sequence[timedelta], now: datetime
    ) -> Sequence[ErrorRate]:
        """The counts of the integration's checks and failed checks in each window that ends at `now`."""
        counts = []
        for window in windows:
            is_within = _C.check_time > now - window
            counts += [func.count(case((is_within, 1))), func.count(case((is_within & _C.healthy.is_(False), 1)))]
        query = _select_checks(integration, *counts).where(_C.check_time > now - max(windows))
        (row,) = await self._database.fetch(query)
        return [ErrorRate(window, *row[2 * number : 2 * number + 2]) for number, window in enumerate(windows)]

    async def prune(self, before: datetime) -> int:
        """Delete a batch of checks made before `before`. Returns the number deleted."""
        return await prune(self._database, _C.check_time, before)


def _select_checks(integration: Integration, *columns: ColumnElement[Any]) -> Select[Any]:
    """A query for these columns of the integration's checks, by default all."""
    is_same = matches_integration(integration.integration_id, integration.user_id)
    return select(*columns or health_checks.c).select_from(health_checks.join(integrations)).where(*is_same)


def _check(row: Row[Any], integration: Integration) -> HealthCheck:
    latency = timedelta(microseconds=row.latency_microseconds)
    return from_row(HealthCheck, row, integration=integration, status=Status(row.status), latency=latency)


def _values(completed: CompletedCheck) -> Sequence[Any]:
    """The values of a check, in the order of `_CHECKED`."""
    check = completed.check
    return (
        check.integration.integration_id,
        check.integration.user_id,
        check.integration.version,
        completed.check_due_time,
        check.error_class == ProviderMisconfigured.reason,
        check.status.value,
        check.healthy,
        check.check_time,
        (check.latency or timedelta(0)) // timedelta(microseconds=1),
        check.error_class,
        check.message,
    )


_OF_HISTORY = ("status", "healthy", "check_time", "latency_microseconds", "error_class", "message")
_CHECKED: Sequence[Column[Any]] = (
    Column("integration_id", BigInteger),
    Column("user_id", String),
    Column("version", BigInteger),
    Column("check_due_time", UtcDateTime),
    Column("is_misconfigured", Boolean),  # the fault of our client, and not of the integration
    *(Column(name, _C[name].type) for name in _OF_HISTORY),
)


@dataclass(frozen=True, slots=True)
class _Recording:
    """The statements that record checks, for a dialect. Their parameters are those of `checks`."""

    checks: ValueRows
    lock: Select[Any]
    update: Update
    insert: Insert


@cache
def _recording(dialect: str) -> _Recording:
    """Cached, because building the statements takes milliseconds."""
    rows = ValueRows("checked", _CHECKED, dialect)
    checked = rows.subquery.c
    is_same = and_(_I.integration_id == checked.integration_id, _I.user_id == checked.user_id)
    # The locks prevent a deletion before the insert refers to the row. In the order of the ids, so that checks of the
    # same integrations by two processes do not deadlock; SQLite serializes write transactions.
    lock = select(_I.integration_id).where(is_same).order_by(_I.integration_id).with_for_update(of=integrations)
    concerns = and_(_I.version == checked.version, checked.is_misconfigured.is_(False))
    has_failed = checked.error_class.is_not(None)
    # A refresh that failed during the check is counted already.
    count = case((_I.last_error_time >= checked.check_time, _I.error_count), else_=_I.error_count + 1)
    outcome = {
        _I.last_error_class: checked.error_class,
        _I.last_error_time: case((has_failed, checked.check_time)),
        _I.last_error_message: case((has_failed, checked.message)),
        _I.error_count: case((has_failed, count), else_=0),
    }
    change = (
        update(integrations)
        .where(is_same)
        .values({_I.last_health_check: checked.check_time, _I.check_due_time: checked.check_due_time})
        .values({column: case((concerns, value), else_=column) for column, value in outcome.items()})
    )
    columns = ("integration_id", *_OF_HISTORY)
    stored = select(*(checked[name] for name in columns)).join(integrations, is_same)
    return _Recording(rows, lock, change, insert(health_checks).from_select(columns, stored))
