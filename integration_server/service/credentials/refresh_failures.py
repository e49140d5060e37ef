"""The failure policy of refreshes: retry after a pause, require reauthorization, or report our own client."""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from integration_server.domain.due_times import backoff
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration
from integration_server.service.common_types import Clock, Jitter, Record, record_nothing
from integration_server.service.integrations.ports import IntegrationStore

RETRY_SOON = timedelta(seconds=1)

_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(hours=1)

_RESUME_INTERVAL = timedelta(seconds=1)  # between batches of resumed refreshes, for each type and process
_RESUME_BATCH = 500
_RESUME_SPREAD = timedelta(seconds=30)  # so that a provider that has just recovered is not overloaded

_MASS_FAILURE_WINDOW = timedelta(minutes=1)
_MASS_FAILURE_COUNT = 20
_MASS_FAILURE_PAUSE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class RefreshFailure:
    """The error for the caller, and what to record. `failures` counts consecutive ones, with this one."""

    error: IntegrationServerError
    reauthorization_required: bool = False
    retry_time: datetime | None = None
    failures: int = 0


def grant_lost() -> RefreshFailure:
    """The grant has ended, or there is no refresh token to use.

    Each failure has its own error: one that is raised again and again keeps the frames of all its tracebacks.
    """
    return RefreshFailure(ReauthorizationRequired(), reauthorization_required=True)


class RefreshFailurePolicy:
    """Classifies failed refreshes and records them."""

    def __init__(
        self,
        integrations: IntegrationStore,
        clock: Clock,
        jitter: Jitter,
        *,
        record_mass_failure: Record = record_nothing,  # integration type
    ) -> None:
        self._integrations = integrations
        self._clock = clock
        self._jitter = jitter
        self._record_mass_failure = record_mass_failure
        self._invalid_grants = InvalidGrantDetector()
        self._next_resume: dict[str, datetime] = {}
        self._log = structlog.get_logger(__name__)

    def classify(self, integration: Integration, error: ProviderError) -> RefreshFailure:
        """The meaning of the provider's error. Raises `ProviderMisconfigured` as it is: no integration is affected.

        Only `invalid_grant`, or what the provider declares as such, ends a grant (RFC 6749 §5.2). Any other error may
        come from a proxy or concern this one request, however often it is repeated. The pause before the next refresh
        is what the provider asks for, and grows from the second failure on.
        """
        if isinstance(error, ProviderMisconfigured):
            self._log.error("invalid_client", integration_type=integration.integration_type)
            raise error
        if isinstance(error, ProviderRejected) and error.oauth_error == "invalid_grant":
            return grant_lost()
        pause = error.retry_after or timedelta(0)
        if integration.refresh_failures:
            pause = max(pause, backoff(integration.refresh_failures, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter))
        return RefreshFailure(error, False, self._clock() + pause if pause else None, integration.refresh_failures + 1)

    def record_success(self, integration_type: str) -> None:
        """Count a refresh that succeeded."""
        self._invalid_grants.record(integration_type, is_invalid=False, now=self._clock())

    async def resume(self, recovered: Integration) -> None:
        """After a success that ends failures: end the pauses of other integrations of the type, which may be long.

        The provider may have recovered for all of them.
        """
        integration_type, now = recovered.integration_type, self._clock()
        if now < self._next_resume.get(integration_type, now):
            return
        self._next_resume[integration_type] = now + _RESUME_INTERVAL
        with suppress(StoreUnavailable):  # they are refreshed after their pauses
            due_times = [now + _RESUME_SPREAD * self._jitter() for _ in range(_RESUME_BATCH)]
            count = await self._integrations.resume_refreshes(integration_type, due_times)
            if count:
                self._log.info("refreshes_resumed", integration_type=integration_type, integrations=count)

    async def record_failure(
        self, integration: Integration, failure: RefreshFailure, *, is_forced: bool
    ) -> IntegrationServerError:
        """Record a classified failure of a refresh, forced or not, and return the error for the caller.

        During a mass failure the integration stays usable, and those marked in the minute before are reverted.
        """
        integration_type = integration.integration_type
        if failure.reauthorization_required:
            self._invalid_grants.record(integration_type, is_invalid=True, now=self._clock())
            if self._invalid_grants.is_mass_failure(integration_type):
                self._record_mass_failure(integration_type)
                self._log.error("mass_invalid_grant", integration_type=integration_type)
                failure = self._mass_failure(integration)
        await self.record(integration, failure, is_forced=is_forced)
        if failure.reauthorization_required:
            self._invalid_grants.track_reauthorization(integration, self._clock())
        await self._revert_reauthorizations(integration_type)
        return failure.error

    async def record(self, integration: Integration, failure: RefreshFailure, *, is_forced: bool = False) -> None:
        """Store a failure, unless the credentials were replaced since `integration` was read.

        A forced refresh that fails is not repeated by the background job before the token is due.
        """
        now = self._clock()
        is_misconfiguration = isinstance(failure.error, ProviderMisconfigured)
        await self._integrations.record_failure(
            integration,
            None if is_misconfiguration else Failure(failure.error.reason, now, str(failure.error)),
            reauthorization_required=failure.reauthorization_required,
            retry_time=failure.retry_time,
            failures=failure.failures,
            refresh_due_time=failure.retry_time or now + RETRY_SOON,
            may_be_due_earlier=not is_forced,
        )

    async def _revert_reauthorizations(self, integration_type: str) -> None:
        now = self._clock()
        for integration in self._invalid_grants.pop_reverted(integration_type, now):
            try:
                await self._integrations.revert_failure(integration, self._mass_failure(integration).retry_time)
            except StoreUnavailable:
                self._invalid_grants.track_reauthorization(integration, now)
                raise
            self._log.warning("reauthorization_reverted", **integration.log_fields)

    def _mass_failure(self, integration: Integration) -> RefreshFailure:
        return RefreshFailure(
            ProviderMisconfigured(),
            retry_time=self._clock() + _MASS_FAILURE_PAUSE * (1 + self._jitter()),
            failures=integration.refresh_failures,
        )


class InvalidGrantDetector:
    """Detects mass failures: many `invalid_grant` responses within a minute mean our client, not the users.

    During a mass failure no `invalid_grant` of that type counts until a refresh succeeds, nor do those of the minute
    before. Each process counts its own refreshes.
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
        """Whether most refreshes of a minute, and many, were `invalid_grant`, and none has succeeded since."""
        return integration_type in self._mass_failures

    def track_reauthorization(self, integration: Integration, now: datetime) -> None:
        """Store for a minute that an integration was marked for reauthorization."""
        tracked = self._tracked[integration.integration_type]
        tracked.append((now, integration))
        _expire(tracked, now)

    def pop_reverted(self, integration_type: str, now: datetime) -> Iterator[Integration]:
        """During a mass failure: the tracked integrations, each once, to be reverted by the caller."""
        if self.is_mass_failure(integration_type):
            tracked = self._tracked[integration_type]
            _expire(tracked, now)
            while tracked:
                yield tracked.popleft()[1]


def _expire(entries: deque[tuple[datetime, Any]], now: datetime) -> None:
    while entries and entries[0][0] <= now - _MASS_FAILURE_WINDOW:
        entries.popleft()
