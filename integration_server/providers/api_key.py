"""Providers with an API key that the user copies from the provider."""

import re
from base64 import b64encode
from collections.abc import Sequence

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, RequestAuth
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.base import BaseProvider

_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, ASCII only


class ApiKeyProvider(BaseProvider):
    """A key as `Authorization: Bearer`, or in the header or query parameter that is declared."""

    auth_method = AuthMethod.API_KEY
    required_fields: Sequence[str] = ("api_key",)
    api_key_header: str | None = None
    api_key_query_param: str | None = None

    def key_problem(self, field: str, value: str) -> str | None:
        """Also characters that the header of the key cannot contain."""
        problem = super().key_problem(field, value)
        if problem is None and field == "api_key" and self.api_key_query_param is None:
            return None if _HEADER_VALUE.fullmatch(value) else "has characters that a header cannot contain"
        return problem

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The header or query parameter with the key."""
        key = _key(credentials).api_key
        if self.api_key_query_param is not None:
            return RequestAuth(query_params={self.api_key_query_param: key})
        if not _HEADER_VALUE.fullmatch(key):
            raise ProviderRejected("credentials")  # a header cannot contain it, so it is not a key
        if self.api_key_header is not None:
            return RequestAuth(headers={self.api_key_header: key})
        return RequestAuth(headers={"Authorization": f"Bearer {key}"})


class BasicAuthProvider(BaseProvider):
    """A key and its secret as HTTP Basic user name and password, in UTF-8 (RFC 7617 §2.1).

    Some providers want only one of them, with an empty password or user name: their `required_fields` name that one.
    """

    auth_method = AuthMethod.BASIC
    required_fields: Sequence[str] = ("api_key", "api_secret")

    def key_problem(self, field: str, value: str) -> str | None:
        """Also a colon in the user name, which would end it (RFC 7617 §2)."""
        has_colon = field == "api_key" and ":" in value
        return "has a colon, which a user name cannot have" if has_colon else super().key_problem(field, value)

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The Basic header."""
        key = _key(credentials)
        if ":" in key.api_key:
            raise ProviderRejected("credentials")  # RFC 7617 §2: the user name ends at a colon
        pair = f"{key.api_key}:{key.api_secret or ''}"
        return RequestAuth(headers={"Authorization": f"Basic {b64encode(pair.encode()).decode()}"})


def _key(credentials: Credentials) -> ApiKey:
    if not isinstance(credentials, ApiKey):
        raise ProviderRejected("credentials")
    return credentials
