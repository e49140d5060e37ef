"""The base class of all providers. Its names are those of the base class in the requirements.

docs/adding-a-provider.md explains how to write a provider.
"""

import copy
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cached_property
from hashlib import sha256
from importlib.resources.abc import Traversable
from json import dumps
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from integration_server.domain.credentials import (
    ApiKey,
    AuthMethod,
    Credentials,
    DecisionPending,
    DeviceAuthorization,
    OAuthTokens,
    RequestAuth,
)
from integration_server.domain.errors import (
    ApiNotDeclared,
    InvalidField,
    ProviderError,
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
    ResponseTooLarge,
)
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, ApiStream, RateLimit
from integration_server.domain.text import control_character_problem
from integration_server.domain.webhooks import InvalidWebhookSignature, ReceivedWebhook, WebhookRequest
from integration_server.providers.declaration import (
    Errors,
    ExpiringFact,
    FieldDeclaration,
    Lookup,
    RevocationEnds,
    Verify,
)
from integration_server.providers.declared_values import as_text, chosen_account, field_values, reject_other_fields
from integration_server.providers.http import (
    DeclaredOrigins,
    HttpResponse,
    ProviderHttp,
    ResponseBodyTooLarge,
    is_url,
    origin_of,
)
from integration_server.providers.lenient_values import field_at, text_at, texts_at
from integration_server.providers.rate_limit_headers import parse_rate_limit_headers
from integration_server.providers.url_templates import (
    InvalidParam,
    fill,
    fill_json,
    fill_texts,
    host_params,
    template_params,
)
from integration_server.providers.webhooks.parsing import unread_event
from integration_server.providers.webhooks.scheme import MalformedWebhook, SecretSource, WebhookKeys, WebhookScheme
from integration_server.service.common_types import Clock, Record, record_nothing
from integration_server.service.integrations.ports import NewAccount
from integration_server.service.request_body import RequestBody

if TYPE_CHECKING:
    from integration_server.providers.factory import ProviderFactory

_MAX_ERROR_SIZE = 1 << 16  # bytes; the longest errors, with a list of problems, have some ten kilobytes

_WHITESPACE = re.compile("[\\s\u200b\u2060\ufeff]")  # also what has no width, and is copied from web pages

_RESOURCE = re.compile(r"[\w./:-]{1,128}", re.ASCII)  # a provider's name for a part of its API

HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # RFC 9110 §5.5, ASCII only

_URL_ATTRIBUTES = (
    *("issuer", "oauth_authorize_url", "oauth_token_url", "refresh_url", "verify_url", "revoke_url", "api_base_url"),
    "device_authorization_url",
)


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """The collaborators of a provider. `environment` has client ids and secrets, by the names of their settings."""

    http: ProviderHttp
    clock: Clock
    environment: Mapping[str, str] = field(repr=False)
    record_request: Record = record_nothing  # seconds, integration type, class of the status


