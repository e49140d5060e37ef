"""The server's settings: environment variables and `.env`, parsed once into frozen values and validated as a whole.

Types and bounds are checked field by field; conditions over several settings are the rows of `RULES` and
`SERVER_RULES`. All problems are reported at once. No message quotes a secret.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from integration_server.logs import Level
from integration_server.storage.engine import DEFAULT_DATABASE_URL, parse_database_url
from integration_server.storage.key_encryption import parse_key
from integration_server.storage.user_usage import DEFAULT_USER_QUOTAS, UserQuotas
from integration_server.trusted_proxies import Network, parse_networks

T = TypeVar("T")

_RESPONSE_HEADERS_BYTES = 128 * 1024  # a provider may send headers of 100 KiB
_SECOND, _HOUR, _DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
_KMS_KEY_ID = re.compile(r"arn:[a-z0-9-]+:kms:\S+|alias/[\w/-]+|[0-9A-Za-z-]+", re.ASCII)


class SettingsError(Exception):
    """The settings are invalid. `problems` has one line for each problem: SETTING: cause; remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Address(NamedTuple):
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return _is_loopback(self.host)


def parse_address(text: str) -> Address:
    """Parse HOST:PORT, with an IPv6 host in brackets. Raises `ValueError`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.port is None:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return Address(parts.hostname, parts.port)


def is_url(text: str) -> bool:
    """Whether a setting that takes a path or a URL has a URL."""
    return "://" in text


def read_environment(directory: Path) -> dict[str, str]:
    """The environment variables, and below them the variables of `.env` in the directory."""
    from_file = {name: value for name, value in dotenv_values(directory / ".env").items() if value is not None}
    return {**from_file, **os.environ}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- types -----------------------------------------------------------------------------------------------------------


def _from_text(parse: Callable[[str], object]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _split_list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _parse_duration(unit: timedelta, text: str) -> timedelta:
    try:
        return float(text) * unit
    except OverflowError:
        raise ValueError("is too large") from None
    except ValueError:  # no number, or NaN
        raise ValueError("must be a number") from None


def _require(is_valid: Callable[[T], bool], message: str) -> AfterValidator:
    def validate(value: T) -> T:
        if not is_valid(value):
            raise ValueError(message.format(value))
        return value

    return AfterValidator(validate)


def _is_browser_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    is_secure = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname or ""))
    return bool(is_secure and parts.hostname and not parts.fragment)


def _is_jwks_location(location: str | None, dev_mode: bool) -> bool:
    if location is None or not is_url(location):
        return location is None or Path(location).is_file()
    return _is_https_url(location, dev_mode)


def _is_heads_location(location: str | None, dev_mode: bool) -> bool:
    if location is None or not is_url(location):
        return location is None or (Path(location).parent.is_dir() and not Path(location).is_dir())
    return _is_https_url(location, dev_mode)


def _is_https_url(location: str, dev_mode: bool) -> bool:
    try:
        parts = urlsplit(location)
    except ValueError:
        return False
    is_local = parts.scheme == "http" and _is_loopback(parts.hostname or "") and dev_mode
    return bool(parts.hostname) and (parts.scheme == "https" or is_local)


def _check_database_url(url: str) -> str:
    parse_database_url(url)
    return url


def _is_redis_url(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname)


Seconds = Annotated[timedelta, _from_text(partial(_parse_duration, _SECOND))]
Hours = Annotated[timedelta, _from_text(partial(_parse_duration, _HOUR))]
Days = Annotated[timedelta, _from_text(partial(_parse_duration, _DAY))]
ListenAddress = Annotated[Address, _from_text(parse_address)]
ExistingFile = Annotated[Path, _require(Path.is_file, "{} is not a file; create it or correct the path")]
ExistingDirectory = Annotated[Path, _require(Path.is_dir, "{} is not a directory; create it or correct the path")]
DatabaseUrl = Annotated[str, AfterValidator(_check_database_url)]
RedisUrl = Annotated[str, _require(_is_redis_url, "must be redis://HOST:PORT/DATABASE, or rediss:// for TLS")]
# RFC 6749 §3.1.2: an absolute URI without a fragment.
BrowserUrl = Annotated[
    str,
    _require(_is_browser_url, "{!r} must be an absolute https URL without a fragment; plain http only on loopback"),
]
BrowserUrlList = Annotated[tuple[BrowserUrl, ...], _from_text(_split_list)]
Key = Annotated[bytes, _from_text(parse_key)]
KeyList = Annotated[tuple[Key, ...], _from_text(_split_list)]
KmsKeyId = Annotated[
    str,
    Field(max_length=2048),
    _require(lambda key_id: bool(_KMS_KEY_ID.fullmatch(key_id)), "must be the ARN or id of a KMS key, or alias/NAME"),
]
KmsKeyIdList = Annotated[tuple[KmsKeyId, ...], _from_text(_split_list)]
# Only algorithms with public keys: see rpc/jwt_verifier.py.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"
]
AlgorithmList = Annotated[tuple[Algorithm, ...], _from_text(_split_list), Field(min_length=1)]
Networks = Annotated[tuple[Network, ...], _from_text(parse_networks)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


# --- settings --------------------------------------------------------------------------------------------------------


def _duration(variable: str, default: timedelta, *, le: timedelta, ge: timedelta = timedelta.resolution) -> timedelta:
    """A duration. Its variable is a number, and the last word of the variable's name is the unit."""
    return Field(default=default, alias=variable, ge=ge, le=le)


