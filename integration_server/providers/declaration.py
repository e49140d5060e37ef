"""The language of provider declarations: the keys of a TOML file, as a model.

`toml_providers.py` reads the files and reports their problems; `base.py` and the generic providers interpret the
values. docs/adding-a-provider.md has the table of keys, and `types schema` publishes the language as JSON Schema. Both
are made from this module: the docstring of a field is the key's description, and the hint of an error.

A *template* is a text with names in braces. `Names` states which names each place may use; what is sent to a browser or
returned to a backend cannot contain our client's secret.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from difflib import get_close_matches
from math import inf
from typing import Annotated, Any, Literal, TypeGuard

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
from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.domain.text import has_control_characters
from integration_server.providers.http import url_problem
from integration_server.providers.lenient_values import field_at, read_object, texts_at
from integration_server.providers.url_templates import (
    fill_with_placeholders,
    host_params,
    host_pattern_problem,
    is_bounded,
    template_params,
)
from integration_server.service.proxy.proxy_policy import declaration_problem

MIN_RENEW_AFTER = timedelta(seconds=5)
"""The worker looks for due refreshes once a second; a shorter age would keep it refreshing."""

INTEGRATION_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")

RESERVED_PARAMS = frozenset(
    {"response_type", "client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method"}
)
"""Parameters of the authorization URL that a declaration cannot set."""

TokenAuth = Literal[
    "client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "header", "none"
]
BodyType = Literal["form", "json"]
RevokeToken = Literal["refresh_token", "access_token", "bearer"]
RevocationEnds = Literal["token", "grant", "account"]
KeyField = Literal["api_key", "api_secret"]
# fmt: off
SchemeName = Literal[
    "acuity", "dropbox", "github", "google_channel", "hubspot", "instagram", "meta", "microsoft_graph", "quickbooks",
    "sendgrid", "shopify", "slack", "standard", "stripe", "twilio", "zoom",
]
# fmt: on
Grant = Literal["authorization_code", "client_credentials", "jwt_bearer", "login", "device_code"]
SigningAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512"]

SECRET_GRANTS = frozenset({"client_credentials", "jwt_bearer", "login"})
"""Grants that secrets obtain, any number of times, and not a user's decision: there are no refresh tokens."""


# --- names in templates ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExpiringFact:
    """A fact about a provider that ends on a day, such as the support of an API version.

    With `only_for`, it concerns only servers that use this API version or scope.
    """

    subject: str
    end: date
    only_for: str = ""


@dataclass(frozen=True, slots=True)
class DeclaredNames:
    """The names that a file declares, read leniently, so that its templates can be checked beside its other problems.

    The validation context has them, because the parts of a file are validated apart from each other.
    """

    config: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    host_patterns: Sequence[str] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "DeclaredNames":
        """The names in the values of a file, whatever else is wrong with it."""

        def keys(*path: str | int) -> frozenset[str]:
            found: Any = values
            for name in path:
                if isinstance(name, int):
                    found = found[name]
                else:
                    found = found.get(name) if isinstance(found, Mapping) else None
            return frozenset(found) if isinstance(found, Mapping) else frozenset()

        def texts(name: str) -> list[str]:
            found = values.get(name)
            return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []

        of_callback = {name.replace("-", "_") for name in texts("keep_callback")}
        kept = keys("token_response", "keep") | keys("lookup", "keep") | of_callback
        login = values.get("login")
        for index in range(len(login) if isinstance(login, list) else 0):
            kept |= keys("login", index, "keep")
        secrets = keys("secret_fields")
        secrets = secrets.union(*(keys("secret_fields", name, "keep") for name in secrets))
        return cls(keys("config_fields"), secrets, keys("settings"), kept, texts("host_patterns"))


@dataclass(frozen=True, slots=True)
class Names:
    """A validator of templates: `groups` of declared names, and names that the server knows, may occur."""

    groups: tuple[str, ...]
    own: tuple[str, ...] = ()
    is_url: bool = False

    def __call__(self, value: str, info: ValidationInfo) -> str:
        """Return the template. Raises `PydanticCustomError`.

        Without a context, as for a value in Python, the names are not known; the factory checks the hosts then.
        """
        problem = None if info.context is None else next(self._problems(value, info.context), None)
        if problem is not None:
            raise PydanticCustomError("template", "{problem}", {"problem": problem})
        return value

    def _problems(self, template: str, context: Mapping[str, Any]) -> Iterator[str]:
        declared: DeclaredNames = context["names"]
        allowed = {*self.own, *(name for group in self.groups for name in getattr(declared, group))}
        for name in template_params(template):
            if name not in allowed:
                close = "".join(f"; did you mean {{{one}}}?" for one in get_close_matches(name, allowed, n=1))
                yield f"has {{{name}}}, which is not one of: {', '.join(sorted(allowed)) or 'none'}{close}"
        if re.search(r"\{[^{}\s]*\}", fill_with_placeholders(template)):
            yield "has braces around something that is not a name"
        elif not self.is_url and template.count("{") != template.count("}"):
            yield "has a brace without its counterpart; a name is written {name}"
        if any(name in allowed for name in re.findall(r"\{\s+(\w+)\s*\}|\{\w+\s+\}", template)):
            yield "has spaces in braces; a name is written {name}"
        if re.search(r"[$%]\{[A-Za-z_]\w*\}", template):
            yield "has ${…}; a name is written {name}"
        if has_control_characters(template):
            yield "has a control character"
        if not self.is_url:
            return
        if problem := url_problem(fill_with_placeholders(template), dev_mode=bool(context.get("dev_mode"))):
            yield problem
        elif not is_bounded(template, declared.host_patterns):
            names = ", ".join(f"{{{name}}}" for name in host_params(template))
            yield f"has {names} in its host, which no entry of host_patterns limits"


