"""Listing, reading and updating integrations."""

import hashlib
from dataclasses import KW_ONLY, dataclass

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import StoreUnavailable, UnknownIntegrationType
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.common_types import Aead, Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.integrations.ports import IntegrationLists, IntegrationStore, IntegrationUpdate
from integration_server.service.provider_port import Provider, Providers

_MAX_ATTEMPTS = 5  # while a refresh commits, or another caller changes the integration


@dataclass(eq=False, repr=False)
class IntegrationManager:
    """Lists, reads and updates the integrations of a user. A page has at most `max_page_bytes`."""

    integrations: IntegrationStore
    lists: IntegrationLists
    providers: Providers
    aead: Aead
    clock: Clock
    _: KW_ONLY
    max_page_bytes: int

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "page", int)
        self._cipher = CredentialCipher(self.aead)
        self._type_pages = PageTokens(self.aead, "integration-type-page", int)

    async def list_integration_types(
        self, page_size: int, page_token: str, allowed_types: AllowedTypes = ALL_INTEGRATION_TYPES
    ) -> Page[Provider]:
        """A page of the allowed integration types of this server, ordered by name."""
        providers = [provider for provider in self.providers.all() if allowed_types.allows(provider.integration_type)]
        # Another list of types, as of a server with other providers, begins anew.
        names = "\n".join(provider.integration_type for provider in providers)
        list_id = (hashlib.sha256(names.encode()).hexdigest(),)
        begin = await self._type_pages.read(page_token, list_id) or 0
        end = begin + page_size
        token = "" if end >= len(providers) else await self._type_pages.make(list_id, end)
        return Page(providers[begin:end], token)

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
        page = await self.lists.list(user_id, types, after, page_size, self.max_page_bytes)
        rows = [await self._cipher.redacted(stored) for stored in page.items]
        return Page(rows, "" if page.is_last else await self._pages.make(list_id, rows[-1].integration_id))

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
