"""The language of provider declarations: the keys of a TOML file, as a model.

`toml_providers.py` reads the files and reports their problems; `base.py` and the generic providers interpret the
values. docs/adding-a-provider.md has the table of keys, and `types schema` publishes the language as JSON Schema. Both
are made from the models: the docstring of a field is the key's description, and the hint of an error.

This module has the keys of a file, `declaration_tables.py` its tables and the types of values, and
`declaration_templates.py` the names that templates may use. `declaration_contradictions.py` compares keys with each
other, and `declaration_mistakes.py` finds what a person means otherwise.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from integration_server.domain.credentials import AuthMethod
from integration_server.providers.declaration_tables import (
    INTEGRATION_TYPE,
    ApiName,
    Assertion,
    BodyType,
    DeviceResponse,
    Errors,
    ExpiringFactDeclaration,
    FieldDeclaration,
    FieldPath,
    Grace,
    Grant,
    HeaderName,
    KeyField,
    Lifetime,
    LoginRequest,
    Lookup,
    Name,
    ParamName,
    PathPattern,
    RateLimitDeclaration,
    Regex,
    RenewAfter,
    ResourceName,
    ResourcePath,
    Revoke,
    Scope,
    SecretFieldDeclaration,
    TokenAuth,
    TokenResponse,
    Verify,
    Webhook,
    check_base,
    check_header_rule,
    check_host_pattern,
    check_param,
    none_if_false,
)
from integration_server.providers.declaration_templates import (
    ClientTemplate,
    CodeTemplate,
    DeviceTemplate,
    PublicTemplate,
    PublicUrl,
    RefreshTemplate,
    RequestTemplate,
    RequestUrl,
    RevokeUrl,
    Text,
    TokenUrl,
)

# --- declarations ----------------------------------------------------------------------------------------------------
# A field has the name of the provider's attribute where it is one; its alias is the key in the file.


class Declaration(BaseModel):
    """The keys of all providers. Validates a file whose `auth_method` is missing or unknown."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        strict=True,
        hide_input_in_errors=True,
        defer_build=True,  # until a declaration is validated: this model itself validates only invalid ones
    )

    integration_type: Annotated[str, StringConstraints(pattern=f"^{INTEGRATION_TYPE.pattern}$")]
    """The name of the type. In upper case it is the prefix of the settings."""

    auth_method: Annotated[AuthMethod, Field(strict=False)]
    """The authentication method: `oauth2`, `api_key`, or `basic`."""

    base: Annotated[ApiName, AfterValidator(check_base)] | None = None
    """The family of the provider, whose keys this file has as well, unless it has its own: `atlassian`, `google`,
    `meta`, `microsoft`."""

    display_name: Text | None = None
    """The name to show to users; the default is made from the type."""

    aliases: list[ApiName] = []
    """Other names of the type that callers may use."""

    config_fields: dict[ApiName, FieldDeclaration] = {}
    """The fields of an integration's `config` that the provider uses. Other fields of the config belong to callers."""

    secret_fields: dict[ApiName, SecretFieldDeclaration] = {}
    """Secrets of the account besides key and secret, used as `{name}`."""

    settings: dict[ApiName, FieldDeclaration] = {}
    """Settings of the operator: `{name}` is the environment variable `<TYPE>_<NAME>`."""

    host_patterns: list[Annotated[str, AfterValidator(check_host_pattern)]] = []
    """The allowed hosts of URLs with a name in the host: "*.shops.example" stands for one label."""

    verify: Annotated[Verify | None, BeforeValidator(none_if_false, json_schema_input_type=Verify | Literal[False])] = (
        None
    )
    """The request that verifies credentials, or `false` if the API has none."""

    verify_url: RequestUrl | None = None
    """Short for `verify = { url = … }`: a GET, and 2xx is healthy."""

    account_id_field: FieldPath | None = None
    """What identifies the account: the name of a kept value, or a dotted path in the verification response."""

    account_label_field: FieldPath | None = None
    """The account's name, in the same way."""

    account_naming: Text | None = None
    """What identifies the account, such as `email`, where types of one client find the same by different requests."""

    lookup: Lookup | None = None
    """A request after connecting, whose results are stored with the credentials."""

    api_base_url: RequestUrl | None = None
    """The base URL of the API, for `CallProvider`."""

    api_base_urls: dict[ApiName, RequestUrl] = {}
    """Further base URLs, by the names that callers use."""

    request_headers: dict[HeaderName, RequestTemplate] = {}
    """Headers of each request. If any template has the token or key, the default authentication is not sent."""

    request_query: dict[ParamName, RequestTemplate] = {}
    """Query parameters of each request, in the same way. They appear in more logs than headers do."""

    allowed_request_headers: list[Annotated[HeaderName, AfterValidator(check_header_rule)]] = []
    """The API's own request headers that a backend may send with `CallProvider`."""

    rate_limits: list[RateLimitDeclaration] = []
    """The documented rate limits; calls stay within all of them."""

    rate_limit_resources: dict[ResourceName, PathPattern] = {}
    """Parts of the API with limits of their own: a name, and a regular expression for the beginning of their paths, to
    the end of a segment. The first that matches counts. A name may contain a group: `{method}`."""

    rate_limit_resource_paths: list[ResourcePath] = []
    """Where a response names such a part: dotted paths in an error's body, or `header:` and the name of a header."""

    calls_at_once: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The documented maximum of concurrent calls per account."""

    errors: Errors = Errors()
    """The meaning of the provider's error codes."""

    webhook: Webhook | None = None
    """How webhooks are verified and read."""

    expiring_facts: list[ExpiringFactDeclaration] = Field([], alias="ends")
    """What ends at a known time; `python -m integration_server types` warns of it."""


