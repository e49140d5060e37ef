"""Looking at integrations, changing them, and disconnecting them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from integration_server.domain.errors import (
    CredentialsUnreadable,
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    ProviderError,
    StoreUnavailable,
    UnknownIntegrationType,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.domain.reach import EVERYTHING, Reach
from integration_server.service.ports import (
    Clock,
    IntegrationStore,
    Provider,
    Providers,
    Sealer,
    StoredIntegration,
)
from integration_server.service.sealing import SealedTokens, Vault
from integration_server.service.tasks import ServerTasks


@dataclass(frozen=True, slots=True)
class PagePlace:
    """The content of a page token: the list that it continues, and after which row."""

    user_id: UserId
    integration_type: str
    after: IntegrationId


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; `next_page_token` is empty on the last."""

    integrations: Sequence[Integration]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Change:
    """What to set of an integration; None stays as it is."""

    name: str | None = None
    config: Mapping[str, Any] | None = None
    is_active: bool | None = None


class Managing:
    """What a user does with integrations that are there."""

    def __init__(
        self,
        integrations: IntegrationStore,
        providers: Providers,
        vault: Vault,
        sealer: Sealer,
        tasks: ServerTasks,
        clock: Clock,
    ) -> None:
        self._integrations = integrations
        self._providers = providers
        self._vault = vault
        self._tasks = tasks
        self._clock = clock
        self._pages = SealedTokens(sealer, "page", PagePlace)

    def list_integration_types(self, reach: Reach = EVERYTHING) -> Sequence[Provider]:
        """The types that this server knows and that are within reach, by name."""
        return [provider for provider in self._providers.all() if reach.covers(provider.integration_type)]

    async def list_integrations(
        self,
        user_id: UserId,
        integration_type: str,
        page_size: int,
        page_token: str,
        reach: Reach = EVERYTHING,
    ) -> Page:
        """A page of the user's integrations, oldest first; an empty type means all within reach."""
        if integration_type:
            self._providers.get(integration_type)
        after = await self._read_page_token(page_token, user_id, integration_type)
        types = {integration_type} if integration_type else reach.integration_types
        rows = await self._integrations.list(user_id, types, after, page_size + 1)
        page = rows[:page_size]
        if len(rows) == len(page):
            return Page(page, "")
        place = PagePlace(user_id, integration_type, page[-1].integration_id)
        return Page(page, await self._pages.make(place))

    async def _read_page_token(self, token: str, user_id: UserId, integration_type: str) -> IntegrationId:
        if not token:
            return IntegrationId(0)
        place = await self._pages.read(token)
        if place is None or (place.user_id, place.integration_type) != (user_id, integration_type):
            raise InvalidField("page_token", "is not from this list")
        return place.after

    async def get_integration(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        """The user's integration. Raises `IntegrationNotFound`."""
        return (await self._find(integration_id, user_id)).integration

    async def update_integration(self, integration_id: IntegrationId, user_id: UserId, change: Change) -> Integration:
        """Change name, config or whether it is on. Raises `IntegrationNotFound` or `IntegrationPending`."""
        current = await self.get_integration(integration_id, user_id)
        if not current.is_connected:
            raise IntegrationPending
        if change == Change():
            return current
        changed = await self._integrations.update(
            integration_id,
            user_id,
            self._clock(),
            name=change.name,
            config=change.config,
            is_active=change.is_active,
        )
        if changed is None:
            raise IntegrationNotFound
        return changed

    async def disconnect_integration(self, integration_id: IntegrationId, user_id: UserId) -> bool:
        """Delete an integration, then revoke its credentials; whether the provider confirmed that they are dead.

        It is gone here at once, whatever the provider answers. Raises `IntegrationNotFound`.
        """
        # One task: a caller who leaves after the removal must not leave the grant behind.
        return await self._tasks.run(self._disconnect(integration_id, user_id))

    async def _disconnect(self, integration_id: IntegrationId, user_id: UserId) -> bool:
        removed = await self._integrations.remove(integration_id, user_id)
        if removed is None:
            raise IntegrationNotFound
        return await self._revoke(removed)

    async def _revoke(self, removed: StoredIntegration) -> bool:
        integration = removed.integration
        if not integration.is_connected:
            return False
        try:
            provider = self._providers.get(integration.integration_type)
            if await self._integrations.shares_grant(integration, provider.shares_grants_with):
                return False
            return await provider.revoke_credentials(await self._vault.open(removed))
        except (ProviderError, CredentialsUnreadable, UnknownIntegrationType, StoreUnavailable):
            return False

    async def _find(self, integration_id: IntegrationId, user_id: UserId) -> StoredIntegration:
        stored = await self._integrations.find(integration_id, user_id)
        if stored is None:
            raise IntegrationNotFound
        return stored