_OF_ACCOUNT = ("config", "secrets", "settings", "kept")
_OF_REQUEST = ("client_id", "access_token", "api_key", "api_secret")

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Template = Annotated[str, StringConstraints(max_length=2048)]
PublicUrl = Annotated[str, AfterValidator(Names(("config", "settings"), ("client_id",), is_url=True))]
PublicTemplate = Annotated[Template, AfterValidator(Names(("config", "settings"), ("client_id",)))]
TokenUrl = Annotated[str, AfterValidator(Names(("config", "secrets", "settings", "kept"), ("client_id",), is_url=True))]
_TOKEN_NAMES = ("client_id", "client_secret")
ClientTemplate = Annotated[
    Template, AfterValidator(Names(("config", "secrets", "settings", "kept"), (*_TOKEN_NAMES, "basic", "assertion")))
]
CodeTemplate = Annotated[
    Template,
    AfterValidator(
        Names(
            ("config", "secrets", "settings", "kept"),
            (*_TOKEN_NAMES, "code", "redirect_uri", "code_verifier", "device_code", "scope", "assertion"),
        )
    ),
]
DeviceTemplate = Annotated[Template, AfterValidator(Names(("config", "settings"), (*_TOKEN_NAMES, "scope")))]
RefreshTemplate = Annotated[
    Template,
    AfterValidator(
        Names(("config", "secrets", "settings", "kept"), (*_TOKEN_NAMES, "refresh_token", "access_token", "scope")),
    ),
]
RequestUrl = Annotated[str, AfterValidator(Names(_OF_ACCOUNT, _OF_REQUEST, is_url=True))]
RequestTemplate = Annotated[Template, AfterValidator(Names(_OF_ACCOUNT, _OF_REQUEST))]
RevokeUrl = Annotated[
    str, AfterValidator(Names(_OF_ACCOUNT, (*_OF_REQUEST, "client_secret", "refresh_token", "token"), is_url=True))
]
RevokeTemplate = Annotated[
    Template,
    AfterValidator(Names(_OF_ACCOUNT, (*_OF_REQUEST, "client_secret", "refresh_token", "token", "basic"))),
]


LoginUrl = Annotated[str, AfterValidator(Names(_OF_ACCOUNT, _TOKEN_NAMES, is_url=True))]
LoginTemplate = Annotated[Template, AfterValidator(Names(_OF_ACCOUNT, (*_TOKEN_NAMES, "basic")))]
KeyTemplate = Annotated[Template, AfterValidator(Names(("secrets", "settings")))]


