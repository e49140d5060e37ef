"""What a provider declares, and its values for a config or for the account of credentials."""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from integration_server.domain.credentials import AuthMethod, Credentials, OAuthTokens
from integration_server.domain.errors import (
    ApiNotDeclared,
    InvalidField,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
)
from integration_server.domain.oauth_client import OAuthClient
from integration_server.domain.proxy_messages import RateLimit
from integration_server.providers.declaration_tables import (
    Errors,
    ExpiringFact,
    FieldDeclaration,
    Lookup,
    RevocationEnds,
    SecretFieldDeclaration,
    Verify,
)
from integration_server.providers.declared_values import field_values
from integration_server.providers.http import DeclaredOrigins, ProviderHttp, is_url, origin_of
from integration_server.providers.url_templates import InvalidParam, fill, host_params, template_params
from integration_server.providers.webhooks.scheme import WebhookScheme
from integration_server.service.common_types import Clock, Record, record_nothing

T = TypeVar("T")

_URL_ATTRIBUTES = (
    *("issuer", "oauth_authorize_url", "oauth_token_url", "refresh_url", "verify_url", "revoke_url", "api_base_url"),
    "device_authorization_url",
)

COMMON_SETTINGS = (
    *("CLIENT_ID", "CLIENT_SECRET", "CLIENT_SECRET_PREVIOUS", "PRIVATE_KEY", "PRIVATE_KEY_PREVIOUS", "PRIVATE_KEY_ID"),
    *("SCOPES", "WEBHOOK_SECRET", "WEBHOOK_SECRET_RETIRED", "WEBHOOK_VERIFY_TOKEN"),
)
"""The settings that types have without declaring them, after the type and an underscore."""

_ATTRIBUTES_OF_ACCOUNTS = frozenset({"url_params", "oauth_client", "granted_scopes"})
"""What copies for an account or a client change: no declaration depends on it."""


