"""The values that the provider stores and issues. Tokens and codes are the keys of the stored values."""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Account:
    """A user at the provider."""

    sub: str
    email: str
    name: str


SAMPLE_ACCOUNTS = (
    Account("ada", "ada@example.com", "Ada Lovelace"),
    Account("grace", "grace@example.com", "Grace Hopper"),
    Account("linus", "linus@example.com", "Linus Pauling"),
)
SAMPLE_SCOPES = ("read", "write", "openid", "email", "profile", "offline_access")


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client. Without a secret it is a public client (RFC 6749 §2.1)."""

    client_id: str
    client_secret: str | None = field(repr=False)
    redirect_uris: tuple[str, ...]
    name: str


@dataclass(frozen=True, slots=True)
class AccountKey:
    """The API key of the endpoint `/api/account`."""

    key: str = field(repr=False)
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """The scopes that a user granted to a client. Every code and token belongs to a grant and ends with it."""

    grant_id: str
    client_id: str
    sub: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuthorizationCode:
    grant: Grant
    redirect_uri: str
    code_challenge: str | None
    expire_time: datetime
    is_spent: bool = False


@dataclass(frozen=True, slots=True)
class AccessToken:
    grant_id: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The tokens that the token endpoint issues."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    scopes: tuple[str, ...]
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class TokenUse:
    """When a refresh token was used, and its successor."""

    time: datetime
    successor: TokenPair


@dataclass(frozen=True, slots=True)
class RefreshToken:
    grant_id: str
    spent: TokenUse | None = None


@dataclass(frozen=True, slots=True)
class TokenCall:
    """A call that the token endpoint handled. A fault without `handle_first` records none.

    `refresh_token` is the `fingerprint` of the presented token; `outcome` is "ok" or an error code.
    """

    grant_type: str | None
    client_id: str | None
    refresh_token: str | None
    outcome: str


def fingerprint(token: str) -> str:
    """A digest that distinguishes tokens without revealing them."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]