class OAuth2Declaration(Declaration):
    """`auth_method = "oauth2"`."""

    model_config = ConfigDict(extra="forbid")

    auth_method: Annotated[AuthMethod, Field(strict=False, json_schema_extra={"const": "oauth2"})]
    """`oauth2`."""

    grant: Grant = "authorization_code"
    """How tokens are obtained: by a user's decision in the browser; by one on another device, where the user enters a
    code (`device_code`, RFC 8628); with a client id and secret (RFC 6749 §4.4), which are the account's own if
    `secret_fields` has `client_id` and `client_secret`, and ours otherwise; with a signed JWT, as service accounts do
    (`jwt_bearer`, RFC 7523); or by a `login` with the account's secrets."""

    oauth_authorize_url: PublicUrl | None = Field(None, alias="authorize_url")
    """The authorization endpoint (RFC 6749 §3.1). Required for `authorization_code`."""

    device_authorization_url: TokenUrl | None = None
    """The device authorization endpoint (RFC 8628 §3.1). Required for `device_code`."""

    device_auth: TokenAuth | None = None
    """How our client authenticates there, where it differs from `token_auth`."""

    device_params: dict[ParamName, DeviceTemplate] = {}
    """Parameters of the request to it, besides the standard ones; an empty text leaves a standard one out."""

    device_response: DeviceResponse = DeviceResponse()
    """The paths of the values in its response."""

    oauth_token_url: TokenUrl | None = Field(None, alias="token_url")
    """The token endpoint (RFC 6749 §3.2). Required, except for `login`."""

    assertion: Assertion | None = None
    """The JWT of `jwt_bearer`. Required for it."""

    login: Annotated[list[LoginRequest], Field(max_length=3)] = []
    """The requests of `login`, one to three. The last response has the session token, where `token_response` says."""

    refresh_url: TokenUrl | None = None
    """The endpoint of refreshes, where it is another one."""

    revoke_url: RevokeUrl | None = None
    """Short for `revoke = { url = … }`: RFC 7009."""

    revoke: Revoke | None = None
    """The request that revokes a grant, and what it ends."""

    issuer: PublicUrl | None = None
    """The issuer, only if every callback has it as `iss`, errors included (RFC 9207)."""

    required_scopes: list[Scope] = Field([], alias="scopes")
    """The scopes that are always requested, and required."""

    scope_separator: Annotated[str, StringConstraints(min_length=1, max_length=8)] = " "
    """What separates scopes in requests; responses may use spaces, commas or a list as well."""

    scope_param: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{0,64}$")] = "scope"
    """The parameter with the scopes; empty if there is none."""

    scope_equivalents: dict[Scope, list[Scope]] = {}
    """Scopes that a scope includes or is another name of, and that responses leave out beside it."""

    retired_scopes: list[Scope] = []
    """Scopes that grants may have and that cannot be requested, such as older names; unless a request names them."""

    pkce: bool = True
    """Whether a code challenge is sent (RFC 7636)."""

    resource: PublicUrl | None = None
    """The resource that the tokens are for (RFC 8707)."""

    authorize_params: dict[Annotated[Text, AfterValidator(check_param)], PublicTemplate] = {}
    """Further parameters of the authorization URL."""

    token_auth: TokenAuth = "client_secret_basic"
    """How our client authenticates (RFC 6749 §2.3, RFC 7523); with `header`, `token_headers` do it."""

    token_body: BodyType = "form"
    """How the parameters of token requests are written."""

    token_headers: dict[HeaderName, ClientTemplate] = {}
    """Headers of token requests; `{basic}` is client id and secret in base64."""

    token_params: dict[ParamName, CodeTemplate] = {}
    """Parameters of the exchange of a code or device code, besides the standard ones; an empty text leaves a standard
    one out."""

    refresh_params: dict[ParamName, RefreshTemplate] = {}
    """Parameters of a refresh, in the same way."""

    token_response: TokenResponse = TokenResponse()
    """The paths of the values in token responses, or in the last response of a login."""

    keep_callback: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]] = []
    """Parameters of the callback that are stored with the tokens, and required; `{accounts_server}` is the value of
    `accounts-server`."""

    kept_patterns: dict[Name, Regex] = {}
    """Regular expressions that kept values match as a whole; other values are refused."""

    lifetime: Lifetime | None = Field(None, alias="lifetime_seconds")
    """The lifetime of access tokens whose response has none."""

    never_expires: bool = False
    """Whether access tokens never expire, whatever a response says."""

    refresh_token_grace: Grace = Field(  # type: ignore[pydantic-alias]
        timedelta(0),
        alias="refresh_grace_seconds",
        validation_alias=AliasChoices("refresh_grace_seconds", "refresh_token_grace_seconds"),
        json_schema_extra={"default": 0},
    )
    """How long a refresh token works after a refresh has replaced it; `inf` if it stays valid, or none replaces it."""

    renew_after: RenewAfter = Field(timedelta.max, alias="renew_after_seconds", json_schema_extra={"default": None})
    """The age at which an access token is refreshed, even if it lasts longer."""


