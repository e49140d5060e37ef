"""Providers that let us in by a key which the user copies from them."""

import re
from base64 import b64encode
from collections.abc import Sequence

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, RequestAuth
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.base import BaseProvider

_IN_HEADERS = re.compile(r"[\x21-\x7e]+")  # RFC 9110 §5.5, without spaces


class ApiKeyProvider(BaseProvider):
    """A key as `Authorization: Bearer`, unless `api_key_header` or `api_key_query_param` names its place."""

    auth_method = AuthMethod.API_KEY
    required_fields: Sequence[str] = ("api_key",)
    api_key_header: str | None = None
    api_key_query_param: str | None = None

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The key, where the provider wants it."""
        key = _key(credentials).api_key
        if self.api_key_query_param is not None:
            return RequestAuth(query_params={self.api_key_query_param: key})
        if not _IN_HEADERS.fullmatch(key):
            raise ProviderRejected("credentials")  # no header could carry it, so it cannot be a key
        if self.api_key_header is not None:
            return RequestAuth(headers={self.api_key_header: key})
        return RequestAuth(headers={"Authorization": f"Bearer {key}"})


class BasicAuthProvider(BaseProvider):
    """A key and its secret, as user name and password of HTTP Basic (RFC 7617)."""

    auth_method = AuthMethod.BASIC
    required_fields: Sequence[str] = ("api_key", "api_secret")

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The pair, encoded."""
        key = _key(credentials)
        if ":" in key.api_key:
            raise ProviderRejected("credentials")  # RFC 7617 §2: it would end the user name there
        pair = f"{key.api_key}:{key.api_secret or ''}"
        return RequestAuth(headers={"Authorization": f"Basic {b64encode(pair.encode()).decode()}"})


def _key(credentials: Credentials) -> ApiKey:
    if not isinstance(credentials, ApiKey):
        raise ProviderRejected("credentials")
    return credentials