def texts_in(value: object) -> Iterator[str]:
    """The texts in a value as of JSON, at all levels."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_in(part)


@dataclass(frozen=True, slots=True)
class _NamesInJson:
    """A validator of JSON values whose texts are templates."""

    check: Names

    def __call__(self, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        for text in texts_in(value):
            self.check(text, info)
        return value


RequestBody = Annotated[dict[str, Any], AfterValidator(_NamesInJson(Names(_OF_ACCOUNT, _OF_REQUEST)))]
LoginBody = Annotated[dict[str, Any], AfterValidator(_NamesInJson(Names(_OF_ACCOUNT, _TOKEN_NAMES)))]
Claims = Annotated[
    dict[str, Any], AfterValidator(_NamesInJson(Names(("config", "secrets", "settings"), ("client_id", "scope"))))
]
SignedTemplate = Annotated[Template, AfterValidator(Names((), ("body", "timestamp", "method", "url", "id")))]


# --- types of values -------------------------------------------------------------------------------------------------


def _check_header_rule(value: str) -> str:
    if problem := declaration_problem(value):
        raise PydanticCustomError("header", "{problem}", {"problem": problem})
    return value


def _check_host_pattern(value: str) -> str:
    if problem := host_pattern_problem(value):
        raise PydanticCustomError("host_pattern", "{problem}", {"problem": problem})
    return value


def _check_regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise PydanticCustomError("regex", "is not a regular expression: {why}", {"why": str(error)}) from None
    return value


def _check_path(value: str) -> str:
    unquoted = re.sub('"[^"]*"', "", value)
    if re.search(r"^\$|^/|\[[^\]]*\]|[{}]", unquoted):
        raise PydanticCustomError("path", "is not a dotted path, such as data.0.id; a name with dots is in quotes")
    return value


def _check_param(value: str) -> str:
    if value in RESERVED_PARAMS:
        raise PydanticCustomError("reserved", "is set by the server")
    return value


def _max_if_infinite(value: object) -> object:
    return timedelta.max if value == inf else value


def _none_if_false(value: object) -> object:
    if value is True:
        raise PydanticCustomError("false", "can only be false, or a table")
    return None if value is False else value


def _check_seconds(value: object) -> object:
    """Pydantic also reads a truth value, and a text such as "PT1H", as a duration."""
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise PydanticCustomError("seconds", "must be a number of seconds")
    return value


Lifetime = Annotated[
    timedelta,
    Field(strict=False, gt=timedelta(0)),
    BeforeValidator(_check_seconds, json_schema_input_type=float),
]
RenewAfter = Annotated[
    timedelta,
    Field(strict=False, ge=MIN_RENEW_AFTER),
    BeforeValidator(_check_seconds, json_schema_input_type=float),
]
Grace = Annotated[
    timedelta,
    Field(strict=False, ge=timedelta(0)),
    BeforeValidator(_check_seconds),
    BeforeValidator(_max_if_infinite, json_schema_input_type=float),
]


def _check_base(value: str, info: ValidationInfo) -> str:
    known = [value] if info.context is None else info.context["bases"]
    if value not in known:
        raise PydanticCustomError("base", "is not one of: {known}", {"known": ", ".join(known)})
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
ApiName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
FieldPath = Annotated[
    str,
    StringConstraints(pattern=r'^(?:"[^"]+"|[^."]+)(?:\.(?:"[^"]+"|[^."]+))*$'),
    AfterValidator(_check_path),
]
Regex = Annotated[Text, AfterValidator(_check_regex)]
Scope = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]+$")]
ErrorCode = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
ParamName = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,256}$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]  # RFC 9110 §5.1
ResourceName = Annotated[str, StringConstraints(pattern=r"^(?:[A-Za-z0-9_.:-]|\{[a-z_]+\}){1,64}$")]
PathPattern = Annotated[str, StringConstraints(pattern="^/", max_length=500), AfterValidator(_check_regex)]
ResourcePath = Annotated[str, StringConstraints(pattern=r"^(?:header:[a-z0-9-]+|[A-Za-z0-9_.*-]+)$", max_length=200)]
Status = Annotated[int, Field(ge=200, le=599)]
CodePath = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20]{1,200}$")]
Seconds = Annotated[float, Field(ge=0, le=315_360_000)]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


# --- tables of a declaration -----------------------------------------------------------------------------------------


class Part(BaseModel):
    """A table of a declaration: unknown keys and other types are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


class GivenField(Part):
    """What fields of the config, secrets and settings have in common."""

    title: Text | None = None
    """The name to show; the default is made from the field's name."""

    help: Annotated[str, StringConstraints(max_length=1000)] = ""
    """What the field is, and where its value is found."""

    pattern: Regex | None = None
    """A regular expression that the whole value matches."""

    choices: list[Text] = []
    """The allowed values; any, if empty."""

    required: bool = True
    """Whether the field must be given, unless it has a default."""

    default: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """The value of a field that is not given."""

    def problem_of(self, value: object) -> str | None:
        """Why a given value is not allowed, as the end of a sentence, or None."""
        if not _is_text(value):
            return f"must be a text of at most {MAX_VALUE_LENGTH} characters, without control characters"
        if self.choices and value not in self.choices:
            return f"must be one of: {', '.join(self.choices)}"
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            return f"must match {self.pattern}"
        return None


def _is_text(value: object) -> TypeGuard[str]:
    # Lines are allowed: PEM files and service accounts have several. What a value is put into encodes it.
    return (
        isinstance(value, str) and len(value) <= MAX_VALUE_LENGTH and not has_control_characters("".join(value.split()))
    )


class FieldDeclaration(GivenField):
    """A field that the user or the operator supplies, used as `{name}` in templates."""

    format: Literal["text", "url"] = "text"
    """`url`: an absolute https URL."""

    values: dict[Text, Text] = {}
    """The allowed values, and what templates have for each, such as the host of a region."""

    separator: Annotated[str, StringConstraints(min_length=1, max_length=8)] | None = None
    """The field is a list of texts, and templates have all of them, with this between them."""

    def problem_of(self, value: object) -> str | None:
        """Why a given value is not allowed, as the end of a sentence, or None."""
        if (problem := super().problem_of(value)) is not None:
            return problem
        if self.values and value not in self.values:
            return f"must be one of: {', '.join(self.values)}"
        return url_problem(str(value), dev_mode=False) if self.format == "url" else None

    def text_of(self, value: str) -> str:
        """What templates have for an allowed value."""
        return self.values.get(value, value)


