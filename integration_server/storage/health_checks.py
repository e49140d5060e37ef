"""SQL implementation of `HealthHistory`."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, case, func, insert, select, update

from integration_server.domain.errors import ProviderMisconfigured
from integration_server.domain.health import ErrorRate, HealthCheck, HealthCounts
from integration_server.domain.integration import Failure, Integration, Status, UserId
from integration_server.service.integrations.ports import StoredPage
from integration_server.storage.bounded_pages import is_last_page, page_of, page_parameters, row_bytes
from integration_server.storage.engine import Database, from_row
from integration_server.storage.integrations import (
    NO_FAILURE,
    failure_values,
    is_healthy,
    matches_integration,
)
from integration_server.storage.pruning import prune
from integration_server.storage.tables import health_checks, integrations

_C = health_checks.c
_I = integrations.c


class SqlHealthHistory:
    """A `HealthHistory` over a SQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, check: HealthCheck, check_due_time: datetime | None) -> None:
        """Store a check, and set the integration's last error and the due time of its next check."""
        is_same = matches_integration(check.integration.integration_id, check.integration.user_id)
        # The lock prevents a deletion before the insert refers to the row; SQLite serializes write transactions.
        lock = select(integrations.c.version).where(*is_same).with_for_update()
        async with self._database.write_transaction() as connection:
            version = await connection.scalar(lock)
            if version is None:
                return
            values: dict[str, Any] = {"last_health_check": check.check_time, "check_due_time": check_due_time}
            if version == check.integration.version:
                values |= _outcome_values(check)
            await connection.execute(update(integrations).where(*is_same).values(values))
            await connection.execute(insert(health_checks).values(_check_values(check)))

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


def _check_values(check: HealthCheck) -> dict[str, Any]:
    return {
        **{name: getattr(check, name) for name in ("healthy", "check_time", "error_class", "message")},
        "integration_id": check.integration.integration_id,
        "status": check.status.value,
        "latency_microseconds": (check.latency or timedelta(0)) // timedelta(microseconds=1),
    }


def _outcome_values(check: HealthCheck) -> Mapping[str, Any]:
    if check.error_class is None:
        return NO_FAILURE
    if check.error_class == ProviderMisconfigured.reason:
        return {}  # the fault of our client, and not of the integration
    failure = Failure(check.error_class, check.check_time, check.message)
    count = integrations.c.error_count
    # A refresh that failed during the check is counted already.
    return failure_values(failure) | {
        "error_count": case((integrations.c.last_error_time >= check.check_time, count), else_=count + 1)
    }
