"""How much may be called now: windows that a provider declares, and what its answers tell of it."""

import math
from collections import deque
from collections.abc import Iterable
from datetime import timedelta

from integration_server.domain.calls import ApiAnswer, Quota, RateLimit
from integration_server.service.backoff import backoff
from integration_server.service.ports import Jitter

SHORTEST_PAUSE = 0.1  # seconds; a provider that says "wait" and "not at all" means something in between
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=1)
_RECOVERED = 64  # calls at once after a pause: from then on it is over


class Window:
    """One declared limit: at most so many calls in any stretch of time as long as its window.

    A call takes a place from before it is sent until so long after its answer: its arrival at the provider lies
    somewhere between, so that the provider never counts more than we do.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._calls = limit.calls
        self._length = limit.window.total_seconds()
        self._under_way = 0
        self._ended: deque[float] = deque()

    def begin(self) -> None:
        """A call takes a place."""
        self._under_way += 1

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has been answered, or was not made after all."""
        self._under_way -= 1
        if was_sent:
            self._ended.append(now)

    def blocked(self, now: float) -> float:
        """Seconds until there may be a place; infinite if that hangs on calls under way."""
        self._forget(now)
        if self._free > 0:
            return 0.0
        return self._ended[0] + self._length - now if self._ended else math.inf

    def estimate(self, now: float, ahead: int) -> float:
        """At least so many seconds until a place is free for one who has so many ahead."""
        self._forget(now)
        missing = ahead - self._free
        if missing < 0:
            return 0.0
        rounds, place = divmod(missing, self._calls)
        first = self._ended[place] + self._length - now if place < len(self._ended) else self._length
        return rounds * self._length + first

    def is_empty(self, now: float) -> bool:
        """Whether nothing is counted."""
        self._forget(now)
        return not self._under_way and not self._ended

    @property
    def _free(self) -> int:
        return self._calls - self._under_way - len(self._ended)

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0] + self._length <= now:
            self._ended.popleft()


class Budget:
    """What may be called now of all that shares a budget: by its windows, by how many calls are taken at a time, and by
    what the provider's answers told.
    """

    def __init__(self, limits: Iterable[RateLimit], jitter: Jitter, calls_at_once: int | None = None) -> None:
        self._windows = [Window(limit) for limit in limits]
        self._jitter = jitter
        self._most_at_once = math.inf if calls_at_once is None else calls_at_once
        self._under_way = 0
        self._pauses = 0
        self._paused_until = 0.0
        self._at_once: int | None = None
        self._left = 0
        self._left_until = 0.0

    def begin(self, now: float) -> None:
        """A call begins."""
        self._under_way += 1
        if now < self._left_until:
            self._left -= 1
        for window in self._windows:
            window.begin()

    def end(self, now: float, *, was_sent: bool) -> None:
        """A call has ended, or was not made after all."""
        self._under_way -= 1
        for window in self._windows:
            window.end(now, was_sent=was_sent)

    def learn(self, answer: ApiAnswer, now: float) -> None:
        """Take note of what an answer tells; the call is still under way."""
        if answer.asks_to_wait:
            self._pause(answer.retry_after, now)
        elif now >= self._paused_until:
            self._recover()
        for quota in answer.quotas:
            self._keep_to(quota, now)

    def _pause(self, retry_after: timedelta | None, now: float) -> None:
        if now >= self._paused_until:  # those who were under way when the first was told add nothing
            self._pauses += 1
        told = 0.0 if retry_after is None else retry_after.total_seconds()
        pause = told if told >= SHORTEST_PAUSE else self._own_pause()
        self._paused_until = max(self._paused_until, now + pause)
        self._at_once = 1

    def _own_pause(self) -> float:
        return backoff(self._pauses, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter).total_seconds()

    def _recover(self) -> None:
        self._pauses = 0
        if self._at_once is not None:
            self._at_once = None if self._at_once >= _RECOVERED else 2 * self._at_once

    def _keep_to(self, quota: Quota, now: float) -> None:
        # Others under way may not have been counted by the provider yet.
        left = max(0, quota.remaining - (self._under_way - 1))
        if now >= self._left_until or left < self._left:
            self._left, self._left_until = left, now + quota.reset_after.total_seconds()

    def blocked(self, now: float) -> float:
        """Seconds until a call may begin; infinite if that hangs on calls under way."""
        is_recovering = self._at_once is not None and self._under_way >= self._at_once and now >= self._paused_until
        if is_recovering or self._under_way >= self._most_at_once:
            return math.inf
        return max(self.told_to_wait(now), *(window.blocked(now) for window in self._windows), 0.0)

    def told_to_wait(self, now: float) -> float:
        """Seconds for which the provider itself has said that it wants no call."""
        spent = self._left_until - now if self._left <= 0 else 0.0
        return max(0.0, self._paused_until - now, spent)

    def estimate(self, now: float, ahead: int) -> float:
        """At least so many seconds until a call may begin that has so many ahead."""
        return max(self.told_to_wait(now), *(window.estimate(now, ahead) for window in self._windows), 0.0)

    def is_empty(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        told = self.told_to_wait(now) or now < self._left_until or self._at_once is not None
        return not self._under_way and not told and all(window.is_empty(now) for window in self._windows)