class SecretFieldDeclaration(GivenField):
    """A secret that the user supplies, used as `{name}` in templates."""

    keep: dict[Name, FieldPath] = {}
    """If the secret is a JSON file, such as that of a service account: values in it that are used as `{name}`, and
    their dotted paths. A file that lacks one is refused."""

    def problem_of(self, value: object) -> str | None:
        """Why a given value is not allowed, as the end of a sentence, or None. No text of the value is in it."""
        if (problem := super().problem_of(value)) is not None or not self.keep:
            return problem
        found = read_object(str(value).encode("utf-8", "surrogatepass"))
        if found is None:
            return "is not a JSON file: it must contain one JSON object, complete and unchanged"
        for name, text in self._texts_in(found).items():
            if not _is_text(text) or not text:
                return f"is another JSON file than expected: it has no text at {self.keep[name]}"
        return None

    def values_of(self, value: str) -> Mapping[str, str]:
        """The values that `keep` names, in a valid value."""
        found = read_object(value.encode("utf-8", "surrogatepass")) if self.keep else None
        return {name: text for name, text in self._texts_in(found).items() if isinstance(text, str)}

    def _texts_in(self, found: object) -> Mapping[str, object]:
        values = {name: field_at(found, path) for name, path in self.keep.items()}
        numbers = {name: str(one) for name, one in values.items() if isinstance(one, int) and not isinstance(one, bool)}
        return {**values, **numbers}


MAX_VALUE_LENGTH = 8192  # characters: the file of a service account has some 2,400


class TokenResponse(Part):
    """The dotted paths of the values in a token response, where they differ from RFC 6749 §5.1.

    A value outside of the JSON body has a path as in `login.keep`: `header:x-auth-token`, `cookie:session`, `body:*`.
    """

    access_token: FieldPath = "access_token"
    """The access token."""

    refresh_token: FieldPath = "refresh_token"
    """The refresh token."""

    expires_in: FieldPath | None = None
    """The lifetime or the expiry of the access token, in any usual form; the default is any usual name."""

    refresh_token_expires_in: FieldPath | None = None
    """The lifetime or the expiry of the refresh token; the default is any usual name."""

    scope: FieldPath | None = None
    """The granted scopes, a text or a list; the default is `scope` or `scopes`."""

    keep: dict[Name, FieldPath] = {}
    """Further values, stored with the tokens and used as `{name}`."""

    @property
    def paths(self) -> Sequence[str]:
        """The declared paths."""
        standard = (getattr(self, name) for name in type(self).model_fields if name != "keep")
        return [path for path in (*standard, *self.keep.values()) if path is not None]


class Assertion(Part):
    """The JWT that is exchanged for tokens with `grant = "jwt_bearer"` (RFC 7523 §2.1)."""

    key: KeyTemplate | None = None
    """What signs: a private key in PEM, or for HS256 a text, of the account's secrets; the default is our own, the
    setting `<TYPE>_PRIVATE_KEY`. Nothing else can use it."""

    passphrase: KeyTemplate | None = None
    """The passphrase of an encrypted private key."""

    algorithm: SigningAlgorithm = "RS256"
    """How the JWT is signed (RFC 7518 §3.1)."""

    kid: Annotated[Template, AfterValidator(Names(("config", "secrets", "settings"), ("client_id",)))] | None = None
    """The id of the key, where the provider asks for it; of our own key it is the setting `<TYPE>_PRIVATE_KEY_ID`."""

    claims: Claims
    """The claims; texts in them are templates, and one without a value is left out. `iss` is required. `aud` is the
    token endpoint unless given; `iat`, `exp` and a random `jti` are added. An empty `aud` or `jti` leaves it out."""

    lifetime_seconds: Annotated[float, Field(ge=10, le=3600)] = 300
    """How long the JWT is valid; providers accept an hour at most, some only a minute."""

    param: Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{0,64}$")] = "assertion"
    """The parameter with the JWT; empty if only `{assertion}` in `token_headers` or `token_params` has it."""


class LoginRequest(Part):
    """One `[[login]]`: a request of a login. They are sent in their order; the last response has the session token."""

    method: Method = "POST"
    """The method."""

    url: LoginUrl
    """The URL."""

    headers: dict[HeaderName, LoginTemplate] = {}
    """Headers."""

    basic_username: LoginTemplate | None = None
    """The user name of HTTP Basic authentication, where the login has it."""

    basic_password: LoginTemplate = ""
    """Its password."""

    body: LoginBody | None = None
    """The content of the request; texts in it are templates."""

    body_type: BodyType = "json"
    """How the body is written."""

    keep: dict[Name, FieldPath] = {}
    """Values of the response that later requests of the login and requests to the API use as `{name}`: dotted paths,
    `header:` and a header's name, `cookie:` and a cookie's name, `cookie:*` for all cookies as a Cookie header, or
    `body:*` for a body that is one text."""

    good_status: Annotated[list[Status], Field(min_length=1)] | None = None
    """The statuses of a successful login; the default is any 2xx."""

    good_fields: dict[FieldPath, str] = {}
    """Dotted paths of the response, and the text that each has after a successful login: `{ ok = "true" }`."""

    rejected_status: list[Status] = []
    """The statuses that mean that the credentials are wrong, besides 401 and 403; `errors.dead` has the codes."""


