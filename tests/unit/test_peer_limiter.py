"""Failures of peers are limited, within bounded memory; so are log lines."""

from datetime import timedelta

import pytest

from integration_server.peer_limiter import LogLimiter, PeerLimiter


class Monotonic:
    """A clock in seconds that tests set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


def fail(limiter: PeerLimiter, peer: str, times: int) -> None:
    for _ in range(times):
        limiter.record_failure(peer)


def test_a_peer_is_refused_after_a_burst_of_failures(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=3, per_second=0.5, monotonic=monotonic)

    fail(limiter, "bad", 2)
    assert limiter.retry_after("bad") is None
    fail(limiter, "bad", 1)

    assert limiter.retry_after("bad") == timedelta(seconds=2)
    assert limiter.retry_after("good") is None


def test_failures_are_forgiven_at_the_rate(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=3, per_second=0.5, monotonic=monotonic)
    fail(limiter, "bad", 3)

    monotonic.now += 2
    assert limiter.retry_after("bad") is None
    limiter.record_failure("bad")
    assert limiter.retry_after("bad") == timedelta(seconds=2)

    monotonic.now += 100
    fail(limiter, "bad", 2)
    assert limiter.retry_after("bad") is None


def test_a_forgiven_peer_may_fail_again(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=3, per_second=0.5, monotonic=monotonic)
    fail(limiter, "good", 3)

    limiter.forgive("good")
    limiter.forgive("never seen")

    fail(limiter, "good", 2)
    assert limiter.retry_after("good") is None


def test_the_number_of_peers_is_bounded(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=1, per_second=1, monotonic=monotonic, max_peers=10)

    for number in range(1_000):
        limiter.record_failure(str(number))

    assert sum(limiter.retry_after(str(number)) is not None for number in range(1_000)) == 10


def test_many_addresses_do_not_free_one_that_is_over_its_limit(monotonic: Monotonic) -> None:
    limiter = PeerLimiter(burst=2, per_second=0.001, monotonic=monotonic, max_peers=10)
    fail(limiter, "bad", 2)

    for number in range(1_000):
        limiter.record_failure(str(number))

    assert limiter.retry_after("bad") is not None
    assert limiter.retry_after("999") is None


def test_each_key_is_logged_once_in_an_interval(monotonic: Monotonic) -> None:
    log = LogLimiter(monotonic=monotonic, interval=timedelta(minutes=1))

    assert [log.admit("a"), log.admit("a"), log.admit("a"), log.admit("b")] == [0, None, None, 2]
    monotonic.now += 60
    assert log.admit("a") == 0


def test_lines_of_all_keys_are_bounded(monotonic: Monotonic) -> None:
    log = LogLimiter(monotonic=monotonic, max_lines=5)

    assert sum(log.admit(str(number)) is not None for number in range(1_000)) == 5
    monotonic.now += 60
    assert log.admit("1000") == 995
