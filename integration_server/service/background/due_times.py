"""When the server does by itself what has to be done: spread, so that what began together does not come together."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.credentials import OAuthTokens
from integration_server.service.common_types import Jitter

_SHORTEST_LIFE = timedelta(seconds=5)  # due work is looked for once a second; tokens that live less are asked for
_SPREAD = 10  # tokens are renewed in the tenth of their life before their buffer begins
_FIRST_RETRY = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Due times of refreshes and checks.

    `buffer` is how long before its end a token has to be renewed, `check_interval` how long after a check the next one
    comes, None for never.
    """

    buffer: timedelta
    check_interval: timedelta | None
    jitter: Jitter

    def refresh_due_time(self, tokens: OAuthTokens, renew_after: timedelta = timedelta.max) -> datetime | None:
        """When to renew tokens: before anybody has to wait for it, and before they are older than `renew_after`.

        The end of tokens that cannot be renewed: somebody has to note it. None where renewing ahead is of no use.
        """
        if tokens.refresh_token is None:
            return tokens.expire_time
        if tokens.expire_time is None or tokens.lifetime is None or tokens.lifetime < _SHORTEST_LIFE:
            return None
        begin = tokens.expire_time - tokens.lifetime
        longest = min(tokens.lifetime - tokens.buffer(self.buffer), renew_after)
        return begin + longest - min(tokens.lifetime, renew_after) / _SPREAD * self.jitter()

    def first_check_time(self, now: datetime) -> datetime | None:
        """When to check an integration that has just been connected."""
        return self._after(now, self.check_interval)

    def next_check_time(self, now: datetime, failures: int) -> datetime | None:
        """When to check again after so many failures in a row: sooner than usual, and less and less so."""
        if self.check_interval is None or failures == 0:
            return self._after(now, self.check_interval)
        return self._after(now, min(self.check_interval, _FIRST_RETRY * 2 ** min(failures - 1, 16)))

    def _after(self, now: datetime, interval: timedelta | None) -> datetime | None:
        return None if interval is None else now + interval * (0.9 + 0.2 * self.jitter())
