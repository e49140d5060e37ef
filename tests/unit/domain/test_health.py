from datetime import timedelta

import pytest

from integration_server.domain.health import ErrorRate


@pytest.mark.parametrize(("checks", "failures", "rate"), [(0, 0, 0.0), (4, 1, 0.25), (2, 2, 1.0)])
def test_the_rate_is_the_failed_share(checks: int, failures: int, rate: float) -> None:
    assert ErrorRate(timedelta(hours=1), checks, failures).rate == rate