class ProviderConfig(BaseModel):
    """The config of an integration. Subclasses add fields; a field that is not declared is rejected by name.

    `metadata` has the caller's own values, which the server stores and never reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    metadata: Mapping[str, Any] = Field(default_factory=dict)


class BaseProvider(ABC):
    """One integration type. Implements the port `Provider`; subclasses declare facts and override what differs.

    A declaration is a class attribute or a property, with the meaning of the key of `declaration.py` that has its name.
    Requests go to the hosts of the declared URLs and host patterns, and nowhere else.

    Declared URLs, headers and parameters are templates: "https://{shop}.shops.example/token". Their values are those of
    the settings, of the config (`config_fields`, or `configure`), and of the credentials. The ones of the config are
    stored with the credentials, so that `for_credentials` reaches the same account later without a config.
    """

    # --- keys of `declaration.py`, which describes them
    # `refresh_token_grace` is `timedelta.max` if a refresh replaces no refresh token.

    aliases: Sequence[str] = ()
    settings: Mapping[str, FieldDeclaration] = MappingProxyType({})
    config_fields: Mapping[str, FieldDeclaration] = MappingProxyType({})
    closed_config = False
    secret_fields: Mapping[str, FieldDeclaration] = MappingProxyType({})
    host_patterns: Sequence[str] = ()
    issuer: str | None = None
    device_authorization_url: str | None = None
    refresh_url: str | None = None
    refresh_token_grace = timedelta(0)
    renew_after = timedelta.max
    verify: Verify | None = None
    verify_url: str | None = None
    revoke_url: str | None = None
    revocation_ends: RevocationEnds = "token"
    lookup: Lookup | None = None
    account_id_field: str | None = None
    account_label_field: str | None = None
    account_naming: str | None = None
    api_base_url: str | None = None
    api_base_urls: Mapping[str, str] = MappingProxyType({})
    request_headers: Mapping[str, str] = MappingProxyType({})
    request_query: Mapping[str, str] = MappingProxyType({})
    allowed_request_headers: Sequence[str] = ()
    required_fields: Sequence[str] = ()
    key_patterns: Mapping[str, str] = MappingProxyType({})
    kept_patterns: Mapping[str, str] = MappingProxyType({})
    allows_whitespace_in: Collection[str] = ()
    rate_limits: Sequence[RateLimit] = ()
    rate_limit_resources: Mapping[str, str] = MappingProxyType({})
    rate_limit_resource_paths: Sequence[str] = ()
    calls_at_once: int | None = None
    errors = Errors()

    # --- what only Python declares

    declared_in: Sequence[Traversable] = ()
    """The TOML file that declares it, and that of its `base`."""

    config_model: type[BaseModel] | None = None
    """The schema of an integration's config, usually a `ProviderConfig`; None allows any config."""

    url_params: Mapping[str, str] = MappingProxyType({})
    """The values of templates that the config and the credentials have."""

    expiring_facts: Sequence[ExpiringFact] = ()
    """What ends at a known time, so that this declaration or a setting has to change before."""

    idempotency_key_header = "Idempotency-Key"
    """The header for a call's idempotency key (draft-ietf-httpapi-idempotency-key-header)."""

    webhook_scheme: WebhookScheme | None = None
    """How its webhooks are verified and parsed; None if it sends none, or only unsigned ones."""

    shares_grants_with: Sequence[str] = ()
    grants_ended_by: Sequence[str] = ()
    names_accounts_like: Sequence[str] = ()
    """All are set by the registry, which knows the other providers."""

    def __init__(self, context: ProviderContext) -> None:
        self._context = context
        given = {name: self._setting(name.upper()) or field.default for name, field in self.settings.items()}
        self.setting_values = {name: value for name, value in given.items() if value}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.integration_type}>"

    @classmethod
    def register_in(cls, factory: "ProviderFactory") -> None:
        """Add the provider to a factory, by its `integration_type`."""
        factory.register(str(cls.integration_type), cls)

    # --- declarations

    @property
    @abstractmethod
    def integration_type(self) -> str:
        """The name of the type, such as "google_calendar"."""

    @property
    @abstractmethod
    def auth_method(self) -> AuthMethod:
        """The authentication method."""

    @property
    def display_name(self) -> str:
        """The name to show to users; the default is made from the type."""
        return self.integration_type.replace("_", " ").title()

    @property
    def oauth_authorize_url(self) -> str | None:
        """The authorization endpoint (RFC 6749 §3.1)."""
        return None

    @property
    def oauth_token_url(self) -> str | None:
        """The token endpoint (RFC 6749 §3.2)."""
        return None

    @property
    def required_scopes(self) -> Sequence[str]:
        """Scopes that are always requested and must be granted."""
        return ()

    @property
    def client_id(self) -> str:
        """The client id: the account's own, or ours from the setting `<TYPE>_CLIENT_ID`; empty if not set."""
        return self._own_client("client_id") or self._setting("CLIENT_ID")

    @property
    def client_secret(self) -> str:
        """The client secret, in the same way; ours is the setting `<TYPE>_CLIENT_SECRET`."""
        return self._own_client("client_secret") or self._setting("CLIENT_SECRET")

    def _own_client(self, name: str) -> str:
        """A value of the account's own client, where the type declares it as one of the secrets of an account."""
        return self.url_params.get(name, "") if name in self.secret_fields else ""

    @property
    def api_version(self) -> str:
        """The API version in the URLs, the setting of this name; empty if they have none."""
        return self.setting_values.get("api_version", "")

    def facts_ending_by(self, day: date) -> Sequence[ExpiringFact]:
        """The facts that concern this server and end by a day, or have ended; the soonest first."""
        used = {"", self.api_version, *self.required_scopes}
        return sorted(
            (fact for fact in self.expiring_facts if fact.only_for in used and fact.end <= day),
            key=lambda fact: fact.end,
        )

    @property
    def missing_settings(self) -> Sequence[str]:
        """The full names of required settings that are not set."""
        required = (name for name, field in self.settings.items() if field.required)
        return [self._setting_name(name.upper()) for name in required if name not in self.setting_values]

    def require_configured(self) -> None:
        """Raise `ProviderNotConfigured` if settings are missing."""
        if self.missing_settings:
            raise ProviderNotConfigured(self.integration_type, self.missing_settings)

    @property
    def url_templates(self) -> Mapping[str, str]:
        """The declared URLs with the values of settings, by the names of their attributes.

        Raises `InvalidParam` if a setting cannot be in its URL.
        """
        urls: dict[str, str | None] = {name: getattr(self, name) for name in _URL_ATTRIBUTES}
        urls |= {f"api_base_urls.{name}": url for name, url in self.api_base_urls.items()}
        tables = {"verify.url": self.verify, "lookup.url": self.lookup}
        urls |= {name: table.url for name, table in tables.items() if table is not None}
        return {name: fill(url, self._setting_texts, partial=True) for name, url in urls.items() if url is not None}

    @property
    def values(self) -> Mapping[str, str]:
        """The values of templates. A field of the config that was declared later has its default."""
        fields = self.config_fields.items()
        defaults = {name: field.text_of(field.default) for name, field in fields if field.default is not None}
        client = {"client_id": self.client_id} if self.client_id else {}
        return {**client, **defaults, **self._setting_texts, **self.url_params}

    @property
    def _setting_texts(self) -> Mapping[str, str]:
        return {name: self.settings[name].text_of(value) for name, value in self.setting_values.items()}

    # --- config

    def for_config(self, config: Mapping[str, Any]) -> "BaseProvider":
        """The provider for an integration with this config. Raises `InvalidField`."""
        if self.closed_config:
            reject_other_fields(config, self.config_fields)
        provider = self._with_config_fields(config) if self.config_fields else self
        if self.config_model is None:
            return provider
        try:
            return provider.configure(self.config_model.model_validate(dict(config)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = (
                "is not known" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            )
            raise InvalidField(".".join(map(str, ("config", *first["loc"]))), problem) from None

    def _with_config_fields(self, config: Mapping[str, Any]) -> Self:
        provider = self.with_attributes(
            url_params={**self.url_params, **field_values("config", self.config_fields, config)}
        )
        if (name := provider.unusable_param()) is not None:
            raise InvalidField(f"config.{name}", "is not part of an address of this integration type")
        return provider

    def unusable_param(self) -> str | None:
        """The name of a value that cannot be in its URL, or that leads to an undeclared host; None if there is none."""
        origins, values = self._origins(), self.values
        for url in self.url_templates.values():
            if set(template_params(url)) <= values.keys():
                try:
                    filled = fill(url, values)
                except InvalidParam as error:
                    return error.name
                if host_params(url) and not (is_url(filled) and origin_of(filled) in origins):
                    return host_params(url)[0]
        return None

    def configure(self, config: Any) -> Self:  # noqa: ANN401  # an instance of its own config_model
        """The provider for a validated config. Config fields set the URL parameters of the same name."""
        names = {name for url in self.url_templates.values() for name in template_params(url)} & set(vars(config))
        return self.with_url_params(**{name: str(vars(config)[name]) for name in names})

    def with_url_params(self, **url_params: str) -> Self:
        """A copy with these URL parameters. Raises `ValueError` if a value is not a host or one path segment."""
        for name in url_params:
            fill(f"{{{name}}}", url_params)
        return self.with_attributes(url_params={**self.url_params, **url_params})

    def for_credentials(self, credentials: Credentials) -> Self:
        """The provider for the account of these credentials: with the values in them and stored with them."""
        secrets: Mapping[str, str | None]
        if isinstance(credentials, OAuthTokens):
            secrets = {"access_token": credentials.access_token, "refresh_token": credentials.refresh_token}
        else:
            secrets = {"api_key": credentials.api_key, "api_secret": credentials.api_secret}
            if not all(re.fullmatch(pattern, secrets[name] or "") for name, pattern in self.key_patterns.items()):
                raise ProviderRejected("credentials")
        found = {name: value for name, value in secrets.items() if value}
        return self.with_attributes(
            url_params={**self.url_params, **credentials.extras, **credentials.secret_fields, **found}
        )

    def api_url(self, credentials: Credentials, api: str = "") -> str:
        """The base URL of an API for the account of these credentials. `api` is a name of `api_base_urls`.

        Raises `InvalidField` for an unknown name, and `ApiNotDeclared`.
        """
        if api and api not in self.api_base_urls:
            names = ", ".join(sorted(self.api_base_urls))
            raise InvalidField("api", f"must be empty or one of: {names}" if names else "must be empty for this type")
        url = self.api_base_urls[api] if api else self.api_base_url
        if url is None:
            raise ApiNotDeclared
        return fill(url, self.for_credentials(credentials).values)

    def with_attributes(self, **attributes: object) -> Self:
        """A copy with other values for some declarations."""
        other = copy.copy(self)
        for name, value in attributes.items():
            setattr(other, name, value)
        return other

    # --- OAuth 2; providers with API keys do not implement it

    has_authorization_page = False
    has_device_authorization = False

    def authorization_url(self, *, redirect_uri: str, state: str, scopes: Sequence[str], code_challenge: str) -> str:
        """The authorization URL for the browser."""
        raise NotImplementedError(f"{self.integration_type} has no authorization page")

    def scopes_to_request(self, requested: Sequence[str], granted: Sequence[str]) -> Sequence[str]:
        """The scopes of an authorization: the required, the requested, and those that an integration has already."""
        return tuple(dict.fromkeys((*self.required_scopes, *requested, *granted)))

    def missing_scopes(self, requested_scopes: Sequence[str], tokens: OAuthTokens) -> Sequence[str]:
        """The requested scopes that were not granted."""
        return ()

    def for_callback(self, query: Mapping[str, str]) -> Self:
        """The provider with the values of the callback that are stored with the tokens. Raises `InvalidField`."""
        provider = self.with_attributes(url_params={**self.url_params, **self.read_callback(query)})
        if provider.unusable_param() is not None:
            raise InvalidField("query", "leads to an address that is not of this integration type")
        return provider

    def read_callback(self, query: Mapping[str, str]) -> Mapping[str, str]:
        """Values of the callback's query to store with the tokens. Raises `InvalidField`."""
        return {}

    async def exchange_code_for_tokens(self, code: str, redirect_uri: str, code_verifier: str) -> OAuthTokens:
        """Exchange an authorization code."""
        raise NotImplementedError(f"{self.integration_type} has no codes")

    async def begin_device_authorization(self, scopes: Sequence[str]) -> DeviceAuthorization:
        """Begin a device authorization."""
        raise NotImplementedError(f"{self.integration_type} has no device authorization")

    async def poll_device_authorization(self, device_code: str) -> OAuthTokens | DecisionPending:
        """Ask for the tokens of a device authorization."""
        raise NotImplementedError(f"{self.integration_type} has no device authorization")

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """New tokens for these. Overridden by providers that need more than the refresh token."""
        return await self.for_credentials(tokens).refresh_access_token(tokens.refresh_token or "")

    async def refresh_access_token(self, refresh_token: str) -> OAuthTokens:
        """New tokens for a refresh token."""
        raise NotImplementedError(f"{self.integration_type} has no refresh tokens")

    async def revoke_credentials(self, credentials: Credentials) -> bool:
        """Revoke the credentials at the provider; False if the provider has no way to."""
        return False

    # --- webhooks

    @property
    def supports_webhooks(self) -> bool:
        """Whether the provider's webhooks can be verified."""
        return self.webhook_scheme is not None

    def webhook_secrets(self, credentials: Credentials | None) -> Sequence[str]:
        """The secrets that sign webhooks: those of our app, from settings (None), or those of an integration."""
        if self.webhook_scheme is None:
            return ()
        source = self.webhook_scheme.secret_source
        found: list[str | None] = []
        if credentials is None:
            own = self._setting("WEBHOOK_SECRET")
            client_secret = self.client_secret if source is SecretSource.CLIENT_SECRET else None
            found = [own or client_secret, self._setting("WEBHOOK_SECRET_RETIRED")]
        elif isinstance(credentials, ApiKey):
            api_secret = credentials.api_secret if source is SecretSource.API_SECRET else None
            found = [credentials.webhook_secret, api_secret]
        return [secret for secret in found if secret]

    def webhook_secret_problem(self, secret: str) -> str | None:
        """Why webhooks cannot be verified with a secret, as the end of a sentence; None if they can."""
        problem = control_character_problem(secret)
        return problem if problem or self.webhook_scheme is None else self.webhook_scheme.secret_problem(secret)

    def receive_webhook(self, request: WebhookRequest, secrets: Sequence[str]) -> ReceivedWebhook:
        """The events in a webhook request that one of the secrets signs. Raises `InvalidWebhookSignature`.

        The body of a signed request that cannot be read is one event.
        """
        if self.webhook_scheme is None:
            raise InvalidWebhookSignature
        token = self._setting("WEBHOOK_VERIFY_TOKEN")
        keys = WebhookKeys([secret for secret in secrets if secret], [token] if token else [])
        try:
            return self.webhook_scheme.receive(request, keys, self._context.clock())
        except MalformedWebhook:
            return ReceivedWebhook([unread_event(request)])

    # --- use of credentials

    async def credentials_of(self, key: ApiKey) -> Credentials:
        """The credentials to store for a key: the key itself, or tokens that are obtained with it.

        They have the values of the config, and those that are looked up. Raises `ProviderError`.
        """
        key = replace(key, extras={**self.url_params, **await self.look_up(key)})
        self.require_reachable(key.extras, self.kept_names)
        return key

    @property
    def kept_names(self) -> Collection[str]:
        """The names of the values that the provider's responses bring."""
        return () if self.lookup is None else self.lookup.keep

    def require_reachable(self, extras: Mapping[str, str], needed: Collection[str] = ()) -> None:
        """Raise `ProviderUnavailable` if values that a response brought lead to an undeclared host.

        The same if one of the `needed` names that a URL has is missing, or if a value is not as declared.
        """
        patterns = self.kept_patterns.items()
        if any(name in extras and not re.fullmatch(pattern, extras[name]) for name, pattern in patterns):
            raise ProviderUnavailable("the provider's response has a value that is not as declared")
        provider = self.with_attributes(url_params={**self.url_params, **extras})
        used = {name for url in self.url_templates.values() for name in template_params(url)}
        if not used.intersection(needed) <= provider.values.keys() or provider.unusable_param() is not None:
            raise ProviderUnavailable("the provider's response does not lead to a declared host")

    async def look_up(self, credentials: Credentials) -> Mapping[str, str]:
        """The values that `lookup` declares. Raises `ProviderError`."""
        if self.lookup is None:
            return {}
        provider = self.for_credentials(credentials)
        response = await provider.send_declared(self.lookup, self.request_auth(credentials))
        with self.adding_reason(response.json):
            self._require_good(response, response.is_success and not self._has_dead_code(response))
        choose, found = self.lookup.choose, response.json
        if choose is not None:
            found = chosen_account(choose, found, provider.values.get(choose.by))
        kept = {name: text_at(found, path) for name, path in self.lookup.keep.items()}
        return {name: text for name, text in kept.items() if text is not None}

    def templated_auth(self, credentials: Credentials) -> RequestAuth:
        """The headers and query parameters of `request_headers` and `request_query`. Raises `ProviderRejected`."""
        values = self.for_credentials(credentials).values
        headers = fill_texts(self.request_headers, values)
        if not all(map(HEADER_VALUE.fullmatch, headers.values())):
            raise ProviderRejected("credentials")  # a header cannot contain it, so it is not a credential
        return RequestAuth(headers, fill_texts(self.request_query, values))

    @cached_property
    def names_in_requests(self) -> Collection[str]:
        """The names in the templates of API requests."""
        urls = [self.api_base_url or "", *self.api_base_urls.values()]
        templates = [*urls, *self.request_headers.values(), *self.request_query.values()]
        return {name for template in templates for name in template_params(template)}

    def key_problem(self, field: str, value: str) -> str | None:
        """Why a field of a key cannot be right, as the end of a sentence; None if it can."""
        if field == "webhook_secret":
            return self.webhook_secret_problem(value)
        allows_whitespace = field in self.allows_whitespace_in
        if not allows_whitespace and _WHITESPACE.search(value):
            return "has white space inside it, which no key of this integration type has"
        return control_character_problem(value, allowed="\t\n\v\f\r\x1c\x1d\x1e\x1f\x85" if allows_whitespace else "")

    @abstractmethod
    def request_auth(self, credentials: Credentials) -> RequestAuth:
        """The headers or query parameters that authenticate an API request.

        Raises `ProviderRejected` if the credentials are of another kind, or cannot be part of a request.
        """

    async def call_api(
        self, credentials: Credentials, request: ApiRequest, *, deadline: timedelta, body_limit: int
    ) -> ApiResponse:
        """Send an authenticated request to the account's API. Every status is returned as a response."""
        used = await self.credentials_for(credentials, request, deadline / 2)
        if isinstance(used, ApiResponse):
            return used
        try:
            response = await self._request(
                request.method,
                content=request.body,
                deadline=deadline if used is credentials else deadline / 2,
                body_limit=body_limit,
                **self._target_of(used, request),
            )
        except ResponseBodyTooLarge:
            raise ResponseTooLarge(body_limit) from None
        return self._api_response(response, used, credentials)

    @asynccontextmanager
    async def stream_api(
        self, credentials: Credentials, request: ApiRequest, body: RequestBody | None, *, idle_timeout: timedelta
    ) -> AsyncIterator[ApiStream]:
        """As `call_api`, with bodies in parts."""
        used = await self.credentials_for(credentials, request, idle_timeout)
        if isinstance(used, ApiResponse):
            yield ApiStream(replace(used, body=b""), _parts_of(used.body))
            return
        target = self._target_of(used, request)
        open_stream = self._context.http.stream(request.method, body=body, idle_timeout=idle_timeout, **target)
        async with AsyncExitStack() as stack:
            with self._recording_request() as record:
                streamed = await stack.enter_async_context(open_stream)
                record(streamed.status)
            # What a response means may depend on its body. Only an error, or JSON, has a meaning beyond its status.
            is_read = not 200 <= streamed.status < 300 or _is_json(streamed.headers)
            response = await streamed.beginning(_MAX_ERROR_SIZE if is_read else 0)
            yield ApiStream(replace(self._api_response(response, used, credentials), body=b""), streamed.chunks())

    async def credentials_for(
        self, credentials: Credentials, request: ApiRequest, deadline: timedelta
    ) -> Credentials | ApiResponse:
        """The credentials that a request uses: others for a `sub_account`, or the response that refuses them."""
        if request.sub_account:
            raise InvalidField("sub_account", "must be empty for this integration type")
        return credentials

    def _target_of(self, credentials: Credentials, request: ApiRequest) -> dict[str, Any]:
        """Where a request goes, and what it carries, as arguments of `ProviderHttp`."""
        base, auth = self.api_url(credentials, request.api), self.request_auth(credentials)
        query = urlencode([*request.query, *auth.query_params.items()])
        headers = [*request.headers, *auth.headers.items()]
        if request.idempotency_key:
            headers.append((self.idempotency_key_header, request.idempotency_key))
        return {
            "url": f"{base.rstrip('/')}{request.path}{'?' if query else ''}{query}",
            "allowed_origins": self._origins(),
            "headers": headers,
            "credentials_key": _key_of(auth, base),
        }

    def _api_response(self, response: HttpResponse, used: Credentials, own: Credentials) -> ApiResponse:
        return ApiResponse(
            response.status,
            response.header_list,
            response.body,
            self.is_rate_limited(response),
            response.retry_after,
            parse_rate_limit_headers(response.headers, self._context.clock()),
            self.rejects_access_token(response),
            reason=None if response.is_success else self._reason_of(response),
            is_client_fault=self.rejects_client(response),
            rate_limit_resource=self.reported_resource(response),
            secrets=(used.access_token,) if used is not own and isinstance(used, OAuthTokens) else (),
        )

    def rejects_access_token(self, response: HttpResponse) -> bool:
        """Whether an API response means that the access token is invalid (RFC 6750 §3.1)."""
        meaning = self._meaning_of(response)
        return meaning == "invalid_grant" or (response.status == 401 and meaning != "request")

    def is_rate_limited(self, response: HttpResponse) -> bool:
        """Whether a response means that the request may be sent later (RFC 6585 §4, RFC 9110 §15.6.4 and §10.2.3)."""
        return (
            response.status in {429, 503, *self.errors.wait_status}
            or (response.status == 403 and (response.retry_after is not None or self._has_wait_header(response)))
            or self._meaning_of(response) == "temporarily_unavailable"
        )

    def _has_wait_header(self, response: HttpResponse) -> bool:
        headers = self.errors.wait_headers.items()
        return any(response.headers.get(name.lower()) == value for name, value in headers)

    def rate_limit_resource(self, request: ApiRequest) -> str:
        """The part of the API that has rate limits of its own, and that a request belongs to; empty for none."""
        for name, pattern in self.rate_limit_resources.items():
            if match := re.match(f"(?:{pattern})(?=[/?]|$)", request.path):
                return name.format(**match.groupdict())
        return ""

    def reported_resource(self, response: HttpResponse) -> str | None:
        """The part of the API whose limits a response is about: None if it names none, empty for all of them."""
        if self.errors.wait_headers and self.is_rate_limited(response) and not self._has_wait_header(response):
            return ""
        for path in self.rate_limit_resource_paths:
            found: Iterable[str] = ()
            if (header := path.removeprefix("header:")) != path:
                found = [response.headers.get(header, "")]
            elif not response.is_success and len(response.body) <= _MAX_ERROR_SIZE:
                found = texts_at(response.json, path)
            for name in found:
                if _RESOURCE.fullmatch(name):
                    return name
        return None

    def rejects_client(self, response: HttpResponse) -> bool:
        """Whether an error response means that our app or its settings are at fault, and no user's account."""
        return self._meaning_of(response) == "invalid_client"

    def _meaning_of(self, response: HttpResponse) -> str | None:
        """What `errors` declares about the code of an error response, in the words of RFC 6749 §5.2, or "request"."""
        if not response.is_refusal or len(response.body) > _MAX_ERROR_SIZE or not self.errors.codes:
            return None
        whole = response.body.strip().decode("ascii", "replace")
        code = whole if whole in self.errors.codes else self.errors.code_in(response.json)
        return "request" if code in self.errors.request else self.errors.meaning_of(code)

    def _reason_of(self, response: HttpResponse) -> str | None:
        """The reason in an error response; a long body is content, and is not parsed."""
        return self.reason_in(response.json) if len(response.body) <= _MAX_ERROR_SIZE else None

    def reason_in(self, fields: object) -> str | None:
        """The machine-readable reason in the fields of an error response: a code that is declared, never free text."""
        known = self.known_reasons
        found = (code for path in self.errors.paths for code in texts_at(fields, path))
        return next((code for code in found if code in known), None)

    @property
    def known_reasons(self) -> Collection[str]:
        """The codes that are passed on as reasons."""
        return {*self.errors.reasons, *self.errors.codes}

    @contextmanager
    def adding_reason(self, fields: object) -> Iterator[None]:
        """Add the reason in the fields of a response to the errors that are raised because of it."""
        try:
            yield
        except ProviderError as error:
            error.provider_reason = self.reason_in(fields)
            raise

    async def verify_connection(self, credentials: Credentials) -> NewAccount:
        """Check the credentials at the provider, and return their account. Without a `verify_url` nothing is sent.

        Raises `ProviderRejected` or `ProviderUnavailable`.
        """
        if self.verification is None:
            self.request_auth(credentials)  # raises for credentials that no request can carry
            return self.account_of(credentials, {})
        response = await self.request_verification(credentials)
        paths = {self.account_id_field, self.account_label_field} - {None, *credentials.extras}
        fields = response.json if paths else {}
        if not isinstance(fields, dict):
            raise ProviderUnavailable
        return self.account_of(credentials, fields)

    async def request_verification(self, credentials: Credentials) -> HttpResponse:
        """The response to the verification request. Raises `ProviderRejected` or `ProviderUnavailable`."""
        if self.verification is None:
            raise ProviderUnavailable
        auth = self.verification_auth(credentials)
        response = await self.for_credentials(credentials).send_declared(self.verification, auth)
        with self.adding_reason(response.json):
            self._require_good(response, self.proves_credentials(response))
        return response

    @property
    def verification(self) -> Verify | None:
        """The request that verifies credentials; None if there is none."""
        return self.verify or (None if self.verify_url is None else Verify.model_construct(url=self.verify_url))

    @property
    def has_verification(self) -> bool:
        """Whether there is a request that verifies credentials."""
        return self.verification is not None

    def _require_good(self, response: HttpResponse, is_good: bool) -> None:  # what the caller found
        # First of all: a request to wait comes with any status, also 403, and says nothing about the credentials.
        if self.is_rate_limited(response):
            raise ProviderUnavailable(retry_after=response.retry_after)
        if self.rejects_client(response):
            raise ProviderMisconfigured
        if not is_good and self.rejects_credentials(response):
            raise ProviderRejected("credentials", needs_new_token=self.rejects_access_token(response))
        if not is_good:
            raise ProviderUnavailable(retry_after=response.retry_after)

    def proves_credentials(self, response: HttpResponse) -> bool:
        """Whether a response to a verification means that the credentials are valid."""
        good = self.verification and self.verification.good_status
        has_status = response.status in good if good else response.is_success
        return has_status and not self.is_failure(response)

    def verification_auth(self, credentials: Credentials) -> RequestAuth:
        """The authentication of the verification request."""
        return self.request_auth(credentials)

    def rejects_credentials(self, response: HttpResponse) -> bool:
        """Whether a response to a verification or revocation means that the credentials are invalid."""
        is_refused = response.status in {401, 403} or (response.status < 500 and self._has_dead_code(response))
        return is_refused and self._meaning_of(response) != "request"

    def is_failure(self, response: HttpResponse) -> bool:
        """Whether a response to a verification or revocation with status 2xx means a failure."""
        expected = self.verify.good_fields if self.verify else {}
        return self._has_dead_code(response) or not all(
            text_at(response.json, path) if text == "*" else as_text(field_at(response.json, path)) == text
            for path, text in expected.items()
        )

    def _has_dead_code(self, response: HttpResponse) -> bool:
        """Whether a response of any status has the code of credentials that have ended."""
        return bool(self.errors.dead) and text_at(response.json, self.errors.field) in self.errors.dead

    def account_of(self, credentials: Credentials, fields: Mapping[str, Any]) -> NewAccount:
        """The account of the credentials, by values stored with them and the JSON of the verification response."""
        paths = self.account_id_field, self.account_label_field
        account_id, label = (path and (credentials.extras.get(path) or text_at(fields, path)) for path in paths)
        return NewAccount(account_id, label)

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        query: Mapping[str, str] | None = None,
        content: str = "",
        json: object = None,
        form: Mapping[str, str] | None = None,
    ) -> HttpResponse:
        """Send a request to a declared host; `json` or `form` replaces `content`. Raises `ProviderUnavailable`.

        The URL may be a template. Without a value for a name in it, the provider has not said where to.
        """
        try:
            url = fill(url, self.values) if "{" in url else url
        except InvalidParam as error:
            raise ProviderUnavailable(str(error)) from None
        if json is not None:
            headers, content = {**headers, "Content-Type": "application/json"}, dumps(json)
        elif form is not None:
            headers, content = {**headers, "Content-Type": "application/x-www-form-urlencoded"}, urlencode(form)
        return await self._request(
            method,
            url,
            allowed_origins=self._origins(),
            headers=headers,
            query=query,
            content=content,
        )

    async def _request(self, method: str, url: str, **options: Any) -> HttpResponse:  # noqa: ANN401  # those of http
        """`ProviderHttp.request`, recorded for the metrics."""
        with self._recording_request() as record:
            response = await self._context.http.request(method, url, **options)
            record(response.status)
            return response

    @contextmanager
    def _recording_request(self) -> Iterator[Callable[[int], None]]:
        """Record the duration of a request until its response, and its status, which the block reports."""
        begin, results = time.perf_counter(), ["no_response"]
        try:
            yield lambda status: results.append(f"{status // 100}xx")
        finally:
            self._context.record_request(time.perf_counter() - begin, self.integration_type, results[-1])

    async def send_declared(self, request: Verify | Lookup, auth: RequestAuth) -> HttpResponse:
        """Send a declared request. Raises `ProviderUnavailable`."""
        body = None if request.body is None else fill_json(request.body, self.values)
        return await self.send(
            request.method,
            request.url,
            headers={**auth.headers, **fill_texts(request.headers, self.values)},
            query=auth.query_params,
            **({} if body is None else {request.body_type: body}),
        )

    def _origins(self) -> DeclaredOrigins:
        return DeclaredOrigins(self.url_templates.values(), self.host_patterns)

    def _setting_name(self, name: str) -> str:
        return f"{self.integration_type.upper()}_{name}"

    def _setting(self, name: str) -> str:
        return self._context.environment.get(self._setting_name(name), "").strip()


def _is_json(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def _parts_of(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


def _key_of(auth: RequestAuth, base: str) -> bytes:
    """The key of the credentials in a request, which are in its headers, its query or its base URL."""
    values = [sorted(auth.headers.items()), sorted(auth.query_params.items()), base]
    return sha256(dumps(values).encode()).digest()
