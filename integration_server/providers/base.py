"""What every provider has, by the names of the document's base class. See docs/adding-a-provider.md."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from integration_server.domain.credentials import ApiKey, AuthMethod, Credentials, OAuthTokens, RequestAuth
from integration_server.domain.errors import (
    ApiNotDeclared,
    InvalidField,
    ProviderRejected,
    ProviderUnavailable,
    ResponseTooLarge,
)
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, RateLimit
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest, WebhookResponse
from integration_server.providers.http import HttpResponse, ProviderHttp, ResponseBodyTooLarge
from integration_server.providers.lenient_json import read_object, text_at
from integration_server.providers.rate_limit_headers import parse_rate_limit_headers
from integration_server.providers.urls import DeclaredOrigins, fill, has_open_host, template_params
from integration_server.providers.webhooks.scheme import (
    MalformedWebhook,
    SecretFormat,
    SecretSource,
    WebhookKeys,
    WebhookScheme,
)
from integration_server.service.common_types import Clock
from integration_server.service.integrations.ports import NewAccount

MIN_RENEW_AFTER = timedelta(seconds=5)
"""What is due is looked for once a second."""


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """What a provider is given. `environment` has client ids and secrets, by the names of their settings."""

    http: ProviderHttp
    clock: Clock
    environment: Mapping[str, str] = field(repr=False)


class ProviderConfig(BaseModel):
    """What an integration's config may have: subclasses add fields, and all others are refused by name.

    `metadata` is for the caller's own settings, which the server keeps and never looks at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    metadata: Mapping[str, Any] = Field(default_factory=dict)


