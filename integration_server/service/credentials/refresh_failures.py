"""The failure policy of refreshes: retry after a pause, require reauthorization, or report our own client."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

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
from integration_server.service.credentials.ports import Lease, RefreshLeases
from integration_server.service.integrations.ports import IntegrationStore

RETRY_SOON = timedelta(seconds=1)

_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(hours=1)

_RESUME_INTERVAL = timedelta(seconds=1)  # between batches of resumed refreshes, for each type and process
_RESUME_BATCH = 500
_RESUME_SPREAD = timedelta(seconds=20)  # so that a provider that has just recovered is not overloaded

_PROBES = 3  # of a type at the start of a process: one alone may fail for a reason of its own

_MASS_FAILURE_WINDOW = timedelta(minutes=20)
"""In which the health checks of all integrations run once (`HEALTH_CHECK_INTERVAL_SECONDS` by default)."""

MASS_FAILURE_COUNT = 3
"""The number of refused users and accounts that may be a mass failure. Two may be two people who know each other."""

_MASS_FAILURE_SAMPLE = 20  # latest refreshes that are judged: in a large fleet those of seconds
_MASS_FAILURE_PAUSE = timedelta(minutes=2)
_LONGEST_MASS_FAILURE = timedelta(days=1)
"""After which a grant that is still refused has ended. In a small fleet all users may have ended theirs."""


@dataclass(frozen=True, slots=True)
class RefreshFailure:
    """The error for the caller, and what to record. `failures` counts consecutive ones, with this one.

    `due_time` is the next proactive refresh, if it is later than `retry_time`. `is_shown`: it becomes the integration's
    last error.
    """

    error: IntegrationServerError
    reauthorization_required: bool = False
    retry_time: datetime | None = None
    failures: int = 0
    due_time: datetime | None = None
    is_shown: bool = True


def grant_lost() -> RefreshFailure:
    """The grant has ended, or there is no refresh token to use.

    Each failure has its own error: one that is raised again and again keeps the frames of all its tracebacks.
    """
    return RefreshFailure(ReauthorizationRequired(), reauthorization_required=True)


class InvalidGrantDetector:
    """Detects mass failures: most grants of a client are refused within minutes, which means our client, not the users.

    It judges the latest refreshes of the client by all processes, which the leases record anyway, and reads them only
    when a grant is refused. Successes therefore cost nothing, and a restart forgets nothing.

    A user who ends many grants counts once, and so does an account whose owner ends the grants of many users. A fleet
    of one or two cannot be told apart from users who have ended their grants. `min_count` is the number of refused
    users, and of refused accounts, that is needed.
    """

    def __init__(self, leases: RefreshLeases, min_count: int = MASS_FAILURE_COUNT) -> None:
        self._leases = leases
        self._min_count = min_count

    async def record(self, lease: Lease) -> None:
        """Record a refusal. Before it is judged, so that of several at once at least the last one sees the others."""
        await self._leases.record_refusal(lease)

    async def refused_together(self, integration: Integration) -> Sequence[Integration] | None:
        """The other integrations of a mass failure of which this refused one is part; None if there is none."""
        outcomes = await self._leases.latest_outcomes(integration, _MASS_FAILURE_WINDOW, _MASS_FAILURE_SAMPLE)
        others = [outcome.integration for outcome in outcomes]
        refused = [outcome.integration for outcome in outcomes if outcome.is_refused]
        count = _independent((*refused, integration))
        is_mass_failure = count >= self._min_count and 2 * count > _independent((*others, integration))
        return refused if is_mass_failure else None

    async def lasts_for(self, lease: Lease, integration: Integration) -> bool:
        """Whether the mass failure during which this grant was first refused goes on: none has been accepted since."""
        if lease.refusal_age is None or integration.refresh_retry_time is None:
            return False
        outcomes = await self._leases.latest_outcomes(integration, lease.refusal_age, _MASS_FAILURE_SAMPLE)
        return all(outcome.is_refused for outcome in outcomes)


def _independent(integrations: Collection[Integration]) -> int:
    """How many of the integrations can have ended for different reasons: the number of users, or of accounts if less.

    An integration whose account is not known is an account of its own.
    """
    users = {integration.user_id for integration in integrations}
    accounts = {integration.account_id or integration.integration_id for integration in integrations}
    return min(len(users), len(accounts))


class RefreshFailurePolicy:
    """Classifies failed refreshes and records them."""

    def __init__(
        self,
        integrations: IntegrationStore,
        detector: InvalidGrantDetector,
        clock: Clock,
        jitter: Jitter,
        *,
        record_mass_failure: Record = record_nothing,  # integration type
    ) -> None:
        self._integrations = integrations
        self._detector = detector
        self._clock = clock
        self._jitter = jitter
        self._record_mass_failure = record_mass_failure
        self._next_resume: dict[str, datetime] = {}
        self._log = structlog.get_logger(__name__)

    def classify(self, integration: Integration, error: ProviderError) -> RefreshFailure:
        """The meaning of the provider's error.

        Only `invalid_grant`, or what the provider declares as such, ends a grant (RFC 6749 §5.2). Any other error may
        come from a proxy or concern this one request, however often it is repeated. The pause before the next refresh
        is what the provider asks for, and grows from the second failure on.
        """
        if isinstance(error, ProviderRejected) and error.oauth_error == "invalid_grant":
            return grant_lost()
        pause = error.retry_after or timedelta(0)
        if integration.refresh_failures:
            pause = max(pause, backoff(integration.refresh_failures, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter))
        return RefreshFailure(error, False, self._clock() + pause if pause else None, integration.refresh_failures + 1)

    async def resume(self, recovered: Integration) -> None:
        """After a success that ends failures: end the pauses of other integrations of the client, which may be long.

        The provider may have recovered for all of them.
        """
        key, now = recovered.client_key, self._clock()
        if now < self._next_resume.get(key, now):
            return
        self._next_resume[key] = now + _RESUME_INTERVAL
        with suppress(StoreUnavailable):  # they are refreshed after their pauses
            due_times = [now + _RESUME_SPREAD * self._jitter() for _ in range(_RESUME_BATCH)]
            count = await self._integrations.resume_refreshes(key, due_times)
            if count:
                self._log.info("refreshes_resumed", **_client_fields(recovered), integrations=count)

    async def probe(self, client_keys: Iterable[str]) -> None:
        """End a few pauses of each of these clients. The first success ends the others.

        At the start of a process its settings may have been corrected, and an operator has changed a client.
        """
        for key in client_keys:
            await self._integrations.resume_refreshes(key, [self._clock()] * _PROBES)

    async def record_refusal(
        self, lease: Lease, integration: Integration, *, is_forced: bool
    ) -> IntegrationServerError:
        """Record `invalid_grant`, and return the error for the caller.

        During a mass failure the integration stays usable, and those that ended shortly before are reverted.
        """
        await self._detector.record(lease)
        spared = self._spared(integration)
        refused = await self._mass_failure(lease, integration)
        if refused is None:
            await self.record(integration, grant_lost(), is_forced=is_forced)
            # Another process that detects a mass failure meanwhile finds nothing to revert here.
            refused = await self._mass_failure(lease, integration, may_last=False)
            if refused is None:
                return ReauthorizationRequired()
            await self._revert(integration, spared)
        else:
            await self.record(integration, spared, is_forced=is_forced)
        self._record_mass_failure(integration.integration_type)
        self._log.error("mass_invalid_grant", **_client_fields(integration))
        for other in refused:
            if other.reauthorization_required:
                await self._revert(other, self._spared(other))
        return spared.error

    async def _mass_failure(
        self, lease: Lease, integration: Integration, *, may_last: bool = True
    ) -> Sequence[Integration] | None:
        """The other refused integrations of a mass failure; None if the refusal proves that the grant has ended."""
        if lease.refusal_age is not None and lease.refusal_age > _LONGEST_MASS_FAILURE:
            return None
        refused = await self._detector.refused_together(integration)
        if refused is None and may_last and await self._detector.lasts_for(lease, integration):
            return ()
        return refused

    async def record(self, integration: Integration, failure: RefreshFailure, *, is_forced: bool = False) -> None:
        """Store a failure, unless the credentials were replaced since `integration` was read.

        A forced refresh that fails is not repeated by the background job before the token is due.
        """
        now = self._clock()
        is_shown = failure.is_shown and not isinstance(failure.error, ProviderMisconfigured)
        await self._integrations.record_failure(
            integration,
            Failure(failure.error.reason, now, str(failure.error)) if is_shown else None,
            reauthorization_required=failure.reauthorization_required,
            retry_time=failure.retry_time,
            failures=failure.failures,
            refresh_due_time=failure.due_time or failure.retry_time or now + RETRY_SOON,
            may_be_due_earlier=not is_forced,
        )

    async def _revert(self, integration: Integration, spared: RefreshFailure) -> None:
        """Make an integration usable again whose grant ended with its refusal."""
        await self._integrations.revert_failure(integration, spared.retry_time)
        self._log.warning("reauthorization_reverted", **integration.log_fields)

    def _spared(self, integration: Integration) -> RefreshFailure:
        """The failure of an integration during a mass failure: it is asked again after a pause."""
        failures = integration.refresh_failures + 1
        pause = backoff(failures, _MASS_FAILURE_PAUSE, _LONGEST_PAUSE, self._jitter)
        error = ProviderMisconfigured()
        error.retry_after = pause
        return RefreshFailure(error, retry_time=self._clock() + pause, failures=failures)


def _client_fields(integration: Integration) -> Mapping[str, str]:
    """The fields that name the client of an integration in log events."""
    client = {"oauth_client": integration.oauth_client} if integration.oauth_client else {}
    return {"integration_type": integration.integration_type, **client}
