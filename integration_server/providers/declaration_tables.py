"""The tables of a declaration, and the types of its values. The docstring of a field describes its key."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from math import inf
from typing import Annotated, Literal, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from integration_server.domain.lenient_values import field_at, read_object, texts_at
from integration_server.domain.proxy_messages import LimitScope, RateLimit
from integration_server.domain.text import has_control_characters
from integration_server.providers.declaration_templates import (
    Claims,
    KeyTemplate,
    LoginBody,
    LoginTemplate,
    LoginUrl,
    Names,
    RequestBody,
    RequestTemplate,
    RequestUrl,
    RevokeTemplate,
    RevokeUrl,
    SignedTemplate,
    Template,
    Text,
)
from integration_server.providers.http import url_problem
from integration_server.providers.url_templates import (
    host_pattern_problem,
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


@dataclass(frozen=True, slots=True)
class ExpiringFact:
    """A fact about a provider that ends on a day, such as the support of an API version.

    With `only_for`, it concerns only servers that use this API version or scope.
    """

    subject: str
    end: date
    only_for: str = ""


# --- types of values -------------------------------------------------------------------------------------------------


def check_header_rule(value: str) -> str:
    if problem := declaration_problem(value):
        raise PydanticCustomError("header", "{problem}", {"problem": problem})
    return value


def check_host_pattern(value: str) -> str:
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


def check_param(value: str) -> str:
    if value in RESERVED_PARAMS:
        raise PydanticCustomError("reserved", "is set by the server")
    return value


def _max_if_infinite(value: object) -> object:
    return timedelta.max if value == inf else value


def none_if_false(value: object) -> object:
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


def check_base(value: str, info: ValidationInfo) -> str:
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

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class InputField(Part):
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


class FieldDeclaration(InputField):
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


class SecretFieldDeclaration(InputField):
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
        numbers = {
            name: str(value) for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)
        }
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
