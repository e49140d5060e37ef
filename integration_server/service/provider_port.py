"""The port to providers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Protocol, Self, TypeVar

from integration_server.domain.credentials import (
    ApiKey,
    AuthMethod,
    Credentials,
    DecisionPending,
    DeviceAuthorization,
    OAuthTokens,
    RequestAuth,
)
from integration_server.domain.oauth_client import OAuthClient
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, ApiStream, RateLimit
from integration_server.domain.webhooks import ReceivedWebhook, WebhookRequest
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.request_body import RequestBody

T = TypeVar("T")


class DeclaredField(Protocol):
    """A field that a type declares, with what a form needs to ask for it."""

    @property
    def title(self) -> str | None:
        """The name to show; None if the field's own name is enough."""

    @property
    def help(self) -> str:
        """What the field is, and where its value is found."""

    @property
    def pattern(self) -> str | None:
        """A regular expression that the whole value matches."""

    @property
    def choices(self) -> Sequence[str]:
        """The allowed values; any, if empty."""

    @property
    def required(self) -> bool:
        """Whether the field must be given, unless it has a default."""

    @property
    def default(self) -> str | None:
        """The value of a field that is not given."""

    def problem_of(self, value: object) -> str | None:
        """Why a given value is not allowed, as the end of a sentence, or None."""


class Provider(Protocol):
    """One integration type. Its requests raise `ProviderError` and nothing else."""

    @property
    def integration_type(self) -> str:
        """The name of the type, such as "google_calendar"."""

    @property
    def aliases(self) -> Sequence[str]:
        """Other names of the type that callers may use."""

    @property
    def display_name(self) -> str:
        """The name to show to users."""

    @property
    def auth_method(self) -> AuthMethod:
        """The authentication method."""

    @property
    def oauth(self) -> "OAuthProvider | None":
        """The same provider, with the requests of OAuth 2; None if it has none, but API keys."""

    @property
    def required_scopes(self) -> Sequence[str]:
        """Scopes that are always requested and must be granted."""

    @property
    def required_fields(self) -> Sequence[str]:
        """The fields that an API key must have: "api_key", "api_secret"."""

    @property
    def config_fields(self) -> Mapping[str, DeclaredField]:
        """The fields of an integration's config that the provider uses, by name."""

    @property
    def secret_fields(self) -> Mapping[str, DeclaredField]:
        """The secrets of an account besides key and secret, by name."""

    @property
    def missing_settings(self) -> Sequence[str]:
        """The names of required settings that are not set."""

    def require_configured(self) -> None:
        """Raise `ProviderNotConfigured` if settings are missing."""

    @property
    def oauth_client(self) -> OAuthClient:
        """The client that authenticates, by default the operator's own."""

    def for_client(self, client: OAuthClient) -> Self:
        """The provider with another client, or with another of its client's secrets."""

    @property
    def takes_client_secret(self) -> bool:
        """Whether a client of this type has a secret."""

    @property
    def issuer(self) -> str | None:
        """The authorization server's issuer; a callback must then have it as `iss` (RFC 9207)."""

    @property
    def shares_grants_with(self) -> Sequence[str]:
        """The types of the same authorization server, whose grants a revocation ends too; empty if it ends one only.

        They are grants of the same account, and of the same client unless `revocation_ends` is "account".
        """

    @property
    def grants_ended_by(self) -> Sequence[str]:
        """The types whose `shares_grants_with` has this type: a revocation of theirs ends its grants."""

    @property
    def revocation_ends(self) -> str:
        """What a revocation ends: one "token", or each "grant" of the account to the client, or to every client."""

    @property
    def names_accounts_like(self) -> Sequence[str]:
        """The types among them whose account ids are equal for the same account, and differ for different ones."""

    @property
    def refresh_token_grace(self) -> timedelta:
        """How long a refresh token works after a refresh has replaced it, as the provider documents.

        Zero if it is invalid at once or nothing is documented; `timedelta.max` if a refresh replaces none.
        """

    @property
    def renew_after(self) -> timedelta:
        """The age at which an access token is refreshed before its expiry is near; `timedelta.max`: never."""

    def for_config(self, config: Mapping[str, Any]) -> Self:
        """The provider for an integration with this config. Raises `InvalidField`."""

    @property
    def has_authorization_page(self) -> bool:
        """Whether a user connects an account in the browser, and not with a key or other secrets."""

    @property
    def has_device_authorization(self) -> bool:
        """Whether the user does so on any device, by entering a code (RFC 8628)."""

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """The requested scopes that were not granted."""

    @property
    def supports_webhooks(self) -> bool:
        """Whether the provider's webhooks can be verified."""

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """The secrets that sign webhooks: those of our app, from settings (None), or those of an integration."""

    def webhook_secret_problem(self, secret: str) -> str | None:
        """Why webhooks cannot be verified with a secret, as the end of a sentence; None if they can."""

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """The events in a webhook request that one of the secrets signs. Raises `InvalidWebhookSignature`."""

    @property
    def has_verification(self) -> bool:
        """Whether the provider has a request that verifies credentials."""

    async def credentials_of(self, key: ApiKey) -> Credentials:
        """The credentials to store for a key: the key itself, or tokens that are obtained with it.

        They have the values of the config, and those that are looked up.
        """

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Check the credentials at the provider, and return their account."""

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the credentials at the provider; False if the provider has no way to."""

    def key_problem(self, field: str, value: str) -> str | None:
        """Why a field of an API key, or its webhook secret, cannot be right, as the end of a sentence, or None."""

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The headers or query parameters that authenticate an API request."""

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        """The documented rate limits of the API. Calls stay within all of them."""

    def rate_limit_resource(self, request: ApiRequest) -> str:
        """The part of the API that has rate limits of its own, and that a request belongs to; empty for none."""

    @property
    def calls_at_once(self) -> int | None:
        """The documented maximum of concurrent calls per account; None if nothing is documented."""

    @property
    def allowed_request_headers(self) -> Sequence[str]:
        """The API's own request headers that a backend may send, besides the common ones."""

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiResponse:
        """Send an authenticated request to the API. Every status is returned as a response.

        Raises `ApiNotDeclared`, `ResponseTooLarge` for more than `body_limit` bytes, and `ProviderUnavailable` if there
        is no response.
        """

    def stream_api(
        self, credentials: Credentials, request: ApiRequest, body: RequestBody | None, *, idle_timeout: timedelta
    ) -> AbstractAsyncContextManager[ApiStream]:
        """As `call_api`, with bodies in parts and without limits; `request.body` is ignored. Leaving the context ends
        what is left of both.

        Raises what `body` raises, and `ProviderUnavailable` if the provider stalls for `idle_timeout`.
        """


