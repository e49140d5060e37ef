"""The operators' search for integrations across users."""

from dataclasses import KW_ONLY, dataclass

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.integration import Integration, IntegrationId, Status
from integration_server.service.common_types import Aead, Clock
from integration_server.service.credentials.credential_cipher import CredentialCipher
from integration_server.service.integrations.page_tokens import Page, PageTokens
from integration_server.service.operators.ports import (
    IntegrationCount,
    IntegrationFilter,
    IntegrationSearchStore,
)
from integration_server.service.provider_port import Providers


@dataclass(eq=False, repr=False)
class IntegrationSearch:
    """Finds and counts integrations of all users. A page has at most `max_page_bytes`, and maybe no item."""

    store: IntegrationSearchStore
    providers: Providers
    aead: Aead
    clock: Clock
    _: KW_ONLY
    max_page_bytes: int

    def __post_init__(self) -> None:
        self._pages = PageTokens(self.aead, "integration-search-page", IntegrationId)
        self._cipher = CredentialCipher(self.aead)

    async def find_integrations(
        self,
        integration_type: str,
        status: Status | None,
        account_id: str,
        page_size: int,
        page_token: str,
        allowed_types: AllowedTypes,
    ) -> Page[Integration]:
        """The integrations that meet the conditions, by id. Empty and None: any; the type: all allowed ones.

        Raises `UnknownIntegrationType` and `InvalidField`.
        """
        condition = self._condition(integration_type, status, account_id, allowed_types)
        list_id = ("find", *_list_id(condition, integration_type))
        after = await self._pages.read(page_token, list_id) or IntegrationId(0)
        page = await self.store.find(condition, self.clock(), after, page_size, self.max_page_bytes)
        found = [await self._cipher.redacted(stored) for stored in page.items]
        return Page(found, await self._next_token(list_id, page.last))

    async def count_integrations(
        self,
        integration_type: str,
        status: Status | None,
        account_id: str,
        page_token: str,
        allowed_types: AllowedTypes,
    ) -> Page[IntegrationCount]:
        """The numbers of the integrations that a page has examined, by type and status."""
        condition = self._condition(integration_type, status, account_id, allowed_types)
        list_id = ("count", *_list_id(condition, integration_type))
        after = await self._pages.read(page_token, list_id) or IntegrationId(0)
        page = await self.store.count(condition, self.clock(), after)
        return Page(page.counts, await self._next_token(list_id, page.last))

    def _condition(
        self, integration_type: str, status: Status | None, account_id: str, allowed_types: AllowedTypes
    ) -> IntegrationFilter:
        types = allowed_types.integration_types
        if integration_type:
            types = frozenset({self.providers[integration_type].integration_type})
        return IntegrationFilter(types, status, account_id)

    async def _next_token(self, list_id: tuple[str, ...], last: IntegrationId | None) -> str:
        return "" if last is None else await self._pages.make(list_id, last)


def _list_id(condition: IntegrationFilter, integration_type: str) -> tuple[str, ...]:
    # Not the allowed types: a policy that changes does not end a search.
    types = sorted(condition.integration_types or ()) if integration_type else ()
    return (*types, condition.status or "", condition.account_id)
