"""The server's settings: environment variables and `.env`, parsed once into frozen values and validated as a whole.

Types and bounds are checked field by field; conditions over several settings are the rows of `RULES` and
`SERVER_RULES`. All problems are reported at once. No message quotes a secret.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from integration_server import env_file
from integration_server.entropy import is_weak_key
from integration_server.setting_types import (
    DAY,
    HOUR,
    SECOND,
    Address,
    BaseUrl,
    BrowserUrlList,
    Count,
    Days,
    ExistingDirectory,
    ExistingFile,
    Hours,
    ListenAddress,
    OptionalListenAddress,
    Seconds,
    duration,
    from_text,
    is_browser_url,
    is_loopback,
    is_url,
    require,
    split_list,
)
from integration_server.sidecar_settings import SidecarSettings
from integration_server.storage.key_encryption import parse_key
from integration_server.storage.pools import DEFAULT_DATABASE_URL, parse_database_url
from integration_server.storage.user_usage import DEFAULT_USER_QUOTAS, UserQuotas
from integration_server.storage.webhook_routing import UnroutedLimits

GENERATE_KEY = "generate a key with: openssl rand -base64 32"

_RESPONSE_HEADERS_BYTES = 128 * 1024  # a provider may send headers of 100 KiB
_KMS_KEY_ID = re.compile(
    r"arn:[a-z0-9-]+:kms:\S+|alias/[\w/-]+|[0-9A-Za-z-]+"
    # The table of keys has 255 characters for an id. No segment is `.` or `..`, which would lead out of the mount.
    r"|(?=.{1,255}\Z)openbao:(?:[\w-][\w.-]*/)+[\w-][\w.-]*",
    re.ASCII,
)
_OPENBAO_PATH = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*/?", re.ASCII)


class SettingsError(Exception):
    """The settings are invalid. `problems` has one line for each problem: SETTING: cause; remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_environment(directory: Path, *, max_wait: float = env_file.MAX_WAIT) -> dict[str, str]:
    """The environment variables, and below them the variables of `.env` in the directory.

    White space around a value is dropped: a file that a variable is read from usually ends with a line feed. Raises
    `SettingsError` if the file cannot be read, as a named pipe to which nobody writes within `max_wait` seconds.
    """
    in_file = read_env_file(directory, max_wait=max_wait)
    from_file = {name: value for name, value in in_file.items() if value is not None}
    return {name: value.strip() for name, value in {**from_file, **os.environ}.items()}


def read_env_file(
    directory: Path, *, interpolate: bool = True, max_wait: float = env_file.MAX_WAIT
) -> Mapping[str, str | None]:
    """As `env_file.read_env_file`. Raises `SettingsError`."""
    try:
        return env_file.read_env_file(directory, interpolate=interpolate, max_wait=max_wait)
    except env_file.EnvFileError as error:
        raise SettingsError(error.problems) from None


def name_files(problems: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
    """The problems of files, which begin with the path, with the setting before it that names the file."""
    aliases = {field.alias for field in Settings.model_fields.values()}
    settings = {f"{Path(value)}: ": name for name, value in environment.items() if value and name in aliases}
    paths = [next((path for path in settings if problem.startswith(path)), "") for problem in problems]
    return [f"{settings[path]}: {text}" if path else text for path, text in zip(paths, problems, strict=True)]


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
    is_local = parts.scheme == "http" and is_loopback(parts.hostname or "") and dev_mode
    return bool(parts.hostname) and (parts.scheme == "https" or is_local)


def _check_database_url(url: str) -> str:
    parse_database_url(url)
    return url


def _parse_key(text: str) -> bytes:
    try:
        return parse_key(text)
    except ValueError as error:
        raise ValueError(f"{error}; restore the key, or for a new database {GENERATE_KEY}") from None


def _has_exporter() -> bool:
    try:
        return find_spec("opentelemetry.proto.collector") is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _is_redis_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for an invalid one
    except ValueError:
        return False
    database = parts.path.removeprefix("/")
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname) and (not database or database.isdecimal())


