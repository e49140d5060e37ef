"""The credential service: returns valid credentials, and refreshes them first if necessary."""

import asyncio
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta

from integration_server.domain.credentials import Credentials, OAuthTokens, RefreshCause, RequestAuth
from integration_server.domain.errors import (
    ProviderError,
    ProviderNotConfigured,
    ProviderUnavailable,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.background.detached_tasks import time_left
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import IntegrationLookup, IntegrationStore, StoredIntegration
from integration_server.service.provider_port import Providers

_PATIENCE = 0.75  # of the time until the caller's deadline; the rest is for the response


@dataclass(frozen=True, slots=True)
class UsableCredentials:
    """Credentials with the data that a caller needs to use them."""

    credentials: Credentials = field(repr=False)
    scopes: tuple[str, ...]
    request_auth: RequestAuth = field(repr=False)
    integration: Integration | None = None
    valid_until: datetime | None = None
    """Until when they last as long as the caller has asked for, while the integration is unchanged. None: always."""


@dataclass(frozen=True, slots=True)
class TokenState:
    """The outcome of `refresh_token`. `expire_time` is None for a token that never expires.

    `retry_after` is set if the provider was not called because the last refresh is too recent.
    """

    refreshed: bool
    expire_time: datetime | None
    retry_after: timedelta | None = None


@dataclass(eq=False, repr=False)
class CredentialService:
    """Reads and decrypts credentials, and has them refreshed where necessary.

    `buffer` is the minimum lifetime where a caller names none. `lookup` may be a cache; `refresh_token`
    reads the store.
    """

    lookup: IntegrationLookup
    integrations: IntegrationStore
    providers: Providers
    cipher: CredentialCipher
    refresher: TokenRefresher
    clock: Clock
    _: KW_ONLY
    buffer: timedelta

    async def get_credentials(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        min_ttl: timedelta | None,
        required_scopes: Sequence[str],
    ) -> UsableCredentials:
        """Credentials that last for `min_ttl`; by default the buffer, or half of the token's lifetime if shorter."""
        fresh = await self.get_usable(integration_id, user_id, min_ttl, required_scopes)
        integration = fresh.integration
        provider = await self.providers.for_client(integration.integration_type, integration.oauth_client)
        return UsableCredentials(
            fresh.credentials,
            fresh.integration.scopes,
            provider.request_auth(fresh.credentials),
            fresh.integration,
            self._valid_until(fresh.credentials, min_ttl),
        )

    async def get_usable(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        min_ttl: timedelta | None = None,
        required_scopes: Sequence[str] = (),
    ) -> RefreshResult:
        """The credentials of a usable integration, refreshed first where necessary. Raises `ScopeMissing`."""
        stored = await self.lookup.get(integration_id, user_id)
        stored.integration.require_usable()
        _require_scopes(stored.integration, required_scopes)
        fresh = await self.fresh(stored, min_ttl)
        _require_scopes(fresh.integration, required_scopes)  # a refresh may grant less (RFC 6749 §6)
        return fresh

    async def newer(self, rejected: RefreshResult) -> RefreshResult | None:
        """Credentials newer than those whose access token the provider's API has rejected. None if there are none now.

        Raises `ReauthorizationRequired` if the token endpoint has refused the grant.
        """
        try:
            return await self.refreshed(rejected)
        except (ProviderError, ProviderNotConfigured):
            return None  # recorded by the refresher; the rejection is what the caller knows

    async def refreshed(
        self, rejected: RefreshResult, cause: RefreshCause = RefreshCause.REJECTION
    ) -> RefreshResult | None:
        """Credentials newer than rejected ones, from a refresh by any process. None if there are none.

        An API that rejects every token causes one refresh per minimum interval, unless `cause` is another. Raises
        `ProviderUnavailable` during the pause after a failed one.
        """
        credentials = rejected.credentials
        if not isinstance(credentials, OAuthTokens) or not credentials.is_renewable:
            return None
        refreshed = await self.refresher.refresh(rejected.integration, cause)
        return refreshed if refreshed.retry_after is None else None

    async def fresh(self, stored: StoredIntegration, min_ttl: timedelta | None = None) -> RefreshResult:
        """The decrypted credentials of a usable integration, refreshed first where necessary.

        A token that still works is served even if its refresh fails, or takes longer than the caller can wait; an
        expired one never is.
        """
        credentials = await self.cipher.decrypt(stored)
        as_stored = RefreshResult(stored.integration, credentials)
        if not isinstance(credentials, OAuthTokens):
            return as_stored
        cause = self._refresh_cause(credentials, min_ttl)
        if cause is None or (not credentials.is_renewable and not credentials.has_expired(self.clock())):
            return as_stored
        left = time_left()
        patience = None if left is None or credentials.has_expired(self.clock()) else left * _PATIENCE
        try:
            async with asyncio.timeout(patience):
                return await self.refresher.refresh(stored.integration, cause)
        except (ProviderError, ProviderNotConfigured, StoreUnavailable, TimeoutError) as error:
            if not credentials.has_expired(self.clock()):
                return as_stored
            if isinstance(error, TimeoutError):
                raise ProviderUnavailable("the refresh takes longer than the caller waits") from None
            raise

    async def refresh_token(self, integration_id: IntegrationId, user_id: UserId, *, force: bool) -> TokenState:
        """Refresh a token that is about to expire, or any token with `force`, which also revives a grant that works."""
        stored = await self.integrations.get(integration_id, user_id)
        if force:
            stored.integration.require_active()
        else:
            stored.integration.require_usable()
        credentials = await self.cipher.decrypt(stored)
        if not isinstance(credentials, OAuthTokens):
            stored.integration.require_usable()
            return TokenState(refreshed=False, expire_time=None)
        cause = self._refresh_cause(credentials, None)
        if force and (cause is None or not _is_untried(stored.integration)):
            cause = RefreshCause.FORCE
        if cause is None:
            return TokenState(refreshed=False, expire_time=credentials.expire_time)
        if not credentials.is_renewable:
            raise ReauthorizationRequired
        refreshed = await self.refresher.refresh(stored.integration, cause)
        return TokenState(refreshed.retry_after is None, refreshed.tokens.expire_time, refreshed.retry_after)

    def _refresh_cause(self, tokens: OAuthTokens, min_ttl: timedelta | None) -> RefreshCause | None:
        """Why to refresh tokens so that they last for `min_ttl`, or for the buffer if None; None if they do.

        No token lasts longer than its lifetime, whatever a caller asks for. One that had expired when it was issued is
        no reason to call the provider more often.
        """
        buffer, now = tokens.buffer(self.buffer), self.clock()
        ttl = buffer if min_ttl is None else min_ttl
        if tokens.is_good_for(self._required_ttl(tokens, min_ttl), now):
            return None
        was_usable = tokens.lifetime is None or tokens.lifetime > timedelta(0)
        if was_usable and not tokens.is_good_for(min(ttl, buffer), now):
            return RefreshCause.EXPIRY
        return RefreshCause.DEMAND

    def _required_ttl(self, tokens: OAuthTokens, min_ttl: timedelta | None) -> timedelta:
        ttl = tokens.buffer(self.buffer) if min_ttl is None else min_ttl
        return ttl if tokens.lifetime is None else min(ttl, tokens.lifetime)

    def _valid_until(self, credentials: Credentials, min_ttl: timedelta | None) -> datetime | None:
        if not isinstance(credentials, OAuthTokens) or credentials.expire_time is None:
            return None
        now = self.clock()  # a caller may ask for ten thousand years: more than there are before the expiry
        return credentials.expire_time - min(self._required_ttl(credentials, min_ttl), credentials.expire_time - now)


def _is_untried(integration: Integration) -> bool:
    """Whether no refresh of these credentials has failed. Otherwise a necessary refresh with `force` is forced too."""
    return integration.is_usable and integration.refresh_retry_time is None and not integration.refresh_failures


def _require_scopes(integration: Integration, scopes: Sequence[str]) -> None:
    missing = [scope for scope in scopes if scope not in integration.scopes]
    if missing:
        raise ScopeMissing(missing)