class derived(Generic[T]):  # noqa: N801  # used as `property` is
    """A property that follows from declarations and settings only: computed once for all accounts and clients."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, provider: Any, _owner: object = None) -> T:  # noqa: ANN401  # a `ProviderModel`
        known: dict[derived[T], T] = provider._derived
        if self not in known:
            known[self] = self._compute(provider)
        # From now on, an attribute of this provider and of its copies.
        vars(provider)[self.name] = value = known[self]
        return value


@dataclass(frozen=True, slots=True)
class ProviderContext:
    """The collaborators of a provider. `environment` has client ids and secrets, by the names of their settings."""

    http: ProviderHttp
    clock: Clock
    environment: Mapping[str, str] = field(repr=False)
    record_request: Record = record_nothing  # seconds, integration type, class of the status


class ProviderConfig(BaseModel):
    """The config of an integration. Subclasses add fields; all others belong to callers, and are stored as they are."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class ProviderModel(ABC):
    """The declarations of one integration type.

    A declaration is a class attribute or a property, with the meaning of the key in a file that has its name.
    Requests go to the hosts of the declared URLs and host patterns, and nowhere else.

    Declared URLs, headers and parameters are templates: "https://{shop}.shops.example/token". Their values are those of
    the settings, of the config (`config_fields`, or `configure`), and of the credentials. The ones of the config are
    stored with the credentials, so that `for_credentials` reaches the same account later without a config.
    """

    # --- keys, which declaration.py and declaration_tables.py describe
    # `refresh_token_grace` is `timedelta.max` if a refresh replaces no refresh token.

    aliases: Sequence[str] = ()
    settings: Mapping[str, FieldDeclaration] = MappingProxyType({})
    config_fields: Mapping[str, FieldDeclaration] = MappingProxyType({})
    secret_fields: Mapping[str, SecretFieldDeclaration] = MappingProxyType({})
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
        self._derived: dict[derived[Any], Any] = {}
        self.oauth_client = self._own_oauth_client()
        values = {name: self._setting(name.upper()) or field.default for name, field in self.settings.items()}
        self.setting_values = {name: value for name, value in values.items() if value}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.integration_type}>"

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
        """The client id: the account's own, or that of the OAuth client; empty if not set."""
        return self._of_account("client_id") or self.oauth_client.client_id

    @property
    def client_secret(self) -> str:
        """The client secret, in the same way."""
        return self._of_account("client_secret") or self.oauth_client.secret

    def _of_account(self, name: str) -> str:
        """A value of the account's own client, where the type declares it as one of the secrets of an account."""
        return self.url_params.get(name, "") if name in self.secret_names else ""

    @derived
    def secret_names(self) -> Mapping[str, str]:
        """The names of templates that the secrets of an account bring, each with its secret field."""
        kept = {name: field for field, secret_field in self.secret_fields.items() for name in secret_field.keep}
        return {**kept, **{field: field for field in self.secret_fields}}

    def secret_values(self, secrets: Mapping[str, str]) -> Mapping[str, str]:
        """The values of templates in the secrets of an account: they themselves, and those that JSON files have."""
        declared = [(self.secret_fields[field], text) for field, text in secrets.items() if field in self.secret_fields]
        kept = {name: value for field, text in declared for name, value in field.values_of(text).items()}
        return {**kept, **secrets}

    def _own_oauth_client(self) -> OAuthClient:
        """The operator's client, from the settings of the type."""
        return OAuthClient(
            self._setting("CLIENT_ID"),
            self._settings("CLIENT_SECRET", "CLIENT_SECRET_PREVIOUS"),
            webhook_secrets=self._settings("WEBHOOK_SECRET", "WEBHOOK_SECRET_RETIRED"),
            webhook_verify_token=self._setting("WEBHOOK_VERIFY_TOKEN"),
        )

    def for_client(self, client: OAuthClient) -> Self:
        """The provider with another OAuth client than the operator's own, or with another of its secrets."""
        return self.with_attributes(oauth_client=client)

    @property
    def takes_client_secret(self) -> bool:
        """Whether an OAuth client of this type has a secret."""
        return False

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
        missing = self.missing_settings
        if missing:
            raise ProviderNotConfigured(self.integration_type, missing)

    def _setting_name(self, name: str) -> str:
        return f"{self.integration_type.upper()}_{name}"

    def _settings(self, *names: str) -> Sequence[str]:
        """The values of these settings that are set, once each."""
        return tuple(dict.fromkeys(value for name in names if (value := self._setting(name))))

    @property
    def setting_names(self) -> Collection[str]:
        """The full names of its settings, without those that only code in Python knows."""
        return [self._setting_name(name.upper()) for name in (*COMMON_SETTINGS, *self.settings)]

    def _setting(self, name: str) -> str:
        return self._context.environment.get(self._setting_name(name), "").strip()

    # --- addresses, and the values in them

    @derived
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

    @derived
    def _setting_texts(self) -> Mapping[str, str]:
        return {name: self.settings[name].text_of(value) for name, value in self.setting_values.items()}

    @derived
    def names_in_requests(self) -> Collection[str]:
        """The names in the templates of API requests."""
        urls = [self.api_base_url or "", *self.api_base_urls.values()]
        templates = [*urls, *self.request_headers.values(), *self.request_query.values()]
        return {name for template in templates for name in template_params(template)}

    @property
    def verification(self) -> Verify | None:
        """The request that verifies credentials; None if there is none."""
        return self.verify or (None if self.verify_url is None else Verify.model_construct(url=self.verify_url))

    @property
    def kept_names(self) -> Collection[str]:
        """The names of the values that the provider's responses bring."""
        return () if self.lookup is None else self.lookup.keep

    @derived
    def _origins(self) -> DeclaredOrigins:
        return DeclaredOrigins(self.url_templates.values(), self.host_patterns)

    @derived
    def _params_of_urls(self) -> Mapping[str, frozenset[str]]:
        """The names in each URL template that has any."""
        names = {url: frozenset(template_params(url)) for url in self.url_templates.values()}
        return {url: names for url, names in names.items() if names}

    def unusable_param(self) -> str | None:
        """The name of a value that cannot be in its URL, or that leads to an undeclared host; None if there is none."""
        if not self._params_of_urls:
            return None
        origins, values = self._origins, self.values
        for url, names in self._params_of_urls.items():
            if names <= values.keys():
                try:
                    filled = fill(url, values)
                except InvalidParam as error:
                    return error.name
                if host_params(url) and not (is_url(filled) and origin_of(filled) in origins):
                    return host_params(url)[0]
        return None

    def require_reachable(self, extras: Mapping[str, str], needed: Collection[str] = ()) -> None:
        """Raise `ProviderUnavailable` if values that a response brought lead to an undeclared host.

        The same if one of the `needed` names that a URL has is missing, or if a value is not as declared.
        """
        patterns = self.kept_patterns.items()
        if any(name in extras and not re.fullmatch(pattern, extras[name]) for name, pattern in patterns):
            raise ProviderUnavailable("the provider's response has a value that is not as declared")
        if not self._params_of_urls:
            return
        provider = self.with_attributes(url_params={**self.url_params, **extras})
        used = frozenset[str]().union(*self._params_of_urls.values())
        if not used.intersection(needed) <= provider.values.keys() or provider.unusable_param() is not None:
            raise ProviderUnavailable("the provider's response does not lead to a declared host")

    # --- copies for a config or an account

    def for_config(self, config: Mapping[str, Any]) -> Self:
        """The provider for an integration with this config. Raises `InvalidField`."""
        provider = self._with_config_fields(config) if self.config_fields else self
        if self.config_model is None:
            return provider
        try:
            return provider.configure(self.config_model.model_validate(dict(config)))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = first["msg"].removeprefix("Value error, ")
            raise InvalidField(".".join(map(str, ("config", *first["loc"]))), problem) from None

    def _with_config_fields(self, config: Mapping[str, Any]) -> Self:
        provider = self.with_attributes(
            url_params={**self.url_params, **field_values("config", self.config_fields, config)}
        )
        if (name := provider.unusable_param()) is not None:
            raise InvalidField(f"config.{name}", "is not part of an address of this integration type")
        return provider

    def configure(self, config: Any) -> Self:  # noqa: ANN401  # an instance of its own config_model
        """The provider for a validated config. Config fields set the URL parameters of the same name."""
        names = set[str]().union(*self._params_of_urls.values()) & set(vars(config))
        return self.with_url_params(**{name: str(vars(config)[name]) for name in names})

    def with_url_params(self, **url_params: str) -> Self:
        """A copy with these URL parameters. Raises `ValueError` if a value is not a host or one path segment."""
        for name in url_params:
            fill(f"https://{{{name}}}", url_params)
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
            url_params={
                **self.url_params,
                **credentials.extras,
                **self.secret_values(credentials.secret_fields),
                **found,
            }
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
        if not attributes.keys() <= _ATTRIBUTES_OF_ACCOUNTS:
            for derived in self._derived:  # they follow from the declarations of the original
                vars(other).pop(derived.name, None)
            other._derived = {}
        for name, value in attributes.items():
            setattr(other, name, value)
        return other
