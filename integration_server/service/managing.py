"""Looking at integrations, changing them, and disconnecting them."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from integration_server.domain.errors import (
    CredentialsUnreadable,
    IntegrationNotFound,
    IntegrationPending,
    ProviderError,
    StoreUnavailable,
    UnknownIntegrationType,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.paging import PageTokens
from integration_server.service.ports import (
    Clock,
    IntegrationStore,
    Provider,
    Providers,
    Sealer,
    StoredIntegration,
)
from integration_server.service.sealing import Vault
from integration_server.service.tasks import ServerTasks

_LARGEST_PAGE = 3 * 1024 * 1024
"""Bytes, by a generous estimate. gRPC's clients take messages of 4 MiB unless they are told otherwise."""


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
        self._pages = PageTokens(sealer, "page")

    def list_integration_types(self) -> Sequence[Provider]:
        """All types that this server knows, by name."""
        return self._providers.all()

    async def list_integrations(self, user_id: UserId, integration_type: str, page_size: int, page_token: str) -> Page:
        """A page of the user's integrations, oldest first; an empty type means all of them."""
        if integration_type:
            self._providers.get(integration_type)
        this_list = (user_id, integration_type)
        after = IntegrationId(await self._pages.read(page_token, this_list) or 0)
        rows = await self._integrations.list(user_id, integration_type or None, after, page_size + 1)
        page = rows[: min(page_size, _fitting(rows))]
        if len(rows) == len(page):
            return Page(page, "")
        return Page(page, await self._pages.make(this_list, page[-1].integration_id))

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


def _fitting(rows: Sequence[Integration]) -> int:
    """How many of the first rows fit into one page; one always does."""
    totals = itertools.accumulate(map(_weight, rows))
    return max(1, sum(total <= _LARGEST_PAGE for total in totals))


def _weight(row: Integration) -> int:
    # In a protobuf Struct a number takes up to six times the space that it takes in JSON.
    scopes = sum(map(len, (*row.scopes, *row.missing_scopes)))
    return 4096 + scopes + 6 * len(json.dumps(row.config))
