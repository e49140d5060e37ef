"""The credential service: returns valid credentials, and refreshes them first if necessary."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timedelta

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import (
    ProviderError,
    ProviderNotConfigured,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import IntegrationLookup, IntegrationStore, StoredIntegration
from integration_server.service.provider_port import Providers


@dataclass(frozen=True, slots=True)
class UsableCredentials:
    """Credentials with the data that a caller needs to use them."""

    credentials: Credentials = field(repr=False)
    scopes: tuple[str, ...]
    request_auth: RequestAuth = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenState:
    """The outcome of `refresh_token`. `expire_time` is None for a token that never expires."""

    refreshed: bool
    expire_time: datetime | None


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
        provider = self.providers[fresh.integration.integration_type]
        return UsableCredentials(fresh.credentials, fresh.integration.scopes, provider.request_auth(fresh.credentials))

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

    async def refreshed(self, rejected: RefreshResult) -> RefreshResult | None:
        """Credentials newer than rejected ones, from a refresh by any process. None without a refresh token.

        Raises `ProviderUnavailable` during the pause after a failure, so that a provider that rejects every call is
        not called again for each of them.
        """
        credentials = rejected.credentials
        if not isinstance(credentials, OAuthTokens) or credentials.refresh_token is None:
            return None
        return await self.refresher.refresh(rejected.integration)

    async def fresh(self, stored: StoredIntegration, min_ttl: timedelta | None = None) -> RefreshResult:
        """The decrypted credentials of a usable integration, refreshed first where necessary.

        A token that still works is served even if its refresh fails; an expired one never is.
        """
        credentials = await self.cipher.decrypt(stored)
        as_stored = RefreshResult(stored.integration, credentials)
        if not isinstance(credentials, OAuthTokens) or self._is_fresh(credentials, min_ttl):
            return as_stored
        if credentials.refresh_token is None and not credentials.has_expired(self.clock()):
            return as_stored
        try:
            return await self.refresher.refresh(stored.integration)
        except (ProviderError, ProviderNotConfigured, StoreUnavailable):
            if credentials.has_expired(self.clock()):
                raise
            return as_stored

    async def refresh_token(self, integration_id: IntegrationId, user_id: UserId, *, force: bool) -> TokenState:
        """Refresh a token that is about to expire, or any token with `force`."""
        stored = await self.integrations.get(integration_id, user_id)
        stored.integration.require_usable()
        credentials = await self.cipher.decrypt(stored)
        if not isinstance(credentials, OAuthTokens):
            return TokenState(refreshed=False, expire_time=None)
        if self._is_fresh(credentials, None) and not force:
            return TokenState(refreshed=False, expire_time=credentials.expire_time)
        if credentials.refresh_token is None:
            raise ReauthorizationRequired
        refreshed = await self.refresher.refresh(stored.integration, force=force)
        return TokenState(refreshed=True, expire_time=refreshed.tokens.expire_time)

    def _is_fresh(self, tokens: OAuthTokens, min_ttl: timedelta | None) -> bool:
        ttl = tokens.buffer(self.buffer) if min_ttl is None else min_ttl
        return tokens.is_good_for(ttl, self.clock())


def _require_scopes(integration: Integration, scopes: Sequence[str]) -> None:
    missing = [scope for scope in scopes if scope not in integration.scopes]
    if missing:
        raise ScopeMissing(missing)
