"""The requests and responses that the documentation of providers prints, as data: one file for each type.

They are copied from the documentation, not from our code or from a simulation. Values that look like secrets are
replaced by placeholders. In requests, "$name" stands for a value of the test: `client_id`, `client_secret`, `basic`
(both in base64), `code`, `redirect_uri`, `code_verifier`, `access_token`, `refresh_token`.
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FIXTURES = Path(__file__).parent


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Documented(_Part):
    """`source` is the page that prints it; `confidence`: the provider's documentation (H), others' (M), memory (K)."""

    source: str
    confidence: Literal["H", "M", "K"]


class Request(_Part):
    """A request as documented. `form` or `json` has all parameters; of headers and query those that matter."""

    method: str = "POST"
    url: str
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    form: Mapping[str, str] | None = None
    json_: Mapping[str, Any] | None = Field(None, alias="json")


class Authorization(_Documented):
    """The authorization URL as documented: `params` has all but `state` and the code challenge."""

    url: str
    params: Mapping[str, str]


class _Response(_Documented):
    request: Request | None = None
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = {}
    response: str


class ExpectedTokens(_Part):
    """What is read from a token response; None stands for nothing. `kept` are the values that are stored with it."""

    access_token: str
    refresh_token: str | None = None
    lifetime_seconds: float | None = None
    scopes: Sequence[str] | None = None
    kept: Mapping[str, str] = {}


class TokenResponse(_Response):
    """The response to the exchange of a code, or of the account's secrets, or to a refresh."""

    expected: ExpectedTokens


class ExpectedAccount(_Part):
    """The account that a verification finds."""

    account_id: str | None = None
    account_label: str | None = None


class VerificationResponse(_Response):
    """The response to the verification request."""

    expected: ExpectedAccount


class LookupResponse(_Response):
    """The response to the lookup after the token request."""


class ErrorResponse(_Response):
    """An error response, and what it means: for the grant or key (`dead`), for our client, `wait`, or `transient`.

    `rejected` is a refusal of this request that says nothing about the credentials.
    """

    to: Literal["token", "refresh", "verify", "api"]
    expected: Literal["dead", "client", "wait", "transient", "rejected"]


class ExpectedEvent(_Part):
    """The event that is read from a webhook."""

    event_type: str
    event_id: str | None = None
    account_id: str | None = None


class WebhookDelivery(_Documented):
    """A webhook as documented.

    Of the headers, "$hmac_sha256_hex" and the like stand for the signature of `signed` ("$body" is the body) with
    `secret`, where the documentation describes the signature and prints none. `time` is when the webhook arrives, if it
    has a timestamp (a Unix time).
    """

    method: str = "POST"
    url: str = "https://app.example/hooks"
    headers: Mapping[str, str]
    body: str
    secret: str
    signed: str = "$body"
    time: int | None = None
    expected: ExpectedEvent


class Key(_Part):
    """The key of an account, as the documentation prints one."""

    api_key: str = ""
    api_secret: str | None = None
    secret_fields: Mapping[str, str] = {}


class Fixture(_Part):
    """One type. `config`, `settings` and `callback` are what the provider needs besides the responses."""

    type: str
    config: Mapping[str, Any] = {}
    settings: Mapping[str, str] = {}
    callback: Mapping[str, str] = {}
    key: Key | None = None
    authorization: Authorization | None = None
    token: TokenResponse | None = None
    refresh: TokenResponse | None = None
    lookup: LookupResponse | None = None
    verification: VerificationResponse | None = None
    errors: Sequence[ErrorResponse] = ()
    webhook: WebhookDelivery | None = None


@cache
def read_fixtures() -> Mapping[str, Fixture]:
    """All fixtures by their types."""
    files = sorted(FIXTURES.glob("*.toml"))
    return {path.stem: Fixture.model_validate(tomllib.loads(path.read_text())) for path in files}
