"""Sliding windows and adaptive limits: capacity now, and the wait for more."""

import math
from datetime import timedelta

from integration_server.domain.proxy_messages import ApiResponse, LimitScope, Quota, RateLimit
from integration_server.service.proxy.rate_limit_budget import AdaptiveLimit, SlidingWindow


def limit(calls: int, seconds: float, scope: LimitScope = LimitScope.APP) -> RateLimit:
    return RateLimit(calls, timedelta(seconds=seconds), scope)


def response(*quotas: Quota, is_rate_limited: bool = False, retry_after: float | None = None) -> ApiResponse:
    pause = None if retry_after is None else timedelta(seconds=retry_after)
    return ApiResponse(429 if is_rate_limited else 200, (), b"", is_rate_limited, pause, quotas)


def test_a_call_counts_until_a_window_after_its_response() -> None:
    window = SlidingWindow(limit(2, 10))
    window.begin()
    window.begin()
    assert window.wait_time(0.0) == math.inf
    window.end(5.0, was_sent=True)
    assert window.wait_time(5.0) == 10.0
    assert window.wait_time(14.5) == 0.5
    assert window.wait_time(15.0) == 0.0
    window.end(15.0, was_sent=False)
    assert window.is_empty(15.0)


def test_no_period_has_more_calls_than_allowed() -> None:
    window, now, sent = SlidingWindow(limit(3, 1)), 0.0, list[float]()
    while len(sent) < 50:
        if (wait := window.wait_time(now)) == 0.0:
            window.begin()
            sent.append(now)
            now += 0.01 * (len(sent) % 7)
            window.end(now, was_sent=True)
        else:
            now += wait
    assert max(sum(begin <= other < begin + 1 for other in sent) for begin in sent) == 3


def test_an_estimate_counts_the_calls_ahead() -> None:
    window = SlidingWindow(limit(2, 10))
    assert [window.estimated_wait(0.0, ahead) for ahead in (0, 1, 2, 3, 4, 5, 6)] == [0, 0, 10, 10, 20, 20, 30]
    for end in (1.0, 4.0):
        window.begin()
        window.end(end, was_sent=True)
    assert [window.estimated_wait(5.0, ahead) for ahead in (0, 1, 2)] == [6.0, 9.0, 16.0]


def test_several_windows_apply_together() -> None:
    adaptive_limit = AdaptiveLimit([limit(1, 1), limit(2, 10)], lambda: 1.0)
    for now in (0.0, 1.0):
        assert adaptive_limit.wait_time(now) == 0.0
        adaptive_limit.begin(now)
        adaptive_limit.end(now, was_sent=True)
    assert adaptive_limit.wait_time(1.5) == 8.5


def test_after_a_pause_concurrency_starts_at_one_and_doubles() -> None:
    adaptive_limit = AdaptiveLimit([], lambda: 1.0)
    adaptive_limit.begin(0.0)
    adaptive_limit.observe(response(is_rate_limited=True, retry_after=5), 0.0)
    adaptive_limit.end(0.0, was_sent=True)
    assert (adaptive_limit.wait_time(0.0), adaptive_limit.wait_time(4.0), adaptive_limit.wait_time(5.0)) == (
        5.0,
        1.0,
        0.0,
    )
    concurrency = []
    for round_number in range(4):
        now, begun = 6.0 + round_number, 0
        while adaptive_limit.wait_time(now) == 0.0 and begun < 100:
            adaptive_limit.begin(now)
            begun += 1
        concurrency.append(begun)
        for number in range(begun):
            if number == 0:
                adaptive_limit.observe(response(), now)
            adaptive_limit.end(now, was_sent=True)
    assert concurrency == [1, 2, 4, 8]


def test_without_retry_after_the_pauses_grow() -> None:
    adaptive_limit, pauses, now = AdaptiveLimit([], lambda: 1.0), [], 0.0
    for _ in range(8):
        adaptive_limit.begin(now)
        adaptive_limit.observe(response(is_rate_limited=True), now)
        adaptive_limit.end(now, was_sent=True)
        pauses.append(adaptive_limit.wait_time(now))
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_remaining_quota_is_not_exceeded() -> None:
    adaptive_limit = AdaptiveLimit([], lambda: 1.0)
    adaptive_limit.begin(0.0)
    adaptive_limit.observe(response(Quota(2, timedelta(seconds=30))), 0.0)
    adaptive_limit.end(0.0, was_sent=True)
    for _ in range(2):
        assert adaptive_limit.wait_time(1.0) == 0.0
        adaptive_limit.begin(1.0)
    assert adaptive_limit.wait_time(1.0) == 29.0
    assert adaptive_limit.wait_time(30.0) == 0.0
