"""The tokens of a connection: verifying their account and committing them, or having them revoked.

The same for tokens that a code was exchanged for and for those of a device authorization.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from functools import partial

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable, StoreUnavailable
from integration_server.domain.integration import Integration
from integration_server.service.common_types import Clock
from integration_server.service.connections.account_linking import AccountLinker
from integration_server.service.connections.ports import AttemptDetails, StateClaims
from integration_server.service.connections.revocation import RevocationService
from integration_server.service.connections.revocation_ports import RevocationInProgress
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.oauth_clients.oauth_client_directory import OAuthClientDirectory
from integration_server.service.provider_port import OAuthProvider, Provider

# Seconds between attempts to commit while a revocation may end the new grant, the first for one that has ended. In all
# they last longer than a provider may take to respond to one (10 s), and leave time for the other calls within the
# sidecar's deadline (25 s): otherwise the browser would see a failure of a connection that then succeeds.
_REVOCATION_PAUSES = (0, 0.5, 1, 2, 4, 8)

_UNKNOWN_ACCOUNT = NewAccount(account_id=None, account_label=None)


@dataclass(eq=False, repr=False)
class TokenStorage:
    """Stores the tokens of attempts in the row of their account."""

    account_linker: AccountLinker
    revocation_service: RevocationService
    providers: OAuthClientDirectory
    clock: Clock
    _: KW_ONLY
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def now(self) -> datetime:
        """The database's clock, to be read before tokens are requested."""
        return await self.revocation_service.revocations.now()

    async def store(
        self,
        claims: StateClaims,
        details: AttemptDetails,
        provider: OAuthProvider,
        target: Integration,
        tokens: OAuthTokens,
        proof_time: datetime,
    ) -> Integration:
        """Verify the account of the tokens of an attempt, and commit them. Tokens that are not stored are revoked.

        `proof_time`: a time of `now`, before the provider issued them.
        """
        account = _UNKNOWN_ACCOUNT
        try:
            for pause in (*_REVOCATION_PAUSES, None):
                account = await _verify_account(provider, tokens, details.scopes)
                try:
                    return await self.account_linker.commit(target, account, tokens, details.scopes, proof_time)
                except RevocationInProgress:
                    if pause is None:
                        break
                await self.pause(pause)
                # The revocation may have ended this grant too. Then the provider rejects its tokens.
                proof_time = await self.now()
                if tokens.refresh_token is not None:
                    refreshed = await self.providers.authenticated(provider, partial(_refresh, tokens))
                    tokens = tokens.updated_with(refreshed, self.clock())
            # It says no more: the revocation may be another user's.
            raise ProviderUnavailable("the account cannot be connected at the moment; connect again")
        except StoreUnavailable:
            raise  # it is not known whether the tokens were committed
        except Exception:
            await self.revocation_service.discard(claims, details.oauth_client, account, tokens)
            raise

    async def discard(self, claims: StateClaims, oauth_client: str, tokens: OAuthTokens) -> None:
        """Have tokens revoked that an attempt received for a client and no integration can keep."""
        await self.revocation_service.discard(claims, oauth_client, _UNKNOWN_ACCOUNT, tokens)


async def _refresh(tokens: OAuthTokens, provider: OAuthProvider) -> OAuthTokens:
    return await provider.refresh(tokens)


async def _verify_account(provider: Provider, tokens: OAuthTokens, requested_scopes: Sequence[str]) -> NewAccount:
    try:
        return await provider.verify_connection(tokens)
    except ProviderRejected:
        # The account request may need a scope that the user denied; the integration then shows the missing scope.
        if set(provider.missing_scopes(requested_scopes, tokens)).isdisjoint(provider.required_scopes):
            raise
        return _UNKNOWN_ACCOUNT
