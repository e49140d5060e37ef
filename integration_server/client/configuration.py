"""How the client reaches and authenticates to the server: parameters, environment variables, and files."""

import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from integration_server.client.rpcs import service_config

Token = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""A token (JWT), or a function that returns one, which is called for each call; an async one only for asyncio."""

ChannelOptions = Sequence[tuple[str, str | int]]

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:", "vsock:")
_NOT_IN_HOSTS = re.compile(r"[\s\x00-\x1f\x7f@?#]")
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class SecretText(str):
    """Text that is not printed where it is a local variable, or in a list."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


class ConfigurationError(ValueError):
    """The client is not configured correctly. The message names the parameters or variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How to reach the server.

    `tls`: None means TLS, except to an address of this machine. Without `ca_file` the system's authorities are trusted.
    `cert_file` and `key_file` authenticate the client, as does the token. `server_name` is the name in the server's
    certificate, if it differs from the host of the address. `channel_options` are added to those of the client.
    """

    address: str
    token: Token | None = field(default=None, repr=False)
    token_file: Path | None = None
    tls: bool | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    channel_options: ChannelOptions = ()

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` for parameters that contradict each other."""
        if not self.address:
            raise ConfigurationError("address: is empty; set it, or INTEGRATIONS_ADDRESS, such as dns:///host:50051")
        _check_address(self.address)
        if self.token is not None and self.token_file is not None:
            raise ConfigurationError("token, token_file: set one of them")
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigurationError("cert_file, key_file: set both of them, or none")
        if self.tls is False and (self.ca_file or self.cert_file):
            raise ConfigurationError("tls: is false, and ca_file or cert_file is set")

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, channel_options: ChannelOptions = ()) -> Self:
        """Return the configuration in environment variables. An empty variable counts as not set, a blank one too."""
        values = _values(os.environ if environment is None else environment)
        del environment  # some reporters of errors print local variables

        def path(name: str) -> Path | None:
            return Path(values[name]) if name in values else None

        return cls(
            address=values.get("INTEGRATIONS_ADDRESS", ""),
            token=values.get("INTEGRATIONS_TOKEN"),
            token_file=path("INTEGRATIONS_TOKEN_FILE"),
            tls=_parse_tls(values.get("INTEGRATIONS_TLS")),
            ca_file=path("INTEGRATIONS_CA_FILE"),
            cert_file=path("INTEGRATIONS_CERT_FILE"),
            key_file=path("INTEGRATIONS_KEY_FILE"),
            server_name=values.get("INTEGRATIONS_SERVER_NAME"),
            channel_options=channel_options,
        )

    @property
    def target(self) -> str:
        """The address as gRPC's name syntax has it; a host is looked up in the DNS."""
        return self.address if self.address.startswith(_SCHEMES) else f"dns:///{self.address}"

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        if self.tls is not None:
            return self.tls
        return bool(self.ca_file or self.cert_file) or not _is_local(self.target)

    @property
    def options(self) -> ChannelOptions:
        """The options of the channel."""
        name = [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]
        return [
            ("grpc.service_config", service_config()),
            ("grpc.primary_user_agent", f"integration-server-client/{_version()}"),
            # The server is on a private network, so a proxy from the environment is ignored.
            ("grpc.enable_http_proxy", 0),
            # Finds a restarted server within two seconds; the default backoff grows to two minutes.
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Finds a dead connection below a stream within 40 s. The server takes pings every 10 s for an attack.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # More than the server's GRPC_MAX_MESSAGE_BYTES, which operators may raise.
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            *name,
            *self.channel_options,
        ]


def _check_address(address: str) -> None:
    """Raise `ConfigurationError` for what gRPC would look for until each call's deadline."""
    scheme = next((scheme for scheme in _SCHEMES if address.startswith(scheme)), "")
    if scheme not in ("", "dns:"):
        return
    if not scheme and "://" in address:
        raise ConfigurationError("address: is a URL; it has to be host:port, and tls (INTEGRATIONS_TLS) true or false")
    rest = address.removeprefix(scheme).rpartition("/")[2]
    try:
        host, port = urlsplit(f"//{rest}").hostname, urlsplit(f"//{rest}").port
    except ValueError:
        host, port = None, None
    if _NOT_IN_HOSTS.search(rest):
        host = None
    if not host or port == 0 or (port is None and (not scheme or rest.endswith(":"))):
        raise ConfigurationError("address: needs a host and a port, such as integrations:50051 or [::1]:50051")


def _values(environment: Mapping[str, str]) -> Mapping[str, str]:
    ours = {name: value.strip() for name, value in environment.items() if name.startswith("INTEGRATIONS_")}
    variables = {name: value for name, value in ours.items() if value}
    return {name: SecretText(value) if name == "INTEGRATIONS_TOKEN" else value for name, value in variables.items()}


def _parse_tls(text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() not in _BOOLEANS:
        raise ConfigurationError(f"INTEGRATIONS_TLS: is neither true nor false: {text}")
    return _BOOLEANS[text.lower()]


def _is_local(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return True
    scheme, _, rest = target.partition(":")
    host = urlsplit(f"//{rest.rpartition('/')[2]}").hostname or ""
    if scheme == "ipv6" and not rest.startswith("["):
        host = rest
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _version() -> str:
    try:
        return version("integration-server")
    except PackageNotFoundError:  # run from a source tree
        return "0"
