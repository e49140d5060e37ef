"""Providers with an API key that the user copies from the provider."""

from base64 import b64encode
from collections.abc import Sequence

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, RequestAuth
from integration_server.domain.errors import ProviderRejected
from integration_server.providers.base import BaseProvider
from integration_server.providers.provider_requests import HEADER_VALUE
from integration_server.providers.url_templates import fill_text, template_params


class ApiKeyProvider(BaseProvider):
    """A key as `Authorization: Bearer`, or where a template of the declaration has it."""

    auth_method = AuthMethod.API_KEY
    required_fields: Sequence[str] = ("api_key",)

    def key_problem(self, field: str, value: str) -> str | None:
        """The problem with a key, also a character that the header of the key cannot contain."""
        problem = super().key_problem(field, value)
        if problem is None and self._is_in_header(field):
            return None if HEADER_VALUE.fullmatch(value) else "has characters that a header cannot contain"
        return problem

    def _is_in_header(self, field: str) -> bool:
        names = {name for template in self.request_headers.values() for name in template_params(template)}
        return field in names or (field == "api_key" and field not in self.names_in_requests)

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The headers and query parameters with the key."""
        key, auth = _key(credentials).api_key, self.templated_auth(credentials)
        is_needed = "api_key" in self.required_fields
        if (key or not is_needed) and (not key or "api_key" in self.names_in_requests):
            return auth
        if not HEADER_VALUE.fullmatch(key):
            raise ProviderRejected("credentials")  # a header cannot contain it, so it is not a key
        return RequestAuth({"Authorization": f"Bearer {key}", **auth.headers}, auth.query_params)


class BasicAuthProvider(BaseProvider):
    """A key and its secret as HTTP Basic user name and password, in UTF-8 (RFC 7617 §2.1).

    Some providers want only one of them, with an empty password or user name: their `required_fields` name that one.
    """

    auth_method = AuthMethod.BASIC
    required_fields: Sequence[str] = ("api_key", "api_secret")
    basic_username = "{api_key}"
    basic_password = "{api_secret}"

    def key_problem(self, field: str, value: str) -> str | None:
        """The problem with a key, also a colon in the user name, which would end it (RFC 7617 §2)."""
        has_colon = field in template_params(self.basic_username) and ":" in value
        return "has a colon, which a user name cannot have" if has_colon else super().key_problem(field, value)

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The Basic header."""
        _key(credentials)
        values, auth = self.for_credentials(credentials).values, self.templated_auth(credentials)
        username, password = (fill_text(part, values) or "" for part in (self.basic_username, self.basic_password))
        if ":" in username:
            raise ProviderRejected("credentials")  # RFC 7617 §2: the user name ends at a colon
        basic = f"Basic {b64encode(f'{username}:{password}'.encode()).decode()}"
        return RequestAuth({"Authorization": basic, **auth.headers}, auth.query_params)


def _key(credentials: Credentials) -> ApiKey:
    if not isinstance(credentials, ApiKey):
        raise ProviderRejected("credentials")
    return credentials
