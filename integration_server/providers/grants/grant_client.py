"""What a grant needs of the provider that it obtains tokens from."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, Self

from integration_server.domain.credentials import OAuthTokens
from integration_server.providers.declaration_tables import Assertion, LoginRequest
from integration_server.providers.http import HttpResponse


class GrantClient(Protocol):
    """The token endpoint of a provider, with the values of an account."""

    @property
    def url_params(self) -> Mapping[str, str]:
        """The values of templates that the config and the credentials have."""

    @property
    def client_values(self) -> Mapping[str, str]:
        """The values of templates in requests of our client."""

    def with_attributes(self, **attributes: object) -> Self:
        """A copy with other values."""

    def scope_params(self) -> Mapping[str, str]:
        """The parameter with the required scopes, if there is one."""

    def token_request(self, standard: Mapping[str, str]) -> Mapping[str, str]:
        """The parameters of a token request: the standard ones of a grant, changed as declared."""

    async def request_tokens(self, params: Mapping[str, str], subject: str) -> OAuthTokens:
        """Send parameters to the token endpoint. Raises `ProviderError`."""


class AssertionClient(GrantClient, Protocol):
    """A provider whose grant is a signed assertion."""

    @property
    def assertion(self) -> Assertion | None:
        """The assertion as declared."""

    @property
    def secret_names(self) -> Mapping[str, str]:
        """The names of templates that the secrets of an account bring, each with its secret field."""

    @property
    def private_key(self) -> str:
        """Our private key; empty if not set."""

    @property
    def private_key_id(self) -> str:
        """The id of our private key; empty if not set."""

    @property
    def required_scopes(self) -> Sequence[str]:
        """The scopes to request."""

    @property
    def scope_separator(self) -> str:
        """What separates them."""

    @property
    def now(self) -> datetime:
        """The current time."""

    def token_audience(self) -> str:
        """The token endpoint, as the audience of a JWT. Raises `ProviderUnavailable`."""


class LoginClient(GrantClient, Protocol):
    """A provider whose grant is a login."""

    @property
    def login(self) -> Sequence[LoginRequest]:
        """The requests as declared."""

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = ...,
        content: str = ...,
        json: object = ...,
        form: Mapping[str, str] | None = ...,
    ) -> HttpResponse:
        """Send a request to a declared host. Raises `ProviderUnavailable`."""

    def tokens_in(self, http_response: HttpResponse, fields: Mapping[str, Any]) -> OAuthTokens:
        """The tokens in a successful response with these fields. Raises `ProviderUnavailable`."""

    def oauth_error(self, fields: object) -> str | None:
        """The error code in the fields of a response."""

    def adding_reason(self, fields: object) -> AbstractContextManager[None]:
        """Adds the reason in the fields of a response to the errors that are raised because of it."""

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Whether the request may be sent later."""

    def rejects_client(self, response: HttpResponse) -> bool:
        """Whether our app or its settings are at fault."""

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Whether the credentials are invalid."""