class Settings(BaseModel):
    """One field for each setting. The environment variable is the field's alias, else its name in capitals.

    `.env.example` states the purpose of each.
    """

    model_config = ConfigDict(frozen=True, alias_generator=str.upper, populate_by_name=True)

    dev_mode: bool = False
    database_url: DatabaseUrl = Field(default=DEFAULT_DATABASE_URL, repr=False)  # may contain a password
    database_pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    credentials_cache_size: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    tls_cert_file: ExistingFile | None = None
    tls_key_file: ExistingFile | None = None
    tls_client_ca_file: ExistingFile | None = None
    jwt_jwks: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    user_jwt_jwks: str | None = None
    user_jwt_issuer: str | None = None
    user_jwt_audience: str | None = None
    jwt_algorithms: AlgorithmList = ("RS256", "ES256")
    jwt_leeway: Seconds = _duration("JWT_LEEWAY_SECONDS", 30 * _SECOND, ge=0 * _SECOND, le=300 * _SECOND)
    policy_file: ExistingFile | None = None
    health_allow_unauthenticated: bool = False
    kms_key_id: KmsKeyId | None = None
    kms_key_ids_retired: KmsKeyIdList = ()
    encryption_key: Key | None = Field(default=None, repr=False)
    encryption_keys_retired: KeyList = Field(default=(), repr=False)
    data_key_max_age: Days = _duration("DATA_KEY_MAX_AGE_DAYS", 90 * _DAY, ge=0 * _DAY, le=3650 * _DAY)  # 0: unlimited
    # Longer than a server needs to notice that it cannot read the data keys: a second and the database's timeouts.
    data_key_activation: Seconds = _duration("DATA_KEY_ACTIVATION_SECONDS", 30 * _SECOND, ge=_SECOND, le=_HOUR)
    grpc_address: ListenAddress = Address("127.0.0.1", 50051)
    sidecar_tls_ca_file: ExistingFile | None = None
    sidecar_tls_cert_file: ExistingFile | None = None
    sidecar_tls_key_file: ExistingFile | None = None
    sidecar_tls_server_name: str | None = None
    sidecar_token_file: ExistingFile | None = None
    sidecar_address: ListenAddress = Address("127.0.0.1", 8080)
    public_url: BrowserUrl = Field(default_factory=lambda data: f"http://{data['sidecar_address']}")
    trusted_proxies: Networks = ()
    allowed_redirect_uris: BrowserUrlList = ()
    allowed_return_urls: BrowserUrlList = ()
    providers_dir: ExistingDirectory | None = None
    skip_confirmation: bool = Field(default_factory=lambda data: data["dev_mode"])
    log_level: Level = "INFO"
    refresh_buffer: Seconds = _duration("REFRESH_BUFFER_SECONDS", 300 * _SECOND, ge=0 * _SECOND, le=_DAY)
    provider_timeout: Seconds = _duration("PROVIDER_TIMEOUT_SECONDS", 10 * _SECOND, le=60 * _SECOND)
    # Longer than a call to a provider and the commit after it. It delays the takeover from a crashed server.
    refresh_lease: Seconds = _duration("REFRESH_LEASE_SECONDS", 30 * _SECOND, ge=_SECOND, le=_HOUR)
    # Longer than a person needs to notice the result of a refresh and to ask for another one.
    forced_refresh_min_interval: Seconds = _duration(
        "FORCED_REFRESH_MIN_INTERVAL_SECONDS", 30 * _SECOND, ge=0 * _SECOND, le=_HOUR
    )
    refresh_journal_dir: Path = Path("data/refresh-journal")
    revocation_give_up: Hours = _duration("REVOCATION_GIVE_UP_HOURS", 72 * _HOUR, le=8760 * _HOUR)
    health_check_timeout: Seconds = _duration("HEALTH_CHECK_TIMEOUT_SECONDS", 10 * _SECOND, le=300 * _SECOND)
    # 0: only on request.
    health_check_interval: Seconds = _duration(
        "HEALTH_CHECK_INTERVAL_SECONDS", 900 * _SECOND, ge=0 * _SECOND, le=30 * _DAY
    )
    # Of an integration that callers check again and again.
    health_check_min_interval: Seconds = _duration(
        "HEALTH_CHECK_MIN_INTERVAL_SECONDS", 10 * _SECOND, ge=0 * _SECOND, le=_HOUR
    )
    health_history: Days = _duration("HEALTH_HISTORY_DAYS", 30 * _DAY, le=3650 * _DAY)
    webhook_retention: Days = _duration("WEBHOOK_RETENTION_DAYS", 7 * _DAY, le=365 * _DAY)
    webhook_secret_grace: Hours = _duration("WEBHOOK_SECRET_GRACE_HOURS", 24 * _HOUR, ge=0 * _HOUR, le=720 * _HOUR)
    event_retention: Days = _duration("EVENT_RETENTION_DAYS", 7 * _DAY, le=365 * _DAY)
    background_calls_per_provider: Annotated[int, Field(ge=1, le=1000)] = 8
    background_calls_per_second: Annotated[float, Field(gt=0, le=10_000)] = 40
    proxy_timeout: Seconds = _duration("PROXY_TIMEOUT_SECONDS", 30 * _SECOND, le=_HOUR)
    proxy_max_request_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 1024 * 1024
    proxy_max_response_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 2 * 1024 * 1024
    rate_limit_redis_url: RedisUrl | None = Field(default=None, repr=False)  # may contain a password
    audit_heads: str | None = Field(default=None, repr=False)  # a URL may contain what authorizes the sender
    audit_heads_interval: Seconds = _duration("AUDIT_HEADS_INTERVAL_SECONDS", 60 * _SECOND, ge=_SECOND, le=_HOUR)
    shutdown_grace: Seconds = _duration("SHUTDOWN_GRACE_SECONDS", 20 * _SECOND, ge=0 * _SECOND, le=_HOUR)

    # Limits: docs/limits.md. The concurrency of one caller leaves room for a thousand calls that wait for one refresh.
    caller_max_concurrency: Count = 2_000
    caller_max_calls_per_second: Count = 3_000
    # A service follows all users with one stream for each of its replicas; a user has a few open pages and devices.
    caller_max_streams: Count = 200
    caller_max_streams_per_user: Count = 10
    user_max_integrations: Count = DEFAULT_USER_QUOTAS.integrations
    user_max_authorization_attempts: Count = DEFAULT_USER_QUOTAS.authorization_attempts
    user_max_webhook_bytes: Annotated[int, Field(ge=1024 * 1024, le=1024**4)] = DEFAULT_USER_QUOTAS.webhook_bytes
    grpc_max_connections: Count = 1_000
    grpc_max_streams_per_connection: Count = 1_000
    grpc_max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    grpc_max_metadata_bytes: Annotated[int, Field(ge=4 * 1024, le=1024 * 1024)] = 16 * 1024
    grpc_handshake: Seconds = _duration("GRPC_HANDSHAKE_SECONDS", 10 * _SECOND, le=300 * _SECOND)
    grpc_read_timeout: Seconds = _duration("GRPC_READ_TIMEOUT_SECONDS", 20 * _SECOND, le=300 * _SECOND)
    grpc_connection_idle: Seconds = _duration("GRPC_CONNECTION_IDLE_SECONDS", 120 * _SECOND, le=_DAY)
    grpc_connection_age: Seconds = _duration("GRPC_CONNECTION_AGE_SECONDS", 1_800 * _SECOND, le=7 * _DAY)
    sidecar_max_connections: Count = 500
    sidecar_max_body_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    sidecar_failures_per_second: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    sidecar_header_timeout: Seconds = _duration("SIDECAR_HEADER_TIMEOUT_SECONDS", 10 * _SECOND, le=300 * _SECOND)
    sidecar_body_timeout: Seconds = _duration("SIDECAR_BODY_TIMEOUT_SECONDS", 20 * _SECOND, le=300 * _SECOND)
    sidecar_keepalive: Seconds = _duration("SIDECAR_KEEPALIVE_SECONDS", 75 * _SECOND, ge=_SECOND, le=_HOUR)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, needs_key: bool = True) -> Self:
        """The settings in these variables. An empty variable counts as not set. Raises `SettingsError`.

        `needs_key=False` is for commands that neither decrypt nor serve gRPC: `SERVER_RULES` are not checked.
        """
        variables = {name: value for name, value in environment.items() if value}
        problems: dict[str, list[str]] = {}
        try:
            settings = cls.model_validate(variables)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False, include_input=False):
                variable = str(problem["loc"][0])
                if variable in variables:  # otherwise its default depends on a setting that is invalid
                    index = "".join(f"[{part}]" for part in problem["loc"][1:] if isinstance(part, int))
                    text = f"{variable}{index}: {problem['msg'].removeprefix('Value error, ')}"
                    problems.setdefault(variable, []).append(text)
            settings = cls.model_validate({name: value for name, value in variables.items() if name not in problems})
        for rule in (*(SERVER_RULES if needs_key else ()), *RULES):
            if problems.keys().isdisjoint(rule.variables) and rule.is_broken(settings):
                problems[rule.variables[0]] = [f"{rule.variables[0]}: {rule.message}"]
        if problems:
            order = [field.alias for field in cls.model_fields.values()]
            raise SettingsError([text for name in sorted(problems, key=order.index) for text in problems[name]])
        return settings

    @property
    def authenticates_callers(self) -> bool:
        """Whether callers must authenticate."""
        return self.policy_file is not None

    @property
    def user_quotas(self) -> UserQuotas:
        """What one user may have."""
        return UserQuotas(self.user_max_integrations, self.user_max_authorization_attempts, self.user_max_webhook_bytes)

    @property
    def has_authentication_method(self) -> bool:
        """Whether there is a way to authenticate callers: client certificates or tokens."""
        return any((self.tls_client_ca_file, self.jwt_jwks, self.user_jwt_jwks))

    @property
    def max_response_bytes(self) -> int:
        """The largest body of a provider's response, in bytes. With its headers it fits into one gRPC message."""
        return min(self.proxy_max_response_bytes, max(1, self.grpc_max_message_bytes - _RESPONSE_HEADERS_BYTES))


