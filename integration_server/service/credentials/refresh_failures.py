"""What a failed refresh means for its integration: try again later, connect again, or mend our own client."""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.integration import Integration
from integration_server.service.background.backoff import backoff
from integration_server.service.common_types import Jitter

_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(minutes=5)
_MAX_REFUSALS = 8  # by then, with the pauses between, a provider that does not say "invalid_grant" has meant it

_MASS_FAILURE_WINDOW = timedelta(minutes=1)
_MASS_FAILURE_COUNT = 20
_MASS_FAILURE_PAUSE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class RefreshFailure:
    """What to tell the caller, and what to note of the integration.

    `failures` and `refusals` count those in a row, with this one.
    """

    error: IntegrationServerError
    reauthorization_required: bool = False
    retry_time: datetime | None = None
    failures: int = 0
    refusals: int = 0


def classify_failure(integration: Integration, error: ProviderError, now: datetime, jitter: Jitter) -> RefreshFailure:
    """What the provider's answer to a refresh means.

    `invalid_grant` ends the grant (RFC 6749 §5.2). A refusal without an error code may come from anything on the way,
    and another code may be about this one request, so these count as passing until they have come many times in a row.
    After a failure the provider gets a pause: as long as it asked for, or longer after each, from the second one on.
    """
    if isinstance(error, ProviderRejected) and error.oauth_error == "invalid_grant":
        return RefreshFailure(ReauthorizationRequired(), reauthorization_required=True)
    failures = integration.refresh_failures + 1
    refusals = integration.refresh_refusals + 1 if _is_refusal(error) else 0
    if refusals >= _MAX_REFUSALS:
        return RefreshFailure(
            ReauthorizationRequired(), reauthorization_required=True, failures=failures, refusals=refusals
        )
    pause = max(error.retry_after or timedelta(0), _pause(integration.refresh_failures, jitter))
    return RefreshFailure(error, retry_time=now + pause if pause else None, failures=failures, refusals=refusals)


def _is_refusal(error: ProviderError) -> bool:
    return isinstance(error, ProviderRejected) or (isinstance(error, ProviderUnavailable) and error.is_refusal)


def _pause(failures_before: int, jitter: Jitter) -> timedelta:
    if failures_before == 0:
        return timedelta(0)  # one hiccup is no outage
    return backoff(failures_before, _FIRST_PAUSE, _LONGEST_PAUSE, jitter)


class InvalidGrantDetector:
    """Tells the end of one grant from the end of our client: users don't leave by the dozen in a minute.

    Once they seem to, no death of that type is believed until a refresh succeeds, nor are those that were believed in
    the minute before. It counts in this process only, so that each replica comes to its own mind.
    """

    def __init__(self) -> None:
        self._outcomes: defaultdict[str, deque[tuple[datetime, bool]]] = defaultdict(deque)
        self._mass_failures: set[str] = set()
        self._tracked: defaultdict[str, deque[tuple[datetime, Integration]]] = defaultdict(deque)

    def record(self, integration_type: str, *, is_invalid: bool, now: datetime) -> None:
        """Count the outcome of a refresh."""
        outcomes = self._outcomes[integration_type]
        outcomes.append((now, is_invalid))
        _expire(outcomes, now)
        invalid_count = sum(is_invalid for _, is_invalid in outcomes)
        if not is_invalid:
            self._mass_failures.discard(integration_type)
        elif invalid_count >= _MASS_FAILURE_COUNT and 2 * invalid_count > len(outcomes):
            self._mass_failures.add(integration_type)

    def is_mass_failure(self, integration_type: str) -> bool:
        """Whether many refreshes within a minute, and most of them, found their grant dead, and none is well since."""
        return integration_type in self._mass_failures

    def track_reauthorization(self, integration: Integration, now: datetime) -> None:
        """Remember for a minute that the grant of an integration was noted as dead."""
        tracked = self._tracked[integration.integration_type]
        tracked.append((now, integration))
        _expire(tracked, now)

    def pop_reverted(self, integration_type: str, now: datetime) -> Iterator[Integration]:
        """Those whose death is not believed any more, each once; all that is asked for is taken back."""
        if self.is_mass_failure(integration_type):
            tracked = self._tracked[integration_type]
            _expire(tracked, now)
            while tracked:
                yield tracked.popleft()[1]


def _expire(entries: deque[tuple[datetime, Any]], now: datetime) -> None:
    while entries and entries[0][0] <= now - _MASS_FAILURE_WINDOW:
        entries.popleft()


def as_misconfiguration(integration: Integration, now: datetime, jitter: Jitter) -> RefreshFailure:
    """A dead grant among too many to believe it: the integration stays as it is, to be tried again."""
    return RefreshFailure(
        ProviderMisconfigured(),
        retry_time=now + _MASS_FAILURE_PAUSE * (1 + jitter()),
        failures=integration.refresh_failures,
        refusals=integration.refresh_refusals,
    )
