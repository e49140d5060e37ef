"""Shopify, the Admin API of one shop.

- Every shop has its own host, `{shop}.myshopify.com`, for OAuth too:
  shopify.dev/docs/apps/build/authentication-authorization/access-tokens/authorization-code-grant [H]. `shop` is
  required in the config.
- Client id and secret are sent in the form; commas separate scopes [H]. A response leaves out a read scope beside the
  write scope of the same resource [K].
- The callback is signed: `hmac` is over the other parameters, sorted, with our client secret, as in Shopify's own
  library: github.com/Shopify/shopify_python_api [H]. The signature must be valid, and `shop` must be that of the
  config.
- `expiring=1` requests offline tokens that expire after 60 minutes, with a refresh token of 90 days that each use
  replaces; public apps must use them from January 2027:
  shopify.dev/docs/apps/build/authentication-authorization/access-tokens/offline-access-tokens [H].
- A used refresh token works for 30 days, unless its replacement is used:
  shopify.dev/changelog/more-resilient-refreshes-for-expiring-offline-access-tokens [H].
- A shop has one valid set of expiring tokens per app; new ones end the old [H].
- `app_not_installed` for a code, and `invalid_subject_token` for a refresh, mean that the grant has ended
  [M 2026-11-29].
- Requests carry `X-Shopify-Access-Token` [H]. Verification is the shop's own resource [K]. When its API version ends,
  Shopify serves the oldest supported one [H]. A version is supported for a year [H]. The setting
  `SHOPIFY_API_VERSION` names another one.
- A revocation is DELETE /admin/api_permissions/current.json, which uninstalls the app from the shop [K].
- The rate limit depends on the shop's plan, from two calls a second: shopify.dev/docs/api/admin-rest/usage/rate-limits
  [H]. No limit is declared; the limits in response headers apply. GraphQL has a limit of its own, in the cost of
  queries, and reports THROTTLED with status 200: shopify.dev/docs/api/usage/limits [H].
- PKCE is not documented; RFC 6749 §3.1 requires that unknown parameters are ignored, so it is sent [K].
"""

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from datetime import date, timedelta
from typing import Any

from pydantic import Field, field_validator

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import InvalidField
from integration_server.providers.base import ProviderConfig
from integration_server.providers.declaration import Errors, ExpiringFact, api_version_setting
from integration_server.providers.http import HttpResponse
from integration_server.providers.lenient_values import texts_at
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.providers.webhooks.shopify import SHOPIFY

_DOMAIN = ".myshopify.com"
_MAX_ERROR_SIZE = 4096
_PARAMETER = re.compile(r"[a-z][a-z0-9_]*")


class ShopifyConfig(ProviderConfig):
    """The shop: "acme" or "acme.myshopify.com"."""

    shop: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,59}[a-z0-9])?$")

    @field_validator("shop", mode="before")
    @classmethod
    def _strip_domain(cls, value: Any) -> Any:  # noqa: ANN401  # not validated yet
        return value.lower().removesuffix(_DOMAIN) if isinstance(value, str) else value


class ShopifyProvider(OAuth2Provider):
    """A shop."""

    integration_type = "shopify"
    oauth_authorize_url = "https://{shop}.myshopify.com/admin/oauth/authorize"
    oauth_token_url = "https://{shop}.myshopify.com/admin/oauth/access_token"
    revoke_url = "https://{shop}.myshopify.com/admin/api_permissions/current.json"
    revoke_method = "DELETE"
    revoke_token = "bearer"
    revocation_ends = "grant"
    settings = {"api_version": api_version_setting("2026-07")}
    expiring_facts = (ExpiringFact("Admin API 2026-07", date(2027, 7, 1), "2026-07"),)
    verify_url = "https://{shop}.myshopify.com/admin/api/{api_version}/shop.json"
    webhook_scheme = SHOPIFY
    api_base_url = "https://{shop}.myshopify.com/admin/api"
    rate_limit_resources = {"graphql": "/[^/]+/graphql[.]json"}
    host_patterns = ("*.myshopify.com",)
    required_scopes = ("read_products", "read_orders")
    scope_separator = ","
    token_auth = "client_secret_post"
    errors = Errors(dead=["app_not_installed", "invalid_subject_token"])
    token_params = {"expiring": "1"}
    refresh_token_grace = timedelta(days=30)
    account_id_field = "shop.myshopify_domain"
    account_label_field = "shop.name"
    config_model = ShopifyConfig

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Also THROTTLED in the errors of GraphQL, with status 200: the query was not run."""
        is_short = len(response.body) <= _MAX_ERROR_SIZE
        is_throttled = is_short and "THROTTLED" in texts_at(response.json, "errors.*.extensions.code")
        return super().is_rate_limited(response) or is_throttled

    def implied_by(self, scope: str) -> Collection[str]:
        """A write scope includes the read scope of the same resource."""
        return (scope.replace("write_", "read_", 1),) if scope.startswith(("write_", "unauthenticated_write_")) else ()

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """Verify the callback's signature and shop. Raises `InvalidField`. The config has the shop already.

        Shopify signs webhooks with the same key. Their bodies begin with "{" or have no "=", unlike these messages.
        """
        if not all(map(_PARAMETER.fullmatch, query)):
            raise InvalidField("query", "has a parameter that Shopify does not send")
        if not hmac.compare_digest(_signature(query, self.client_secret), query.get("hmac", "").encode()):
            raise InvalidField("query", "is not signed by Shopify")
        if query.get("shop") != self.url_params["shop"] + _DOMAIN:
            raise InvalidField("query", "is of another shop")
        return {}

    def auth_headers(self, tokens: OAuthTokens) -> Mapping[str, str]:
        """The access token in Shopify's own header."""
        return {"X-Shopify-Access-Token": tokens.access_token}


def _signature(query: Mapping[str, str], secret: str) -> bytes:
    pairs = (f"{_escaped(name, '%=&')}={_escaped(value, '%&')}" for name, value in query.items() if name != "hmac")
    return hmac.new(secret.encode(), "&".join(sorted(pairs)).encode(), hashlib.sha256).hexdigest().encode()


def _escaped(text: str, delimiters: str) -> str:
    for delimiter in delimiters:
        text = text.replace(delimiter, f"%{ord(delimiter):02X}")
    return text


register = ShopifyProvider.register_in
