"""What is asked of a provider."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

from integration_server.domain.credentials import AuthMethod, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, RateLimit
from integration_server.domain.webhooks import ReceivedWebhook, WebhookRequest
from integration_server.service.integrations.ports import NewAccount


class Provider(Protocol):
    """What the use cases ask of a provider. Its calls raise `ProviderError` and nothing else."""

    @property
    def integration_type(self) -> str:
        """The name of the kind, such as "google_calendar"."""

    @property
    def aliases(self) -> Sequence[str]:
        """Other names that callers may use for the kind."""

    @property
    def display_name(self) -> str:
        """The name for people."""

    @property
    def auth_method(self) -> AuthMethod:
        """How it lets us in."""

    @property
    def required_scopes(self) -> Sequence[str]:
        """Scopes that are always asked for and must be granted."""

    @property
    def required_fields(self) -> Sequence[str]:
        """Fields that a connection by key must have: "api_key", "api_secret"."""

    @property
    def missing_settings(self) -> Sequence[str]:
        """Settings that must be set before it can be used, by name."""

    @property
    def issuer(self) -> str | None:
        """The authorization server's name; a callback must then carry it as `iss` (RFC 9207)."""

    @property
    def shares_grants_with(self) -> Sequence[str]:
        """Types that die with this one's grant: its own and others of the same client, where a revocation ends all
        that the client holds of an account; empty where it ends one grant only."""

    @property
    def refresh_token_grace(self) -> timedelta:
        """For how long after a refresh the refresh token that it spent still works, as the provider documents it.

        Zero where it is dead at once or nothing is documented; `timedelta.max` where a refresh spends nothing.
        """

    @property
    def renew_after(self) -> timedelta:
        """The age at which an access token is renewed though it lasts longer; `timedelta.max`: only its end counts."""

    def for_config(self, config: Mapping[str, Any]) -> "Provider":
        """The provider as an integration with this config sees it: some have a host for each account.

        Raises `InvalidField` for a config that is not right for this type.
        """

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """Where to send the browser (RFC 6749 §4.1.1, RFC 7636 §4.3 with S256)."""

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """Which of the scopes that were asked for the answer did not grant."""

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """What else of a callback's query belongs to the account, kept with its credentials."""

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Trade a code (RFC 6749 §4.1.3)."""

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """New tokens for these (RFC 6749 §6); what the answer leaves out stays as it was."""

    @property
    def supports_webhooks(self) -> bool:
        """Whether it is known how its webhooks are verified."""

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """What it signs with: for our app (None), by our settings; or for the integration with these credentials."""

    def webhook_secret_problem(self, secret: str) -> str | None:
        """What is wrong with a secret, as the end of a sentence; None if webhooks can be verified with it."""

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """What a request brings, if one of the secrets shows it to be the provider's. Raises
        `InvalidWebhookSignature`.
        """

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Ask the provider whether it takes the credentials, and whose they are."""

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """End the credentials at the provider. False where it has no way to."""

    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """What lets a request to its API in."""

    @property
    def rate_limits(self) -> Sequence[RateLimit]:
        """What it documents of how often its API may be called; calls stay within all of them."""

    @property
    def calls_at_once(self) -> int | None:
        """How many calls for one account its API takes at a time; None where nothing is documented of it."""

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiResponse:
        """Send a request to its API, let in by the credentials; whatever is answered is an answer.

        Raises `ApiNotDeclared`; `ResponseTooLarge` over `body_limit` bytes; `ProviderUnavailable` where no answer
        comes.
        """


class Providers(Protocol):
    """The providers that this server knows."""

    def get(self, integration_type: str) -> Provider:
        """The provider of a type, by its name or an alias. Raises `UnknownIntegrationType`."""

    def all(self) -> Sequence[Provider]:
        """All of them, by name."""
