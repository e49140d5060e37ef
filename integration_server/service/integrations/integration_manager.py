"""Listing, reading and updating integrations."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import StoreUnavailable, UnknownIntegrationType
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import Aead, Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.integrations.ports import IntegrationStore, IntegrationUpdate
from integration_server.service.provider_port import Provider, Providers

_MAX_PAGE_BYTES = 3 * 1024 * 1024
"""Bytes, with a generous estimate of each row. By default gRPC clients accept messages of up to 4 MiB."""

_MAX_ATTEMPTS = 5  # while a refresh commits, or another caller changes the integration


@dataclass(eq=False, repr=False)
class IntegrationManager:
    """Lists, reads and updates the integrations of a user."""

    integrations: IntegrationStore
    providers: Providers
    aead: Aead
    clock: Clock

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "page")
        self._cipher = CredentialCipher(self.aead)

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
        stored = await self.integrations.list(user_id, types, after, page_size + 1)
        rows = [await self._cipher.redacted(row) for row in stored]
        page = rows[: min(page_size, _count_fitting(rows))]
        if len(rows) == len(page):
            return Page(page, "")
        return Page(page, await self._pages.make(list_id, page[-1].integration_id))

    async def get_integration(self, integration_id: IntegrationId, user_id: UserId) -> Integration:
        """The user's integration; if its row was altered, only what identifies it. Raises `IntegrationNotFound`."""
        return await self._cipher.redacted(await self.integrations.get(integration_id, user_id))

    async def update_integration(
        self, integration_id: IntegrationId, user_id: UserId, change: IntegrationUpdate
    ) -> Integration:
        """Change the name, the config or the active state.

        Raises `IntegrationNotFound`, `IntegrationPending`, or `CredentialsUnreadable` if the row was altered.
        """
        for _ in range(_MAX_ATTEMPTS):
            stored = await self.integrations.get(integration_id, user_id)
            current = stored.integration
            current.require_connected()
            if change == IntegrationUpdate():
                return await self._cipher.redacted(stored)
            if change.config is not None:
                self.providers[current.integration_type].for_config(change.config)  # raises `InvalidField`
            credentials = await self._cipher.decrypt(stored)
            encrypted = await self._cipher.encrypt(change.applied_to(current), credentials)
            updated = await self.integrations.update(current, change, encrypted, self.clock())
            if updated is not None:
                return updated
        raise StoreUnavailable


def _count_fitting(rows: Sequence[Integration]) -> int:
    """How many of the first rows fit into one page: at least one."""
    totals = itertools.accumulate(map(_estimated_bytes, rows))
    return max(1, sum(total <= _MAX_PAGE_BYTES for total in totals))


def _estimated_bytes(row: Integration) -> int:
    # A number takes up to six times as many bytes in a protobuf Struct as in JSON.
    scopes = sum(map(len, (*row.scopes, *row.missing_scopes)))
    return 4096 + scopes + 6 * len(json.dumps(row.config))