DatabaseUrl = Annotated[str, AfterValidator(_check_database_url)]
RedisUrl = Annotated[str, require(_is_redis_url, "must be redis://HOST:PORT/DATABASE, or rediss:// for TLS")]
Key = Annotated[
    bytes,
    from_text(_parse_key),
    require(lambda key: not is_weak_key(key), f"is not random, but a pattern or text; {GENERATE_KEY}"),
]
KeyList = Annotated[tuple[Key, ...], from_text(split_list)]
KmsKeyId = Annotated[
    str,
    Field(max_length=2048),
    require(
        lambda key_id: bool(_KMS_KEY_ID.fullmatch(key_id)),
        "must be an ARN, an id or alias/NAME of AWS KMS, or openbao:MOUNT/NAME for a key in OpenBao or Vault",
    ),
]
KmsKeyIdList = Annotated[tuple[KmsKeyId, ...], from_text(split_list)]
OpenBaoPath = Annotated[
    str,
    Field(max_length=255),
    require(lambda path: bool(_OPENBAO_PATH.fullmatch(path)), "must be segments of letters, digits, . _ and -"),
]
# Only algorithms with public keys: see rpc/jwt_verifier.py.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"
]
# Less than a mebibyte holds a few hundred integrations; it is more likely meant as a number of integrations.
CacheSize = Annotated[
    int,
    Field(ge=0, le=64 * 2**30),
    require(lambda size: size == 0 or size >= 2**20, "is in bytes: at least 1048576 (1 MiB), or 0 for no cache"),
]
AlgorithmList = Annotated[tuple[Algorithm, ...], from_text(split_list), Field(min_length=1)]


_MAY_BE_EMPTY = frozenset({"METRICS_ADDRESS"})

# --- settings --------------------------------------------------------------------------------------------------------


