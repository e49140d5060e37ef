from dataclasses import replace
from datetime import timedelta

import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.due_times import Schedule
from tests.fakes.clock import NOON
from tests.fakes.provider import HOUR

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
QUARTER = timedelta(minutes=15)
DAY = timedelta(days=1)


def tokens(lifetime: timedelta) -> OAuthTokens:
    return OAuthTokens("access", "refresh", expire_time=NOON + lifetime, lifetime=lifetime)


def schedule(jitter: float, check_interval: timedelta | None = QUARTER) -> Schedule:
    return Schedule(5 * MINUTE, check_interval, lambda: jitter)


@pytest.mark.parametrize(
    ("lifetime", "latest", "earliest"),
    [
        (HOUR, 55 * MINUTE, 49 * MINUTE),
        (10 * MINUTE, 5 * MINUTE, 4 * MINUTE),
        (10 * SECOND, 5 * SECOND, 4 * SECOND),
        (5 * SECOND, 2.5 * SECOND, 2 * SECOND),
    ],
)
def test_refreshes_are_due_in_the_tenth_of_the_lifetime_before_the_buffer(
    lifetime: timedelta, latest: timedelta, earliest: timedelta
) -> None:
    assert schedule(0).refresh_due_time(tokens(lifetime)) == NOON + latest
    assert schedule(1).refresh_due_time(tokens(lifetime)) == NOON + earliest


@pytest.mark.parametrize(
    ("lifetime", "latest", "earliest"),
    [
        (30 * DAY, 7 * DAY, 6.3 * DAY),
        (7 * DAY, 7 * DAY - 5 * MINUTE, 6.3 * DAY - 5 * MINUTE),
        (DAY, DAY - 5 * MINUTE, None),
    ],
)
def test_refreshes_are_due_before_the_maximum_age(
    lifetime: timedelta, latest: timedelta, earliest: timedelta | None
) -> None:
    assert schedule(0).refresh_due_time(tokens(lifetime), 7 * DAY) == NOON + latest
    if earliest is not None:
        assert schedule(1).refresh_due_time(tokens(lifetime), 7 * DAY) == NOON + earliest


def test_tokens_without_refresh_token_are_due_at_their_expiry() -> None:
    for lifetime in (HOUR, 4 * SECOND, -SECOND):
        without_refresh_token = replace(tokens(lifetime), refresh_token=None)
        assert schedule(0.5).refresh_due_time(without_refresh_token, MINUTE) == NOON + lifetime
    assert schedule(0.5).refresh_due_time(OAuthTokens("access")) is None


def test_short_lived_tokens_and_tokens_without_expiry_are_never_due() -> None:
    for never_due in (
        replace(tokens(HOUR), expire_time=None, lifetime=None),
        tokens(4 * SECOND),
        tokens(-SECOND),
    ):
        assert schedule(0.5).refresh_due_time(never_due) is None


def test_checks_are_spread_around_the_interval() -> None:
    check_times = [schedule(jitter).next_check_time(NOON) for jitter in (0, 0.5, 1)]
    assert check_times == [NOON + factor * QUARTER for factor in (0.9, 1, 1.1)]


def test_checks_after_failures_use_backoff() -> None:
    check_times = [schedule(1).next_check_time(NOON, failures) for failures in (1, 2, 3, 4, 5, 1000)]
    assert check_times == [NOON + minutes * MINUTE for minutes in (1, 2, 4, 8, 15, 15)]
    assert schedule(0).next_check_time(NOON, 1) == NOON + 30 * SECOND
    assert schedule(1, 10 * SECOND).next_check_time(NOON, 1) == NOON + 10 * SECOND


def test_without_an_interval_no_check_is_due() -> None:
    assert schedule(0.5, None).next_check_time(NOON) is None
    assert schedule(0.5, None).next_check_time(NOON, 3) is None
