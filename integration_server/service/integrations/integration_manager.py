"""Listing, reading and updating integrations."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import UnknownIntegrationType
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import Aead, Clock
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.integrations.ports import IntegrationStore, IntegrationUpdate
from integration_server.service.provider_port import Provider, Providers

_MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes, with a generous estimate of each row. By default gRPC clients accept messages of up to 4 MiB."""


@dataclass(eq=False, repr=False)
class IntegrationManager:
    """Lists, reads and updates the integrations of a user."""

    integrations: IntegrationStore
    providers: Providers
    aead: Aead
    clock: Clock

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "page")

    def list_integration_types(self, allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES) -> Sequence[Provider]:
        """The allowed integration types of this server, ordered by name."""
        return [provider for provider in self.providers.all() if allowed_types.allows(provider.integration_type)]

    def canonical_type(self, integration_type: str) -> str:
        """The stored name of a type, given its name or an alias. An unknown name is returned unchanged."""
        try:
            return self.providers[integration_type].integration_type
        except UnknownIntegrationType:
            return integration_type

    async def list_integrations(
        self,
        user_id: UserId,
        integration_type: str,
        page_size: int,
        page_token: str,
        allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES,
    ) -> Page[Integration]:
        """A page of the user's integrations, oldest first. An empty type means all allowed types."""
        if integration_type:
            integration_type = self.providers[integration_type].integration_type
        list_id = (user_id, integration_type)
        after = IntegrationId(await self._pages.read(page_token, list_id) or 0)
        types = {integration_type} if integration_type else allowed_types.integration_types
        rows = await self.integrations.list(user_id, types, after, page_size + 1)
        page = rows[: min(page_size, _count_fitting(rows))]
        if len(rows) == len(page):
            return Page(page, "")
        return Page(page, await self._pages.make(list_id, page[-1].integration_id))

    async def get_integration(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        """The user's integration. Raises `IntegrationNotFound`."""
        return (await self.integrations.get(integration_id, user_id)).integration

    async def update_integration(
        self, integration_id: IntegrationId, user_id: UserId, change: IntegrationUpdate
    ) -> Integration:
        """Change the name, the config or the active state. Raises `IntegrationNotFound` or `IntegrationPending`."""
        current = await self.get_integration(integration_id, user_id)
        current.require_connected()
        if change == IntegrationUpdate():
            return current
        if change.config is not None:
            self.providers[current.integration_type].for_config(change.config)  # raises `InvalidField`
        return await self.integrations.update(integration_id, user_id, self.clock(), change)


def _count_fitting(rows: Sequence[Integration]) -> int:
    """How many of the first rows fit into one page: at least one."""
    totals = itertools.accumulate(map(_estimated_bytes, rows))
    return max(1, sum(total <= _MAX_PAGE_BYTES for total in totals))


def _estimated_bytes(row: Integration) -> int:
    # A number takes up to six times as many bytes in a protobuf Struct as in JSON.
    scopes = sum(map(len, (*row.scopes, *row.missing_scopes)))
    return 4096 + scopes + 6 * len(json.dumps(row.config))
