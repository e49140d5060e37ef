"""How much may be called now: windows that a provider declares, and what its answers tell of it."""

import math
from collections import deque
from collections.abc import Iterable
from datetime import timedelta

from integration_server.domain.proxy_messages import ApiResponse, Quota, RateLimit
from integration_server.service.background.backoff import backoff
from integration_server.service.common_types import Jitter

MIN_PAUSE = 0.1  # seconds; a provider that says "wait" and "not at all" means something in between
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=1)
_RECOVERED = 64  # calls at once after a pause: from then on it is over


class SlidingWindow:
    """One declared limit: at most so many calls in any stretch of time as long as its window.

    A call takes a place from before it is sent until so long after its answer: its arrival at the provider lies
    somewhere between, so that the provider never counts more than we do.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._calls = limit.calls
        self._length = limit.window.total_seconds()
        self._in_flight = 0
        self._ended: deque[float] = deque()

    def begin(self) -> None:
        """A call takes a place."""
        self._in_flight += 1

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has been answered, or was not made after all."""
        self._in_flight -= 1
        if was_sent:
            self._ended.append(now)

    def wait_time(self, now: float) -> float:
        """Seconds until there may be a place; infinite if that hangs on calls under way."""
        self._expire(now)
        if self._free > 0:
            return 0.0
        return self._ended[0] + self._length - now if self._ended else math.inf

    def estimated_wait(self, now: float, ahead: int) -> float:
        """At least so many seconds until a place is free for one who has so many ahead."""
        self._expire(now)
        missing = ahead - self._free
        if missing < 0:
            return 0.0
        rounds, index = divmod(missing, self._calls)
        first = self._ended[index] + self._length - now if index < len(self._ended) else self._length
        return rounds * self._length + first

    def is_empty(self, now: float) -> bool:
        """Whether nothing is counted."""
        self._expire(now)
        return not self._in_flight and not self._ended

    @property
    def _free(self) -> int:
        return self._calls - self._in_flight - len(self._ended)

    def _expire(self, now: float) -> None:
        while self._ended and self._ended[0] + self._length <= now:
            self._ended.popleft()


class AdaptiveLimit:
    """What may be called now of all that shares a budget: by its windows, by how many calls are taken at a time, and by
    what the provider's answers told.
    """

    def __init__(self, limits: Iterable[RateLimit], jitter: Jitter, calls_at_once: int | None = None) -> None:
        self._windows = [SlidingWindow(limit) for limit in limits]
        self._jitter = jitter
        self._max_concurrent = math.inf if calls_at_once is None else calls_at_once
        self._in_flight = 0
        self._consecutive_pauses = 0
        self._paused_until = 0.0
        self._concurrency_limit: int | None = None
        self._remaining = 0
        self._remaining_until = 0.0

    def begin(self, now: float) -> None:
        """A call begins."""
        self._in_flight += 1
        if now < self._remaining_until:
            self._remaining -= 1
        for window in self._windows:
            window.begin()

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has ended, or was not made after all."""
        self._in_flight -= 1
        for window in self._windows:
            window.end(now, was_sent=was_sent)

    def observe(self, response: ApiResponse, now: float) -> None:
        """Take note of what an answer tells; the call is still under way."""
        if response.is_rate_limited:
            self._pause(response.retry_after, now)
        elif now >= self._paused_until:
            self._recover()
        for quota in response.quotas:
            self._apply_quota(quota, now)

    def _pause(self, retry_after: timedelta | None, now: float) -> None:
        if now >= self._paused_until:  # those who were under way when the first was told add nothing
            self._consecutive_pauses += 1
        reported = 0.0 if retry_after is None else retry_after.total_seconds()
        pause = reported if reported >= MIN_PAUSE else self._backoff_pause()
        self._paused_until = max(self._paused_until, now + pause)
        self._concurrency_limit = 1

    def _backoff_pause(self) -> float:
        return backoff(self._consecutive_pauses, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter).total_seconds()

    def _recover(self) -> None:
        self._consecutive_pauses = 0
        if self._concurrency_limit is not None:
            self._concurrency_limit = None if self._concurrency_limit >= _RECOVERED else 2 * self._concurrency_limit

    def _apply_quota(self, quota: Quota, now: float) -> None:
        # Others under way may not have been counted by the provider yet.
        remaining = max(0, quota.remaining - (self._in_flight - 1))
        if now >= self._remaining_until or remaining < self._remaining:
            self._remaining, self._remaining_until = remaining, now + quota.reset_after.total_seconds()

    def wait_time(self, now: float) -> float:
        """Seconds until a call may begin; infinite if that hangs on calls under way."""
        is_recovering = (
            self._concurrency_limit is not None
            and self._in_flight >= self._concurrency_limit
            and now >= self._paused_until
        )
        if is_recovering or self._in_flight >= self._max_concurrent:
            return math.inf
        return max(self.provider_wait(now), *(window.wait_time(now) for window in self._windows), 0.0)

    def provider_wait(self, now: float) -> float:
        """Seconds for which the provider itself has said that it wants no call."""
        spent = self._remaining_until - now if self._remaining <= 0 else 0.0
        return max(0.0, self._paused_until - now, spent)

    def estimated_wait(self, now: float, ahead: int) -> float:
        """At least so many seconds until a call may begin that has so many ahead."""
        return max(self.provider_wait(now), *(window.estimated_wait(now, ahead) for window in self._windows), 0.0)

    def is_empty(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        reported = self.provider_wait(now) or now < self._remaining_until or self._concurrency_limit is not None
        return not self._in_flight and not reported and all(window.is_empty(now) for window in self._windows)