class Settings(SidecarSettings):
    """All settings."""

    dev_mode: bool = False
    database_url: DatabaseUrl = Field(default=DEFAULT_DATABASE_URL, repr=False)  # may contain a password
    database_pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    # Bytes: what a worker's memory grows by after its first million integrations, less than a third of it.
    credentials_cache_size: CacheSize = 24 * 2**20
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
    jwt_leeway: Seconds = duration("JWT_LEEWAY_SECONDS", 30 * SECOND, ge=0 * SECOND, le=300 * SECOND)
    policy_file: ExistingFile | None = None
    health_allow_unauthenticated: bool = False
    kms_key_id: KmsKeyId | None = None
    kms_key_ids_retired: KmsKeyIdList = ()
    openbao_address: BaseUrl | None = None
    openbao_namespace: OpenBaoPath | None = None
    openbao_ca_file: ExistingFile | None = None
    openbao_token_file: ExistingFile | None = None
    openbao_login_role: Annotated[str, Field(max_length=255)] | None = None
    openbao_login_mount: OpenBaoPath = "kubernetes"
    # Where Kubernetes puts the token of a pod's service account.
    openbao_login_jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    encryption_key: Key | None = Field(default=None, repr=False)
    encryption_keys_retired: KeyList = Field(default=(), repr=False)
    data_key_max_age: Days = duration("DATA_KEY_MAX_AGE_DAYS", 90 * DAY, ge=0 * DAY, le=3650 * DAY)  # 0: unlimited
    # Longer than a server needs to notice that it cannot read the data keys: a second and the database's timeouts.
    data_key_activation: Seconds = duration("DATA_KEY_ACTIVATION_SECONDS", 30 * SECOND, ge=SECOND, le=HOUR)
    workers: Annotated[int, Field(ge=1, le=64)] | None = None  # None: wiring/workers.py
    grpc_address: ListenAddress = Address("127.0.0.1", 50051)
    metrics_address: OptionalListenAddress = Address("127.0.0.1", 9464)  # None: no listener
    sidecar_tls_ca_file: ExistingFile | None = None
    sidecar_tls_cert_file: ExistingFile | None = None
    sidecar_tls_key_file: ExistingFile | None = None
    sidecar_tls_server_name: str | None = None
    sidecar_token_file: ExistingFile | None = None
    allowed_redirect_uris: BrowserUrlList = ()
    allowed_return_urls: BrowserUrlList = ()
    sandbox_address: ListenAddress | None = None
    providers_dir: ExistingDirectory | None = None
    skip_confirmation: bool = Field(default_factory=lambda data: data["dev_mode"])
    refresh_buffer: Seconds = duration("REFRESH_BUFFER_SECONDS", 300 * SECOND, ge=0 * SECOND, le=DAY)
    provider_timeout: Seconds = duration("PROVIDER_TIMEOUT_SECONDS", 10 * SECOND, le=60 * SECOND)
    # Longer than a call to a provider and the commit after it. It delays the takeover from a crashed server.
    refresh_lease: Seconds = duration("REFRESH_LEASE_SECONDS", 30 * SECOND, ge=SECOND, le=HOUR)
    # Longer than a person needs to notice the result of a refresh and to ask for another one.
    forced_refresh_min_interval: Seconds = duration(
        "FORCED_REFRESH_MIN_INTERVAL_SECONDS", 30 * SECOND, ge=0 * SECOND, le=HOUR
    )
    refresh_journal_dir: Path = Path("data/refresh-journal")
    revocation_give_up: Hours = duration("REVOCATION_GIVE_UP_HOURS", 72 * HOUR, le=8760 * HOUR)
    health_check_timeout: Seconds = duration("HEALTH_CHECK_TIMEOUT_SECONDS", 10 * SECOND, le=300 * SECOND)
    # 0: only on request.
    health_check_interval: Seconds = duration("HEALTH_CHECK_INTERVAL_SECONDS", 900 * SECOND, ge=0 * SECOND, le=30 * DAY)
    # Of an integration that callers check again and again.
    health_check_min_interval: Seconds = duration(
        "HEALTH_CHECK_MIN_INTERVAL_SECONDS", 10 * SECOND, ge=0 * SECOND, le=HOUR
    )
    health_history: Days = duration("HEALTH_HISTORY_DAYS", 30 * DAY, le=3650 * DAY)
    webhook_retention: Days = duration("WEBHOOK_RETENTION_DAYS", 7 * DAY, le=365 * DAY)
    unrouted_webhook_retention: Days = duration("UNROUTED_WEBHOOK_RETENTION_DAYS", 3 * DAY, le=30 * DAY)
    webhook_secret_grace: Hours = duration("WEBHOOK_SECRET_GRACE_HOURS", 24 * HOUR, ge=0 * HOUR, le=720 * HOUR)
    event_retention: Days = duration("EVENT_RETENTION_DAYS", 7 * DAY, le=365 * DAY)
    background_calls_per_provider: Annotated[int, Field(ge=1, le=1000)] = 8
    background_calls_per_second: Annotated[float, Field(gt=0, le=10_000)] = 100  # a quarter of a core
    proxy_timeout: Seconds = duration("PROXY_TIMEOUT_SECONDS", 30 * SECOND, le=HOUR)
    proxy_stream_idle_timeout: Seconds = duration("PROXY_STREAM_IDLE_SECONDS", 60 * SECOND, le=HOUR)
    proxy_max_request_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 1024 * 1024
    proxy_max_response_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 2 * 1024 * 1024
    rate_limit_redis_url: RedisUrl | None = Field(default=None, repr=False)  # may contain a password
    audit_heads: str | None = Field(default=None, repr=False)  # a URL may contain what authorizes the sender
    audit_heads_interval: Seconds = duration("AUDIT_HEADS_INTERVAL_SECONDS", 60 * SECOND, ge=SECOND, le=HOUR)
    # Longer than a load balancer takes to notice: in deploy/envoy two health checks, a second apart. A server in
    # development has none.
    drain: Seconds = Field(
        default_factory=lambda data: (0 if data["dev_mode"] else 5) * SECOND,
        alias="DRAIN_SECONDS",
        ge=0 * SECOND,
        le=300 * SECOND,
    )
    shutdown_grace: Seconds = duration("SHUTDOWN_GRACE_SECONDS", 20 * SECOND, ge=0 * SECOND, le=HOUR)

    # Limits: docs/limits.md. The concurrency of one caller leaves room for a thousand calls that wait for one refresh.
    caller_max_concurrency: Count = 2_000
    caller_max_calls_per_second: Count = 3_000
    # A service follows all users with one stream for each of its replicas; a user has a few open pages and devices.
    caller_max_streams: Count = 200
    caller_max_streams_per_user: Count = 10
    # Fifty replicas with 4,000 accounts each. A watched integration takes a kilobyte, until its stream ends.
    caller_max_watched_integrations: Count = 200_000
    user_max_integrations: Count = DEFAULT_USER_QUOTAS.integrations
    user_max_authorization_attempts: Count = DEFAULT_USER_QUOTAS.authorization_attempts
    user_max_webhook_bytes: Annotated[int, Field(ge=1024 * 1024, le=1024**4)] = DEFAULT_USER_QUOTAS.webhook_bytes
    unrouted_webhook_max_bytes: Annotated[int, Field(ge=1024, le=1024**3)] = UnroutedLimits().max_bytes
    grpc_max_connections: Count = 1_000
    grpc_max_streams_per_connection: Count = 1_000
    grpc_max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    grpc_max_metadata_bytes: Annotated[int, Field(ge=4 * 1024, le=1024 * 1024)] = 16 * 1024
    grpc_handshake: Seconds = duration("GRPC_HANDSHAKE_SECONDS", 10 * SECOND, le=300 * SECOND)
    grpc_read_timeout: Seconds = duration("GRPC_READ_TIMEOUT_SECONDS", 20 * SECOND, le=300 * SECOND)
    grpc_connection_idle: Seconds = duration("GRPC_CONNECTION_IDLE_SECONDS", 120 * SECOND, le=DAY)
    grpc_connection_age: Seconds = duration("GRPC_CONNECTION_AGE_SECONDS", 1_800 * SECOND, le=7 * DAY)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, needs_key: bool = True) -> Self:
        """The settings in these variables. An empty variable counts as not set, unless it switches something off.

        Raises `SettingsError`.

        `needs_key=False` is for commands that neither decrypt nor serve gRPC: `SERVER_RULES` are not checked.
        """
        variables = {name: value for name, value in environment.items() if value or name in _MAY_BE_EMPTY}
        problems: dict[str, list[str]] = {}
        try:
            settings = cls.model_validate(variables)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_input=False):
                variable = str(problem["loc"][0])
                if variable in variables:  # otherwise its default depends on a setting that is invalid
                    problems.setdefault(variable, []).append(_describe(problem, variables[variable]))
            settings = cls.model_validate({name: value for name, value in variables.items() if name not in problems})
        for rule in (*(SERVER_RULES if needs_key else ()), *RULES):
            if problems.keys().isdisjoint(rule.variables) and rule.is_broken(settings):
                problems[rule.variables[0]] = [f"{rule.variables[0]}: {rule.message}"]
        if problems:
            order = [field.alias for field in cls.model_fields.values()]
            raise SettingsError([text for name in sorted(problems, key=order.index) for text in problems[name]])
        return settings

    @property
    def metrics_may_move(self) -> bool:
        """Whether a free port may take the place of METRICS_ADDRESS, so that several servers run on one machine."""
        return "metrics_address" not in self.model_fields_set

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


