"""The server's settings: environment variables and `.env`, read once, validated as a whole, frozen.

All problems are reported at once, and none of the messages quotes a secret. In dev mode (`DEV_MODE=true`) a key is
made when none is set, the schema is migrated at the start, and plain http is allowed on loopback.
"""

import ipaddress
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from integration_server.logs import Level
from integration_server.storage.engine import DEFAULT_DATABASE_URL, parse_database_url
from integration_server.storage.key_encryption import parse_key


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read HOST:PORT, an IPv6 host in brackets. Raises `ValueError`."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.port is None:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051")
    return Address(parts.hostname, parts.port)


def _comma_separated(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SettingsError(Exception):
    """What is wrong with the settings, a line a problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


AddressSetting = Annotated[
    Address, BeforeValidator(lambda value: parse_address(value) if isinstance(value, str) else value)
]
UrlList = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
KmsKeyId = Annotated[str, Field(pattern=r"^(arn:[a-z0-9-]+:kms:\S+|alias/[\w/-]+|[0-9A-Za-z-]+)$", max_length=2048)]
KmsKeyIdList = Annotated[tuple[KmsKeyId, ...], BeforeValidator(_comma_separated)]
Key = Annotated[bytes, BeforeValidator(lambda value: parse_key(value) if isinstance(value, str) else value)]
KeyList = Annotated[tuple[Key, ...], BeforeValidator(_comma_separated)]
# Of public keys only: see rpc/tokens.py.
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"
]
AlgorithmList = Annotated[tuple[Algorithm, ...], BeforeValidator(_comma_separated)]


class Settings(BaseModel):
    """One field a setting; its environment variable has the same name in capitals."""

    model_config = ConfigDict(frozen=True, alias_generator=str.upper, populate_by_name=True, validate_default=True)

    dev_mode: bool = False
    database_url: str = Field(default=DEFAULT_DATABASE_URL, repr=False)  # may have a password in it
    database_pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    credentials_cache_size: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    jwt_jwks: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    user_jwt_jwks: str | None = None
    user_jwt_issuer: str | None = None
    user_jwt_audience: str | None = None
    jwt_algorithms: Annotated[AlgorithmList, Field(min_length=1)] = ("RS256", "ES256")
    jwt_leeway_seconds: Annotated[int, Field(ge=0, le=300)] = 30
    policy_file: Path | None = None
    health_allow_unauthenticated: bool = False
    kms_key_id: KmsKeyId | None = None
    kms_key_ids_retired: KmsKeyIdList = ()
    encryption_key: Key | None = Field(default=None, repr=False)
    encryption_keys_retired: KeyList = Field(default=(), repr=False)
    data_key_max_age_days: Annotated[float, Field(ge=0, le=3650)] = 90
    # Longer than a server may take to see that it cannot read the data keys: a second and the database's timeouts.
    data_key_activation_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    grpc_address: AddressSetting = Address("127.0.0.1", 50051)
    sidecar_tls_ca_file: Path | None = None
    sidecar_tls_cert_file: Path | None = None
    sidecar_tls_key_file: Path | None = None
    sidecar_tls_server_name: str | None = None
    sidecar_token_file: Path | None = None
    sidecar_address: AddressSetting = Address("127.0.0.1", 8080)
    public_url: str = ""
    allowed_redirect_uris: UrlList = ()
    allowed_return_urls: UrlList = ()
    providers_dir: Path | None = None
    skip_confirmation: bool | None = None
    log_level: Level = "INFO"
    refresh_buffer_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    provider_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 10
    # Longer than a call to a provider and the commit after it; a crashed server's refresh is free after it.
    refresh_lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 30
    refresh_journal_dir: Path = Path("data/refresh-journal")
    revocation_give_up_hours: Annotated[float, Field(gt=0, le=8760)] = 72
    health_check_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    health_check_interval_seconds: Annotated[float, Field(ge=0, le=30 * 86_400)] = 900  # 0: only when asked
    health_history_days: Annotated[float, Field(gt=0, le=3650)] = 30
    webhook_retention_days: Annotated[float, Field(gt=0, le=365)] = 7
    webhook_secret_grace_hours: Annotated[float, Field(ge=0, le=720)] = 24
    event_retention_days: Annotated[float, Field(gt=0, le=365)] = 7
    background_calls_per_provider: Annotated[int, Field(ge=1, le=1000)] = 8
    background_calls_per_second: Annotated[float, Field(gt=0, le=10_000)] = 40
    proxy_timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 30  # where the caller sets no deadline
    proxy_max_request_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 1024 * 1024
    proxy_max_response_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 2 * 1024 * 1024
    rate_limit_redis_url: str | None = Field(default=None, repr=False)  # may have a password in it
    shutdown_grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 20

    # Limits: docs/limits.md. A caller's calls at a time leave room for a thousand who wait for one refresh.
    caller_max_concurrency: Annotated[int, Field(ge=1, le=1_000_000)] = 2_000
    caller_max_calls_per_second: Annotated[int, Field(ge=1, le=1_000_000)] = 3_000
    grpc_max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    grpc_max_streams_per_connection: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    grpc_max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=64 * 1024 * 1024)] = 4 * 1024 * 1024
    grpc_max_metadata_bytes: Annotated[int, Field(ge=4 * 1024, le=1024 * 1024)] = 16 * 1024
    grpc_handshake_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    grpc_read_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 20
    grpc_connection_idle_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120
    grpc_connection_age_seconds: Annotated[float, Field(gt=0, le=604_800)] = 1_800
    sidecar_max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    sidecar_max_body_bytes: Annotated[int, Field(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    sidecar_header_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    sidecar_body_timeout_seconds: Annotated[float, Field(gt=0, le=300)] = 20
    sidecar_keepalive_seconds: Annotated[int, Field(ge=1, le=3600)] = 75

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, needs_key: bool = True) -> Self:
        """The settings in these variables; empty ones count as not set. Raises `SettingsError`."""
        given = {name: value for name, value in environment.items() if value}
        try:
            return cls.model_validate(given, context={"needs_key": needs_key})
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            raise SettingsError([f"{_name(p['loc'])}: {_problem_text(p['msg'])}" for p in problems]) from None

    @field_validator("database_url")
    @classmethod
    def _validate_database_url(cls, value: str) -> str:
        parse_database_url(value)
        return value

    @field_validator("encryption_key")
    @classmethod
    def _require_encryption_key(cls, value: bytes | None, info: ValidationInfo) -> bytes | None:
        has_other_key = info.data.get("dev_mode") or info.data.get("kms_key_id") is not None
        if value is None and _requires_key(info) and not has_other_key:
            raise ValueError("is not set; make one with: openssl rand -base64 32")
        return value

    @field_validator("tls_cert_file", "tls_client_ca_file", "policy_file")
    @classmethod
    def _validate_file(cls, value: Path | None) -> Path | None:
        return _require_file(value)

    @field_validator("tls_key_file", "sidecar_tls_key_file")
    @classmethod
    def _validate_tls_pair(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        certificate = str(info.field_name).replace("key", "cert")
        if certificate in info.data and (value is None) != (info.data[certificate] is None):
            raise ValueError(f"and {certificate.upper()} go together: set both or none")
        return _require_file(value)

    @field_validator("tls_client_ca_file")
    @classmethod
    def _validate_client_ca(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("tls_cert_file", value) is None:
            raise ValueError("needs TLS_CERT_FILE and TLS_KEY_FILE")
        return value

    @field_validator("jwt_jwks", "user_jwt_jwks")
    @classmethod
    def _validate_jwks(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or is_url(value):
            return None if value is None else _require_jwks_url(value, info)
        _require_file(Path(value))
        return value

    @field_validator("jwt_issuer", "jwt_audience", "user_jwt_issuer", "user_jwt_audience")
    @classmethod
    def _validate_issuer(cls, value: str | None, info: ValidationInfo) -> str | None:
        keys = f"{str(info.field_name).rpartition('_')[0]}_jwks"
        if keys in info.data and (value is None) != (info.data[keys] is None):
            raise ValueError(f"and {keys.upper()} go together: set both or none")
        return value

    @field_validator("user_jwt_audience")
    @classmethod
    def _validate_user_audience(cls, value: str | None, info: ValidationInfo) -> str | None:
        services = info.data.get("jwt_issuer"), info.data.get("jwt_audience")
        if value is not None and (info.data.get("user_jwt_issuer"), value) == services:
            raise ValueError("must differ from JWT_AUDIENCE where the issuer is the same, to tell users from services")
        return value

    @field_validator("policy_file")
    @classmethod
    def _validate_policy_file(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and _authenticates(info):
            raise ValueError("is not set: it says what callers may do, and nothing is allowed without it")
        ways = ("tls_client_ca_file", "jwt_jwks", "user_jwt_jwks")
        if value is not None and not _authenticates(info) and all(way in info.data for way in ways):
            raise ValueError("needs a way to know callers: TLS_CLIENT_CA_FILE, JWT_JWKS or USER_JWT_JWKS")
        return value

    @field_validator("grpc_address")
    @classmethod
    def _validate_grpc_address(cls, value: Address, info: ValidationInfo) -> Address:
        if _is_loopback(value.host) or not _requires_key(info):
            return value
        # Whoever can connect may name any user: without authentication of callers, only this machine can.
        if not _authenticates(info):
            raise ValueError("must be a loopback address while callers are not authenticated")
        if info.data.get("tls_cert_file") is None:
            raise ValueError("must be a loopback address without TLS_CERT_FILE: tokens would travel in the clear")
        return value

    @field_validator("sidecar_tls_ca_file")
    @classmethod
    def _require_sidecar_ca(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("tls_cert_file") is not None and _requires_key(info):
            raise ValueError("is not set: the sidecar needs it to know the server, which has TLS_CERT_FILE")
        return _require_file(value)

    @field_validator("sidecar_tls_cert_file")
    @classmethod
    def _require_sidecar_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None and info.data.get("tls_client_ca_file") is not None and _requires_key(info):
            raise ValueError("is not set: the sidecar is a caller too, and TLS_CLIENT_CA_FILE wants certificates")
        return _require_file(value)

    @field_validator("sidecar_token_file")
    @classmethod
    def _require_sidecar_token(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if (
            value is None
            and _authenticates(info)
            and info.data.get("tls_client_ca_file") is None
            and _requires_key(info)
        ):
            raise ValueError("is not set: the sidecar is a caller too, and without TLS_CLIENT_CA_FILE it needs a token")
        in_the_clear = info.data.get("sidecar_tls_ca_file", ...) is None
        if value is not None and in_the_clear and not _is_loopback(info.data.get("grpc_address", _LOOPBACK).host):
            raise ValueError("needs SIDECAR_TLS_CA_FILE: to GRPC_ADDRESS it would travel in the clear")
        return _require_file(value)

    @field_validator("public_url")
    @classmethod
    def _default_public_url(cls, value: str, info: ValidationInfo) -> str:
        if not value and "sidecar_address" not in info.data:
            return value  # it is wrong itself, and told so
        return _require_browser_url(value or f"http://{info.data['sidecar_address']}", info)

    @field_validator("allowed_redirect_uris", "allowed_return_urls")
    @classmethod
    def _validate_browser_urls(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(_require_browser_url(url, info) for url in value)

    @field_validator("providers_dir")
    @classmethod
    def _validate_providers_dir(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"{value} is not a directory")
        return value

    @field_validator("skip_confirmation")
    @classmethod
    def _default_skip_confirmation(cls, value: bool | None, info: ValidationInfo) -> bool:
        return bool(info.data.get("dev_mode")) if value is None else value

    @field_validator("rate_limit_redis_url")
    @classmethod
    def _validate_redis_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError("must be redis://HOST:PORT/DATABASE, or rediss:// for TLS")
        return value

    @property
    def authenticates_callers(self) -> bool:
        """Whether callers must show who they are."""
        return self.policy_file is not None

    @property
    def jwt_leeway(self) -> timedelta:
        """How far the clocks of issuers of tokens may be off."""
        return timedelta(seconds=self.jwt_leeway_seconds)

    @property
    def refresh_buffer(self) -> timedelta:
        """How long before its end a token is renewed."""
        return timedelta(seconds=self.refresh_buffer_seconds)

    @property
    def refresh_lease(self) -> timedelta:
        """How long one server has a refresh to itself."""
        return timedelta(seconds=self.refresh_lease_seconds)

    @property
    def revocation_give_up(self) -> timedelta:
        """How long it is tried to revoke what was disconnected."""
        return timedelta(hours=self.revocation_give_up_hours)

    @property
    def data_key_max_age(self) -> timedelta | None:
        """How old a data key may become before a server replaces it; None for as old as it likes."""
        return timedelta(days=self.data_key_max_age_days) if self.data_key_max_age_days else None

    @property
    def data_key_activation(self) -> timedelta:
        """How long a data key is known before it is used."""
        return timedelta(seconds=self.data_key_activation_seconds)

    @property
    def shutdown_grace(self) -> timedelta:
        """How long calls in flight may take after a signal to stop."""
        return timedelta(seconds=self.shutdown_grace_seconds)

    @property
    def provider_timeout(self) -> timedelta:
        """What one call to a provider may take, from connecting to the last byte."""
        return timedelta(seconds=self.provider_timeout_seconds)

    @property
    def max_response_bytes(self) -> int:
        """Bytes that the body of a provider's answer may have: with its headers it must fit into a message."""
        return min(self.proxy_max_response_bytes, max(1, self.grpc_max_message_bytes - _RESPONSE_HEADERS_BYTES))

    @property
    def health_check_timeout(self) -> timedelta:
        """What one provider may take for a health check."""
        return timedelta(seconds=self.health_check_timeout_seconds)

    @property
    def health_check_interval(self) -> timedelta | None:
        """How long after a check the next one comes; None: only when asked for."""
        return timedelta(seconds=self.health_check_interval_seconds) if self.health_check_interval_seconds else None

    @property
    def health_history(self) -> timedelta:
        """How long checks are kept."""
        return timedelta(days=self.health_history_days)

    @property
    def webhook_retention(self) -> timedelta:
        """How long what webhooks have brought is kept, read or not."""
        return timedelta(days=self.webhook_retention_days)

    @property
    def webhook_secret_grace(self) -> timedelta:
        """How long a webhook secret stays good after a new one is set."""
        return timedelta(hours=self.webhook_secret_grace_hours)

    @property
    def event_retention(self) -> timedelta:
        """How old a cursor of those who watch may become."""
        return timedelta(days=self.event_retention_days)


_LOOPBACK = Address("127.0.0.1", 0)
_RESPONSE_HEADERS_BYTES = 128 * 1024  # bytes; a provider may send 100 KiB of them


def is_url(text: str) -> bool:
    """Whether a setting that takes a path or an address is given an address."""
    return "://" in text


def _requires_key(info: ValidationInfo) -> bool:
    """Whether the settings are for a command that opens what is stored."""
    return info.context is None or bool(info.context["needs_key"])


def _authenticates(info: ValidationInfo) -> bool:
    return any(info.data.get(name) for name in ("tls_client_ca_file", "jwt_jwks", "user_jwt_jwks"))


def _require_file(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ValueError(f"{path} is not a file")
    return path


def _require_jwks_url(url: str, info: ValidationInfo) -> str:
    """Where keys are published: who can change what comes from there is whoever it wants to be."""
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and _is_loopback(parts.hostname or "") and info.data.get("dev_mode")
    if not parts.hostname or (parts.scheme != "https" and not is_local):
        raise ValueError(f"{url!r} must be https (http only on loopback, in dev mode)")
    return url


def _require_browser_url(url: str, info: ValidationInfo) -> str:
    """An address that a browser may be sent to: https, or http on loopback, without a fragment (RFC 6749 §3.1.2)."""
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.fragment:
        raise ValueError(f"{url!r} is not an absolute http(s) address without a fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError(f"{url!r} must be https, except on loopback")
    return url


def read_environment(directory: Path) -> dict[str, str]:
    """The environment variables, over those of `.env` in the directory where there is one."""
    from_file = {name: value for name, value in dotenv_values(directory / ".env").items() if value is not None}
    return {**from_file, **os.environ}


def _name(location: tuple[Any, ...]) -> str:
    return str(location[0]).upper() + "".join(f"[{part}]" for part in location[1:] if isinstance(part, int))


def _problem_text(message: str) -> str:
    return message.removeprefix("Value error, ")
