"""How often an integration is checked at its provider, however many callers ask."""

from collections.abc import Callable
from datetime import timedelta

from cachetools import LRUCache

from integration_server.domain.integration import IntegrationId

BURST = 3  # checks in a row: a person checks, corrects something and checks again
_MAX_INTEGRATIONS = 100_000  # the least recently checked ones are forgotten first


class CheckBudget:
    """Allows `burst` checks of an integration in a row, and then one in each `interval` (in this process).

    It is the generic cell rate algorithm: a time for each integration, from which on the budget is full again.
    """

    def __init__(self, burst: int, interval: timedelta, monotonic: Callable[[], float]) -> None:
        self._interval = interval.total_seconds()
        self._tolerance = (burst - 1) * self._interval
        self._monotonic = monotonic
        self._full_at: LRUCache[IntegrationId, float] = LRUCache(_MAX_INTEGRATIONS)

    def take(self, integration_id: IntegrationId) -> bool:
        """Whether the integration may be checked now."""
        now = self._monotonic()
        full_at = max(now, self._full_at.get(integration_id, now))
        if full_at - now > self._tolerance:
            return False
        self._full_at[integration_id] = full_at + self._interval
        return True
