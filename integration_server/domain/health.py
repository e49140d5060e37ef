"""Health checks of integrations and their results."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.integration import Integration, Status


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A health check. `error_class` is a reason of `errors.py`, or None when healthy. `message` is safe to show.

    `latency` is None if the provider was not called.
    """

    integration: Integration
    status: Status
    healthy: bool
    check_time: datetime
    latency: timedelta | None
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
class HealthCounts:
    """The numbers of a user's connected integrations: all, and by their health as it is stored."""

    total: int
    healthy: int
    error: int
    inactive: int
