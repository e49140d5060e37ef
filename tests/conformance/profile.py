"""Profiles of providers: the behaviour of a provider as data, written from its documentation, not from its code.

`profiles/*.toml` are written by hand, one per integration type. `derivation.py` makes the profile of any other type.

In responses, "$name" is replaced by a value, and "${name}" by a value within a text. The names are `access_token`,
`refresh_token`, `scope`, `expires_in` and `expires_at` of tokens; `sub`, `number` (the same as a number), `email` and
`name` of the account; `client_id` and `client_secret`. A member whose value is missing is left out.

In what a request must have, such a name is any text where the value is in the request only: `code`, `redirect_uri`,
`code_verifier`, `refresh_token`, `access_token`, and the fields of a key. It is then checked as a credential.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonObject = Mapping[str, Any]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]


ClientAuthentication = Literal["post", "basic", "none", "header", "client_secret_jwt", "private_key_jwt", "assertion"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorResponse(_Part):
    """An error response."""

    status: int = 400
    body: JsonObject = {}


class Authorize(_Part):
    """The authorization page. It rejects unknown scopes, and any other request than the documented one.

    `requires`: parameters of the authorization URL. `callback`: parameters of the redirect. `code_suffix`: appended to
    the code. `signs_callback`: Shopify's signature.
    """

    url: str
    requires: Mapping[str, str] = {}
    scope_separator: str = " "
    scope_in: str = "scope"
    has_scopes: bool = True
    pkce: Literal["required", "ignored", "rejected"] = "ignored"
    callback: Mapping[str, str] = {}
    code_suffix: str = ""
    signs_callback: bool = False


class GrantAssertion(_Part):
    """The signed JWT of a token request (RFC 7523 §2.1), which is where that has "${assertion}".

    `signer`: whose key signs it, a seed of `key_text`; empty for our client's. `key_id`: its `kid`, if not empty.
    `claims`: all but `iat` and `exp`, which are `lifetime` seconds apart; "${jti}" is any text, once.
    """

    algorithm: str
    signer: str = ""
    key_id: str = ""
    claims: JsonObject
    lifetime: float


class LoginRequest(_Part):
    """A request of a login, and its response.

    `requires`: the query; `basic`: user name and password of HTTP Basic, as "user:password". Secrets are "${name}".
    `response` is a JSON value, or a text. `response_headers` and `cookies`: those of the response; the cookie "*" is
    several, as in a Cookie header. `rejections`: each response that means that the secrets are wrong.
    """

    method: Method = "POST"
    url: str
    requires: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    basic: str | None = None
    body: Any = None
    body_type: Literal["form", "json"] = "json"
    status: int = 200
    response: Any
    response_headers: Mapping[str, str] = {}
    cookies: Mapping[str, str] = {}
    rejections: Sequence[ErrorResponse] = (ErrorResponse(status=401),)


class Token(_Part):
    """The token endpoint; with a login, only what tokens are like, and no `url`.

    `headers`: headers that each request has. `code`, `refresh`, `secrets` and `device`: the parameters of the exchange
    of a code, of a refresh, and of requests with the account's own secrets and with a device code; `code_requires` are
    further ones of the first. `assertion`: the signed JWT of `secrets`; with the client authentication "assertion",
    nothing else authenticates. `form`: the form of access tokens, with "$number" for what distinguishes them.
    """

    url: str = ""
    refresh_url: str | None = None
    client: ClientAuthentication
    headers: Mapping[str, str] = {}
    body: Literal["form", "json"] = "form"
    code: Mapping[str, str] = {"grant_type": "authorization_code", "code": "$code", "redirect_uri": "$redirect_uri"}
    code_requires: Mapping[str, str] = {}
    refresh: Mapping[str, str] = {"grant_type": "refresh_token", "refresh_token": "$refresh_token"}
    refresh_requires: Sequence[str] = ()
    secrets: Mapping[str, str] = {}
    device: Mapping[str, str] = {}
    assertion: GrantAssertion | None = None
    form: str = "s3cret-$number"
    response: JsonObject
    refresh_response: JsonObject | None = None
    response_scope_separator: str = " "
    lifetime: int | None = 3600
    invalid_grant: ErrorResponse = ErrorResponse(body={"error": "invalid_grant"})
    invalid_code: ErrorResponse | None = None
    invalid_client: ErrorResponse = ErrorResponse(status=401, body={"error": "invalid_client"})
    claims: JsonObject = {}


class Device(_Part):
    """The device authorization endpoint (RFC 8628). The first request for the tokens finds the decision `pending`."""

    url: str
    client: ClientAuthentication
    params: Mapping[str, str]
    response: JsonObject
    pending: ErrorResponse


class Renewal(_Part):
    """How access tokens are renewed.

    "secrets": the account's own secrets obtain another one. `rotates`: each refresh replaces the refresh token, and the
    old one works for another `grace` seconds.
    `repeats_refresh_token`: the response to a refresh has the refresh token, even if it is the same.
    """

    kind: Literal["refresh", "exchange", "secrets", "never"] = "refresh"
    rotates: bool = False
    grace: float = 0
    repeats_refresh_token: bool = False


class Exchange(_Part):
    """A request that exchanges an access token for another one, which must have an age of `min_age` seconds."""

    method: Literal["GET", "POST"]
    url: str
    grant_type: str
    token_in: str
    needs_client: bool
    min_age: int = 0
    lifetime: int = 5184000
    response: JsonObject


class Resource(_Part):
    """The resource of the verification or of the lookup.

    `auth`: its headers, by default the access token as bearer if there are tokens; `requires`: its query parameters;
    `optional`: those of both that may be absent; `body`: the content, whose texts are templates. `is_read`: whether its
    content matters, and not its status alone.
    """

    method: Method = "GET"
    url: str
    auth: Mapping[str, str] | None = None
    requires: Mapping[str, str] = {}
    optional: Sequence[str] = ()
    body: Any = None
    body_type: Literal["form", "json"] = "json"
    status: int = 200
    response: Any
    is_read: bool = True
    rejection: ErrorResponse = ErrorResponse(status=401)


class Revocation(_Part):
    """A revocation. `client`: the client authentication; "secret" means the headers in `auth`.

    `token`: the position of the token: "bearer", "form:<name>" or "json:<name>"; "account:<name>" is the account's id
    in a form. Without it, the token is where `url`, `requires` (the query), `auth` (headers) or `params` (the content)
    have "$token", "$access_token" or "$refresh_token". `ends`: whether the tokens of one authorization end, the grant
    (those of the client and account), or those of the account.
    """

    method: Method = "POST"
    url: str
    requires: Mapping[str, str] = {}
    client: ClientAuthentication | Literal["secret"] = "post"
    auth: Mapping[str, str] = {}
    params: Mapping[str, str] = {}
    body_type: Literal["form", "json"] = "form"
    token: str = ""
    ends: Literal["token", "grant", "account"] = "token"
    status: int = 200
    response: JsonObject = {}
    rejection: ErrorResponse = ErrorResponse(status=401)


class Key(_Part):
    """A valid API key, and the headers (`auth`) or query parameters with it.

    `secret_values`: the secret fields, and the values in those that are JSON files, by their names.
    """

    api_key: str = ""
    api_secret: str = ""
    secret_fields: Mapping[str, str] = {}
    secret_values: Mapping[str, str] = {}
    auth: Mapping[str, str] = {}
    query: Mapping[str, str] = {}


class Profile(_Part):
    """One provider.

    `config`: the config to connect with; `bad_config`: invalid configs, by the field of their error. `settings`:
    further settings of the provider. `account_id`, `account_label`, `api_url`: the expected account and base URL.
    `request` and `request_query`: the expected headers and query parameters of API requests. `accounts`: the `sub` of
    the two simulated accounts. `is_exact`: parameters that the profile does not name are refused. `waits`: responses
    that ask for a later request.
    """

    integration_type: str
    config: JsonObject = {}
    bad_config: Mapping[str, JsonObject] = {}
    settings: Mapping[str, str] = {}
    scopes: Sequence[str] = ()
    account_id: str = ""
    account_label: str = ""
    api_url: str | None = None
    request: Mapping[str, str] = {"Authorization": "Bearer $access_token"}
    request_query: Mapping[str, str] = {}
    is_exact: bool = False
    waits: Sequence[ErrorResponse] = ()
    authorize: Authorize | None = None
    device: Device | None = None
    token: Token | None = None
    login: Sequence[LoginRequest] = ()
    renewal: Renewal = Renewal()
    exchange: Sequence[Exchange] = ()
    lookup: Resource | None = None
    verify: Resource | None = None
    revoke: Revocation | None = None
    key: Key | None = None
    accounts: Sequence[str] = Field(("1001", "1002"), min_length=2, max_length=2)


@cache
def read_profiles(directory: Path) -> Sequence[Profile]:
    """All profiles in a directory, sorted by file name."""
    return [Profile.model_validate(tomllib.loads(path.read_text())) for path in sorted(directory.glob("*.toml"))]


def fill_template(template: Any, values: Mapping[str, object]) -> Any:
    """A template with its placeholders replaced by values."""
    if isinstance(template, Mapping):
        members = {name: fill_template(value, values) for name, value in template.items()}
        return {name: value for name, value in members.items() if value is not None}
    if isinstance(template, list | tuple):
        return [fill_template(value, values) for value in template]
    if not isinstance(template, str):
        return template
    if template.startswith("$") and template[1:] in values:
        return values[template[1:]]
    for name, value in values.items():
        template = template.replace("${" + name + "}", str(value)).replace("$" + name, str(value))
    return template


_NAME = re.compile(
    r"\$\{(\w+)\}|\$(code_verifier|code|redirect_uri|refresh_token|access_token|token|api_key|client_id|sub|number)\b"
)


def match_template(template: Any, actual: Any, known: Mapping[str, object]) -> dict[str, str] | None:
    """The texts that stand for the unknown names of a template, such as a token; None if the value differs from it."""
    if isinstance(template, Mapping | list | tuple):
        if isinstance(template, Mapping):
            same_shape = isinstance(actual, Mapping) and actual.keys() == template.keys()
            pairs = [(part, actual[name]) for name, part in template.items()] if same_shape else []
        else:
            same_shape = isinstance(actual, list) and len(actual) == len(template)
            pairs = list(zip(template, actual, strict=True)) if same_shape else []
        found: dict[str, str] = {}
        for part, value in pairs:
            texts = match_template(part, value, known)
            if texts is None or any(found.get(name, text) != text for name, text in texts.items()):
                return None
            found |= texts
        return found if same_shape else None
    if not isinstance(template, str) or not isinstance(actual, str):
        return {} if template == actual else None
    pattern, end, names = "", 0, set[str]()
    for placeholder in _NAME.finditer(template):
        name = placeholder[1] or placeholder[2]
        pattern += re.escape(template[end : placeholder.start()])
        pattern += (
            re.escape(str(known[name])) if name in known else f"(?P={name})" if name in names else f"(?P<{name}>.+)"
        )
        names |= {name} - known.keys()
        end = placeholder.end()
    match = re.fullmatch(pattern + re.escape(template[end:]), actual, re.DOTALL)
    return None if match is None else match.groupdict()