def _exclude_header(value: str, info: ValidationInfo) -> str:
    if info.data.get("api_key_header") is not None:
        raise PydanticCustomError("api_key_location", "cannot be combined with api_key_header")
    return value


class KeyDeclaration(Declaration):
    """The keys of providers with API keys."""

    key_patterns: dict[KeyField, Regex] = {}
    """Regular expressions that the fields of a key match as a whole; another one is refused without a request."""

    allows_whitespace_in: list[KeyField] = []
    """The fields of a key that may have white space inside: PEM files, application passwords."""


class ApiKeyDeclaration(KeyDeclaration):
    """`auth_method = "api_key"`. Without a template that has the key, it is sent as `Authorization: Bearer`."""

    model_config = ConfigDict(extra="forbid")

    auth_method: Annotated[AuthMethod, Field(strict=False, json_schema_extra={"const": "api_key"})]
    """`api_key`."""

    required_fields: list[KeyField] = ["api_key"]
    """Which of key and secret an account has."""

    api_key_header: HeaderName | None = None
    """Short for `request_headers = { <name> = "{api_key}" }`."""

    api_key_query_param: Annotated[ParamName, AfterValidator(_exclude_header)] | None = None
    """Short for `request_query = { <name> = "{api_key}" }`."""


class BasicDeclaration(KeyDeclaration):
    """`auth_method = "basic"`."""

    model_config = ConfigDict(extra="forbid")

    auth_method: Annotated[AuthMethod, Field(strict=False, json_schema_extra={"const": "basic"})]
    """`basic`."""

    required_fields: list[KeyField] = ["api_key", "api_secret"]
    """Which of user name and password an account has; the other one may be empty."""

    basic_username: RequestTemplate = "{api_key}"
    """The user name."""

    basic_password: RequestTemplate = "{api_secret}"
    """The password."""


MODELS: Mapping[str, type[Declaration]] = {
    AuthMethod.OAUTH2: OAuth2Declaration,
    AuthMethod.API_KEY: ApiKeyDeclaration,
    AuthMethod.BASIC: BasicDeclaration,
}
