"""Credentials of a provider. They are hidden in `repr` and stored only encrypted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto
from hashlib import sha256


class AuthMethod(StrEnum):
    """How requests to a provider are authenticated."""

    OAUTH2 = "oauth2"
    API_KEY = "api_key"
    BASIC = "basic"


@dataclass(frozen=True, slots=True)
class OAuthTokens:
    """The tokens of an OAuth 2 grant (RFC 6749 §5.1).

    `lifetime` is the lifetime of the access token when it was issued. `extras` are further values of the account, such
    as Stripe's `stripe_user_id`. `secret_fields` are what the tokens were obtained with, where that was no user's
    decision but secrets of the account, such as a client id and secret. `is_reobtainable`: further tokens are obtained
    in the same way, with these or with our own secrets.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expire_time: datetime | None = None
    lifetime: timedelta | None = None
    refresh_token_expire_time: datetime | None = None
    scopes: tuple[str, ...] | None = None
    extras: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_reobtainable: bool = False

    @property
    def is_renewable(self) -> bool:
        """Whether further access tokens can be had with these tokens."""
        return self.refresh_token is not None or self.is_reobtainable

    @property
    def fingerprint(self) -> str:
        """Equal for grants with the same token: the SHA-256 of the token that lasts, in hexadecimal digits.

        Tokens are random (RFC 6749 §10.10), so that nobody can guess one from its fingerprint.
        """
        return sha256((self.refresh_token or self.access_token).encode("utf-8", "surrogatepass")).hexdigest()

    def is_good_for(self, ttl: timedelta, now: datetime) -> bool:
        """Whether the access token is valid for at least `ttl` from `now`."""
        return self.expire_time is None or (self.expire_time > now and self.expire_time - now >= ttl)

    def has_expired(self, now: datetime) -> bool:
        """Whether the access token has expired."""
        return self.expire_time is not None and self.expire_time <= now

    def buffer(self, usual: timedelta) -> timedelta:
        """How long before its expiry the token is refreshed: `usual`, or half of its lifetime if that is less."""
        return usual if self.lifetime is None else min(usual, self.lifetime / 2)

    def updated_with(self, response: "OAuthTokens", now: datetime) -> "OAuthTokens":
        """These tokens after a refresh. Fields that the token response omits stay unchanged (RFC 6749 §6).

        An access token without a lifetime has the last known one. A response without an access token keeps the old.
        """
        if not response.access_token:
            access = (self.access_token, self.expire_time, self.lifetime)
        elif response.expire_time is None and self.lifetime is not None:
            access = (response.access_token, now + self.lifetime, self.lifetime)
        else:
            access = (response.access_token, response.expire_time, response.lifetime)
        access_token, expire_time, lifetime = access
        return OAuthTokens(
            access_token=access_token,
            refresh_token=response.refresh_token or self.refresh_token,
            expire_time=expire_time,
            lifetime=lifetime,
            refresh_token_expire_time=response.refresh_token_expire_time or self.refresh_token_expire_time,
            scopes=self.scopes if response.scopes is None else response.scopes,
            extras={**self.extras, **response.extras},
            secret_fields=self.secret_fields,
            is_reobtainable=self.is_reobtainable,
        )


@dataclass(frozen=True, slots=True)
class DeviceAuthorization:
    """A device authorization that a provider has begun (RFC 8628 §3.2).

    The user enters `user_code` at `verification_uri`; `verification_uri_complete` contains it already. With
    `device_code` the server asks for the tokens, for `lifetime` and not more often than once per `interval`.
    """

    device_code: str = field(repr=False)
    user_code: str = field(repr=False)
    verification_uri: str
    verification_uri_complete: str = field(repr=False)
    lifetime: timedelta
    interval: timedelta


@dataclass(frozen=True, slots=True)
class DecisionPending:
    """The user has not decided yet about a device authorization (RFC 8628 §3.5).

    `slow_down`: the provider was asked too often. Then `min_interval` is the new interval, if it names one, and
    `retry_after` the shortest time until the next request.
    """

    slow_down: bool = False
    min_interval: timedelta = timedelta(0)
    retry_after: timedelta = timedelta(0)


class RefreshCause(Enum):
    """Why a token is refreshed. All causes but `EXPIRY` together call the provider once per minimum interval."""

    EXPIRY = auto()
    """The token has expired or is about to, or a webhook and the provider's API say that the grant has ended."""

    DEMAND = auto()
    """A caller needs another token than one that lasts, because its `min_ttl` is longer."""

    REJECTION = auto()
    """The provider's API has rejected the access token with 401, although it should last."""

    FORCE = auto()
    """`RefreshToken` with `force`: also during the pause after a failure, and after the grant has ended."""

    @property
    def is_forced(self) -> bool:
        """Whether the minimum interval applies."""
        return self is not RefreshCause.EXPIRY


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key that a user copied from the provider, with its secret and its webhook secret, where it has them.

    `secret_fields` are further secrets that the type declares; then `api_key` may be empty. `extras` are further values
    of the account, such as a region that was looked up.
    """

    api_key: str = field(repr=False)
    api_secret: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)
    secret_fields: Mapping[str, str] = field(default_factory=dict, repr=False)
    extras: Mapping[str, str] = field(default_factory=dict, repr=False)


Credentials = OAuthTokens | ApiKey


@dataclass(frozen=True, slots=True)
class RequestAuth:
    """The headers and query parameters that authenticate a request to the provider's API."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query_params: Mapping[str, str] = field(default_factory=dict, repr=False)
