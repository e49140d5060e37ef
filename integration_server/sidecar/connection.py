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

from integration_server.pem import certificate_problems, pair_problems
from integration_server.reloading import Contents, Reloaded, Unusable
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

_GRACE = 30.0  # seconds for calls on a channel that is replaced: longer than the deadline of any


@dataclass(frozen=True, slots=True)
class Papers:
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
class _Line:
    """A channel with what goes over it."""

    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]] = field(repr=False)
    service: "IntegrationServiceAsyncStub"
    health: Any  # its stub has no types


class Connection:
    """The RPCs that the sidecar calls. Raises `Unusable` where its papers cannot be read."""

    def __init__(self, target: str, papers: Papers | None = None) -> None:
        self._target = target
        self._papers = papers or Papers()
        self._lines = Reloaded("sidecar credentials", self._papers.paths, self._open)
        self._closing: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Read the papers again."""
        before = self._lines.value
        await self._lines.look()
        if self._lines.value is not before:
            task = asyncio.create_task(before.channel.close(_GRACE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """End all calls."""
        await self._lines.value.channel.close()
        for task in self._closing:
            task.cancel()

    def handle_callback(self, request: HandleCallbackRequest, *, timeout: float) -> Awaitable[HandleCallbackResponse]:
        """The RPC. `timeout` is in seconds."""
        line = self._lines.value
        return line.service.HandleCallback(request, timeout=timeout, metadata=line.metadata)

    def receive_webhook(self, request: ReceiveWebhookRequest, *, timeout: float) -> Awaitable[ReceiveWebhookResponse]:
        """The RPC. `timeout` is in seconds."""
        line = self._lines.value
        return line.service.ReceiveWebhook(request, timeout=timeout, metadata=line.metadata)

    def check_health(self, request: HealthCheckRequest, *, timeout: float) -> Awaitable[HealthCheckResponse]:
        """The RPC. `timeout` is in seconds."""
        line = self._lines.value
        answer: Awaitable[HealthCheckResponse] = line.health.Check(request, timeout=timeout, metadata=line.metadata)
        return answer

    def _open(self, contents: Contents) -> _Line:
        token = _token(self._papers.token, contents)
        channel = self._channel(contents)
        return _Line(channel, token, IntegrationServiceStub(channel), HealthStub(channel))

    def _channel(self, contents: Contents) -> grpc.aio.Channel:
        papers = self._papers
        if papers.authorities is None:
            return grpc.aio.insecure_channel(self._target, options=_CHANNEL_OPTIONS)
        problems = list(certificate_problems(papers.authorities, contents[papers.authorities]))
        key = certificate = None
        if papers.key is not None and papers.certificate is not None:
            key, certificate = contents[papers.key], contents[papers.certificate]
            problems += pair_problems(papers.certificate, certificate, papers.key, key)
        if problems:
            raise Unusable(*problems)
        credentials = grpc.ssl_channel_credentials(contents[papers.authorities], key, certificate)
        name = [] if papers.server_name is None else [("grpc.ssl_target_name_override", papers.server_name)]
        return grpc.aio.secure_channel(self._target, credentials, options=[*_CHANNEL_OPTIONS, *name])


def _token(path: Path | None, contents: Contents) -> Sequence[tuple[str, str]]:
    if path is None:
        return ()
    try:
        token = contents[path].decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token:
        raise Unusable(f"{path}: is not a token")
    return [("authorization", f"Bearer {token}")]