class DeviceResponse(Part):
    """The dotted paths of the values in the response that begins a device authorization, where they differ from RFC
    8628 §3.2."""

    device_code: FieldPath = "device_code"
    """The code that the server exchanges."""

    user_code: FieldPath = "user_code"
    """The code that the user enters."""

    verification_uri: FieldPath | None = None
    """Where the user enters it; the default is `verification_uri` or `verification_url`."""

    verification_uri_complete: FieldPath | None = None
    """The same with the user code in it, where there is one; the default is in the same way."""

    expires_in: FieldPath | None = None
    """How long both codes are valid, in any usual form; the default is any usual name."""

    interval: FieldPath = "interval"
    """The time between two requests for the tokens."""


class Errors(Part):
    """The codes of error responses, by their meaning. Other codes have the meaning that RFC 6749 gives them."""

    field: FieldPath = "error"
    """The dotted path of the code in responses to token requests, and to others."""

    paths: list[CodePath] = ["error", "error.code", "error_code", "code"]
    """Further dotted paths of codes; `*` stands for each element of a list, and the first known code counts. A body
    that is only a code is one as well."""

    dead: list[ErrorCode] = []
    """The grant, key or code has ended."""

    client: list[ErrorCode] = []
    """Our client or its settings are refused; no user's account is at fault."""

    wait: list[ErrorCode] = []
    """The request may be sent again later. For a device authorization: the tokens were asked for too often."""

    pending: list[ErrorCode] = []
    """The user has not decided yet about a device authorization."""

    wait_status: list[Status] = []
    """Statuses that mean "wait", besides 429 and 503."""

    wait_headers: dict[HeaderName, Text] = {}
    """Headers whose value means "wait" in a response with 403: `{ X-Remaining = "0" }`. Without one of them, a request
    to wait is about the whole API, and not about the part that `rate_limit_resource_paths` find."""

    request: list[ErrorCode] = []
    """Only the request is refused, and the token or key is good, whatever the status: a missing permission, a quota."""

    reasons: list[ErrorCode] = []
    """Further codes that callers may see. Codes that are not declared are not passed on: they could be free text."""
    dead_status: list[Status] = []
    """Statuses that mean that the token, session or key has ended, besides 401."""

    @property
    def codes(self) -> Sequence[str]:
        """The codes with a meaning."""
        return (*self.dead, *self.client, *self.wait, *self.request, *self.pending)

    def code_in(self, fields: object) -> str | None:
        """The first code with a meaning in the fields of a response."""
        found = (code for path in (self.field, *self.paths) for code in texts_at(fields, path))
        return next((code for code in found if code in self.codes), None)

    def meaning_of(self, code: str | None) -> str | None:
        """The code of RFC 6749 §5.2 or RFC 8628 §3.5 that has the meaning of a code; itself if none is declared."""
        if code in self.dead:
            return "invalid_grant"
        if code in self.client:
            return "invalid_client"
        if code in self.pending:
            return "authorization_pending"
        return "temporarily_unavailable" if code in self.wait else code


class Verify(Part):
    """The request that verifies credentials."""

    method: Method = "GET"
    """The method."""

    url: RequestUrl
    """The URL."""

    headers: dict[HeaderName, RequestTemplate] = {}
    """Headers, besides those that authenticate."""

    body: RequestBody | None = None
    """The content of the request; texts in it are templates."""

    body_type: BodyType = "json"
    """How the body is written."""

    good_status: Annotated[list[Status], Field(min_length=1)] | None = None
    """The statuses of valid credentials; the default is any 2xx."""

    good_fields: dict[FieldPath, str] = {}
    """Dotted paths of the response, and the text that each has if the credentials are valid: `{ ok = "true" }`. `*`
    stands for any text."""


class Choose(Part):
    """The choice of one account among those that a lookup finds."""

    list: Annotated[str, StringConstraints(pattern=r"^[^.]+(\.[^.]+)*$")] | None = None
    """The dotted path of the list of accounts; the default is the whole response."""

    id: FieldPath
    """The dotted path of an account's id, in its element of the list."""

    label: FieldPath | None = None
    """The dotted path of an account's name, in its element of the list."""

    by: Name
    """The config field that names the account; without it, the only one is chosen."""


class Lookup(Part):
    """A request after connecting, whose results are stored with the credentials."""

    method: Method = "GET"
    """The method."""

    url: RequestUrl
    """The URL."""

    headers: dict[HeaderName, RequestTemplate] = {}
    """Headers, besides those that authenticate."""

    body: RequestBody | None = None
    """The content of the request; texts in it are templates."""

    body_type: BodyType = "json"
    """How the body is written."""

    keep: dict[Name, FieldPath] = {}
    """Values to store, used as `{name}`; with `choose`, the paths are in the chosen element."""

    choose: Choose | None = None
    """Which of several accounts is connected."""


