"""What one look at an integration's health found."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.integration import Integration, Status


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """One check. `error_class` is a reason of `errors.py`, None when healthy; `message` is safe to show."""

    integration: Integration
    status: Status
    healthy: bool
    check_time: datetime
    latency: timedelta
    error_class: str | None
    message: str


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """How many of the checks in a window of time, up to now, failed."""

    window: timedelta
    checks: int
    failures: int

    @property
    def rate(self) -> float:
        """From 0 to 1; 0 without checks."""
        return self.failures / self.checks if self.checks else 0.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The checks of all of a user's connected integrations, begun at `check_time`."""

    checks: tuple[HealthCheck, ...]
    check_time: datetime

    @property
    def healthy_count(self) -> int:
        """How many work."""
        return sum(check.healthy for check in self.checks)

    @property
    def inactive_count(self) -> int:
        """How many are switched off."""
        return sum(check.status is Status.INACTIVE for check in self.checks)

    @property
    def error_count(self) -> int:
        """How many are on and do not work."""
        return len(self.checks) - self.healthy_count - self.inactive_count
