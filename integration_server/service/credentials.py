"""Handing out credentials that work, refreshed first where they must be."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import (
    IntegrationNotFound,
    ProviderError,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.ports import Clock, IntegrationStore, Providers, StoredIntegration
from integration_server.service.refreshing import Refreshing
from integration_server.service.sealing import Vault


@dataclass(frozen=True, slots=True)
class UsableCredentials:
    """Credentials with what a backend needs to use them."""

    credentials: Credentials = field(repr=False)
    scopes: tuple[str, ...]
    request_auth: RequestAuth = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenState:
    """How a token stands after it was asked to be fresh; `expire_time` is None where it never expires."""

    refreshed: bool
    expire_time: datetime | None


class GivingCredentials:
    """Reads, opens and, where needed, has credentials refreshed. `buffer` is the usual time they must still last."""

    def __init__(
        self,
        integrations: IntegrationStore,
        providers: Providers,
        vault: Vault,
        refreshing: Refreshing,
        clock: Clock,
        *,
        buffer: timedelta,
    ) -> None:
        self._integrations = integrations
        self._providers = providers
        self._vault = vault
        self._refreshing = refreshing
        self._clock = clock
        self._buffer = buffer

    async def get_credentials(
        self,
        integration_id: IntegrationId,
        user_id: UserId,
        min_ttl: timedelta | None,
        required_scopes: Iterable[str],
    ) -> UsableCredentials:
        """Credentials good for `min_ttl`; None means the buffer, or half of the token's life if that is less."""
        stored = await self._usable(integration_id, user_id)
        integration = stored.integration
        missing = [scope for scope in required_scopes if scope not in integration.scopes]
        if missing:
            raise ScopeMissing(missing)
        credentials = await self.fresh(stored, min_ttl)
        provider = self._providers.get(integration.integration_type)
        return UsableCredentials(credentials, integration.scopes, provider.request_auth(credentials))

    async def fresh(self, stored: StoredIntegration, min_ttl: timedelta | None = None) -> Credentials:
        """The opened credentials of a usable integration, refreshed first where they must be.

        A token that still works is served even while its refresh fails; one that has expired never is.
        """
        credentials = await self._vault.open(stored)
        if not isinstance(credentials, OAuthTokens) or self._is_fresh(credentials, min_ttl):
            return credentials
        if credentials.refresh_token is None and not credentials.has_expired(self._clock()):
            return credentials
        try:
            return await self._refreshing.refresh(stored.integration)
        except (ProviderError, StoreUnavailable):
            if credentials.has_expired(self._clock()):
                raise
            return credentials

    async def refresh_token(self, integration_id: IntegrationId, user_id: UserId, *, force: bool) -> TokenState:
        """Renew a token that is about to expire, or any with `force`."""
        stored = await self._usable(integration_id, user_id)
        credentials = await self._vault.open(stored)
        if not isinstance(credentials, OAuthTokens):
            return TokenState(refreshed=False, expire_time=None)
        if self._is_fresh(credentials, None) and not force:
            return TokenState(refreshed=False, expire_time=credentials.expire_time)
        if credentials.refresh_token is None:
            raise ReauthorizationRequired
        renewed = await self._refreshing.refresh(stored.integration)
        return TokenState(refreshed=True, expire_time=renewed.expire_time)

    def _is_fresh(self, tokens: OAuthTokens, min_ttl: timedelta | None) -> bool:
        ttl = tokens.buffer(self._buffer) if min_ttl is None else min_ttl
        return tokens.is_good_for(ttl, self._clock())

    async def _usable(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        stored = await self._integrations.find(integration_id, user_id)
        if stored is None:
            raise IntegrationNotFound
        stored.integration.require_usable()
        return stored
