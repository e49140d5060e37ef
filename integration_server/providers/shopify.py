"""Shopify: callbacks are signed, a write scope includes the read scope, and GraphQL throttles with HTTP 200."""

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from typing import Any, Self

from integration_server.domain.errors import InvalidField
from integration_server.domain.lenient_values import texts_at
from integration_server.providers.http import HttpResponse
from integration_server.providers.oauth2 import OAuth2Provider

_DOMAIN = ".myshopify.com"
_MAX_ERROR_SIZE = 4096
_PARAMETER = re.compile(r"[a-z][a-z0-9_]*")


class ShopifyProvider(OAuth2Provider):
    """A shop."""

    def for_config(self, config: Mapping[str, Any]) -> Self:
        """The provider for a shop, whose name may be given as its domain."""
        if isinstance(shop := config.get("shop"), str):
            config = {**config, "shop": shop.lower().removesuffix(_DOMAIN)}
        return super().for_config(config)

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
        signatures = [_signature(query, secret) for secret in self.oauth_client.secrets]
        if not any(hmac.compare_digest(signature, query.get("hmac", "").encode()) for signature in signatures):
            raise InvalidField("query", "is not signed by Shopify")
        if query.get("shop") != self.url_params["shop"] + _DOMAIN:
            raise InvalidField("query", "is of another shop")
        return {}


def _signature(query: Mapping[str, str], secret: str) -> bytes:
    pairs = (f"{_escaped(name, '%=&')}={_escaped(value, '%&')}" for name, value in query.items() if name != "hmac")
    return hmac.new(secret.encode(), "&".join(sorted(pairs)).encode(), hashlib.sha256).hexdigest().encode()


def _escaped(text: str, delimiters: str) -> str:
    for delimiter in delimiters:
        text = text.replace(delimiter, f"%{ord(delimiter):02X}")
    return text
