"""What the server does by itself, and what came of its checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from integration_server.domain.health import ErrorRate, HealthCheck
from integration_server.domain.integration import Integration
from integration_server.service.integrations.ports import StoredIntegration


class JobKind(Enum):
    """What the server does by itself."""

    REFRESH = "refresh"
    CHECK = "check"


class DueWork(Protocol):
    """What is due, for integrations that are switched on and not dead."""

    async def due_types(self, job_kind: JobKind, now: datetime) -> Sequence[str]:
        """The integration types with due work. Only reads, so that many may look."""

    async def claim(
        self, job_kind: JobKind, integration_type: str, now: datetime, next_due_time: datetime, limit: int
    ) -> Sequence[StoredIntegration]:
        """At most `limit` of what is due, to be done by this caller: what has waited longest first.

        It is due again at `next_due_time`, unless what comes of the work sets another time.
        """


@dataclass(frozen=True, slots=True)
class HealthCheckRecord:
    """A check of the history, and its number there, by which it is ordered."""

    health_check_id: int
    check: HealthCheck


class HealthHistory(Protocol):
    """The checks that were made."""

    async def record(self, check: HealthCheck, check_due_time: datetime | None) -> None:
        """Keep a check, set or clear the integration's last error after it, and when to check next.

        The error stays as it is if the credentials were replaced since they were checked, and what failed since the
        check began is not counted again; nothing is kept if the integration was removed meanwhile.
        """

    async def list(self, integration: Integration, before: int | None, limit: int) -> Sequence[HealthCheckRecord]:
        """An integration's checks with a number below `before`, newest first."""

    async def error_rates(
        self, integration: Integration, windows: Sequence[timedelta], now: datetime
    ) -> Sequence[ErrorRate]:
        """How an integration's checks went in each window up to now."""

    async def prune(self, before: datetime) -> int:
        """Forget some of everybody's checks made before then; how many there were. 0: none is left."""
