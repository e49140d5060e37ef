"""Renewing access tokens: one refresh at a time per integration, committed only over the version that it read.

The refresh is a task of the server (see `tasks.py`). Within this process callers share one flight; between processes
the version is the fence: who commits second finds another version, and takes the winner's tokens.
"""

import asyncio
from dataclasses import dataclass, field

import structlog

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    IntegrationNotFound,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.integration import Failure, Integration, IntegrationId
from integration_server.service.connections import Connections, configured
from integration_server.service.ports import Clock, IntegrationStore, Providers
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks


@dataclass(frozen=True, slots=True)
class Renewed:
    """An integration as it is after a refresh, with the tokens that it has now."""

    integration: Integration
    tokens: OAuthTokens = field(repr=False)


class Refreshing:
    """Renews the tokens of one integration at a time, for all who wait for them."""

    def __init__(
        self,
        integrations: IntegrationStore,
        connections: Connections,
        providers: Providers,
        vault: Vault,
        tasks: ServerTasks,
        clock: Clock,
    ) -> None:
        self._integrations = integrations
        self._connections = connections
        self._providers = providers
        self._vault = vault
        self._tasks = tasks
        self._clock = clock
        self._log = structlog.get_logger(__name__)
        self._flights: dict[IntegrationId, asyncio.Task[Renewed]] = {}

    async def refresh(self, seen: Integration) -> Renewed:
        """Tokens newer than those of the integration as it was seen, from a refresh of ours or of somebody else.

        Raises `ReauthorizationRequired`, `ProviderUnavailable`, `ProviderMisconfigured` or `ProviderRejected`.
        """
        flight = self._flights.get(seen.integration_id)
        if flight is None:
            flight = self._tasks.start(self._renew(seen))
            self._flights[seen.integration_id] = flight
            flight.add_done_callback(lambda _: self._flights.pop(seen.integration_id))
        return await asyncio.shield(flight)

    async def _renew(self, seen: Integration) -> Renewed:
        current = await self._current(seen)
        integration, tokens = current.integration, current.tokens
        if integration.version != seen.version and not tokens.has_expired(self._clock()):
            return current
        if tokens.refresh_token is None:
            raise ReauthorizationRequired
        provider = configured(self._providers.get(integration.integration_type))
        try:
            answer = await provider.refresh_access_token(tokens.refresh_token)
        except ProviderError as error:
            raise await self._told_apart(integration, error) from error
        renewed = tokens.renewed_by(answer)
        new = await self._connections.sealed(integration, renewed, (*integration.scopes, *integration.missing_scopes))
        committed = await self._integrations.commit_refresh(integration, new, self._clock())
        now_there = await self._current(seen) if committed is None else Renewed(committed, renewed)
        self._log.info(
            "refreshed",
            integration_id=integration.integration_id,
            integration_type=integration.integration_type,
            expire_time=now_there.tokens.expire_time,
        )
        if now_there.tokens.has_expired(self._clock()):  # stored all the same: the refresh token may have rotated
            raise ProviderUnavailable("the provider answered with a token that has expired")
        return now_there

    async def _current(self, seen: Integration) -> Renewed:
        stored = await self._integrations.find(seen.integration_id, seen.user_id)
        if stored is None:
            raise IntegrationNotFound
        stored.integration.require_usable()
        tokens = await self._vault.open(stored)
        if not isinstance(tokens, OAuthTokens):
            raise ReauthorizationRequired  # connected anew with a key; there is nothing to refresh
        return Renewed(stored.integration, tokens)

    async def _told_apart(self, integration: Integration, error: ProviderError) -> Exception:
        """What a failed refresh means, noted where it is the integration's: dead, to be tried again, or our fault."""
        self._log.warning(
            "refresh_failed",
            integration_id=integration.integration_id,
            integration_type=integration.integration_type,
            error_class=error.reason,
            oauth_error=error.oauth_error,
        )
        if isinstance(error, ProviderMisconfigured):
            return error  # no user can mend it, so no user's integration is marked
        dead = isinstance(error, ProviderRejected) and error.oauth_error == "invalid_grant"
        told = ReauthorizationRequired() if dead else error
        await self._integrations.record_failure(
            integration,
            Failure(told.reason, self._clock(), str(told)),
            reauthorization_required=dead,
        )
        return told
