"""What a failed refresh means for its integration: try again later, connect again, or mend our own client."""

from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import datetime, timedelta

from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.integration import Integration
from integration_server.service.backoff import backoff
from integration_server.service.ports import Jitter

_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(minutes=5)
_MOST_REFUSALS = 8  # by then a provider that cannot say "invalid_grant" has meant it for some minutes

_EPIDEMIC_TIME = timedelta(minutes=1)
_EPIDEMIC_DEATHS = 20


@dataclass(frozen=True, slots=True)
class Setback:
    """What to tell the caller, and what to note of the integration."""

    error: IntegrationServerError
    reauthorization_required: bool = False
    retry_time: datetime | None = None
    refusals: int = 0


def setback(integration: Integration, error: ProviderError, now: datetime, jitter: Jitter) -> Setback:
    """What the provider's answer to a refresh means.

    `invalid_grant` ends the grant (RFC 6749 §5.2). A refusal without an error code may come from anything on the way,
    so it counts as passing until it has come many times in a row. After the rest the provider gets a pause: as long as
    it asked for, or longer after each failure, from the second one on.
    """
    if isinstance(error, ProviderRejected) and error.oauth_error == "invalid_grant":
        return Setback(ReauthorizationRequired(), reauthorization_required=True)
    refusals = integration.refresh_refusals + 1 if isinstance(error, ProviderUnavailable) and error.is_refusal else 0
    if refusals >= _MOST_REFUSALS:
        return Setback(ReauthorizationRequired(), reauthorization_required=True, refusals=refusals)
    pause = max(error.retry_after or timedelta(0), _pause(integration.error_count, jitter))
    return Setback(error, retry_time=now + pause if pause else None, refusals=refusals)


def _pause(failures_before: int, jitter: Jitter) -> timedelta:
    if failures_before == 0:
        return timedelta(0)  # one hiccup is no outage
    return backoff(failures_before, _FIRST_PAUSE, _LONGEST_PAUSE, jitter)


class DeathWatch:
    """Tells the end of one grant from the end of our client: users don't leave by the dozen in a minute.

    It counts in this process only, so that each replica comes to its own mind.
    """

    def __init__(self) -> None:
        self._outcomes: defaultdict[str, deque[tuple[datetime, bool]]] = defaultdict(deque)

    def note(self, integration_type: str, *, died: bool, now: datetime) -> None:
        """Count the outcome of a refresh."""
        outcomes = self._outcomes[integration_type]
        outcomes.append((now, died))
        while outcomes[0][0] <= now - _EPIDEMIC_TIME:
            outcomes.popleft()

    def is_epidemic(self, integration_type: str) -> bool:
        """Whether most refreshes of the last minute found their grant dead, and many did."""
        outcomes = self._outcomes[integration_type]
        deaths = sum(died for _, died in outcomes)
        return deaths >= _EPIDEMIC_DEATHS and 2 * deaths > len(outcomes)


def as_our_fault(integration: Integration, now: datetime, jitter: Jitter) -> Setback:
    """A dead grant among too many to believe it: the integration stays as it is, to be tried again."""
    pause = max(timedelta(minutes=1), _pause(integration.error_count, jitter))
    return Setback(ProviderMisconfigured(), retry_time=now + pause)