def _describe(problem: ErrorDetails, value: str) -> str:
    """SETTING: what is wrong with its value; what to do."""
    variable, *path = problem["loc"]
    index = "".join(f"[{part}]" for part in path if isinstance(part, int))
    expected = _EXPECTED.get(problem["type"])
    text = expected.format_map(problem.get("ctx", {})) if expected else problem["msg"].removeprefix("Value error, ")
    # Shells and python-dotenv remove them; `docker --env-file` and Kubernetes do not.
    quoted = "; remove the quotation marks around it" if value[:1] in {"'", '"'} and value[:1] == value[-1:] else ""
    return f"{variable}{index}: {text}{quoted}"


_EXPECTED = {
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number, without a unit",
    "int_parsing_size": "is too large",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number, without a unit",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entry",
}
"""What the errors of pydantic mean, by their type. Those of our own validators say it themselves."""


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


def _is_open_in_dev_mode(settings: Settings, address: Address | None) -> bool:
    return settings.dev_mode and address is not None and not address.is_loopback


_DEV_MODE_MESSAGE = "must be on loopback in dev mode, which protects nothing from other machines; set DEV_MODE=false"


def _uses_openbao(settings: Settings) -> bool:
    """Whether a key is in OpenBao."""
    return any(key_id.startswith("openbao:") for key_id in (settings.kms_key_id or "", *settings.kms_key_ids_retired))


