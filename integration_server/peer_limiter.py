"""Limits of what peers that are not known may cost: failed attempts, and log lines. Imports no other module of this
package.

The memory of both classes is bounded, whatever number of peers there are.
"""

from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta

_SECOND_CHANCES = 8  # peers that are looked at before one that is over its limit is forgotten


class PeerLimiter:
    """Limits the failures of each peer: `burst` at once, and `per_second` in the long run.

    It is a GCRA: for each peer it keeps the time at which all of its failures are forgiven. Only failures count, so
    that peers without failures use no memory, and attempts that are refused do not prolong the refusal. At most
    `max_peers` are remembered. A peer over its limit is forgotten only after others, so that an attacker with many
    addresses does not free one of them with the others.
    """

    def __init__(
        self, *, burst: int, per_second: float, monotonic: Callable[[], float], max_peers: int = 10_000
    ) -> None:
        self._cost = 1 / per_second  # seconds for which a failure counts
        self._capacity = burst * self._cost
        self._monotonic = monotonic
        self._max_peers = max_peers
        self._forgiven_at: OrderedDict[str, float] = OrderedDict()  # the least recent failure first

    def retry_after(self, peer: str) -> timedelta | None:
        """Return how long the peer has to wait for its next attempt; None if it may try now."""
        excess = self._excess(self._forgiven_at.get(peer, 0.0))
        return timedelta(seconds=excess) if excess > 0 else None

    def record_failure(self, peer: str) -> None:
        """Count a failed attempt."""
        now = self._monotonic()
        self._forgiven_at[peer] = max(self._forgiven_at.get(peer, now), now) + self._cost
        self._forgiven_at.move_to_end(peer)
        if len(self._forgiven_at) > self._max_peers:
            self._forget_one()

    def forgive(self, peer: str) -> None:
        """Forget a peer's failures."""
        self._forgiven_at.pop(peer, None)

    def _excess(self, forgiven_at: float) -> float:
        """Return the seconds until a peer is below its limit; at most 0 if it is now."""
        return forgiven_at - self._monotonic() - self._capacity + self._cost

    def _forget_one(self) -> None:
        for _ in range(_SECOND_CHANCES):
            peer, forgiven_at = next(iter(self._forgiven_at.items()))
            if self._excess(forgiven_at) <= 0:
                break
            self._forgiven_at.move_to_end(peer)
        self._forgiven_at.popitem(last=False)


class LogLimiter:
    """Decides which events are logged: one for each key and interval, and `max_lines` of all keys in an interval.

    Whoever causes events without end therefore cannot fill the disk, with however many addresses.
    """

    def __init__(
        self, *, monotonic: Callable[[], float], interval: timedelta = timedelta(minutes=1), max_lines: int = 60
    ) -> None:
        self._monotonic = monotonic
        self._interval = interval.total_seconds()
        self._max_lines = max_lines
        self._interval_end = 0.0
        self._logged: set[str] = set()
        self._suppressed = 0

    def admit(self, key: str) -> int | None:
        """Return None if the event is not logged, else the number of events that were not logged before it."""
        now = self._monotonic()
        if now >= self._interval_end:
            self._interval_end = now + self._interval
            self._logged.clear()
        if key in self._logged or len(self._logged) >= self._max_lines:
            self._suppressed += 1
            return None
        self._logged.add(key)
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
