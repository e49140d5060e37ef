"""Renewing access tokens so that none is lost: docs/refreshing.md draws it.

- The refresh is a task of the server (see `tasks.py`): callers come and go, the answer is kept.
- Within this process callers share one flight; between processes a lease in the database lets one refresh at a time.
- The version is the fence: an answer is committed over the version that it renews or not at all, whoever holds the
  lease by then.
- A lapsed lease tells whoever takes it over that the refresh token may be spent. They wait for the holder, and use the
  token again only if the provider documents that it still works.
- An answer that cannot be committed is written to the journal on disk, and committed when the database is back.
- An answer for an integration that has been disconnected meanwhile goes into the outbox, to be revoked.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from integration_server.domain.audit import SERVER, SUCCESS, Action, AuditEntry
from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, IntegrationId
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Clock, Jitter, RandomToken
from integration_server.service.connections.account_linking import AccountLinker, require_configured
from integration_server.service.connections.revocation_ports import OrphanedGrant, RevocationOutbox
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.ports import JournaledRefresh, Lease, RefreshJournal, RefreshLeases
from integration_server.service.credentials.refresh_failures import (
    InvalidGrantDetector,
    RefreshFailure,
    as_misconfiguration,
    classify_failure,
)
from integration_server.service.integrations.ports import IntegrationStore, NewCredentials, StoredIntegration
from integration_server.service.provider_port import Provider, Providers

_POLL_INTERVAL = (
    0.05  # seconds between looks at another's refresh, growing to ten times that: most take some hundreds of ms
)
_RETRY_SOON = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """An integration as it is after a refresh, with the tokens that it has now."""

    integration: Integration
    tokens: OAuthTokens = field(repr=False)


@dataclass(frozen=True, slots=True)
class LeaseTimeouts:
    """How long to wait for others, before their token is given up; `lease` is how long each has it."""

    lease: timedelta = timedelta(seconds=30)

    @property
    def holder_wait(self) -> timedelta:
        """For a holder of the lease to end; after an outage of the database, for journaled responses to be
        committed.
        """
        return 1.5 * self.lease

    @property
    def lost_call_wait(self) -> timedelta:
        """For one that called the provider, to come back with the answer."""
        return 3 * self.lease


class TokenRefresher:
    """Renews the tokens of one integration at a time, for all who wait for them."""

    def __init__(
        self,
        integrations: IntegrationStore,
        leases: RefreshLeases,
        journal: RefreshJournal,
        revocations: RevocationOutbox,
        account_linker: AccountLinker,
        providers: Providers,
        cipher: CredentialCipher,
        tasks: DetachedTasks,
        clock: Clock,
        random_token: RandomToken,
        jitter: Jitter,
        record_audit: Callable[[AuditEntry], object],
        *,
        lease_timeouts: LeaseTimeouts,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._integrations = integrations
        self._leases = leases
        self._journal = journal
        self._revocations = revocations
        self._account_linker = account_linker
        self._providers = providers
        self._cipher = cipher
        self._tasks = tasks
        self._clock = clock
        self._random_token = random_token
        self._jitter = jitter
        self._record_audit = record_audit
        self._lease_timeouts = lease_timeouts
        self._pause = pause
        self._log = structlog.get_logger(__name__)
        self._invalid_grants = InvalidGrantDetector()
        self._flights: dict[IntegrationId, asyncio.Task[RefreshResult]] = {}
        self._unreleased: deque[tuple[Lease, bool]] = deque()
        self._outage_until = clock()  # as far as this process knows

    async def refresh(self, observed: Integration, *, force: bool = False) -> RefreshResult:
        """Tokens newer than those of the integration as it was seen, from a refresh of ours or of somebody else.

        With `force` the provider is asked even during the pause after a failure. Raises `ReauthorizationRequired`,
        `ProviderUnavailable`, `ProviderMisconfigured` or `ProviderRejected`.
        """
        return await self._tasks.outcome(self._flight(observed, None, force=force))

    async def refresh_proactively(self, due: StoredIntegration) -> bool:
        """Refresh what was just read, before anybody has to wait for it, or note that it has ended and cannot be
        refreshed; whether the provider is well, as far as that showed."""
        try:
            await self._tasks.outcome(self._flight(due.integration, due, force=False))
        except (ProviderUnavailable, ProviderMisconfigured, ProviderNotConfigured):
            return False
        except IntegrationServerError:
            return True  # about this integration, and noted there
        return True

    # --- one flight --------------------------------------------------------------------------------------------------

    def _flight(
        self, observed: Integration, stored_row: StoredIntegration | None, *, force: bool
    ) -> asyncio.Task[RefreshResult]:
        """The one that is under way, or a new one."""
        flight = self._flights.get(observed.integration_id)
        if flight is None:
            flight = self._tasks.start(self._poll_for_tokens(observed, stored_row, force=force))
            self._flights[observed.integration_id] = flight
            flight.add_done_callback(lambda _: self._flights.pop(observed.integration_id))
        return flight

    async def _poll_for_tokens(
        self, observed: Integration, stored_row: StoredIntegration | None, *, force: bool
    ) -> RefreshResult:
        """Look until there are newer tokens, whoever gets them."""
        start_time, polls = self._clock(), 0
        current = await (self._current(observed) if stored_row is None else self._decrypted(stored_row))
        while True:
            if current.integration.version != observed.version and not current.tokens.has_expired(self._clock()):
                return current
            await self._require_refreshable(current, force=force)
            # Who has waited asks first: only those who find it free write.
            if polls == 0 or await self._leases.is_free(current.integration):
                refreshed = await self._refresh_under_lease(current)
                if refreshed is not None:
                    return refreshed
            if self._clock() - start_time > self._lease_timeouts.holder_wait:
                raise ProviderUnavailable("another refresh of this integration has not ended", retry_after=_RETRY_SOON)
            polls += 1
            await self._pause(_POLL_INTERVAL * min(polls, 10) * (0.5 + self._jitter()))
            current = await self._current(observed)

    async def _require_refreshable(self, current: RefreshResult, *, force: bool) -> None:
        if current.tokens.refresh_token is None:
            if current.tokens.has_expired(self._clock()):  # only time did that, so nobody has noted it yet
                self._log.warning("access_token_expired", **_log_fields(current.integration))
                failure = RefreshFailure(ReauthorizationRequired(), reauthorization_required=True)
                await self._record_failure(current.integration, failure)
            raise ReauthorizationRequired
        retry_time = current.integration.refresh_retry_time
        if retry_time is not None and retry_time > self._clock() and not force:
            raise ProviderUnavailable(
                "the provider has failed lately, and gets a pause", retry_after=retry_time - self._clock()
            )

    async def _refresh_under_lease(self, current: RefreshResult) -> RefreshResult | None:
        """Refresh under a lease. None if there is none to be had, and so something new to look at, or soon."""
        integration = current.integration
        provider = require_configured(self._providers.get(integration.integration_type))
        start_time = self._clock()
        lease = await self._claim(integration)
        if lease is None:
            return None
        outcome_known, version = True, lease.version
        try:
            await self._require_unused_token(lease, integration, provider)
            if provider.refresh_token_grace and self._clock() - start_time >= self._lease_timeouts.lease:
                return None  # we slept, and another may have used the token; without a grace our mark keeps all from it
            outcome_known = False
            try:
                token_response = await provider.refresh(current.tokens)
            except ProviderError as error:
                outcome_known = True
                return await self._handle_failure(integration, error)
            refreshed, outcome_known = await self._commit(integration, current.tokens.updated_with(token_response))
            version = refreshed.integration.version
        finally:
            if version == lease.version:  # otherwise it is void
                await self._release(lease, outcome_known=outcome_known)
        if refreshed.tokens.has_expired(self._clock()):  # stored all the same: the refresh token may have rotated
            raise ProviderUnavailable("the provider answered with a token that has expired")
        return refreshed

    async def _claim(self, integration: Integration) -> Lease | None:
        """A lease, if it is to be had. One that was given and did not arrive must not look like a lost call."""
        owner = self._random_token()
        try:
            return await self._leases.claim(integration, owner)
        except (StoreUnavailable, asyncio.CancelledError) as error:
            lost = Lease(integration.integration_id, integration.version, owner, previous_call_age=None)
            if isinstance(error, StoreUnavailable):
                self._unreleased.append((lost, True))
            else:
                await self._release(lost, outcome_known=True)
            raise

    async def _require_unused_token(self, lease: Lease, integration: Integration, provider: Provider) -> None:
        """Use a refresh token that another has used, and not come back, only where the provider allows it."""
        if lease.previous_call_age is None or lease.previous_call_age < provider.refresh_token_grace:
            return
        since_outage = (
            self._clock() - self._outage_until
        )  # a call grows old in an outage, in which nobody can come back
        wait = max(
            self._lease_timeouts.lost_call_wait - lease.previous_call_age,
            self._lease_timeouts.holder_wait - since_outage,
        )
        if wait > timedelta(0):
            raise ProviderUnavailable("an earlier refresh has not come back yet", retry_after=wait)
        if await self._is_journaled(integration):
            raise ProviderUnavailable("an earlier refresh is about to be stored", retry_after=_RETRY_SOON)
        self._log.error("refresh_outcome_unknown", **_log_fields(integration))
        await self._record_failure(
            integration, RefreshFailure(ReauthorizationRequired(), reauthorization_required=True)
        )
        raise ReauthorizationRequired

    async def _is_journaled(self, integration: Integration) -> bool:
        journal_key = (integration.integration_id, integration.version)
        return any(
            (pending.integration_id, pending.version) == journal_key for pending in await self._journal.pending()
        )

    async def _release(self, lease: Lease, *, outcome_known: bool) -> None:
        try:
            await self._leases.release(lease, outcome_known=outcome_known)
        except Exception:  # `recover` tries again, and tells
            self._unreleased.append((lease, outcome_known))

    async def _current(self, observed: Integration) -> RefreshResult:
        stored = await self._integrations.find(observed.integration_id, observed.user_id)
        if stored is None:
            raise IntegrationNotFound
        return await self._decrypted(stored)

    async def _decrypted(self, stored: StoredIntegration) -> RefreshResult:
        stored.integration.require_usable()
        tokens = await self._cipher.decrypt(stored)
        if not isinstance(tokens, OAuthTokens):
            raise ReauthorizationRequired  # connected anew with a key; there is nothing to refresh
        return RefreshResult(stored.integration, tokens)

    # --- success -----------------------------------------------------------------------------------------------------

    async def _commit(self, integration: Integration, tokens: OAuthTokens) -> tuple[RefreshResult, bool]:
        """Store an answer; whether that settles what became of the call."""
        self._invalid_grants.record(integration.integration_type, is_invalid=False, now=self._clock())
        requested_scopes = (*integration.scopes, *integration.missing_scopes)
        new = await self._account_linker.encrypted(integration, tokens, requested_scopes)
        try:
            committed = await self._integrations.commit_refresh(integration, new, self._clock())
            refreshed = (
                await self._superseded_by(integration, new) if committed is None else RefreshResult(committed, tokens)
            )
        except Exception as error:  # whatever it is, the provider gives this answer only once
            if isinstance(error, IntegrationServerError) and not isinstance(error, StoreUnavailable):
                raise  # about what there is by now instead
            await self._journal_result(integration, new, error)
            return RefreshResult(replace(integration, scopes=new.scopes), tokens), False
        self._record_audit(self._audit_entry(integration, SUCCESS))
        self._log.info(
            "refreshed",
            **_log_fields(integration),
            expire_time=refreshed.tokens.expire_time,
            superseded=committed is None,
        )
        return refreshed, True

    async def _superseded_by(self, integration: Integration, new: NewCredentials) -> RefreshResult:
        """What there is by now instead of an answer; the answer is to be revoked if that is nothing."""
        try:
            return await self._current(integration)
        except IntegrationNotFound:
            await self._revocations.add(_orphaned(integration, new))
            raise

    async def _journal_result(self, integration: Integration, new: NewCredentials, error: Exception) -> None:
        await self._journal.append(
            JournaledRefresh(
                integration.integration_id,
                integration.user_id,
                integration.version,
                new,
                integration.uid,
                integration.integration_type,
                integration.account_id,
            )
        )
        self._log.warning("refresh_journaled", **_log_fields(integration), kind=type(error).__qualname__)

    async def recover(self) -> None:
        """Do what could not be done while the database was away: commit what was journaled, also before a restart, and
        release leases. What was overtaken meanwhile is dropped, and revoked if its integration is gone.
        """
        try:
            await self._integrations.ping()
        except StoreUnavailable:
            self._outage_until = self._clock()
            raise
        errors = [
            error for pending in await self._journal.pending() if (error := await self._recover(pending)) is not None
        ]
        while self._unreleased:
            lease, outcome_known = self._unreleased.popleft()
            try:
                await self._leases.release(lease, outcome_known=outcome_known)
            except Exception:
                self._unreleased.append((lease, outcome_known))
                raise
        if errors:
            raise ExceptionGroup("journaled refreshes cannot be stored", errors)

    async def _recover(self, refresh: JournaledRefresh) -> Exception | None:
        """Store an answer and drop it; or what keeps it from being stored, which keeps none of the others back."""
        try:
            is_committed = await self._commit_journaled(refresh)
        except StoreUnavailable:
            raise
        except Exception as error:
            return error
        await self._journal.remove(refresh)
        self._log.warning(
            "journaled_refresh_recovered", integration_id=refresh.integration_id, superseded=not is_committed
        )
        return None

    async def _commit_journaled(self, refresh: JournaledRefresh) -> bool:
        stored = await self._integrations.find(refresh.integration_id, refresh.user_id)
        if stored is not None and refresh.uid not in {stored.integration.uid, None}:
            raise LookupError("journaled for an integration of another database")
        if stored is not None and stored.integration.version == refresh.version:
            now = self._clock()
            if await self._integrations.commit_refresh(stored.integration, refresh.credentials, now) is not None:
                return True
            stored = await self._integrations.find(refresh.integration_id, refresh.user_id)
        if stored is None:
            await self._revoke(refresh)
        return False

    async def _revoke(self, refresh: JournaledRefresh) -> None:
        if refresh.uid is None or refresh.integration_type is None:
            self._log.error("grant_not_revoked", integration_id=refresh.integration_id, user_id=refresh.user_id)
            return
        encrypted = refresh.credentials.encrypted_credentials
        await self._revocations.add(
            OrphanedGrant(refresh.uid, refresh.user_id, refresh.integration_type, refresh.account_id, encrypted)
        )

    # --- failure -----------------------------------------------------------------------------------------------------

    async def _handle_failure(self, integration: Integration, error: ProviderError) -> RefreshResult:
        """Tokens that somebody else got meanwhile; or raise what the failure means, once it is noted."""
        self._record_audit(self._audit_entry(integration, error.reason))
        self._log.warning(
            "refresh_failed", **_log_fields(integration), error_class=error.reason, oauth_error=error.oauth_error
        )
        if isinstance(error, ProviderMisconfigured):
            self._log.error("invalid_client", integration_type=integration.integration_type)
            raise error  # no user can mend it, so no user's integration is marked
        failure = classify_failure(integration, error, self._clock(), self._jitter)
        if failure.reauthorization_required:
            # The token may be dead because another replica has renewed it.
            current = await self._current(integration)
            if current.integration.version != integration.version:
                return current
            self._invalid_grants.record(integration.integration_type, is_invalid=True, now=self._clock())
            if self._invalid_grants.is_mass_failure(integration.integration_type):
                self._log.error("mass_invalid_grant", integration_type=integration.integration_type)
                failure = as_misconfiguration(integration, self._clock(), self._jitter)
        await self._record_failure(integration, failure)
        if failure.reauthorization_required:
            self._invalid_grants.track_reauthorization(integration, self._clock())
        await self._revert_reauthorizations(integration.integration_type)
        raise failure.error from error

    async def _revert_reauthorizations(self, integration_type: str) -> None:
        """Have those tried again whose deaths were believed before so many came that none is."""
        now = self._clock()
        for tracked in self._invalid_grants.pop_reverted(integration_type, now):
            retry_time = as_misconfiguration(tracked, now, self._jitter).retry_time
            try:
                await self._integrations.revert_failure(tracked, retry_time)
            except StoreUnavailable:
                self._invalid_grants.track_reauthorization(tracked, now)
                raise
            self._log.warning("reauthorization_reverted", **_log_fields(tracked))

    async def _record_failure(self, integration: Integration, failure: RefreshFailure) -> None:
        now = self._clock()
        is_ours = isinstance(failure.error, ProviderMisconfigured)
        await self._integrations.record_failure(
            integration,
            None if is_ours else Failure(failure.error.reason, now, str(failure.error)),
            reauthorization_required=failure.reauthorization_required,
            retry_time=failure.retry_time,
            failures=failure.failures,
            refusals=failure.refusals,
            refresh_due_time=failure.retry_time or now + _RETRY_SOON,
        )

    def _audit_entry(self, integration: Integration, outcome: str) -> AuditEntry:
        return AuditEntry(
            self._clock(),
            SERVER,
            Action.REFRESH,
            integration.user_id,
            integration.integration_id,
            integration.integration_type,
            outcome,
        )


def _orphaned(integration: Integration, new: NewCredentials) -> OrphanedGrant:
    return OrphanedGrant(
        integration.uid,
        integration.user_id,
        integration.integration_type,
        integration.account_id,
        new.encrypted_credentials,
    )


def _log_fields(integration: Integration) -> dict[str, object]:
    return {"integration_id": integration.integration_id, "integration_type": integration.integration_type}