class OAuthProvider(Provider, Protocol):
    """A provider whose accounts have OAuth 2 tokens."""

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """The authorization URL for the browser (RFC 6749 §4.1.1, RFC 7636 §4.3 with S256)."""

    def scopes_to_request(self, requested: Sequence[str], granted: Sequence[str]) -> Sequence[str]:
        """The scopes of an authorization: the required and requested ones, and those that an integration has already.

        Granted scopes are left out if others include them, or if they cannot be requested.
        """

    def for_callback(self, query: Mapping[str, str]) -> Self:
        """The provider with the values of the callback that are stored with the tokens. Raises `InvalidField`."""

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Exchange an authorization code (RFC 6749 §4.1.3)."""

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """New tokens for these (RFC 6749 §6), without the values that the response leaves out."""

    async def begin_device_authorization(self, scopes: Sequence[str]) -> DeviceAuthorization:
        """Begin a device authorization (RFC 8628 §3.1)."""

    async def poll_device_authorization(self, device_code: str) -> OAuthTokens | DecisionPending:
        """Ask for the tokens of a device authorization (RFC 8628 §3.4).

        Every error but `ProviderUnavailable` ends it.
        """


P = TypeVar("P", bound=Provider)


class ProviderSet(Protocol):
    """The providers of this server, with the operator's own clients."""

    def __getitem__(self, integration_type: str, /) -> Provider:
        """The provider of a type or alias. Raises `UnknownIntegrationType`."""

    def all(self) -> Sequence[Provider]:
        """All providers, sorted by type."""


class Providers(ProviderSet, Protocol):
    """The providers of this server, with all OAuth clients. An empty name is that of the operator's own client."""

    async def for_client(self, integration_type: str, oauth_client: str) -> Provider:
        """The provider of a type with a client. Raises `ProviderNotConfigured` or `CredentialsUnreadable`."""

    async def authenticated(self, provider: P, call: Callable[[P], Awaitable[T]]) -> T:
        """The result of a call that authenticates as the provider's client.

        The call may run twice: if the provider refuses a client secret, it gets the provider with the other one.
        """
