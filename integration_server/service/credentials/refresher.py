"""The refresher: one refresh of an integration at a time, in this process and over all processes.

docs/refreshing.md describes the steps, what is durable when, and every crash point.

- A refresh is a detached task. Callers of one process share it, and it runs to its end without them.
- Between processes, a lease in the database admits one refresh at a time.
- An expired lease means that its refresh token may be spent. The next owner waits for the outcome of that call, and
  uses the token again only if the provider documents that it still works.
- A forced refresh, of a token that still lasts, calls the provider once per minimum interval, over all callers and
  processes: the claim of the lease enforces it. Within the interval the last outcome is the result.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta

import structlog

from integration_server.domain.audit import Action, AuditEntry, background_entry
from integration_server.domain.credentials import RefreshCause
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
from integration_server.domain.integration import Integration, IntegrationId
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock, Jitter, RandomToken, Record, record_nothing
from integration_server.service.credentials.ports import Lease, LeaseState, RefreshLeases
from integration_server.service.credentials.refresh_commit import RefreshCommitter, RefreshResult
from integration_server.service.credentials.refresh_failures import RETRY_SOON, RefreshFailurePolicy, grant_lost
from integration_server.service.integrations.ports import IntegrationStore, StoredIntegration
from integration_server.service.provider_port import Provider, Providers

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
        self._unreleased: deque[tuple[Lease, bool, str | None]] = deque()
        self._outage_until = self.clock()  # as far as this process knows

    async def refresh(self, observed: Integration, cause: RefreshCause = RefreshCause.EXPIRY) -> RefreshResult:
        """Tokens newer than those of `observed`, from a refresh by any process.

        Within the minimum interval of a forced refresh: the tokens as they are, with `retry_after`, or the last error.
        Raises `ReauthorizationRequired`, `ProviderUnavailable`, `ProviderMisconfigured` or `ProviderRejected`.
        """
        return await self.tasks.outcome(self._flight(observed, None, cause))

    async def refresh_proactively(self, due: StoredIntegration) -> bool:
        """Refresh an integration that was just read, or record that its tokens have expired and cannot be refreshed.

        Returns False if the refresh shows that the provider is unhealthy.
        """
        try:
            await self.tasks.outcome(self._flight(due.integration, due, RefreshCause.EXPIRY))
        except (ProviderUnavailable, ProviderMisconfigured, ProviderNotConfigured):
            return False
        except IntegrationServerError:
            return True  # concerns this integration only, and is recorded there
        return True

    async def recover(self) -> None:
        """Commit what was journaled and release the leases that could not be released. Runs every second."""
        try:
            await self.integrations.ping()
        except StoreUnavailable:
            self._outage_until = self.clock()
            raise
        try:
            await self.committer.recover_journal()
        finally:
            while self._unreleased:
                lease, outcome_known, failure = self._unreleased.popleft()
                try:
                    await self.leases.release(lease, outcome_known=outcome_known, failure=failure)
                except Exception:
                    self._unreleased.append((lease, outcome_known, failure))
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
            # Forced, or after a wait, read first: only processes that may refresh write.
            state = await self.leases.state(current.integration) if polls or cause.is_forced else LeaseState()
            if state.is_free:
                if cause.is_forced and state.forced_wait:
                    return self._last_outcome(current, state)
                if polls and state.failure is not None:  # of the refresh that this one has waited for
                    raise _error_of(state.failure)
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
        if current.tokens.refresh_token is None:
            if current.tokens.has_expired(self.clock()):
                self._log.warning("access_token_expired", **current.integration.log_fields)
                await self.failures.record(current.integration, grant_lost())
            raise ReauthorizationRequired
        retry_time = current.integration.refresh_retry_time
        if retry_time is not None and retry_time > self.clock() and cause is not RefreshCause.FORCE:
            raise ProviderUnavailable(
                "the provider failed recently and is not called during a pause", retry_after=retry_time - self.clock()
            )

    # --- lease -------------------------------------------------------------------------------------------------------

    async def _refresh_under_lease(self, current: RefreshResult, cause: RefreshCause) -> RefreshResult | None:
        """Refresh under a lease. None without a lease: then the caller reads the current tokens again."""
        integration = current.integration
        provider = self.providers[integration.integration_type]
        provider.require_configured()
        start_time = self.clock()
        lease = await self._claim(integration, cause)
        if lease is None:
            return None
        outcome_known, version, reason = True, lease.version, None
        was_called = False
        try:
            await self._require_unused_token(lease, integration, provider)
            if provider.refresh_token_grace and self.clock() - start_time >= self.lease_duration:
                return None  # the process was suspended, and another may have used the token within its grace
            outcome_known = False
            was_called = True
            self.record_call(integration.integration_type)
            try:
                token_response = await provider.refresh(current.tokens)
            except ProviderError as error:
                outcome_known = True
                return await self._handle_failure(integration, error, cause)
            tokens = current.tokens.updated_with(token_response, self.clock())
            self.failures.record_success(integration.integration_type)
            refreshed, outcome_known = await self.committer.commit(integration, tokens, provider)
            version = refreshed.integration.version
            self.record_outcome(integration.integration_type, "success")
        except IntegrationServerError as error:
            reason = error.reason
            if was_called:
                self.record_outcome(integration.integration_type, _FAILED_OUTCOMES.get(reason, "transient"))
            raise
        finally:
            if version == lease.version:  # a commit voids the lease
                await self._release(lease, outcome_known=outcome_known, failure=reason)
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
                self._unreleased.append((unknown, True, None))
            else:
                await self._release(unknown, outcome_known=True)
            raise

    async def _require_unused_token(self, lease: Lease, integration: Integration, provider: Provider) -> None:
        """Raise if an earlier call may have spent the refresh token and the provider gives no grace for it."""
        if lease.previous_call_age is None or lease.previous_call_age < provider.refresh_token_grace:
            return
        # The owner of that call cannot commit during a database outage, however old the call gets.
        since_outage = self.clock() - self._outage_until
        wait = max(
            self._lost_call_wait - lease.previous_call_age,
            self._holder_wait - since_outage,
        )
        if wait > timedelta(0):
            raise ProviderUnavailable("the outcome of an earlier refresh is not known yet", retry_after=wait)
        if await self.committer.is_journaled(integration):
            raise ProviderUnavailable("an earlier refresh is about to be committed", retry_after=RETRY_SOON)
        self.record_outcome(integration.integration_type, "lost")
        self._log.error("refresh_outcome_unknown", **integration.log_fields)
        if integration.reauthorization_required:
            return  # forced: the grant is given up already, so that another use of the token loses nothing
        await self.failures.record(integration, grant_lost())
        raise ReauthorizationRequired

    async def _release(self, lease: Lease, *, outcome_known: bool, failure: str | None = None) -> None:
        try:
            await self.leases.release(lease, outcome_known=outcome_known, failure=failure)
        except Exception:  # `recover` retries
            self._unreleased.append((lease, outcome_known, failure))

    # --- failure -----------------------------------------------------------------------------------------------------

    async def _handle_failure(
        self, integration: Integration, error: ProviderError, cause: RefreshCause
    ) -> RefreshResult:
        """Return tokens that another replica has got meanwhile, or record the failure and raise its error."""
        self.record_audit(background_entry(self.clock(), Action.REFRESH, integration, error.reason))
        self._log.warning(
            "refresh_failed",
            **integration.log_fields,
            error_class=error.reason,
            oauth_error=error.oauth_error,
            provider_reason=error.provider_reason,
        )
        failure = self.failures.classify(integration, error)
        if failure.reauthorization_required:
            # The token may be invalid because another replica has used it.
            current = await self.committer.read(integration, may_have_ended=integration.reauthorization_required)
            if current.integration.version != integration.version:
                return current
        if integration.reauthorization_required:
            # Forced, after the grant has ended. Its end was counted then: counted again, a few users who force dead
            # grants would look like a mass failure.
            await self.failures.record(integration, failure, is_forced=cause.is_forced)
            recorded = failure.error
        else:
            recorded = await self.failures.record_failure(integration, failure, is_forced=cause.is_forced)
        raise recorded from (None if recorded is error else error)  # never its own cause


def _error_of(failure: str | None) -> IntegrationServerError:
    return _ERRORS.get(failure or "", ProviderUnavailable)()
