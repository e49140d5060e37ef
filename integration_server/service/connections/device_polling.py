"""Asking providers for the tokens of device authorizations (RFC 8628 §3.4): the handler of a background job.

The job's rows are the started attempts. Before each request the claim is renewed for longer than the request and the
interval take, so that no other process asks meanwhile, and none asks too early after this one has died. The interval
counts from the response, and is on the database's clock.

A device code works once. If the response that has the tokens is lost, the next request is refused and the attempt ends:
the user has to begin again. Tokens that arrive for an attempt that has ended meanwhile are revoked.

The attempts of an integration type have one circuit breaker, over all its OAuth clients, apart from those of other
jobs: polls without a response delay the polls of the type for half a minute at most, and stop no refresh.

Nobody returns from the provider, so that there is no callback to confirm: docs/security/connecting-accounts.md has what
that means.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime, timedelta

import structlog

from integration_server.domain.credentials import DecisionPending, OAuthTokens
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderUnavailable,
    StateExpired,
    StateInvalid,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration
from integration_server.domain.oauth_client import OWN_CLIENT
from integration_server.service.background.detached_tasks import DetachedTasks
from integration_server.service.background.ports import Claim
from integration_server.service.common_types import Clock
from integration_server.service.connections.account_linking import AttemptLifecycle, TokenStorage
from integration_server.service.connections.ports import (
    AttemptDetails,
    AuthorizationAttempt,
    AuthorizationAttemptStore,
    DeviceGrant,
    StateClaims,
)
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.ports import IntegrationStore
from integration_server.service.oauth_clients.oauth_client_directory import require_oauth
from integration_server.service.provider_port import OAuthProvider, Providers

_SLOW_DOWN = timedelta(seconds=5)  # RFC 8628 §3.5: added to this and all later intervals
# Seconds between attempts to store tokens while the database is unavailable, within the time of the claim.
_STORE_PAUSES = (1, 2, 4, 8, 16)
_LONGEST_BACKOFF = timedelta(minutes=1)  # so that an approval is noticed soon after the provider has recovered


@dataclass(eq=False, repr=False)
class DeviceAuthorizationPoller:
    """Polls the device authorizations that are due.

    `claim_duration` is longer than a request and the completion of its tokens take. `fences_polls` is off only in
    negative controls: then a process asks whether or not its claim has expired, and does not renew it.
    """

    lifecycle: AttemptLifecycle
    token_storage: TokenStorage
    attempts: AuthorizationAttemptStore
    integrations: IntegrationStore
    providers: Providers
    cipher: CredentialCipher
    tasks: DetachedTasks
    clock: Clock
    _: KW_ONLY
    claim_duration: timedelta
    fences_polls: bool = True
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._log = structlog.get_logger(__name__)

    async def poll(self, claim: Claim[AuthorizationAttempt]) -> bool:
        """Ask for the tokens of a due attempt. Returns whether the provider is healthy."""
        # A detached task: tokens that arrive while the worker stops are stored.
        return await self.tasks.run(self._poll(claim))

    async def _poll(self, claim: Claim[AuthorizationAttempt]) -> bool:
        attempt, oauth_client = claim.item, OWN_CLIENT
        claims = StateClaims(attempt.attempt_id, attempt.user_id, attempt.integration_type, attempt.create_time)
        try:
            details = await self.lifecycle.read_details(claims, attempt)
            if details.device is None:
                raise StateInvalid
            oauth_client = details.oauth_client
            target, provider = await self._target(claims, details, details.device)
            return await self._ask(claim, claims, details.device.device_code, target, provider)
        except StoreUnavailable:
            return True  # the row is due again when the claim expires
        except IntegrationServerError as error:
            await self._end(claims, oauth_client, error)
            # A refused client of a tenant says nothing about the provider.
            return bool(oauth_client) or not isinstance(error, ProviderMisconfigured)

    async def _target(
        self, claims: StateClaims, details: AttemptDetails, device: DeviceGrant
    ) -> tuple[Integration, OAuthProvider]:
        """Raises `IntegrationNotFound` if the integration was disconnected meanwhile, or `StateExpired`."""
        if self.clock() >= device.expire_time:  # not from the row, whose time may be altered
            raise StateExpired
        stored = await self.integrations.get(details.integration_id, claims.user_id)
        # The grant belongs to the client that the attempt was begun with, whatever an altered row says.
        target = replace(await self.cipher.redacted(stored), oauth_client=details.oauth_client)
        provider = await self.providers.for_client(claims.integration_type, details.oauth_client)
        return target, require_oauth(provider).for_config(target.config)

    async def _ask(
        self,
        claim: Claim[AuthorizationAttempt],
        claims: StateClaims,
        device_code: str,
        target: Integration,
        provider: OAuthProvider,
    ) -> bool:
        interval, failures = timedelta(seconds=claim.item.poll_interval_seconds or 0), claim.item.poll_failures
        held_for = max(self.claim_duration, _pause(interval, failures + 1))
        held: Claim[AuthorizationAttempt] | None = claim
        if self.fences_polls:
            held = await self.attempts.begin_poll(claim, held_for)
        if held is None:
            return True  # another process has it, or it has ended
        try:
            response = await self.providers.authenticated(
                provider, lambda authenticated: authenticated.poll_device_authorization(device_code)
            )
        except ProviderUnavailable as error:
            if error.issued_tokens is not None:
                raise
            pause = max(_pause(interval, failures + 1), error.retry_after or timedelta(0))
            await self.attempts.postpone_poll(held, pause, interval=interval, failures=failures + 1)
            return False
        if isinstance(response, DecisionPending):
            if response.slow_down:
                interval = max(interval + _SLOW_DOWN, response.min_interval)
            pause = max(interval, response.retry_after)
            await self.attempts.postpone_poll(held, pause, interval=interval, failures=0)
            return True
        await self._complete(claims, target, provider, response, held.due_time - held_for)
        return True

    async def _complete(
        self,
        claims: StateClaims,
        target: Integration,
        provider: OAuthProvider,
        tokens: OAuthTokens,
        proof_time: datetime,
    ) -> None:
        is_taken = False

        async def store(details: AttemptDetails) -> Integration:
            nonlocal is_taken
            is_taken = True  # from here on, tokens that are not stored are revoked
            return await self.token_storage.store(claims, details, provider, target, tokens, proof_time)

        for pause in _STORE_PAUSES:
            with suppress(StoreUnavailable):
                await self._finish(claims, store)
                break
            if is_taken:
                return  # it is not known whether the tokens were stored
            await self.pause(pause)
        if not is_taken:
            await self.token_storage.discard(claims, provider.oauth_client.name, tokens)

    async def _end(self, claims: StateClaims, oauth_client: str, error: IntegrationServerError) -> None:
        """End an attempt with an error, which the app's backend gets from `HandleCallback`."""
        if isinstance(error, ProviderError) and error.issued_tokens is not None:
            await self.token_storage.discard(claims, oauth_client, error.issued_tokens)

        async def fail(_details: AttemptDetails) -> Integration:
            raise error

        with suppress(StoreUnavailable):  # the row is due again when the claim expires
            await self._finish(claims, fail)

    async def _finish(self, claims: StateClaims, connect: Callable[[AttemptDetails], Awaitable[Integration]]) -> None:
        """End an attempt, unless it has ended before. Raises `StoreUnavailable`; other errors are its outcome."""
        fields = {"integration_type": claims.integration_type, "user_id": claims.user_id}
        try:
            ended = await self.lifecycle.complete(claims, "", connect)
        except StoreUnavailable:
            raise
        except IntegrationServerError as error:
            oauth_error = error.oauth_error if isinstance(error, ProviderError) else None
            self._log.info("device_authorization_failed", **fields, reason=error.reason, oauth_error=oauth_error)
            return
        if ended is not None:
            self._log.info("device_authorization_completed", **fields, integration_id=ended.outcome.integration_id)


def _pause(interval: timedelta, failures: int) -> timedelta:
    """The time until the next request after so many in a row had no response: doubled each time (RFC 8628 §3.5)."""
    return max(interval, min(interval * 2.0 ** min(failures, 16), _LONGEST_BACKOFF))