_KMS_SETTINGS = ("KMS_KEY_ID", "KMS_KEY_IDS_RETIRED")

SERVER_RULES = (
    Rule(("GRPC_ADDRESS", "DEV_MODE"), lambda s: _is_open_in_dev_mode(s, s.grpc_address), _DEV_MODE_MESSAGE),
    Rule(
        ("ENCRYPTION_KEY", "DEV_MODE", "KMS_KEY_ID"),
        lambda s: s.encryption_key is None and s.kms_key_id is None and not s.dev_mode,
        f"is not set; {GENERATE_KEY} (for the database of `make run`, set DEV_MODE=true)",
    ),
    Rule(
        ("OPENBAO_ADDRESS", *_KMS_SETTINGS),
        lambda s: _uses_openbao(s) and s.openbao_address is None,
        "is not set, and KMS_KEY_ID or KMS_KEY_IDS_RETIRED has a key in OpenBao; set it to the URL of the server",
    ),
    Rule(
        ("OPENBAO_TOKEN_FILE", "OPENBAO_LOGIN_ROLE", *_KMS_SETTINGS),
        lambda s: _uses_openbao(s) and (s.openbao_token_file is None) == (s.openbao_login_role is None),
        "a key in OpenBao needs one way to authenticate; set either this or OPENBAO_LOGIN_ROLE",
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
)
"""The rules for commands that decrypt or serve gRPC."""

RULES = (
    Rule(("SIDECAR_ADDRESS", "DEV_MODE"), lambda s: _is_open_in_dev_mode(s, s.sidecar_address), _DEV_MODE_MESSAGE),
    Rule(
        ("TRACES_ENDPOINT",),
        lambda s: s.traces_endpoint is not None and not _has_exporter(),
        "needs the extra `traces`: pip install 'integration-server[traces]'",
    ),
    Rule(("METRICS_ADDRESS", "DEV_MODE"), lambda s: _is_open_in_dev_mode(s, s.metrics_address), _DEV_MODE_MESSAGE),
    Rule(("SANDBOX_ADDRESS", "DEV_MODE"), lambda s: _is_open_in_dev_mode(s, s.sandbox_address), _DEV_MODE_MESSAGE),
    Rule(
        ("SANDBOX_ADDRESS", "DEV_MODE"),
        lambda s: s.sandbox_address is not None and not s.dev_mode,
        "the sandbox is for dev mode only: whoever reaches it connects any account; remove it, or set DEV_MODE=true",
    ),
    Rule(
        ("PUBLIC_URL", "DEV_MODE"),
        lambda s: (
            s.dev_mode and "public_url" in s.model_fields_set and not is_loopback(urlsplit(s.public_url).hostname or "")
        ),
        _DEV_MODE_MESSAGE,
    ),
    Rule(
        ("WORKERS",),
        lambda s: (s.workers or 1) > 1 and sys.platform != "linux",
        "several workers need Linux, which distributes the connections of a port; remove it, or set WORKERS=1",
    ),
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
        lambda s: not is_browser_url(s.public_url),
        "is not set, and SIDECAR_ADDRESS is not loopback; set it to the https URL of the sidecar",
    ),
)
"""The rules for every command."""