class Revoke(Part):
    """The request that revokes a grant, and what it ends."""

    url: RevokeUrl
    """The URL."""

    method: Method = "POST"
    """The method."""

    token: RevokeToken = "refresh_token"
    """How the grant is named: a token in a form with our client authentication (RFC 7009), or "bearer", a request that
    is authenticated as those to the API."""

    ends: RevocationEnds = "token"
    """What ends: the tokens of one authorization, every authorization of the account for our client ("grant"), or every
    one of the account, for all clients ("account")."""

    headers: dict[HeaderName, RevokeTemplate] = {}
    """Headers in place of the usual authentication; `{basic}` is client id and secret in base64."""

    params: dict[ParamName, RevokeTemplate] = {}
    """Parameters in place of the form of RFC 7009; `{token}` is the token that `token` names."""

    body_type: BodyType = "form"
    """How the parameters are written."""

    gone_status: list[Status] = []
    """Statuses that mean that there is no such grant any more."""


class RateLimitDeclaration(Part):
    """One `[[rate_limits]]`: a number of calls per number of seconds."""

    calls: Annotated[int, Field(ge=1, le=1_000_000)]
    """The number of calls."""

    seconds: Annotated[float, Field(ge=1, le=86_400)]
    """The length of the window."""

    per: Annotated[LimitScope, Field(strict=False)] = LimitScope.INTEGRATION
    """What has the limit: each account, or all accounts together."""

    resource: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{0,64}$")] = ""
    """The part of the API that has the limit, a name of `rate_limit_resources`; all parts, if empty."""

    def rate_limit(self) -> RateLimit:
        """The value of the provider's attribute."""
        return RateLimit(self.calls, timedelta(seconds=self.seconds), self.per, self.resource)


class ExpiringFactDeclaration(Part):
    """One of `ends`: something about the provider that ends on a day."""

    what: Text
    """What ends, such as an API version."""

    on: date
    """The day: `on = 2027-02-23`."""

    only_for: Annotated[str, StringConstraints(max_length=256)] = ""
    """The value of `settings.api_version`, or the scope, that it concerns; all servers, if empty."""

    def fact(self) -> ExpiringFact:
        """The value of the provider's attribute."""
        return ExpiringFact(self.what, self.on, self.only_for)


class Handshake(Part):
    """How an address for webhooks is verified: the response repeats a value of the request."""

    query: Name | None = None
    """The query parameter of an unsigned request; the response is its value as text."""

    field: FieldPath | None = None
    """The dotted path in a signed JSON body; the response is an object with its last name."""


class Webhook(Part):
    """Webhooks that an HMAC signs, or whose scheme is one of the server's own, which are Python."""

    scheme: SchemeName | None = None
    """A scheme of the server, which needs no other key of this table. `standard`: Standard Webhooks and Svix."""

    signature_header: HeaderName | None = None
    """The header with the signature. Required without `scheme`."""

    signed: SignedTemplate = "{body}"
    """What is signed, of `{body}`, `{timestamp}`, `{method}`, `{url}` and `{id}`, the value of `id_header`."""

    algorithm: Literal["sha1", "sha256", "sha512"] = "sha256"
    """The hash."""

    encoding: Literal["hex", "base64"] = "hex"
    """How the digest is written."""

    prefix: Annotated[str, StringConstraints(max_length=64)] = ""
    """The text before the digest."""

    timestamp_header: HeaderName | None = None
    """The header with the time of sending, a Unix time."""

    timestamp_unit: Literal["seconds", "milliseconds"] = "seconds"
    """The unit of the timestamp."""

    tolerance_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300
    """How far the timestamp may be from now."""

    id_header: HeaderName | None = None
    """The header with the id of the event."""

    type_header: HeaderName | None = None
    """The header with the type of the event."""

    events: FieldPath | None = None
    """The dotted path of the list of events; without it the body is one event, or a list of them."""

    event_id: FieldPath | None = None
    """The dotted path of an event's id; without it, a digest of the event is its id."""

    event_type: FieldPath | None = None
    """The dotted path of an event's type; several paths, joined by "+", for a type of several parts."""

    account: FieldPath | None = None
    """The dotted path of the account in an event."""

    grant_ends: list[Text] = []
    """The types of events that say that our access has ended."""

    secret: Literal["own", "client_secret", "api_secret"] = "own"
    """What signs: a secret for webhooks only, the OAuth client's, or the secret half of the account's key."""

    handshake: Handshake | None = None
    """How a new address is verified."""


# --- declarations ----------------------------------------------------------------------------------------------------
# A field has the name of the provider's attribute where it is one; its alias is the key in the file.


