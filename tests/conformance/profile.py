"""What a provider does, as data: `profiles/*.toml`, one for each type, from its facts and not from its implementation.

In answers, "$name" stands for a value, and "${name}" for one within a text: `access_token`, `refresh_token`, `scope`,
`expires_in`, `expires_at` of tokens; `sub` and, as a number, `number`, `email`, `name` of the account; `client_id`,
`client_secret`. A member whose value is not there is left out.
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
    """How it says that something is wrong."""

    status: int = 400
    body: JsonObject = {}


class Authorize(_Part):
    """The authorization page. What it does not know it refuses, as a person would see."""

    url: str
    requires: Mapping[str, str] = {}
    scope_separator: str = " "
    scope_in: str = "scope"
    has_scopes: bool = True
    pkce: Literal["taken", "ignored", "refused"] = "ignored"
    callback: Mapping[str, str] = {}
    code_suffix: str = ""
    signs_callback: bool = False


class Token(_Part):
    """The token endpoint."""

    url: str
    client: Literal["post", "basic", "none"]
    code_requires: Mapping[str, str] = {}
    refresh_requires: Sequence[str] = ()
    answer: JsonObject
    refresh_answer: JsonObject | None = None
    answered_scope_separator: str = " "
    lifetime: int | None = 3600
    invalid_grant: ErrorResponse = ErrorResponse(body={"error": "invalid_grant"})
    invalid_code: ErrorResponse | None = None
    invalid_client: ErrorResponse = ErrorResponse(status=401, body={"error": "invalid_client"})
    claims: JsonObject = {}


class Renewal(_Part):
    """How access tokens are renewed.

    `rotates`: each refresh gives another refresh token, and the old one works for `grace` seconds more.
    """

    how: Literal["refresh", "exchange", "never"] = "refresh"
    rotates: bool = False
    grace: float = 0
    repeats_refresh_token: bool = False


class Exchange(_Part):
    """A request that trades an access token for another one; `youngest`: seconds that it must be old by then."""

    method: Literal["GET", "POST"]
    url: str
    grant_type: str
    token_in: str
    needs_client: bool
    youngest: int = 0
    lifetime: int = 5184000
    answer: JsonObject


class Resource(_Part):
    """What credentials are tried with."""

    method: Literal["GET", "POST"] = "GET"
    url: str
    auth: Mapping[str, str] = {"Authorization": "Bearer $access_token"}
    requires: Mapping[str, str] = {}
    answer: Any
    refusal: ErrorResponse = ErrorResponse(status=401)


class Revocation(_Part):
    """How a grant is ended. `client`: how we say who we are; `token`: where the token is, "bearer" or "form:name"."""

    method: Literal["POST", "DELETE"] = "POST"
    url: str
    client: Literal["post", "basic", "secret", "none"] = "post"
    auth: Mapping[str, str] = {}
    token: str
    kills: Literal["grant", "account"] = "grant"
    status: int = 200
    answer: JsonObject = {}
    refusal: ErrorResponse = ErrorResponse(status=401)


class Key(_Part):
    """A key that is right, and how a request carries it: in headers (`auth`) or in its query."""

    api_key: str
    api_secret: str = ""
    auth: Mapping[str, str] = {}
    query: Mapping[str, str] = {}


class Profile(_Part):
    """One provider."""

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
    """All profiles in a directory."""
    return [Profile.model_validate(tomllib.loads(path.read_text())) for path in sorted(directory.glob("*.toml"))]


def fill_template(template: Any, values: Mapping[str, object]) -> Any:
    """A template with its values."""
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
