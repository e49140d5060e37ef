"""Providers without code: each `*.toml` file of a directory declares one. docs/adding-a-provider.md lists the keys.

A declaration becomes a subclass of a generic provider with the declared values as class attributes, equivalent to a
Python file that only declares.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from integration_server.domain.credentials import AuthMethod
from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.providers.api_key import ApiKeyProvider, BasicAuthProvider
from integration_server.providers.base import MIN_RENEW_AFTER, BaseProvider, RevocationEnds
from integration_server.providers.factory import INTEGRATION_TYPE, ProviderFactory, ProvidersError
from integration_server.providers.oauth2 import RESERVED_PARAMS, OAuth2Provider, RevokeToken, TokenAuth
from integration_server.providers.url_templates import Url

T = TypeVar("T")


def load_toml_providers(directory: Path, factory: ProviderFactory, *, dev_mode: bool) -> None:
    """Register every `*.toml` file of the directory. Raises `ProvidersError` with all problems."""
    problems = [] if directory.is_dir() else [f"{directory}: is not a directory"]
    for path in sorted(directory.glob("*.toml")):
        try:
            declaration = _read(path, dev_mode=dev_mode)
            factory.register(declaration.integration_type, declaration.provider_class(), origin=str(path))
        except ProvidersError as error:
            problems.extend(error.problems)
    if problems:
        raise ProvidersError(problems)


def _read(path: Path, *, dev_mode: bool) -> "Declaration":
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProvidersError([f"{path}: cannot be read as TOML: {error}"]) from error
    try:
        model = _MODELS.get(str(values.get("auth_method")), Declaration)
        return model.model_validate(values, context={"dev_mode": dev_mode})
    except ValidationError as error:
        raise ProvidersError(f"{path}: {problem}" for problem in _describe_errors(error)) from error


def _describe_errors(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        name = ".".join(part for part in map(str, detail["loc"]) if part != "[key]")
        yield f"{name}: {_MESSAGES.get(detail['type'], detail['msg'])}"


_MESSAGES = {
    "extra_forbidden": "is not known, or not allowed with this auth_method",
    "missing": "is required",
}


# --- types of fields


def _exclude_header(value: str, info: ValidationInfo) -> str:
    if info.data.get("api_key_header") is not None:
        raise PydanticCustomError("api_key_location", "cannot be combined with api_key_header")
    return value


def _exclude_revoke_url(value: T, info: ValidationInfo) -> T:
    if info.data.get("revoke_url") is not None:
        raise PydanticCustomError("revocation", "cannot be combined with revoke_url, which is its short form")
    return value


def _param_name(value: str) -> str:
    if value in RESERVED_PARAMS:
        raise PydanticCustomError("reserved", "is set by the server")
    return value


def _require_verification(value: str | None, info: ValidationInfo) -> str | None:
    if "verify" in info.data and (value is not None) != info.data["verify"]:
        problem = "is required, unless the file says verify = false" if value is None else "contradicts verify = false"
        raise PydanticCustomError("verification", "{problem}", {"problem": problem})
    return value


def _require_false(value: bool) -> bool:  # a validator
    if value:
        raise PydanticCustomError("verify", "can only be false")
    return value


ApiName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
KeyField = Literal["api_key", "api_secret"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
FieldPath = Annotated[str, StringConstraints(pattern=r"^[^.]+(\.[^.]+)*$")]
Scope = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]+$")]
ParamName = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,256}$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]  # RFC 9110 §5.1


# --- declarations
# A field has the name of the provider's attribute; its alias is the key in the file.


def _path_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error:
        raise ValueError("is not a regular expression") from None
    return pattern


ResourceName = Annotated[str, StringConstraints(pattern=r"^(?:[A-Za-z0-9_.:-]|\{[a-z_]+\}){1,64}$")]
PathPattern = Annotated[str, StringConstraints(pattern="^/", max_length=500), AfterValidator(_path_pattern)]
ResourcePath = Annotated[str, StringConstraints(pattern=r"^(?:header:[a-z0-9-]+|[A-Za-z0-9_.*-]+)$", max_length=200)]


class RateLimitDeclaration(BaseModel):
    """One `[[rate_limits]]`: a number of calls per number of seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    calls: Annotated[int, Field(ge=1, le=1_000_000)]
    seconds: Annotated[float, Field(ge=1, le=86_400)]
    per: Annotated[LimitScope, Field(strict=False)] = LimitScope.INTEGRATION
    resource: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{0,64}$")] = ""

    def rate_limit(self) -> RateLimit:
        """The value of the provider's attribute."""
        return RateLimit(self.calls, timedelta(seconds=self.seconds), self.per, self.resource)


