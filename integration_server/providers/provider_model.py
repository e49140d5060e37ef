"""What a provider declares, and what follows from that and from settings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import (
    ProviderNotConfigured,
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
from integration_server.providers.http import DeclaredOrigins, ProviderHttp
from integration_server.providers.url_templates import fill, template_params
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


class derived(Generic[T]):  # noqa: N801  # used as `property` is
    """A property that follows from declarations and settings only: computed once for all accounts and clients."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, provider: Any, _owner: object = None) -> T:  # noqa: ANN401  # a `ProviderModel`
        known: dict[str, T] = provider._derived
        if self.name not in known:
            known[self.name] = self._compute(provider)
        # From now on, an attribute of this provider and of its copies.
        vars(provider)[self.name] = value = known[self.name]
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
        self._derived: dict[str, Any] = {}
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

    @derived
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

    @derived
    def secret_names(self) -> Mapping[str, str]:
        """The names of templates that the secrets of an account bring, each with its secret field."""
        kept = {name: field for field, secret_field in self.secret_fields.items() for name in secret_field.keep}
        return {**kept, **{field: field for field in self.secret_fields}}

    def _own_oauth_client(self) -> OAuthClient:
        """The operator's client, from the settings of the type."""
        return OAuthClient(
            self._setting("CLIENT_ID"),
            self._settings("CLIENT_SECRET", "CLIENT_SECRET_PREVIOUS"),
            webhook_secrets=self._settings("WEBHOOK_SECRET", "WEBHOOK_SECRET_RETIRED"),
            webhook_verify_token=self._setting("WEBHOOK_VERIFY_TOKEN"),
        )

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

    @derived
    def _setting_texts(self) -> Mapping[str, str]:
        return {name: self.settings[name].text_of(value) for name, value in self.setting_values.items()}

    @derived
    def names_in_requests(self) -> Collection[str]:
        """The names in the templates of API requests."""
        urls = [self.api_base_url or "", *self.api_base_urls.values()]
        templates = [*urls, *self.request_headers.values(), *self.request_query.values()]
        return {name for template in templates for name in template_params(template)}

    @derived
    def _origins(self) -> DeclaredOrigins:
        return DeclaredOrigins(self.url_templates.values(), self.host_patterns)

    @derived
    def _params_of_urls(self) -> Mapping[str, frozenset[str]]:
        """The names in each URL template that has any."""
        names = {url: frozenset(template_params(url)) for url in self.url_templates.values()}
        return {url: names for url, names in names.items() if names}
