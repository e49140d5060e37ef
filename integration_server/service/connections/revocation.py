"""Disconnecting integrations and revoking their grants at the provider; see docs/revocation.md.

The commit that removes an integration puts its credentials into an outbox (`RevocationOutbox`). The disconnecting call
tries the revocation at once. After a failure, the background worker of any replica retries until the provider confirms
that the grant is revoked or the time limit has passed. No revocation is sent that would end a connected integration:
`RevocationOutbox.begin_call` decides this before each attempt.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import timedelta

import structlog

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.due_times import backoff
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.revocation import RevocationState
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.background.ports import Claim, DueWork
from integration_server.service.common_types import Jitter
from integration_server.service.connections.ports import StateClaims
from integration_server.service.connections.revocation_ports import (
    CallDecision,
    OrphanedGrant,
    Revocation,
    RevocationOutbox,
)
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import IntegrationStore, NewAccount, RemovalResult
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory

_MAX_CONCURRENT = 8  # first attempts per client and process, so that many disconnections do not overload it
_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(hours=1)
_MANY_EXPIRED = 5  # claims in a row: the attempts end their processes, and none will reach the time limit


@dataclass(frozen=True, slots=True)
class RevocationTimes:
    """Time limits of a revocation.

    `claim`: how long one process has a grant to itself; longer than a provider call takes. `first_response`: how long a
    disconnecting call waits for the provider. `give_up_after`: how long it is retried, from the disconnection on.
    """

    claim: timedelta = timedelta(seconds=30)
    first_response: timedelta = timedelta(seconds=3)
    give_up_after: timedelta = timedelta(hours=72)


@dataclass(eq=False, repr=False)
class RevocationService:
    """Disconnects integrations and revokes their grants.

    `keeps_shared_grants` is switched off by negative controls: then a revocation may end other integrations.
    """

    integrations: IntegrationStore
    revocations: RevocationOutbox
    due_work: DueWork
    providers: OAuthClientDirectory
    cipher: CredentialCipher
    tasks: DetachedTasks
    jitter: Jitter
    _: KW_ONLY
    times: RevocationTimes
    keeps_shared_grants: bool = True

    def __post_init__(self) -> None:
        self._log = structlog.get_logger(__name__)
        self._semaphores: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_MAX_CONCURRENT))

    async def disconnect_integration(self, integration_id: IntegrationId, user_id: UserId) -> RevocationState:
        """Delete an integration and try to revoke its grant. Returns what is known after a few seconds.

        The integration is deleted at once, whatever the provider responds. Raises `IntegrationNotFound`.
        """
        # A detached task: the revocation is attempted even if the caller disconnects after the removal.
        return await self.tasks.run(self._disconnect(integration_id, user_id))

    async def _disconnect(self, integration_id: IntegrationId, user_id: UserId) -> RevocationState:
        # First, so that an id that is not the user's takes no lock and drops no cached integration.
        await self.integrations.get(integration_id, user_id)
        removed = await self.integrations.remove(integration_id, user_id, claim_duration=self.times.claim)
        state = await self._first_response(removed)
        if state is RevocationState.REVOKED and removed.is_refreshing:
            # The revoked token may have been replaced by the refresh; the new one is revoked when the refresh ends.
            return RevocationState.PENDING
        return state

    async def _first_response(self, removed: RemovalResult) -> RevocationState:
        if removed.revocation is None:
            return RevocationState.NOTHING_TO_REVOKE
        attempt = self.tasks.start(self._attempt_at_once(removed.revocation))
        done, _ = await asyncio.wait([attempt], timeout=self.times.first_response.total_seconds())
        return attempt.result() if done else RevocationState.PENDING

    async def _attempt_at_once(self, claim: Claim[Revocation]) -> RevocationState:
        semaphore = self._semaphores[claim.item.grant.client_key]
        try:
            async with asyncio.timeout(self.times.first_response.total_seconds()):
                await semaphore.acquire()
        except TimeoutError:  # too many others: the background worker takes it
            await self._record(claim, self.due_work.postpone(claim, timedelta(0)))
            return RevocationState.PENDING
        try:
            return (await self._attempt(claim)).state
        finally:
            semaphore.release()

    async def discard(self, attempt: StateClaims, oauth_client: str, account: NewAccount, tokens: OAuthTokens) -> None:
        """Put tokens that a connection attempt received, and that no integration can keep, into the outbox."""
        grant = OrphanedGrant(
            attempt.attempt_id,
            attempt.user_id,
            attempt.integration_type,
            account.account_id,
            encrypted_credentials=b"",
            token_fingerprint=tokens.fingerprint,
            oauth_client=oauth_client,
        )
        try:
            encrypted = await self.cipher.encrypt_orphaned(grant, tokens)
            await self.revocations.add(replace(grant, encrypted_credentials=encrypted))
        except StoreUnavailable:
            self._log.error("grant_not_revoked", **_log_fields(grant))

    async def retry(self, claim: Claim[Revocation]) -> bool:
        """Attempt a due revocation: the handler of the background job. Returns whether the provider is healthy."""
        # A detached task: the outcome of a call in progress is recorded when the worker stops.
        return (await self.tasks.run(self._attempt(claim))).is_provider_healthy

    async def _attempt(self, claim: Claim[Revocation]) -> "_Attempt":
        """Revoke a claimed grant and record the outcome. If that cannot be recorded, the claim expires by itself."""
        if claim.item.is_complete:  # the record of it is not needed any more
            await self._record(claim, self.revocations.remove(claim))
            return _Attempt(RevocationState.REVOKED)
        if claim.expired_claims >= _MANY_EXPIRED and claim.item.age >= self.times.give_up_after:
            await self._give_up(claim, {"error_class": "abandoned"})
            return _Attempt(RevocationState.PENDING)
        try:
            decision, claim = await self._begin_call(claim)
            if decision is not CallDecision.SEND:
                self._log.info("revocation_not_sent", **_log_fields(claim.item.grant), decision=decision.name.lower())
                own = decision is CallDecision.SHARED_WITH_OWN
                return _Attempt(RevocationState.GRANT_SHARED if own else RevocationState.PENDING)
            state = await self._revoke(claim.item.grant)
        except StoreUnavailable:
            return _Attempt(RevocationState.PENDING)
        except Exception as error:  # also a bug in a provider's code must not block the outbox
            await self._handle_failure(claim, error)
            is_healthy = not isinstance(error, (ProviderUnavailable, ProviderMisconfigured))
            return _Attempt(RevocationState.PENDING, is_healthy)
        self._log.info(
            "revocation_ended", **_log_fields(claim.item.grant), state=state.value, attempts=claim.item.attempts
        )
        is_revoked = state is RevocationState.REVOKED
        await self._record(claim, (self.revocations.complete if is_revoked else self.revocations.remove)(claim))
        return _Attempt(state)

    async def _begin_call(self, claim: Claim[Revocation]) -> tuple[CallDecision, Claim[Revocation]]:
        grant = claim.item.grant
        provider = await self.providers.for_client(grant.integration_type, grant.oauth_client)
        return await self.revocations.begin_call(
            claim,
            await self.providers.ended_by(provider),
            provider.names_accounts_like,
            self.times.claim,
            keeps_shared_grants=self.keeps_shared_grants,
        )

    async def _revoke(self, grant: OrphanedGrant) -> RevocationState:
        provider = await self.providers.for_client(grant.integration_type, grant.oauth_client)
        credentials = await self.cipher.decrypt_orphaned(grant)
        # The claim holds up new connections of the account: nothing is sent after its end.
        async with asyncio.timeout(self.times.claim.total_seconds()):
            is_revoked = await self.providers.authenticated(
                provider, lambda authenticated: authenticated.revoke_credentials(credentials)
            )
        return RevocationState.REVOKED if is_revoked else RevocationState.NOT_SUPPORTED

    async def _handle_failure(self, claim: Claim[Revocation], error: Exception) -> None:
        """Postpone or give up. A missing key or an unknown provider is retried too: an operator may restore it."""
        log_fields = {
            "error_class": error.reason if isinstance(error, IntegrationServerError) else type(error).__name__,
            "oauth_error": error.oauth_error if isinstance(error, ProviderError) else None,
        }
        remaining = self.times.give_up_after - claim.item.age
        if remaining <= timedelta(0):
            await self._give_up(claim, log_fields)
            return
        retry_after = error.retry_after if isinstance(error, IntegrationServerError) else None
        pause = backoff(claim.item.attempts, _FIRST_PAUSE, _LONGEST_PAUSE, self.jitter)
        pause = min(max(pause, retry_after or timedelta(0)), remaining)  # the last attempt is at the time limit
        fields = _log_fields(claim.item.grant) | log_fields
        retry_in = pause.total_seconds()
        self._log.warning("revocation_failed", **fields, attempts=claim.item.attempts, retry_in=retry_in)
        await self._record(claim, self.due_work.postpone(claim, pause))

    async def _give_up(self, claim: Claim[Revocation], log_fields: Mapping[str, object]) -> None:
        fields = {**_log_fields(claim.item.grant), **log_fields}
        self._log.error("revocation_given_up", **fields, attempts=claim.item.attempts)
        await self._record(claim, self.revocations.remove(claim))

    async def _record(self, claim: Claim[Revocation], change: Awaitable[object]) -> None:
        try:
            await change
        except StoreUnavailable:
            self._log.warning("revocation_not_recorded", **_log_fields(claim.item.grant))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The outcome of one attempt."""

    state: RevocationState
    is_provider_healthy: bool = True


def _log_fields(grant: OrphanedGrant) -> dict[str, object]:
    return {"integration_type": grant.integration_type, "user_id": grant.user_id, "uid": grant.uid}
