"""Xero.

- Endpoints; client id and secret are sent as HTTP Basic: developer.xero.com/documentation/guides/oauth2/auth-flow [H].
- `offline_access` requests a refresh token [H]. Access tokens last 30 minutes; a refresh token lasts 60 days and is
  replaced at each use, but works for another 30 minutes [H].
- GET /connections lists the organisations ("tenants") that the user has connected, each with the `authEventId` of its
  authorization: raw.githubusercontent.com/XeroAPI/Xero-OpenAPI/master/xero-identity.yaml [H]. The access token, a JWT,
  names its own in `authentication_event_id` [M].
- The tenant is the one that `tenant_id` of the config names; otherwise the first that this authorization connected;
  otherwise the only one. Requests name it in `Xero-Tenant-Id` [H].
- Verification succeeds if the list still has the tenant.
- Apps made since 2 March 2026 have granular scopes only: `accounting.invoices`, `.payments`, `.banktransactions` and
  `.manualjournals` in place of `accounting.transactions`, which older apps may use until September 2027;
  `accounting.contacts` stays: developer.xero.com/documentation/guides/oauth2/scopes [H 2026-11-29]. The setting
  `XERO_SCOPES` names other scopes.
- 401 with `AuthorizationUnsuccessful` means a missing scope or tier, and not a dead token [H 2026-11-29].
- 60 calls a minute, 5,000 a day and five at a time per tenant, and 10,000 a minute for all tenants:
  developer.xero.com/faq/limits [H]. The starter tier has 1,000 a day [M 2026-11-29]. The response headers and 429 say
  so, so the larger figure is declared.
- Revoking a refresh token removes all connections of the user to the app [H 2026-11-29]. DELETE /connections/{id}
  removes one organisation only [K 2026-11-29]. The refresh token is revoked when no organisation is left.
- PKCE is supported [M].
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import ProviderRejected, ProviderUnavailable
from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.base import ProviderConfig
from integration_server.providers.declaration import ExpiringFact
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_values import read_object, text_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.xero import XERO
from integration_server.service.integrations.ports import NewAccount

_NOT_AUTHORIZED = "AuthorizationUnsuccessful"
_TRANSACTIONS = "accounting.transactions"
_TRANSACTION_SCOPES = (
    *("accounting.invoices", "accounting.payments"),
    *("accounting.banktransactions", "accounting.manualjournals"),
)


class XeroConfig(ProviderConfig):
    """The tenant to connect."""

    tenant_id: UUID | None = None


class XeroProvider(OAuth2Provider):
    """An organisation's books."""

    integration_type = "xero"
    oauth_authorize_url = "https://login.xero.com/identity/connect/authorize"
    oauth_token_url = "https://identity.xero.com/connect/token"
    revoke_url = "https://identity.xero.com/connect/revocation"
    revocation_ends = "grant"
    revoke_token = "bearer"
    required_scopes = (
        *("openid", "profile", "email", "offline_access", "accounting.contacts"),
        *_TRANSACTION_SCOPES,
    )
    scope_equivalents = {_TRANSACTIONS: _TRANSACTION_SCOPES}
    retired_scopes = (_TRANSACTIONS,)
    expiring_facts = (ExpiringFact(f"the scope {_TRANSACTIONS}", date(2027, 9, 1), _TRANSACTIONS),)
    refresh_token_grace = timedelta(minutes=30)
    verify_url = "https://api.xero.com/connections"
    webhook_scheme = XERO
    account_id_field = "tenant_id"
    api_base_url = "https://api.xero.com/api.xro/2.0"
    rate_limits = (
        RateLimit(60, timedelta(minutes=1)),
        RateLimit(5_000, timedelta(days=1)),
        RateLimit(10_000, timedelta(minutes=1), LimitScope.APP),
    )
    calls_at_once = 5
    reason_paths = ("Detail", "Title", "error")
    reasons = (_NOT_AUTHORIZED, "TokenExpired", "AuthenticationUnsuccessful")
    config_model = XeroConfig

    configured_tenant: str | None = None
    """The tenant that the config names."""

    def configure(self, config: XeroConfig) -> "XeroProvider":
        """Connect the tenant that the config names."""
        return self if config.tenant_id is None else self.with_attributes(configured_tenant=str(config.tenant_id))

    async def complete_tokens(self, tokens: OAuthTokens) -> OAuthTokens:
        """Add the tenant."""
        tenants = await self._tenants(tokens)
        chosen = _select_tenant(tenants, self.configured_tenant, _authorization_event_id(tokens.access_token))
        if chosen is None:
            raise ProviderRejected("tenant")
        return replace(tokens, extras={**tokens.extras, "tenant_id": chosen})

    def auth_headers(self, tokens: OAuthTokens) -> Mapping[str, str]:
        """The bearer header, and the tenant if it is known."""
        tenant = {"Xero-Tenant-Id": tokens.extras["tenant_id"]} if "tenant_id" in tokens.extras else {}
        return {**super().auth_headers(tokens), **tenant}

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """401, unless only a scope or tier is missing."""
        return super().rejects_access_token(response) and text_at(response.json, "Detail") != _NOT_AUTHORIZED

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """401 or 403, unless only a scope or tier is missing."""
        return super().rejects_credentials(response) and text_at(response.json, "Detail") != _NOT_AUTHORIZED

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
                response = await self.send("DELETE", url, headers=super().auth_headers(tokens))
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


register = XeroProvider.register_in
