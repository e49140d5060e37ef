"""Ending grants at their provider once they are gone here: docs/revocation.md tells what is durable when.

Whatever is to be revoked lies in an outbox (`RevocationOutbox`), put there in the commit that removes the integration.
Who
disconnects tries at once; what does not succeed is tried again in the background, by any replica, until the provider
says that it is dead or its time is up.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationServerError,
    ProviderError,
    StoreUnavailable,
)
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.revocation import RevocationState
from integration_server.service.background.backoff import backoff
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.common_types import Jitter
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.service.connections.revocation_ports import OrphanedGrant, Revocation, RevocationOutbox
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import IntegrationStore, NewAccount, RemovalResult
from integration_server.service.provider_port import Providers

_MAX_CONCURRENT = (
    8  # revocations of one provider at a time in this process, so that an outage's backlog is no burst to it
)
_FIRST_PAUSE = timedelta(seconds=2)
_LONGEST_PAUSE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class RevocationTimes:
    """How long a revocation may take.

    `claim`: one process has it to itself; longer than a call to a provider takes. `first_response`: a user who
    disconnects waits for the provider. `give_up_after`: it is tried, from the disconnection on.
    """

    claim: timedelta = timedelta(seconds=30)
    first_response: timedelta = timedelta(seconds=3)
    give_up_after: timedelta = timedelta(hours=72)


class RevocationService:
    """Disconnects integrations, and sees to it that their grants die."""

    def __init__(
        self,
        integrations: IntegrationStore,
        revocations: RevocationOutbox,
        providers: Providers,
        cipher: CredentialCipher,
        tasks: DetachedTasks,
        jitter: Jitter,
        *,
        times: RevocationTimes,
    ) -> None:
        self._integrations = integrations
        self._revocations = revocations
        self._providers = providers
        self._cipher = cipher
        self._tasks = tasks
        self._jitter = jitter
        self._times = times
        self._log = structlog.get_logger(__name__)
        self._semaphores: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_MAX_CONCURRENT))
        self._busy: set[str] = set()

    # --- disconnecting -----------------------------------------------------------------------------------------------

    async def disconnect_integration(self, integration_id: IntegrationId, user_id: UserId) -> RevocationState:
        """Delete an integration, and try to revoke its credentials; what is known of them within a few seconds.

        It is gone here at once, whatever the provider answers. Raises `IntegrationNotFound`.
        """
        # One task: a caller who leaves after the removal does not keep the provider from being asked at once.
        return await self._tasks.run(self._disconnect(integration_id, user_id))

    async def _disconnect(self, integration_id: IntegrationId, user_id: UserId) -> RevocationState:
        removed = await self._integrations.remove(integration_id, user_id, claim_duration=self._times.claim)
        if removed is None:
            raise IntegrationNotFound
        state = await self._first_response(removed)
        if state is RevocationState.REVOKED and removed.is_refreshing:
            # The token that was revoked is spent, perhaps; what replaces it is revoked when the refresh comes back.
            return RevocationState.PENDING
        return state

    async def _first_response(self, removed: RemovalResult) -> RevocationState:
        if removed.revocation is None:
            return RevocationState.NOTHING_TO_REVOKE
        attempt = self._tasks.start(self._try_at_once(removed.revocation))
        done, _ = await asyncio.wait([attempt], timeout=self._times.first_response.total_seconds())
        return attempt.result() if done else RevocationState.PENDING

    async def _try_at_once(self, revocation: Revocation) -> RevocationState:
        semaphore = self._semaphores[revocation.grant.integration_type]
        try:
            async with asyncio.timeout(self._times.first_response.total_seconds()):
                await semaphore.acquire()
        except TimeoutError:  # too many others are: the background has the time
            return await self._postpone(revocation, timedelta(0))
        try:
            return await self._try(revocation)
        finally:
            semaphore.release()

    async def discard(self, attempt: AuthorizationAttempt, account: NewAccount, tokens: OAuthTokens) -> None:
        """Have tokens revoked that an attempt to connect was given and that no integration can keep."""
        grant = OrphanedGrant(
            attempt.attempt_id, attempt.user_id, attempt.integration_type, account.account_id, encrypted_credentials=b""
        )
        if account.account_id is None and self._providers.get(attempt.integration_type).shares_grants_with:
            # Revoking would end all that we hold of the account, and nobody knows whose that is.
            self._log.warning("grant_not_revoked", **_log_fields(grant))
            return
        try:
            encrypted = await self._cipher.encrypt(grant, tokens)
            await self._revocations.add(replace(grant, encrypted_credentials=encrypted))
        except StoreUnavailable:
            self._log.error("grant_not_revoked", **_log_fields(grant))

    # --- in the background -------------------------------------------------------------------------------------------

    async def revoke_due(self) -> None:
        """Start to try what is due, a few of each type. One that hangs holds up only its own."""
        for integration_type in await self._revocations.due_types():
            if integration_type not in self._busy:
                due = await self._revocations.claim_due(
                    integration_type, _MAX_CONCURRENT, claim_duration=self._times.claim
                )
                self._busy.add(integration_type)
                self._tasks.start(self._try_all(integration_type, due))

    async def _try_all(self, integration_type: str, due: Sequence[Revocation]) -> None:
        try:
            await asyncio.gather(*(self._try_in_turn(revocation) for revocation in due))
        finally:
            self._busy.discard(integration_type)

    async def _try_in_turn(self, revocation: Revocation) -> None:
        async with self._semaphores[revocation.grant.integration_type]:
            await self._try(revocation)

    # --- one attempt -------------------------------------------------------------------------------------------------

    async def _try(self, revocation: Revocation) -> RevocationState:
        """Revoke what is claimed, and note what came of it. If that cannot be noted, it is due again by itself."""
        try:
            state = await self._revoke(revocation.grant)
        except StoreUnavailable:
            return RevocationState.PENDING
        except Exception as error:  # also a mistake of ours or of a provider's code must not keep it here for ever
            return await self._handle_failure(revocation, error)
        self._log.info(
            "revocation_ended", **_log_fields(revocation.grant), state=state.value, attempts=revocation.attempts
        )
        await self._remove(revocation)
        return state

    async def _revoke(self, grant: OrphanedGrant) -> RevocationState:
        provider = self._providers.get(grant.integration_type)
        # Asked before each attempt: the account may have been connected again since.
        if await self._integrations.shares_grant(grant, provider.shares_grants_with):
            return RevocationState.GRANT_SHARED
        is_revoked = await provider.revoke_credentials(await self._cipher.decrypt_orphaned(grant))
        return RevocationState.REVOKED if is_revoked else RevocationState.NOT_SUPPORTED

    async def _handle_failure(self, revocation: Revocation, error: Exception) -> RevocationState:
        """Try again later, or give up. A key or a provider that is missing here may be back by then, so both wait."""
        log_fields = {
            **_log_fields(revocation.grant),
            "attempts": revocation.attempts,
            "error_class": error.reason if isinstance(error, IntegrationServerError) else type(error).__name__,
            "oauth_error": error.oauth_error if isinstance(error, ProviderError) else None,
        }
        remaining = self._times.give_up_after - revocation.age
        if remaining <= timedelta(0):
            self._log.error("revocation_given_up", **log_fields)
            await self._remove(revocation)
            return RevocationState.PENDING
        pause = min(
            self._pause(revocation.attempts, error), remaining
        )  # so that the last attempt is when its time is up
        self._log.warning("revocation_failed", **log_fields, retry_in=pause.total_seconds())
        return await self._postpone(revocation, pause)

    def _pause(self, attempts: int, error: Exception) -> timedelta:
        asked_for = error.retry_after if isinstance(error, IntegrationServerError) else None
        return max(backoff(attempts, _FIRST_PAUSE, _LONGEST_PAUSE, self._jitter), asked_for or timedelta(0))

    async def _postpone(self, revocation: Revocation, pause: timedelta) -> RevocationState:
        try:
            await self._revocations.postpone(revocation, pause)
        except StoreUnavailable:
            self._log.warning("revocation_not_recorded", **_log_fields(revocation.grant))
        return RevocationState.PENDING

    async def _remove(self, revocation: Revocation) -> None:
        try:
            await self._revocations.remove(revocation)
        except StoreUnavailable:
            self._log.warning("revocation_not_recorded", **_log_fields(revocation.grant))


def _log_fields(grant: OrphanedGrant) -> dict[str, object]:
    return {"integration_type": grant.integration_type, "user_id": grant.user_id, "uid": grant.uid}
