"""The due times of proactive refreshes and health checks, with jitter so that they spread over time.

They are on the process's clock, like the token expiry that they derive from. Claims compare them with the database's
clock: a wrong process clock shifts work, but claims stay exclusive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.credentials import OAuthTokens

_SHORTEST_LIFETIME = timedelta(seconds=5)  # others are refreshed on demand: the worker polls once a second
_SPREAD = 10  # refreshes are spread over the tenth of a token's lifetime before its buffer begins
_FIRST_RETRY = timedelta(minutes=1)


def backoff(failures: int, first: timedelta, longest: timedelta, jitter: Callable[[], float]) -> timedelta:
    """The pause after `failures` failures in a row (≥ 1): `first`, doubled with each failure up to `longest`, times a
    random factor between 0.5 and 1."""
    doubled = first * 2.0 ** min(failures - 1, 16)
    return min(doubled, longest) * (0.5 + jitter() / 2)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Computes due times.

    `buffer` is how long before its expiry a token is refreshed. `check_interval` is the time between health checks of
    an integration; None switches them off.
    """

    buffer: timedelta
    check_interval: timedelta | None
    jitter: Callable[[], float]

    def refresh_due_time(self, tokens: OAuthTokens, renew_after: timedelta = timedelta.max) -> datetime | None:
        """When to refresh tokens: before a caller has to wait for it, and before they are older than `renew_after`.

        For tokens that cannot be renewed it is their expiry, which the job then records. None where a refresh ahead of
        expiry has no use.
        """
        if not tokens.is_renewable:
            return tokens.expire_time
        if tokens.expire_time is None or tokens.lifetime is None or tokens.lifetime < _SHORTEST_LIFETIME:
            return None
        begin = tokens.expire_time - tokens.lifetime
        longest = min(tokens.lifetime - tokens.buffer(self.buffer), renew_after)
        return begin + longest - min(tokens.lifetime, renew_after) / _SPREAD * self.jitter()

    def next_check_time(self, now: datetime, failures: int = 0) -> datetime | None:
        """When to check an integration again after `failures` failed checks in a row: sooner while they are few."""
        if self.check_interval is None:
            return None
        if failures:
            return now + backoff(failures, _FIRST_RETRY, self.check_interval, self.jitter)
        return now + self.check_interval * (0.9 + 0.2 * self.jitter())
