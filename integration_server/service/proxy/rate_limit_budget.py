"""Rate limit budgets: sliding windows that a provider declares, and an adaptive limit learned from its responses."""

import math
from collections import deque
from collections.abc import Iterable
from datetime import timedelta

from integration_server.domain.due_times import backoff
from integration_server.domain.proxy_messages import ApiResponse, Quota, RateLimit
from integration_server.service.common_types import Jitter

MAX_ACCOUNT_PAUSE = timedelta(hours=1)
"""The longest pause that a provider's responses cause for one account. Then one call finds out whether it goes on."""

MAX_APP_PAUSE = timedelta(minutes=1)
"""The same for all accounts of a type: few responses cause it, and it affects every user."""

MIN_PAUSE = 0.1  # seconds; for a provider that rejects a call and says to retry at once
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=1)
_RECOVERED = 64  # concurrent calls after a pause at which the concurrency limit is removed


class SlidingWindow:
    """One declared limit: at most `limit.calls` in any period of `limit.window`. Times are in seconds.

    A call counts from before it is sent until one window after its response. It arrives at the provider somewhere in
    between, so the provider never counts more calls than this window.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._calls = limit.calls
        self._length = limit.window.total_seconds()
        self._in_flight = 0
        self._ended: deque[float] = deque()

    def begin(self) -> None:
        """Count a call."""
        self._in_flight += 1

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has ended. One that was not sent no longer counts."""
        self._in_flight -= 1
        if was_sent:
            self._ended.append(now)

    def wait_time(self, now: float) -> float:
        """Seconds until there is capacity; infinite if that depends on calls in flight."""
        self._expire(now)
        if self._free_capacity > 0:
            return 0.0
        return self._ended[0] + self._length - now if self._ended else math.inf

    def estimated_wait(self, now: float, ahead: int) -> float:
        """A lower bound of the seconds until there is capacity for a call behind `ahead` others."""
        self._expire(now)
        missing = ahead - self._free_capacity
        if missing < 0:
            return 0.0
        rounds, index = divmod(missing, self._calls)
        first = self._ended[index] + self._length - now if index < len(self._ended) else self._length
        return rounds * self._length + first

    def is_empty(self, now: float) -> bool:
        """Whether no call counts."""
        self._expire(now)
        return not self._in_flight and not self._ended

    @property
    def _free_capacity(self) -> int:
        return self._calls - self._in_flight - len(self._ended)

    def _expire(self, now: float) -> None:
        while self._ended and self._ended[0] + self._length <= now:
            self._ended.popleft()


class AdaptiveLimit:
    """The limit for all calls that share a budget.

    It combines the declared windows, the declared number of concurrent calls (`calls_at_once`), and what responses
    report: a pause, after which concurrency grows from 1, and a remaining quota. Both last `max_pause` at most.
    """

    def __init__(
        self,
        limits: Iterable[RateLimit],
        jitter: Jitter,
        calls_at_once: int | None = None,
        *,
        max_pause: timedelta = MAX_ACCOUNT_PAUSE,
    ) -> None:
        self._max_pause = max_pause.total_seconds()
        self._windows = [SlidingWindow(limit) for limit in limits]
        self._jitter = jitter
        self._max_concurrent = math.inf if calls_at_once is None else calls_at_once
        self._in_flight = 0
        self._consecutive_pauses = 0
        self._paused_until = 0.0
        self._concurrency_limit = math.inf
        self._remaining = 0
        self._remaining_until = 0.0

    def begin(self, now: float) -> None:
        """Count a call."""
        self._in_flight += 1
        if now < self._remaining_until:
            self._remaining -= 1
        for window in self._windows:
            window.begin()

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has ended. One that was not sent no longer counts."""
        self._in_flight -= 1
        for window in self._windows:
            window.end(now, was_sent=was_sent)

    def observe(self, response: ApiResponse, now: float) -> None:
        """Learn from the response of a call that has not ended yet."""
        if response.is_rate_limited:
            self.pause(0.0 if response.retry_after is None else response.retry_after.total_seconds(), now)
        else:
            self.observe_success(now)
        for quota in response.quotas:
            self._apply_quota(quota, now)

    def observe_success(self, now: float) -> None:
        """Learn from a call that was not rejected."""
        if now >= self._paused_until:
            self._consecutive_pauses = 0
            self._concurrency_limit = math.inf if self._concurrency_limit >= _RECOVERED else 2 * self._concurrency_limit

    def pause(self, seconds: float, now: float) -> None:
        """Start no calls for this time; for a growing one if it is 0."""
        if now >= self._paused_until:  # calls that were in flight at the start of a pause do not extend the backoff
            self._consecutive_pauses += 1
        if seconds < MIN_PAUSE:
            seconds = backoff(self._consecutive_pauses, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter).total_seconds()
        self._paused_until = max(self._paused_until, now + min(seconds, self._max_pause))
        self._concurrency_limit = 1

    def _apply_quota(self, quota: Quota, now: float) -> None:
        # The provider may not have counted the other calls in flight yet.
        remaining = max(0, quota.remaining - (self._in_flight - 1))
        if now >= self._remaining_until or remaining < self._remaining:
            reset_after = quota.reset_after.total_seconds()
            self._remaining, self._remaining_until = remaining, now + min(reset_after, self._max_pause)
            if remaining <= 0:
                self._concurrency_limit = 1

    def wait_time(self, now: float) -> float:
        """Seconds until a call may start; infinite if that depends on calls in flight."""
        is_recovering = self._in_flight >= self._concurrency_limit and now >= self._paused_until
        if is_recovering or self._in_flight >= self._max_concurrent:
            return math.inf
        return max(self.provider_wait(now), *(window.wait_time(now) for window in self._windows), 0.0)

    def provider_wait(self, now: float) -> float:
        """Seconds for which the provider itself has asked for no calls."""
        spent = self._remaining_until - now if self._remaining <= 0 else 0.0
        return max(0.0, self._paused_until - now, spent)

    def estimated_wait(self, now: float, ahead: int) -> float:
        """A lower bound of the seconds until a call behind `ahead` others may start."""
        return max(self.provider_wait(now), *(window.estimated_wait(now, ahead) for window in self._windows), 0.0)

    def is_empty(self, now: float) -> bool:
        """Whether the limit is as good as a new one: also if its last pause ended long ago, whatever has followed."""
        is_recovering = self._concurrency_limit < math.inf and now < self._paused_until + self._max_pause
        is_limited = self.provider_wait(now) or now < self._remaining_until or is_recovering
        return not self._in_flight and not is_limited and all(window.is_empty(now) for window in self._windows)