class Declaration(BaseModel):
    """The keys of all providers. Validates a file whose `auth_method` is missing or unknown."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    integration_type: Annotated[str, StringConstraints(pattern=f"^{INTEGRATION_TYPE.pattern}$")]
    """The name of the type. In upper case it is the prefix of the settings."""

    auth_method: Annotated[AuthMethod, Field(strict=False)]
    """The authentication method: `oauth2`, `api_key`, or `basic`."""

    base: Annotated[ApiName, AfterValidator(_check_base)] | None = None
    """The family of the provider, whose keys this file has as well, unless it has its own: `atlassian`, `google`,
    `meta`, `microsoft`."""

    display_name: Text | None = None
    """The name to show to users; the default is made from the type."""

    aliases: list[ApiName] = []
    """Other names of the type that callers may use."""

    config_fields: dict[ApiName, FieldDeclaration] = {}
    """The fields of an integration's `config` that the provider uses. Other fields of the config belong to callers."""

    closed_config: bool = False
    """Whether other fields of the config are refused, except the object `metadata`, which belongs to callers."""

    secret_fields: dict[ApiName, SecretFieldDeclaration] = {}
    """Secrets of the account besides key and secret, used as `{name}`."""

    settings: dict[ApiName, FieldDeclaration] = {}
    """Settings of the operator: `{name}` is the environment variable `<TYPE>_<NAME>`."""

    host_patterns: list[Annotated[str, AfterValidator(_check_host_pattern)]] = []
    """The allowed hosts of URLs with a name in the host: "*.shops.example" stands for one label."""

    verify: Annotated[
        Verify | None, BeforeValidator(_none_if_false, json_schema_input_type=Verify | Literal[False])
    ] = None
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

    allowed_request_headers: list[Annotated[HeaderName, AfterValidator(_check_header_rule)]] = []
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

    authorize_params: dict[Annotated[Text, AfterValidator(_check_param)], PublicTemplate] = {}
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


def problems_between(declaration: Declaration) -> Iterator[tuple[str, str]]:
    """Problems of keys that contradict each other, each with its key."""
    if declaration.verify_url is not None and "verify" in declaration.model_fields_set:
        yield "verify_url", "cannot be combined with verify"
    if isinstance(declaration, ApiKeyDeclaration | BasicDeclaration):
        yield from _key_problems(declaration)
    if isinstance(declaration, OAuth2Declaration):
        yield from _oauth_problems(declaration)
    if declaration.webhook is not None:
        yield from _webhook_problems(declaration.webhook)
    for name in sorted(declaration.secret_fields.keys() & declaration.config_fields.keys()):
        yield f"secret_fields.{name}", "is also one of config_fields"
    choose = declaration.lookup and declaration.lookup.choose
    if choose and choose.by not in declaration.config_fields:
        yield "lookup.choose.by", f"names {choose.by!r}, which is not one of config_fields"
    for key, fields in (("config_fields", declaration.config_fields), ("settings", declaration.settings)):
        for name, field in fields.items():
            if field.default is not None and (problem := field.problem_of(field.default)):
                yield f"{key}.{name}.default", problem


def _key_problems(declaration: "ApiKeyDeclaration | BasicDeclaration") -> Iterator[tuple[str, str]]:
    declares_none = "verify" in declaration.model_fields_set
    if not (declaration.verify_url or declaration.verify or declares_none):
        yield "verify", "is required, or verify_url; verify = false says that the API has no request for it"
    if not (declaration.required_fields or declaration.secret_fields):
        yield "required_fields", "is empty, and there are no secret_fields: an account would have no credentials"


_UNUSED_WITH_SECRETS = {"authorize_params", "pkce", "issuer", "keep_callback", "refresh_url", "refresh_params"}
_UNUSED_WITH_LOGIN = {
    *("oauth_token_url", "token_auth", "token_body", "token_headers", "token_params", "resource"),
    *("required_scopes", "scope_separator", "scope_param", "scope_equivalents"),
}


def _oauth_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    if declaration.grant == "authorization_code":
        if declaration.oauth_authorize_url is None:
            yield "authorize_url", "is required"
        if declaration.secret_fields:
            yield "secret_fields", "are not asked for with this grant: a user connects in the browser"
    elif declaration.oauth_authorize_url is not None:
        yield "authorize_url", "is not used with this grant"
    yield from _device_problems(declaration)
    if declaration.oauth_token_url is None and declaration.grant != "login":
        yield "token_url", "is required"
    unused = _UNUSED_WITH_SECRETS if declaration.grant in SECRET_GRANTS else set[str]()
    unused = unused | (_UNUSED_WITH_LOGIN if declaration.grant == "login" else set())
    for name in sorted(unused & declaration.model_fields_set):
        yield type(declaration).model_fields[name].alias or name, f"is not used with the grant {declaration.grant}"
    yield from _assertion_problems(declaration)
    yield from _login_problems(declaration)
    yield from _name_problems(declaration)
    if declaration.revoke_url is not None and declaration.revoke is not None:
        yield "revoke", "cannot be combined with revoke_url, which is its short form"
    if declaration.never_expires and declaration.lifetime is not None:
        yield "lifetime_seconds", "contradicts never_expires"
    headers = " ".join(declaration.token_headers.values())
    if declaration.token_auth == "header" and not ("{client_secret}" in headers or "{basic}" in headers):
        yield "token_headers", "must have {client_secret} or {basic}, because token_auth is header"


