"""Profiles of providers: the behaviour of a provider as data, written from its documentation, not from its code.

There is one `profiles/*.toml` file per integration type.

In responses, "$name" is replaced by a value, and "${name}" by a value within a text. The names are `access_token`,
`refresh_token`, `scope`, `expires_in` and `expires_at` of tokens; `sub`, `number` (the same as a number), `email` and
`name` of the account; `client_id` and `client_secret`. A member whose value is missing is left out.
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonObject = Mapping[str, Any]


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


class Token(_Part):
    """The token endpoint."""

    url: str
    client: Literal["post", "basic", "none"]
    code_requires: Mapping[str, str] = {}
    refresh_requires: Sequence[str] = ()
    response: JsonObject
    refresh_response: JsonObject | None = None
    response_scope_separator: str = " "
    lifetime: int | None = 3600
    invalid_grant: ErrorResponse = ErrorResponse(body={"error": "invalid_grant"})
    invalid_code: ErrorResponse | None = None
    invalid_client: ErrorResponse = ErrorResponse(status=401, body={"error": "invalid_client"})
    claims: JsonObject = {}


class Renewal(_Part):
    """How access tokens are renewed.

    `rotates`: each refresh replaces the refresh token, and the old one works for another `grace` seconds.
    `repeats_refresh_token`: the response to a refresh has the refresh token, even if it is the same.
    """

    kind: Literal["refresh", "exchange", "never"] = "refresh"
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
    """The resource of the verification request. `auth`: its headers; `requires`: its query parameters."""

    method: Literal["GET", "POST"] = "GET"
    url: str
    auth: Mapping[str, str] = {"Authorization": "Bearer $access_token"}
    requires: Mapping[str, str] = {}
    response: Any
    rejection: ErrorResponse = ErrorResponse(status=401)


class Revocation(_Part):
    """A revocation. `client`: the client authentication; "secret" means the headers in `auth`.

    `token`: the position of the token: "bearer", "form:<name>" or "json:<name>"; "account:<name>" is the account's id
    in a form. `ends`: whether the tokens of one authorization end, or the grant: those of the client and account.
    """

    method: Literal["POST", "DELETE"] = "POST"
    url: str
    client: Literal["post", "basic", "secret", "none"] = "post"
    auth: Mapping[str, str] = {}
    token: str
    ends: Literal["token", "grant"] = "token"
    status: int = 200
    response: JsonObject = {}
    rejection: ErrorResponse = ErrorResponse(status=401)


class Key(_Part):
    """A valid API key, and the headers (`auth`) or query parameters with it."""

    api_key: str
    api_secret: str = ""
    auth: Mapping[str, str] = {}
    query: Mapping[str, str] = {}


class Profile(_Part):
    """One provider.

    `config`: the config to connect with; `bad_config`: invalid configs, by the field of their error. `settings`:
    further settings of the provider. `account_id`, `account_label`, `api_url`: the expected account and base URL.
    `request`: the expected headers of API requests. `accounts`: the `sub` of the two simulated accounts.
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
    authorize: Authorize | None = None
    token: Token | None = None
    renewal: Renewal = Renewal()
    exchange: Sequence[Exchange] = ()
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