class RevocationDeclaration(BaseModel):
    """`revoke`: the request that revokes a grant, and what it ends."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    revoke_url: Url = Field(alias="url")
    revoke_method: Literal["POST", "DELETE"] = Field("POST", alias="method")
    revoke_token: RevokeToken = Field("refresh_token", alias="token")
    revocation_ends: RevocationEnds = Field("token", alias="ends")


class Declaration(BaseModel):
    """The keys of all providers. Validates a file whose `auth_method` is missing or unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)
    generic_class: ClassVar[type[BaseProvider]]

    integration_type: Annotated[str, StringConstraints(pattern=f"^{INTEGRATION_TYPE.pattern}$")]
    auth_method: Annotated[AuthMethod, Field(strict=False)]
    display_name: Text | None = None
    verify: Annotated[bool, AfterValidator(_require_false), Field(exclude=True)] = True
    verify_url: Url | None = None
    account_id_field: FieldPath | None = None
    account_label_field: FieldPath | None = None
    api_base_url: Url | None = None
    api_base_urls: dict[ApiName, Url] = {}
    rate_limits: list[RateLimitDeclaration] = []
    rate_limit_resources: dict[ResourceName, PathPattern] = {}
    rate_limit_resource_paths: list[ResourcePath] = []
    calls_at_once: Annotated[int, Field(ge=1, le=10_000)] | None = None
    allowed_request_headers: list[HeaderName] = []

    def provider_class(self) -> type[BaseProvider]:
        """A subclass of the generic provider with the declared values."""
        values = self.model_dump(exclude_unset=True)
        values["rate_limits"] = tuple(limit.rate_limit() for limit in self.rate_limits)
        return type("TomlProvider", (self.generic_class,), values)


class OAuth2Declaration(Declaration):
    """`auth_method = "oauth2"`."""

    model_config = ConfigDict(extra="forbid")
    generic_class = OAuth2Provider

    oauth_authorize_url: Url = Field(alias="authorize_url")
    oauth_token_url: Url = Field(alias="token_url")
    revoke_url: Url | None = None
    revoke: Annotated[RevocationDeclaration | None, AfterValidator(_exclude_revoke_url), Field(exclude=True)] = None
    issuer: Url | None = None
    required_scopes: list[Scope] = Field([], alias="scopes")
    scope_separator: Annotated[str, StringConstraints(min_length=1, max_length=8)] = " "
    token_auth: TokenAuth = "client_secret_basic"
    refresh_token_grace: Annotated[timedelta, Field(strict=False, ge=timedelta(0))] = Field(
        timedelta(0), alias="refresh_token_grace_seconds"
    )
    renew_after: Annotated[timedelta, Field(strict=False, ge=MIN_RENEW_AFTER)] = Field(
        timedelta.max, alias="renew_after_seconds"
    )
    authorize_params: dict[Annotated[Text, AfterValidator(_param_name)], str] = {}

    def provider_class(self) -> type[BaseProvider]:
        """Also with the values of `revoke`."""
        declared = super().provider_class()
        return declared if self.revoke is None else type("TomlProvider", (declared,), self.revoke.model_dump())


class KeyDeclaration(Declaration):
    """The keys of providers with API keys.

    A key is verified before it is stored, which needs a `verify_url`; `verify = false` declares that there is none.
    """

    verify_url: Annotated[Url | None, Field(validate_default=True), AfterValidator(_require_verification)] = None
    allows_whitespace_in: list[KeyField] = []


class ApiKeyDeclaration(KeyDeclaration):
    """`auth_method = "api_key"`."""

    model_config = ConfigDict(extra="forbid")
    generic_class = ApiKeyProvider

    api_key_header: HeaderName | None = None
    api_key_query_param: Annotated[ParamName, AfterValidator(_exclude_header)] | None = None


class BasicDeclaration(KeyDeclaration):
    """`auth_method = "basic"`."""

    model_config = ConfigDict(extra="forbid")
    generic_class = BasicAuthProvider

    required_fields: Annotated[list[KeyField], Field(min_length=1)] = ["api_key", "api_secret"]


_MODELS: Mapping[object, type[Declaration]] = {
    "oauth2": OAuth2Declaration,
    "api_key": ApiKeyDeclaration,
    "basic": BasicDeclaration,
}