_OF_AUTHORIZATION_PAGES = ("issuer", "pkce", "keep_callback", "authorize_params", "scope_param")


def _device_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    declared = declaration.model_fields_set
    if declaration.grant != "device_code":
        for key in sorted(key for key in declared if key.startswith("device_")):
            yield key, "is only used with grant = device_code"
        return
    if declaration.device_authorization_url is None:
        yield "device_authorization_url", "is required"
    if declaration.secret_fields:
        yield "secret_fields", "are not asked for with this grant: a user enters a code"
    for key in _OF_AUTHORIZATION_PAGES:
        if key in declared:
            yield key, "is not used with this grant: no browser returns from the provider"


def _assertion_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    assertion = declaration.assertion
    if declaration.grant != "jwt_bearer":
        if assertion is not None:
            yield "assertion", "is only used with the grant jwt_bearer"
        for key in ("token_headers", "token_params"):
            for name, template in getattr(declaration, key).items():
                if "{assertion}" in template:
                    yield f"{key}.{name}", "has {assertion}, which only the grant jwt_bearer has"
        return
    if assertion is None:
        yield "assertion", "is required with the grant jwt_bearer"
        return
    if not assertion.claims.get("iss"):
        yield "assertion.claims", "has no iss, which says who signs (RFC 7523 §3)"
    for name in ("iat", "exp"):
        if name in assertion.claims:
            yield f"assertion.claims.{name}", "is set by the server; lifetime_seconds is the time between iat and exp"
    templates = [*declaration.token_headers.values(), *declaration.token_params.values()]
    if not assertion.param and not any("{assertion}" in template for template in templates):
        yield "assertion.param", "is empty, and no header or parameter has {assertion}: the JWT would not be sent"
    if assertion.key is not None and not template_params(assertion.key):
        yield "assertion.key", "has no name of a secret: a key cannot be in a declaration"


def _login_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    if declaration.grant != "login":
        if declaration.login:
            yield "login", "is only used with the grant login"
        return
    if not declaration.login:
        yield "login", "is required with the grant login"
    later = {name for request in declaration.login for name in request.keep}
    later |= {*declaration.token_response.keep, *(declaration.lookup.keep if declaration.lookup else ())}
    for index, request in enumerate(declaration.login):
        for name in sorted(later.intersection(_names_in(request))):
            yield f"login.{index}", f"has {{{name}}}, which no earlier request of the login keeps"
        later -= request.keep.keys()


def _name_problems(declaration: OAuth2Declaration) -> Iterator[tuple[str, str]]:
    """Names that are declared twice, and keys that would be sent somewhere."""
    given = {*declaration.config_fields, *declaration.settings, *declaration.secret_fields}
    for field, one in declaration.secret_fields.items():
        for name in sorted(given.intersection(one.keep)):
            yield f"secret_fields.{field}.keep.{name}", "is the name of another field"
        given |= one.keep.keys()
    for index, request in enumerate(declaration.login):
        for name in sorted(given.union(_OF_REQUEST, _TOKEN_NAMES).intersection(request.keep)):
            yield f"login.{index}.keep.{name}", "is the name of another value"
    if declaration.assertion is None or declaration.assertion.algorithm.startswith("HS"):
        return
    signing = {*_names_in([declaration.assertion.key, declaration.assertion.passphrase])}
    signing |= {field for field, one in declaration.secret_fields.items() if signing.intersection(one.keep)}
    for key in sorted(declaration.model_fields_set):
        value = getattr(declaration, key)
        if key == "assertion":
            value = {**value.model_dump(), "key": None, "passphrase": None}
        for name in sorted(signing.intersection(_names_in(value))):
            field_key = type(declaration).model_fields[key].alias or key
            yield field_key, f"has {{{name}}}, the private key, which signs and is sent nowhere"


def _names_in(value: object) -> Iterator[str]:
    """The names in the templates of a value."""
    dumped = value.model_dump() if isinstance(value, BaseModel) else value
    if isinstance(dumped, list):
        dumped = [one.model_dump() if isinstance(one, BaseModel) else one for one in dumped]
    for text in texts_in(dumped):
        yield from template_params(text)


def _webhook_problems(webhook: Webhook) -> Iterator[tuple[str, str]]:
    if webhook.scheme is not None:
        for key in sorted(webhook.model_fields_set - {"scheme"}):
            yield f"webhook.{key}", "cannot be combined with scheme"
        return
    if webhook.signature_header is None:
        yield "webhook.signature_header", "is required, or scheme"
    if "{body}" not in webhook.signed:
        yield "webhook.signed", "has no {body}, so that anybody could change it"
    if "{timestamp}" in webhook.signed and webhook.timestamp_header is None:
        yield "webhook.signed", "has {timestamp}, but there is no timestamp_header"
    if "{timestamp}" not in webhook.signed and webhook.timestamp_header is not None:
        yield "webhook.timestamp_header", "is not in signed, so that anybody could change it"
    if "{id}" in webhook.signed and webhook.id_header is None:
        yield "webhook.signed", "has {id}, but there is no id_header"
