"""The delay of an event loop: for how long it has not run what was due."""

import time
from collections.abc import Callable
from datetime import timedelta

INTERVAL = timedelta(seconds=0.25)
_WINDOW = 15.0  # seconds: Prometheus' usual interval, so that each delay is in one scrape at least


class EventLoopLag:
    """Measures the delay of the loop that calls `tick` every `INTERVAL`. Another thread reads it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()
        self._recent: tuple[tuple[float, float], ...] = ()  # replaced, never changed: it is read in another thread

    async def tick(self) -> None:
        """Record by how much this call is late."""
        now = self._monotonic()
        late = max(0.0, now - self._last - INTERVAL.total_seconds())
        self._recent = (*(entry for entry in self._recent if entry[0] > now - _WINDOW and entry[1] > late), (now, late))
        self._last = now

    def seconds(self) -> float:
        """The longest delay of the last 15 seconds; while the loop is blocked, how long that lasts."""
        now = self._monotonic()
        pending = now - self._last - INTERVAL.total_seconds()
        return max(0.0, pending, *(late for when, late in self._recent if when > now - _WINDOW))
