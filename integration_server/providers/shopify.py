"""Shopify, the Admin API of one shop.

- Every shop has a host of its own, `{shop}.myshopify.com`, also for its OAuth:
  shopify.dev/docs/apps/build/authentication-authorization/access-tokens/authorization-code-grant [H]. `shop` is
  required in the config.
- Client id and secret in the form; scopes have commas between them [H]. A scope to read is left out of the answer
  beside the one to write the same [K].
- The callback is signed: `hmac` is over the other parameters, sorted, with our secret, as Shopify's own library has it:
  github.com/Shopify/shopify_python_api [H]. It must be right, and its `shop` the one that the user was sent to.
- `expiring=1` makes offline tokens expire after 60 minutes, with a refresh token of 90 days that is replaced at each
  use; public apps must use them from January 2027:
  shopify.dev/docs/apps/build/authentication-authorization/access-tokens/offline-access-tokens [H].
- A refresh token that was used works until its replacement is used, for 30 days:
  shopify.dev/changelog/more-resilient-refreshes-for-expiring-offline-access-tokens [H].
- A shop has one live set of expiring tokens for an app; new ones end the old [H].
- Requests carry `X-Shopify-Access-Token` [H]. Verified by the shop's own resource [K], in a version that Shopify
  serves with its oldest one when it is gone [H].
- Revoking is DELETE /admin/api_permissions/current.json, which uninstalls the app from the shop [K].
- How many calls a shop takes hangs on its plan, from two a second on:
  shopify.dev/docs/api/admin-rest/usage/rate-limits [H]. So no limit is declared, and what answers tell is kept to.
- PKCE is not documented; RFC 6749 §3.1 has unknown parameters ignored, so it is sent [K].
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from pydantic import Field, field_validator

from integration_server.domain.credentials import Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import InvalidField, ProviderRejected
from integration_server.providers.base import ProviderConfig
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.shopify import SHOPIFY

_DOMAIN = ".myshopify.com"


class ShopifyConfig(ProviderConfig):
    """Which shop: "acme", or "acme.myshopify.com"."""

    shop: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,59}[a-z0-9])?$")

    @field_validator("shop", mode="before")
    @classmethod
    def _strip_domain(cls, value: Any) -> Any:  # noqa: ANN401  # whatever was sent
        return value.lower().removesuffix(_DOMAIN) if isinstance(value, str) else value


class ShopifyProvider(OAuth2Provider):
    """A shop."""

    integration_type = "shopify"
    display_name = "Shopify"
    oauth_authorize_url = "https://{shop}.myshopify.com/admin/oauth/authorize"
    oauth_token_url = "https://{shop}.myshopify.com/admin/oauth/access_token"
    revoke_url = "https://{shop}.myshopify.com/admin/api_permissions/current.json"
    revokes_whole_account = True
    verify_url = "https://{shop}.myshopify.com/admin/api/2026-07/shop.json"
    webhook_scheme = SHOPIFY
    api_base_url = "https://{shop}.myshopify.com/admin/api"
    host_patterns = ("*.myshopify.com",)
    required_scopes = ("read_products", "read_orders")
    scope_separator = ","
    token_auth = "client_secret_post"
    code_params: Mapping[str, str] = {"expiring": "1"}
    refresh_token_grace = timedelta(days=30)
    account_id_field = "shop.myshopify_domain"
    account_label_field = "shop.name"
    config_model = ShopifyConfig

    def configure(self, config: ShopifyConfig) -> "ShopifyProvider":
        """At the shop."""
        return self.with_url_params(shop=config.shop)

    def implied_by(self, scope: str) -> Collection[str]:
        """Who may write may read."""
        return (scope.replace("write_", "read_", 1),) if scope.startswith(("write_", "unauthenticated_write_")) else ()

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """Nothing to keep: the shop is known, and the callback must be from it. Raises `InvalidField`."""
        if not hmac.compare_digest(_signature(query, self.client_secret), query.get("hmac", "").encode()):
            raise InvalidField("query", "is not signed by Shopify")
        if query.get("shop") != self.url_params["shop"] + _DOMAIN:
            raise InvalidField("query", "is of another shop")
        return {}

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The token, in a header of Shopify's own."""
        if not isinstance(credentials, OAuthTokens):
            raise ProviderRejected("credentials")
        return RequestAuth(headers={"X-Shopify-Access-Token": credentials.access_token})

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Uninstall the app."""
        return await self.revoke_with_access_token(credentials, "DELETE")


def _signature(query: Mapping[str, str], secret: str) -> bytes:
    pairs = (f"{_escaped(name, '%=&')}={_escaped(value, '%&')}" for name, value in query.items() if name != "hmac")
    return hmac.new(secret.encode(), "&".join(sorted(pairs)).encode(), hashlib.sha256).hexdigest().encode()


def _escaped(text: str, delimiters: str) -> str:
    for delimiter in delimiters:
        text = text.replace(delimiter, f"%{ord(delimiter):02X}")
    return text


def register(factory: ProviderFactory) -> None:
    """Add it to the factory."""
    factory.register(ShopifyProvider.integration_type, ShopifyProvider)
