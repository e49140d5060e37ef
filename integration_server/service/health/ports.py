"""The port of the health check history."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from integration_server.domain.health import ErrorRate, HealthCheck, HealthCounts
from integration_server.domain.integration import Integration, UserId
from integration_server.service.integrations.ports import StoredPage


@dataclass(frozen=True, slots=True)
class CompletedCheck:
    """A check with the due time of the integration's next check."""

    check: HealthCheck
    check_due_time: datetime | None


class HealthHistory(Protocol):
    """The stored health checks of all integrations."""

    async def record(self, checks: Sequence[CompletedCheck]) -> None:
        """Store checks of different integrations, and set the last error and the due time of each.

        The number of statements does not depend on the number of checks. The last error stays as it is if the
        credentials were replaced since the check began. A failure that another call has counted since the check began
        is not counted again. Nothing is stored for an integration that is gone.
        """

    async def list(
        self, integration: Integration, before: int | None, limit: int, max_bytes: int
    ) -> StoredPage[tuple[int, HealthCheck]]:
        """The integration's checks with an id below `before`, each after its id, newest first.

        At most `limit`, of at most `max_bytes` together; but at least one. No more is read.
        """

    async def counts(self, user_id: UserId, integration_types: Collection[str] | None, now: datetime) -> HealthCounts:
        """The numbers of the user's connected integrations of these types (None: of all) by their health at `now`.

        Each is as its last check or refresh left it; its connection was the first check.
        """

    async def error_rates(
        self, integration: Integration, windows: Sequence[timedelta], now: datetime
    ) -> Sequence[ErrorRate]:
        """The counts of the integration's checks and failed checks in each window that ends at `now`."""

    async def prune(self, before: datetime) -> int:
        """Delete a batch of checks made before `before`. Returns the number deleted; 0 means that none is left."""