# --- rules over several settings -------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A condition that makes settings invalid.

    `variables` are all that the condition reads; the problem is reported for the first of them. A rule is skipped if
    one of its variables already has a problem.
    """

    variables: tuple[str, ...]
    is_broken: Callable[[Settings], bool]
    message: str


def _set_together(variable: str, other: str) -> Rule:
    def is_broken(settings: Settings) -> bool:
        return (getattr(settings, variable.lower()) is None) != (getattr(settings, other.lower()) is None)

    return Rule((variable, other), is_broken, f"belongs together with {other}; set both or neither")


_AUTHENTICATION_METHODS = ("TLS_CLIENT_CA_FILE", "JWT_JWKS", "USER_JWT_JWKS")
_METHODS_TEXT = " or ".join(_AUTHENTICATION_METHODS)
_JWKS_MESSAGE = "must be an existing file or an https URL; plain http only on loopback in dev mode"

SERVER_RULES = (
    Rule(
        ("ENCRYPTION_KEY", "DEV_MODE", "KMS_KEY_ID"),
        lambda s: s.encryption_key is None and s.kms_key_id is None and not s.dev_mode,
        "is not set; generate a key with: openssl rand -base64 32",
    ),
    # An unauthenticated caller may name any user.
    Rule(
        ("GRPC_ADDRESS", *_AUTHENTICATION_METHODS),
        lambda s: not s.grpc_address.is_loopback and not s.has_authentication_method,
        f"must be a loopback address while callers are not authenticated; set {_METHODS_TEXT}",
    ),
    Rule(
        ("GRPC_ADDRESS", "TLS_CERT_FILE"),
        lambda s: not s.grpc_address.is_loopback and s.tls_cert_file is None,
        "must be a loopback address without TLS, because tokens would be sent unencrypted; set TLS_CERT_FILE",
    ),
    Rule(
        ("SIDECAR_TLS_CA_FILE", "TLS_CERT_FILE"),
        lambda s: s.sidecar_tls_ca_file is None and s.tls_cert_file is not None,
        "is not set; the sidecar needs it to verify the certificate in TLS_CERT_FILE",
    ),
    Rule(
        ("SIDECAR_TLS_CERT_FILE", "TLS_CLIENT_CA_FILE"),
        lambda s: s.sidecar_tls_cert_file is None and s.tls_client_ca_file is not None,
        "is not set; with TLS_CLIENT_CA_FILE the sidecar needs a client certificate too",
    ),
    Rule(
        ("SIDECAR_TOKEN_FILE", *_AUTHENTICATION_METHODS),
        lambda s: s.sidecar_token_file is None and s.has_authentication_method and s.tls_client_ca_file is None,
        "is not set; without TLS_CLIENT_CA_FILE the sidecar needs a token to authenticate",
    ),
)
"""The rules for commands that decrypt or serve gRPC."""

RULES = (
    _set_together("TLS_KEY_FILE", "TLS_CERT_FILE"),
    _set_together("SIDECAR_TLS_KEY_FILE", "SIDECAR_TLS_CERT_FILE"),
    _set_together("JWT_ISSUER", "JWT_JWKS"),
    _set_together("JWT_AUDIENCE", "JWT_JWKS"),
    _set_together("USER_JWT_ISSUER", "USER_JWT_JWKS"),
    _set_together("USER_JWT_AUDIENCE", "USER_JWT_JWKS"),
    Rule(
        ("AUDIT_HEADS", "DEV_MODE"),
        lambda s: not _is_heads_location(s.audit_heads, s.dev_mode),
        "must be a file in an existing directory, or an https URL; plain http only on loopback in dev mode",
    ),
    Rule(("JWT_JWKS", "DEV_MODE"), lambda s: not _is_jwks_location(s.jwt_jwks, s.dev_mode), _JWKS_MESSAGE),
    Rule(("USER_JWT_JWKS", "DEV_MODE"), lambda s: not _is_jwks_location(s.user_jwt_jwks, s.dev_mode), _JWKS_MESSAGE),
    Rule(
        ("TLS_CLIENT_CA_FILE", "TLS_CERT_FILE"),
        lambda s: s.tls_client_ca_file is not None and s.tls_cert_file is None,
        "client certificates need TLS; set TLS_CERT_FILE and TLS_KEY_FILE",
    ),
    Rule(
        ("USER_JWT_AUDIENCE", "USER_JWT_ISSUER", "JWT_ISSUER", "JWT_AUDIENCE"),
        lambda s: (
            s.jwt_audience is not None and (s.user_jwt_issuer, s.user_jwt_audience) == (s.jwt_issuer, s.jwt_audience)
        ),
        "users would be indistinguishable from services; use another audience or issuer than JWT_AUDIENCE, JWT_ISSUER",
    ),
    Rule(
        ("POLICY_FILE", *_AUTHENTICATION_METHODS),
        lambda s: s.policy_file is None and s.has_authentication_method,
        "is not set, so that every call would be denied; set it to the file that grants permissions to callers",
    ),
    Rule(
        ("POLICY_FILE", *_AUTHENTICATION_METHODS),
        lambda s: s.policy_file is not None and not s.has_authentication_method,
        f"a policy needs authenticated callers; set {_METHODS_TEXT}",
    ),
    Rule(
        ("SIDECAR_TOKEN_FILE", "SIDECAR_TLS_CA_FILE", "GRPC_ADDRESS"),
        lambda s: bool(s.sidecar_token_file) and s.sidecar_tls_ca_file is None and not s.grpc_address.is_loopback,
        "the token would be sent to GRPC_ADDRESS unencrypted; set SIDECAR_TLS_CA_FILE",
    ),
    Rule(
        ("PUBLIC_URL", "SIDECAR_ADDRESS"),
        lambda s: not _is_browser_url(s.public_url),
        "is not set, and SIDECAR_ADDRESS is not loopback; set it to the https URL of the sidecar",
    ),
)
"""The rules for every command."""