class BaseProvider(ABC):
    """One kind of integration: a `service.ports.Provider`. Subclasses declare, and override what differs.

    A declaration is a class attribute or a property, as you like. `account_id_field` and
    `account_label_field` are dotted paths into the answer of `verify_url` ("locations.0.merchant_id").
    Requests go to the hosts of the declared URLs and patterns, and nowhere else.

    A URL may leave places open, in braces: "https://{shop}.shops.example/token". `url_params` has what they are where
    nothing else is known, `configure` fills them from an integration's config, and whoever was given tokens keeps them
    with these, so that `for_credentials` finds the account again without a config. Where a host is open,
    `host_patterns` says what
    it may be.
    """

    aliases: Sequence[str] = ()
    """Other names for the type, which callers may use; what is stored and listed has `integration_type`."""

    issuer: str | None = None
    verify_method = "GET"
    verify_url: str | None = None
    revoke_url: str | None = None
    api_base_url: str | None = None
    account_id_field: str | None = None
    account_label_field: str | None = None
    required_fields: Sequence[str] = ()

    config_model: type[BaseModel] | None = None
    """What an integration's config may have, a `ProviderConfig` mostly; None for anything."""

    url_params: Mapping[str, str] = MappingProxyType({})

    host_patterns: Sequence[str] = ()
    """Further hosts, where every account has one of its own: "*.shops.example" is one label and https."""

    rate_limits: Sequence[RateLimit] = ()
    """What is documented of how often its API may be called."""

    calls_at_once: int | None = None
    """How many calls for one account its API takes at a time; None where nothing is documented of it."""

    idempotency_key_header = "Idempotency-Key"
    """Where it takes keys by which it knows a request that is repeated (draft-ietf-httpapi-idempotency-key-header)."""

    revokes_whole_account = False
    """Whether a revocation ends all grants that our client holds of the account, not only the one named."""

    refresh_token_grace = timedelta(0)
    """For how long after a refresh the refresh token that it spent still works; `timedelta.max` if none is spent."""

    renew_after = timedelta.max
    """The age at which an access token is renewed though it lasts longer; `timedelta.max`: only its end counts."""

    webhook_scheme: WebhookScheme | None = None
    """How its webhooks are verified and read; None where it sends none, or none that are signed."""

    shares_grants_with: Sequence[str] = ()
    """Set by the registry, which knows the other providers."""

    def __init__(self, context: ProviderContext) -> None:
        self._context = context

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.integration_type}>"

    # --- declared

    @property
    @abstractmethod
    def integration_type(self) -> str:
        """The name of the kind, such as "google_calendar"."""

    @property
    @abstractmethod
    def auth_method(self) -> AuthMethod:
        """How it lets us in."""

    @property
    def display_name(self) -> str:
        """The name for people."""
        return self.integration_type.replace("_", " ").title()

    @property
    def oauth_authorize_url(self) -> str | None:
        """Where a browser is sent to ask for access (RFC 6749 §3.1)."""
        return None

    @property
    def oauth_token_url(self) -> str | None:
        """Where codes and refresh tokens are traded (RFC 6749 §3.2)."""
        return None

    @property
    def required_scopes(self) -> Sequence[str]:
        """Scopes that are always asked for and must be granted."""
        return ()

    @property
    def client_id(self) -> str:
        """Our name at the provider, from the setting `<TYPE>_CLIENT_ID`; empty where it is not set."""
        return self._setting("CLIENT_ID")

    @property
    def client_secret(self) -> str:
        """From the setting `<TYPE>_CLIENT_SECRET`; empty where it is not set."""
        return self._setting("CLIENT_SECRET")

    @property
    def missing_settings(self) -> Sequence[str]:
        """Settings that must be set before it can be used, by name."""
        return ()

    @property
    def declared_urls(self) -> Mapping[str, str]:
        """The URLs whose hosts are declared, by the name of their attribute; what they leave open is filled."""
        placeholder_values = dict.fromkeys(self.url_param_names, "x")
        return {
            name: fill(url, {**placeholder_values, **self.url_params})
            for name, url in self.url_templates.items()
            if not has_open_host(url)
        }

    @property
    def url_param_names(self) -> frozenset[str]:
        """The names of the places that declared URLs leave open."""
        return frozenset(name for url in self.url_templates.values() for name in template_params(url))

    @property
    def url_templates(self) -> Mapping[str, str]:
        """The URLs as they are declared, by the name of their attribute."""
        urls = {
            "issuer": self.issuer,
            "oauth_authorize_url": self.oauth_authorize_url,
            "oauth_token_url": self.oauth_token_url,
            "verify_url": self.verify_url,
            "revoke_url": self.revoke_url,
            "api_base_url": self.api_base_url,
        }
        return {name: url for name, url in urls.items() if url is not None}

    # --- config

    def for_config(self, config: Mapping[str, Any]) -> "BaseProvider":
        """The provider as an integration with this config sees it. Raises `InvalidField`."""
        if self.config_model is None:
            return self
        try:
            return self.configure(self.config_model.model_validate(dict(config)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = (
                "is not known" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            )
            raise InvalidField(".".join(map(str, ("config", *first["loc"]))), problem) from None

    def configure(self, config: Any) -> Self:  # noqa: ANN401  # an instance of its own config_model
        """The provider where a config, an instance of `config_model`, says that the account is."""
        return self

    def with_url_params(self, **url_params: str) -> Self:
        """A copy with places filled. Raises `ValueError` where a value is more than a host or a segment of a path."""
        for name in url_params:
            fill(f"{{{name}}}", url_params)
        return self.with_attributes(url_params={**self.url_params, **url_params})

    def for_credentials(self, credentials: Credentials) -> Self:
        """The provider where the account of these credentials is, as far as they tell."""
        if not isinstance(credentials, OAuthTokens):
            return self
        return self.with_url_params(
            **{name: credentials.extras[name] for name in self.url_param_names & set(credentials.extras)}
        )

    def api_url(self, credentials: Credentials) -> str | None:
        """The base of the API of the account that these credentials open; None where it has none."""
        return (
            None if self.api_base_url is None else fill(self.api_base_url, self.for_credentials(credentials).url_params)
        )

    def with_attributes(self, **attributes: object) -> Self:
        """A copy with some of what is declared set otherwise."""
        other = copy.copy(self)
        for name, value in attributes.items():
            setattr(other, name, value)
        return other

    # --- OAuth 2, where the provider speaks it

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """Where to send the browser."""
        raise NotImplementedError(f"{self.integration_type} has no authorization page")

    def missing_scopes(self, asked: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """Which of the scopes that were asked for were not granted."""
        return ()

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """What else of a callback's query belongs to the account, kept with its credentials."""
        return {}

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Trade a code."""
        raise NotImplementedError(f"{self.integration_type} has no codes")

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """New tokens for these; for providers whose refreshing takes more than a refresh token."""
        return await self.for_credentials(tokens).refresh_access_token(tokens.refresh_token or "")

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """Renew."""
        raise NotImplementedError(f"{self.integration_type} has no refresh tokens")

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """End the credentials at the provider. False where it has no way to."""
        return False

    # --- webhooks, where the provider sends them

    @property
    def supports_webhooks(self) -> bool:
        """Whether it is known how its webhooks are verified."""
        return self.webhook_scheme is not None

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """What it signs with: for our app (None), by our settings; or for the integration with these credentials."""
        if self.webhook_scheme is None:
            return ()
        source = self.webhook_scheme.secret_source
        found: list[str | None] = []
        if credentials is None:
            own = self._setting("WEBHOOK_SECRET")
            found = [
                own or (self.client_secret if source is SecretSource.CLIENT_SECRET else None),
                self._setting("WEBHOOK_SECRET_RETIRED"),
            ]
        elif isinstance(credentials, ApiKey):
            found = [
                credentials.webhook_secret,
                credentials.api_secret if source is SecretSource.API_SECRET else None,
            ]
        return [secret for secret in found if secret]

    def webhook_secret_problem(self, secret: str) -> str | None:
        """What is wrong with a secret, as the end of a sentence; None if webhooks can be verified with it."""
        scheme = self.webhook_scheme
        return scheme.secret_problem(secret) if isinstance(scheme, SecretFormat) else None

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """What a request brings, if one of the secrets shows it to be the provider's. Raises `InvalidWebhookSignature`.

        One that is the provider's and makes no sense is answered with 400 and brings nothing.
        """
        if self.webhook_scheme is None:
            raise InvalidWebhookSignature
        token = self._setting("WEBHOOK_VERIFY_TOKEN")
        keys = WebhookKeys([secret for secret in secrets if secret], [token] if token else [])
        try:
            return self.webhook_scheme.receive(request, keys, self._context.clock())
        except MalformedWebhook:
            return ReceivedWebhook(response=WebhookResponse(400))

    # --- using credentials

    @abstractmethod
    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """What lets a request to its API in. Raises `ProviderRejected` if no request can carry them."""

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiResponse:
        """Send a request to the account's API, let in by the credentials. Whatever is answered is an answer."""
        base, auth = self.api_url(credentials), self.request_auth(credentials)
        if base is None:
            raise ApiNotDeclared
        query = urlencode([*request.query, *auth.query_params.items()])
        headers = [*request.headers, *auth.headers.items()]
        if request.idempotency_key:
            headers.append((self.idempotency_key_header, request.idempotency_key))
        try:
            response = await self._context.http.request(
                request.method,
                f"{base.rstrip('/')}{request.path}{'?' if query else ''}{query}",
                allowed_origins=self._origins(),
                headers=headers,
                content=request.body,
                deadline=deadline,
                body_limit=body_limit,
            )
        except ResponseBodyTooLarge:
            raise ResponseTooLarge(body_limit) from None
        return ApiResponse(
            response.status,
            response.header_list,
            response.body,
            self.is_rate_limited(response),
            response.retry_after,
            parse_rate_limit_headers(response.headers, self._context.clock()),
            self.rejects_access_token(response),
        )

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Whether an answer of the API says that the access token is dead, with another status than 401."""
        return False

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Whether an answer turns a request away for now (RFC 6585 §4, RFC 9110 §15.6.4)."""
        return response.status in {429, 503}

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Ask the provider whether it takes the credentials, and whose they are.

        Without a `verify_url` nothing is asked. Raises `ProviderRejected` or `ProviderUnavailable`.
        """
        auth = self.request_auth(credentials)
        url = self.verification_url(credentials)
        if url is None:
            return self.account_of(credentials, {})
        response = await self.for_credentials(credentials).send(
            self.verify_method, url, headers=auth.headers, query=auth.query_params
        )
        if self.rejects_credentials(response):
            raise ProviderRejected("credentials")
        if not response.is_success or self.is_failure(response):
            raise ProviderUnavailable(retry_after=response.retry_after)
        if self.account_id_field is None and self.account_label_field is None:
            return self.account_of(credentials, {})
        fields = read_object(response.body)
        if fields is None:
            raise ProviderUnavailable
        return self.account_of(credentials, fields)

    def verification_url(self, credentials: Credentials) -> str | None:
        """What to GET to verify these credentials."""
        return self.verify_url

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Whether an answer to the verification speaks against the credentials."""
        return response.status in {401, 403}

    def is_failure(self, response: HttpResponse) -> bool:
        """Whether an answer to the verification that looks like a success is none."""
        return False

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """Whose the credentials are, by the fields of the verification's answer."""
        return NewAccount(
            account_id=self.account_id_field and text_at(fields, self.account_id_field),
            account_label=self.account_label_field and text_at(fields, self.account_label_field),
        )

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "",
    ) -> HttpResponse:
        """Send a request to one of the declared hosts. Raises `ProviderUnavailable` when no answer comes.

        What the URL leaves open is filled from `url_params`.
        """
        url = fill(url, self.url_params)
        return await self._context.http.request(
            method, url, allowed_origins=self._origins(), headers=headers, query=query, content=content
        )

    def _origins(self) -> DeclaredOrigins:
        return DeclaredOrigins.from_urls(self.declared_urls.values(), self.host_patterns)

    def _setting_name(self, name: str) -> str:
        return f"{self.integration_type.upper()}_{name}"

    def _setting(self, name: str) -> str:
        return self._context.environment.get(self._setting_name(name), "").strip()
