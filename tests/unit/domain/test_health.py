from dataclasses import replace
from datetime import timedelta

from integration_server.domain.health import HealthCheck, HealthReport
from integration_server.domain.integration import Status
from tests.fakes.clock import NOON
from tests.unit.domain.test_integration import WORKING

HEALTHY = HealthCheck(WORKING, Status.ACTIVE, True, NOON, timedelta(seconds=1), None, "fine")
FAILED = replace(HEALTHY, status=Status.ERROR, healthy=False, error_class="PROVIDER_REJECTED")
EXPIRED = replace(FAILED, status=Status.EXPIRED)
INACTIVE = replace(HEALTHY, status=Status.INACTIVE, healthy=False)


def test_counts_add_up() -> None:
    report = HealthReport((HEALTHY, FAILED, INACTIVE, HEALTHY, EXPIRED, HEALTHY), NOON)
    assert (report.healthy_count, report.error_count, report.inactive_count) == (3, 2, 1)


def test_counts_of_an_empty_report_are_zero() -> None:
    report = HealthReport((), NOON)
    assert (report.healthy_count, report.error_count, report.inactive_count) == (0, 0, 0)
