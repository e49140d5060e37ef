"""The refresher: one refresh of an integration at a time, in this process and over all processes.

docs/refreshing.md describes the steps, what is durable when, and every crash point.

- A refresh is a detached task. Callers of one process share it, and it runs to its end without them.
- Between processes, a lease in the database admits one refresh at a time.
- A call whose outcome is unknown may have spent the refresh token. A second use may end the grant, and with it the
  access token that still works. It is therefore repeated only when that token is about to expire, unless the provider
  documents that a used refresh token still works.
- A forced refresh, of a token that still lasts, calls the provider once per minimum interval, over all callers and
  processes: the claim of the lease enforces it. Within the interval the last outcome is the result.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta
from typing import Any

import structlog

from integration_server.domain.audit import Action, AuditEntry, background_entry
from integration_server.domain.credentials import OAuthTokens, RefreshCause
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, StoredIntegration
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock, Jitter, RandomToken, Record, record_nothing
from integration_server.service.credentials.ports import Lease, LeaseState, RefreshLeases
from integration_server.service.credentials.refresh_commit import RefreshCommitter, RefreshResult
from integration_server.service.credentials.refresh_failures import (
    RETRY_SOON,
    RefreshFailure,
    RefreshFailurePolicy,
    grant_lost,
)
from integration_server.service.integrations.ports import (
    IntegrationStore,
)
from integration_server.service.provider_port import Providers

_UNKNOWN_EXPIRY = timedelta(hours=1)
"""When to look again at a lost call if the access token has no known expiry: it works until the API rejects it."""

_POLL_INTERVAL = 0.05  # seconds between polls of another refresh, growing to ten times that; most take 0.1 to 0.5 s

_ERRORS: Mapping[str, Callable[[], IntegrationServerError]] = {
    ProviderMisconfigured.reason: ProviderMisconfigured,
    ProviderRejected.reason: lambda: ProviderRejected("grant"),
    ReauthorizationRequired.reason: ReauthorizationRequired,
}
"""The errors of refreshes by their recorded reasons; for any other reason `ProviderUnavailable`."""

_FAILED_OUTCOMES = {ReauthorizationRequired.reason: "terminal", ProviderMisconfigured.reason: "client"}
"""The outcomes of refreshes for the metrics, by the reasons of their errors; for any other reason `transient`."""


@dataclass(eq=False, repr=False)
class TokenRefresher:
    """Refreshes the tokens of integrations."""

    integrations: IntegrationStore
    leases: RefreshLeases
    committer: RefreshCommitter
    failures: RefreshFailurePolicy
    providers: Providers
    tasks: DetachedTasks
    clock: Clock
    random_token: RandomToken
    jitter: Jitter
    record_audit: Callable[[AuditEntry], object]
    wait_for_audit: Callable[[Action], Awaitable[None]]
    _: KW_ONLY
    lease_duration: timedelta
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    record_call: Record = record_nothing  # integration type
    record_outcome: Record = record_nothing  # integration type, outcome

    def __post_init__(self) -> None:
        # For a lease to end; after a database outage, for journaled tokens to be committed.
        self._holder_wait = 1.5 * self.lease_duration
        # For the outcome of a provider call whose lease has expired.
        self._lost_call_wait = 3 * self.lease_duration
        self._log = structlog.get_logger(__name__)
        self._flights: dict[tuple[IntegrationId, RefreshCause], asyncio.Task[RefreshResult]] = {}
        self._unreleased: deque[tuple[Lease, dict[str, Any]]] = deque()
        self._has_probed = False
        self._outage_until = self.clock()  # as far as this process knows

    async def refresh(self, observed: Integration, cause: RefreshCause = RefreshCause.EXPIRY) -> RefreshResult:
        """Tokens newer than those of `observed`, from a refresh by any process.

        Within the minimum interval of a forced refresh: the tokens as they are, with `retry_after`, or the last error.
        Raises `ReauthorizationRequired`, `ProviderUnavailable`, `ProviderMisconfigured` or `ProviderRejected`.
        """
        return await self.tasks.outcome(self._flight(observed, None, cause))

    async def refresh_proactively(self, due: StoredIntegration) -> bool:
        """Refresh an integration that was just read, or record that its tokens have expired and cannot be refreshed.

        Returns False if the refresh shows that the provider is unhealthy. Raises an `IntegrationServerError` that
        concerns this integration only.
        """
        try:
            await self.tasks.outcome(self._flight(due.integration, due, RefreshCause.EXPIRY))
        except (ProviderUnavailable, ProviderMisconfigured, ProviderNotConfigured):
            return False
        return True

    async def recover(self) -> None:
        """Commit what was journaled and release the leases that could not be released. Runs every second.

        The first run that reaches the database also ends a few pauses.
        """
        try:
            await self.integrations.ping()
        except StoreUnavailable:
            self._outage_until = self.clock()
            raise
        if not self._has_probed:
            await self.failures.probe(provider.integration_type for provider in self.providers.all())
            self._has_probed = True
        try:
            await self.committer.recover_journal()
        finally:
            while self._unreleased:
                lease, outcome = self._unreleased.popleft()
                try:
                    await self.leases.release(lease, **outcome)
                except Exception:
                    self._unreleased.append((lease, outcome))
                    raise

    # --- single flight -----------------------------------------------------------------------------------------------

    def _flight(
        self, observed: Integration, stored: StoredIntegration | None, cause: RefreshCause
    ) -> asyncio.Task[RefreshResult]:
        """The refresh of this integration for this cause that is in flight in this process, or a new one.

        A flight for another cause may end without a new token. Of two flights, the lease admits one.
        """
        key = observed.integration_id, cause
        flight = self._flights.get(key)
        if flight is None:
            flight = self.tasks.start(self._wait_for_tokens(observed, stored, cause))
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key))
        return flight

    async def _wait_for_tokens(
        self, observed: Integration, stored: StoredIntegration | None, cause: RefreshCause
    ) -> RefreshResult:
        """Refresh, or poll until another process has."""
        start_time, polls = self.clock(), 0
        may_have_ended = cause is RefreshCause.FORCE
        if stored is None:
            current = await self.committer.read(observed, may_have_ended=may_have_ended)
        else:
            current = await self.committer.decrypt(stored)
        while True:
            if current.integration.version != observed.version and not current.tokens.has_expired(self.clock()):
                return current
            await self._require_refreshable(current, cause)
            # Forced, or after a wait or a failure, read first: only processes that may refresh write.
            reads = polls or cause.is_forced or current.integration.refresh_failures
            state = await self.leases.state(current.integration) if reads else LeaseState()
            if state.is_free:
                if cause.is_forced and state.forced_wait:
                    return self._last_outcome(current, state)
                if polls and state.failure is not None:  # of the refresh that this one has waited for
                    raise _error_of(state.failure)
                if (wait := self._wait_for_earlier_call(state, current, cause)) > timedelta(0):
                    raise _outcome_unknown(wait)
                refreshed = await self._refresh_under_lease(current, cause)
                if refreshed is not None:
                    return refreshed
            if self.clock() - start_time > self._holder_wait:
                raise ProviderUnavailable("another refresh of this integration has not ended", retry_after=RETRY_SOON)
            polls += 1
            await self.pause(_POLL_INTERVAL * min(polls, 10) * (0.5 + self.jitter()))
            current = await self.committer.read(observed, may_have_ended=may_have_ended)

    def _last_outcome(self, current: RefreshResult, state: LeaseState) -> RefreshResult:
        """The outcome of the last refresh: the current tokens with the time until the next one, or its error."""
        failure = state.failure
        if failure is None and current.integration.reauthorization_required:
            failure = ReauthorizationRequired.reason
        if failure is None and not current.tokens.has_expired(self.clock()):
            return replace(current, retry_after=state.forced_wait)
        error = _error_of(failure)
        error.retry_after = state.forced_wait
        raise error

    async def _require_refreshable(self, current: RefreshResult, cause: RefreshCause) -> None:
        if not current.tokens.is_renewable:
            if current.tokens.has_expired(self.clock()):
                self._log.warning("access_token_expired", **current.integration.log_fields)
                await self.failures.record(current.integration, grant_lost())
            raise ReauthorizationRequired
        retry_time = current.integration.refresh_retry_time
        if retry_time is not None and retry_time > self.clock() and cause is not RefreshCause.FORCE:
            state = await self.leases.state(current.integration)
            error = _error_of(state.failure, is_usable=True)
            error.retry_after = retry_time - self.clock()
            raise error

    # --- lease -------------------------------------------------------------------------------------------------------

    async def _refresh_under_lease(self, current: RefreshResult, cause: RefreshCause) -> RefreshResult | None:
        """Refresh under a lease. None without a lease: then the caller reads the current tokens again."""
        integration = current.integration
        found = await self.providers.for_client(integration.integration_type, integration.oauth_client)
        found.require_configured()
        provider = found.oauth
        if provider is None:
            raise ReauthorizationRequired  # the type has API keys now
        await self.wait_for_audit(Action.REFRESH)  # before the call: afterwards its entry is queued in any case
        start_time = self.clock()
        lease = await self._claim(integration, cause)
        if lease is None:
            return None
        outcome_known, is_lost, version, reason = True, False, lease.version, None
        was_called = False
        try:
            await self._require_unused_token(lease, current, cause)
            if provider.refresh_token_grace and self.clock() - start_time >= self.lease_duration:
                return None  # the process was suspended, and another may have used the token within its grace
            outcome_known = False
            was_called = True
            self.record_call(integration.integration_type)
            try:
                token_response = await self.providers.authenticated(
                    provider, lambda authenticated: authenticated.refresh(current.tokens)
                )
            except ProviderError as error:
                is_lost = isinstance(error, ProviderUnavailable) and error.outcome_unknown
                outcome_known = not is_lost
                return await self._handle_failure(lease, current, error, cause)
            tokens = current.tokens.updated_with(token_response, self.clock())
            refreshed, outcome_known = await self.committer.commit(integration, tokens, provider)
            version = refreshed.integration.version
            self.record_outcome(integration.integration_type, "success")
        except IntegrationServerError as error:
            reason = error.reason
            if was_called:
                outcome = "lost" if is_lost else _FAILED_OUTCOMES.get(reason, "transient")
                self.record_outcome(integration.integration_type, outcome)
            raise
        finally:
            if version == lease.version:  # a commit voids the lease
                await self._release(lease, outcome_known=outcome_known, is_lost=is_lost, failure=reason)
        if integration.refresh_failures:
            await self.failures.resume(integration)
        if outcome_known:
            self.record_audit(background_entry(self.clock(), Action.REFRESH, integration, new_version=version))
            self._log.info(
                "refresh_completed",
                **integration.log_fields,
                expire_time=refreshed.tokens.expire_time,
                superseded=refreshed.tokens is not tokens,
            )
        if refreshed.tokens.has_expired(self.clock()):  # committed all the same: the refresh token may have rotated
            raise ProviderUnavailable("the provider issued a token that has already expired")
        return refreshed

    async def _claim(self, integration: Integration, cause: RefreshCause) -> Lease | None:
        """Claim the lease. If the outcome of the claim is unknown, it is released: no call was made under it."""
        owner = self.random_token()
        try:
            return await self.leases.claim(integration, owner, cause)
        except (StoreUnavailable, asyncio.CancelledError) as error:
            unknown = Lease(integration.integration_id, integration.version, owner, previous_call_age=None)
            if isinstance(error, StoreUnavailable):
                self._unreleased.append((unknown, {"outcome_known": True}))
            else:
                await self._release(unknown, outcome_known=True)
            raise

    async def _require_unused_token(self, lease: Lease, current: RefreshResult, cause: RefreshCause) -> None:
        """Raise while an earlier call may have spent the refresh token and a second use may lose more than it gains."""
        integration = current.integration
        if cause is RefreshCause.REJECTION and lease.previous_call_age is not None and await self._works(current):
            cause = RefreshCause.DEMAND
        wait = self._wait_for_earlier_call(lease, current, cause)
        if wait > timedelta(0):
            failures = max(1, integration.refresh_failures)  # so that the next ones read this without a lease
            failure = self._due_after(wait, RefreshFailure(_outcome_unknown(wait), failures=failures, is_shown=False))
            await self.failures.record(integration, failure, is_forced=cause.is_forced)
            raise failure.error
        if lease.previous_call_age is None or lease.previous_call_age < self._grace(integration):
            return
        if await self.committer.is_journaled(integration):
            raise ProviderUnavailable("an earlier refresh is about to be committed", retry_after=RETRY_SOON)
        if not lease.previous_call_is_lost:  # otherwise its owner has recorded it
            self.record_outcome(integration.integration_type, "lost")
        self._log.warning("refresh_outcome_unknown", **integration.log_fields)

    async def _works(self, current: RefreshResult) -> bool:
        """Whether the provider accepts the access token: a single resource may respond 401 to every token."""
        integration = current.integration
        provider = await self.providers.for_client(integration.integration_type, integration.oauth_client)
        try:
            await provider.for_config(integration.config).verify_connection(current.tokens)
        except ProviderRejected as error:
            return not error.needs_new_token
        except ProviderError:
            pass  # not known: nothing that may still work is given up
        return True

    def _wait_for_earlier_call(
        self, found: Lease | LeaseState, current: RefreshResult, cause: RefreshCause
    ) -> timedelta:
        """How long to wait before the refresh token is used again that an earlier call may have spent.

        - As long as the process of that call may commit its response.
        - As long as the access token works, which the provider may end with the grant. It does not work if the API has
          rejected it. `FORCE` does not wait for it, unless the process may still commit: then nothing is lost yet.
        """
        age, tokens = found.previous_call_age, current.tokens
        if age is None or age < self._grace(current.integration):
            return timedelta(0)
        waits = [timedelta(0)]
        if not found.previous_call_is_lost:
            # It cannot commit during a database outage, however old the call gets.
            waits += [self._lost_call_wait - age, self._holder_wait - (self.clock() - self._outage_until)]
        is_explicit = cause is RefreshCause.FORCE and found.previous_call_is_lost
        if not (is_explicit or cause is RefreshCause.REJECTION or current.integration.reauthorization_required):
            waits.append(self._time_until_last_moment(tokens))
        return max(waits)

    def _time_until_last_moment(self, tokens: OAuthTokens) -> timedelta:
        """The time until an access token is about to expire: a refresh then still ends before the expiry.

        That is two lease durations, or a tenth of the token's lifetime if less: time for a few attempts.
        """
        if tokens.expire_time is None:
            return _UNKNOWN_EXPIRY
        margin = 2 * self.lease_duration
        if tokens.lifetime is not None:
            margin = min(margin, tokens.lifetime / 10)
        return tokens.expire_time - margin - self.clock()

    def _due_after(self, wait: timedelta, failure: RefreshFailure) -> RefreshFailure:
        """The failure with the next proactive refresh after the wait for an earlier call."""
        due_time = self.clock() + max(wait, RETRY_SOON)
        return replace(failure, due_time=max(due_time, failure.retry_time or due_time))

    def _grace(self, integration: Integration) -> timedelta:
        return self.providers[integration.integration_type].refresh_token_grace

    async def _release(
        self, lease: Lease, *, outcome_known: bool, is_lost: bool = False, failure: str | None = None
    ) -> None:
        outcome = {"outcome_known": outcome_known, "is_lost": is_lost, "failure": failure}
        try:
            await self.leases.release(lease, outcome_known=outcome_known, is_lost=is_lost, failure=failure)
        except Exception:  # `recover` retries
            self._unreleased.append((lease, outcome))

    # --- failure -----------------------------------------------------------------------------------------------------

    async def _handle_failure(
        self, lease: Lease, current: RefreshResult, error: ProviderError, cause: RefreshCause
    ) -> RefreshResult:
        """Return tokens that another replica has got meanwhile, or record the failure and raise its error."""
        integration = current.integration
        self.record_audit(background_entry(self.clock(), Action.REFRESH, integration, error.reason))
        self._log.warning(
            "refresh_failed",
            **integration.log_fields,
            error_class=error.reason,
            oauth_error=error.oauth_error,
            provider_reason=error.provider_reason,
        )
        failure = self.failures.classify(integration, error)
        if isinstance(error, ProviderUnavailable) and error.outcome_unknown:
            lost = replace(lease, previous_call_age=timedelta(0), previous_call_is_lost=True)
            failure = self._due_after(self._wait_for_earlier_call(lost, current, RefreshCause.EXPIRY), failure)
        if failure.reauthorization_required:
            # The token may be invalid because another replica has used it.
            newest = await self.committer.read(integration, may_have_ended=integration.reauthorization_required)
            if newest.integration.version != integration.version:
                return newest
        if failure.reauthorization_required and not integration.reauthorization_required:
            recorded = await self.failures.record_refusal(lease, integration, is_forced=cause.is_forced)
        else:  # a forced refresh after the grant has ended is no new refusal
            await self.failures.record(integration, failure, is_forced=cause.is_forced)
            recorded = failure.error
        if failure.retry_time is not None:
            recorded.retry_after = max(recorded.retry_after or timedelta(0), failure.retry_time - self.clock())
        raise recorded from (None if recorded is error else error)  # never its own cause


def _outcome_unknown(wait: timedelta) -> ProviderUnavailable:
    return ProviderUnavailable("the outcome of an earlier refresh is not known yet", retry_after=wait)


def _error_of(failure: str | None, *, is_usable: bool = False) -> IntegrationServerError:
    """The error for the recorded reason of the last one. `is_usable`: a refusal was then part of a mass failure."""
    if is_usable and failure == ReauthorizationRequired.reason:
        return ProviderMisconfigured()
    return _ERRORS.get(failure or "", ProviderUnavailable)()
