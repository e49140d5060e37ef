"""Xero: a user connects several organisations, of which one is chosen, and each is disconnected by itself."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote
from uuid import UUID

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.domain.lenient_values import read_object, text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.service.integrations.ports import NewAccount


class XeroProvider(OAuth2Provider):
    """An organisation's books."""

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Add the tenant."""
        tenants, configured = await self._tenants(tokens), self.url_params.get("tenant_id")
        wanted = None if configured is None else str(UUID(configured))
        chosen = _select_tenant(tenants, wanted, _authorization_event_id(tokens.access_token))
        if chosen is None:
            raise ProviderRejected("tenant")
        return replace(tokens, extras={**tokens.extras, "tenant_id": chosen})

    async def revoke_tokens(self, revoke_url: str, tokens: OAuthTokens) -> bool:
        """Disconnect the organisation; if it is the user's last one, also revoke the refresh token."""
        try:
            tenants = await self._tenants(tokens)
        except ProviderRejected:
            try:
                tokens = tokens.updated_with(await self.refresh(tokens), self._context.clock())
            except ProviderRejected:
                return True  # the grant has ended already
            tenants = await self._tenants(tokens)
        for tenant in tenants:
            connection = text_at(tenant, "id")
            if text_at(tenant, "tenantId") == tokens.extras.get("tenant_id") and connection is not None:
                url = f"{self.verify_url}/{quote(connection, safe='')}"
                response = await self.send("DELETE", url, headers=self.auth_headers(tokens))
                if not response.is_success and response.status != 404:
                    raise ProviderUnavailable(retry_after=response.retry_after)
        if any(text_at(tenant, "tenantId") != tokens.extras.get("tenant_id") for tenant in tenants):
            return True
        form = {"token": tokens.refresh_token or tokens.access_token}
        return self.read_revocation(await self.post_as_client(revoke_url, form))

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Check that the tenant is still connected, and return its name."""
        account = self.account_of(credentials, {})
        for tenant in await self._tenants(credentials):
            if text_at(tenant, "tenantId") == account.account_id:
                return replace(account, account_label=text_at(tenant, "tenantName"))
        raise ProviderRejected("credentials")

    def verification_auth(self, credentials: Credentials) -> RequestAuth:
        """The bearer header alone: the list is not of one tenant."""
        authorization = self.request_auth(credentials).headers["Authorization"]
        return RequestAuth(headers={"Authorization": authorization})

    async def _tenants(self, credentials: Credentials) -> Sequence[Mapping[str, Any]]:
        response = await self.request_verification(credentials)
        if not isinstance(response.json, list):
            raise ProviderUnavailable(retry_after=response.retry_after)
        return [tenant for tenant in response.json if isinstance(tenant, dict)]


def _select_tenant(tenants: Sequence[Mapping[str, Any]], configured: str | None, event: str | None) -> str | None:
    events = {text_at(tenant, "tenantId"): text_at(tenant, "authEventId") for tenant in tenants}
    if configured is not None:
        return configured if configured in events else None
    only = next(iter(events)) if len(events) == 1 else None
    return next((tenant for tenant, tenant_event in events.items() if event and tenant_event == event), only)


def _authorization_event_id(access_token: str) -> str | None:
    """The id of the authorization. The token comes directly from Xero, so its signature is not verified."""
    payload = access_token.split(".")[1] if access_token.count(".") == 2 else ""
    try:
        claims = read_object(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except binascii.Error:
        return None
    return text_at(claims, "authentication_event_id")
