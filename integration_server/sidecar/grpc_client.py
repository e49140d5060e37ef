"""The sidecar's way to the server: its channel, and how it shows who it is.

A certificate or token is a file that somebody else renews, within hours where they are short-lived; so both are read
again, and a channel with a new certificate takes the place of the old one.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from integration_server.hot_reload import Contents, InvalidFile, ReloadedFile
from integration_server.pem_validation import certificate_problems, pair_problems
from integrations.v1.integration_service_pb2 import (
    HandleCallbackRequest,
    HandleCallbackResponse,
    ReceiveWebhookRequest,
    ReceiveWebhookResponse,
)
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

if TYPE_CHECKING:
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

_CHANNEL_OPTIONS = (
    # The server is a neighbour: an outbound proxy from the environment has no business between.
    ("grpc.enable_http_proxy", 0),
    # A restarted server is found again in two seconds; the default lets it grow to two minutes.
    ("grpc.max_reconnect_backoff_ms", 2000),
)

_CHANNEL_CLOSE_GRACE = 30.0  # seconds for calls on a channel that is replaced: longer than the deadline of any


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files that show who the sidecar is, and who the server is. Without `authorities` the channel is in the clear.

    `server_name` is the name in the server's certificate, where it is not that of its address.
    """

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    server_name: str | None = None

    @property
    def paths(self) -> Sequence[Path]:
        """All that are given."""
        return [path for path in (self.authorities, self.certificate, self.key, self.token) if path is not None]


@dataclass(frozen=True, slots=True)
class _ChannelState:
    """A channel with what goes over it."""

    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]] = field(repr=False)
    service: "IntegrationServiceAsyncStub"
    health: Any  # its stub has no types


class ServerClient:
    """The RPCs that the sidecar calls. Raises `InvalidFile` where its papers cannot be read."""

    def __init__(self, target: str, tls_files: TlsFiles | None = None) -> None:
        self._target = target
        self._tls_files = tls_files or TlsFiles()
        self._channel_state = ReloadedFile("sidecar credentials", self._tls_files.paths, self._open)
        self._closing_channels: set[asyncio.Task[None]] = set()

    async def poll(self) -> None:
        """Read the papers again."""
        previous = self._channel_state.value
        await self._channel_state.poll()
        if self._channel_state.value is not previous:
            task = asyncio.create_task(previous.channel.close(_CHANNEL_CLOSE_GRACE))
            self._closing_channels.add(task)
            task.add_done_callback(self._closing_channels.discard)

    async def aclose(self) -> None:
        """End all calls."""
        await self._channel_state.value.channel.close()
        for task in self._closing_channels:
            task.cancel()

    def handle_callback(self, request: HandleCallbackRequest, *, timeout: float) -> Awaitable[HandleCallbackResponse]:
        """The RPC. `timeout` is in seconds."""
        state = self._channel_state.value
        return state.service.HandleCallback(request, timeout=timeout, metadata=state.metadata)

    def receive_webhook(self, request: ReceiveWebhookRequest, *, timeout: float) -> Awaitable[ReceiveWebhookResponse]:
        """The RPC. `timeout` is in seconds."""
        state = self._channel_state.value
        return state.service.ReceiveWebhook(request, timeout=timeout, metadata=state.metadata)

    def check_health(self, request: HealthCheckRequest, *, timeout: float) -> Awaitable[HealthCheckResponse]:
        """The RPC. `timeout` is in seconds."""
        state = self._channel_state.value
        response: Awaitable[HealthCheckResponse] = state.health.Check(request, timeout=timeout, metadata=state.metadata)
        return response

    def _open(self, contents: Contents) -> _ChannelState:
        token = _token(self._tls_files.token, contents)
        channel = self._channel(contents)
        return _ChannelState(channel, token, IntegrationServiceStub(channel), HealthStub(channel))

    def _channel(self, contents: Contents) -> grpc.aio.Channel:
        tls_files = self._tls_files
        if tls_files.authorities is None:
            return grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
        problems = list(certificate_problems(tls_files.authorities, contents[tls_files.authorities]))
        key = certificate = None
        if tls_files.key is not None and tls_files.certificate is not None:
            key, certificate = contents[tls_files.key], contents[tls_files.certificate]
            problems += pair_problems(tls_files.certificate, certificate, tls_files.key, key)
        if problems:
            raise InvalidFile(*problems)
        credentials = grpc.ssl_channel_credentials(contents[tls_files.authorities], key, certificate)
        name = [] if tls_files.server_name is None else [("grpc.ssl_target_name_override", tls_files.server_name)]
        return grpc.aio.secure_channel(self._target, credentials, options=[*_CHANNEL_OPTIONS, *name])


def _token(path: Path | None, contents: Contents) -> Sequence[tuple[str, str]]:
    if path is None:
        return ()
    try:
        token = contents[path].decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token:
        raise InvalidFile(f"{path}: is not a token")
    return [("authorization", f"Bearer {token}")]
