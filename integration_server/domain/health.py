"""Health checks of integrations and their results."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.integration import Integration, Status


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A health check. `error_class` is a reason of `errors.py`, or None when healthy. `message` is safe to show."""

    integration: Integration
    status: Status
    healthy: bool
    check_time: datetime
    latency: timedelta
    error_class: str | None
    message: str


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """The number of checks, and of failed checks, in a window of time that ends now."""

    window: timedelta
    checks: int
    failures: int

    @property
    def rate(self) -> float:
        """The failed share, from 0 to 1; 0 without checks."""
        return self.failures / self.checks if self.checks else 0.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The checks of all connected integrations of a user, started at `check_time`."""

    checks: tuple[HealthCheck, ...]
    check_time: datetime

    @property
    def healthy_count(self) -> int:
        """The number of healthy integrations."""
        return sum(check.healthy for check in self.checks)

    @property
    def inactive_count(self) -> int:
        """The number of inactive integrations."""
        return sum(check.status is Status.INACTIVE for check in self.checks)

    @property
    def error_count(self) -> int:
        """The number of active integrations that are not healthy."""
        return len(self.checks) - self.healthy_count - self.inactive_count
