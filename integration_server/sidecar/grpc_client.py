"""The sidecar's gRPC client: its channel to the server, with TLS and the sidecar's own credentials.

Certificates and tokens are files that are renewed from outside, some of them every few hours. `poll` reads them again,
and a channel with the new certificate replaces the previous one.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from integration_server.hot_reload import Contents, InvalidFile, ReloadedFile
from integration_server.observability.observed_calls import REQUEST_ID, TRACEPARENT, CallIds, current_ids
from integration_server.observability.spans import OpenSpan
from integration_server.pem_validation import certificate_problems, pair_problems, validity_period
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
    # The server is on a private network, so a proxy from the environment is ignored.
    ("grpc.enable_http_proxy", 0),
    # Finds a restarted server within two seconds; the default backoff grows to two minutes.
    ("grpc.max_reconnect_backoff_ms", 2000),
)

T = TypeVar("T")

SERVICE = "integrations.v1.IntegrationService"

_READY = grpc.ChannelConnectivity.READY

_CHANNEL_CLOSE_GRACE = 30.0  # seconds for calls on a replaced channel; longer than any deadline


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files that authenticate the server and the sidecar. Without `authorities` the channel is plaintext.

    `server_name` is the name in the server's certificate, if it differs from the host of the target.
    """

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None
    server_name: str | None = None

    @property
    def paths(self) -> Sequence[Path]:
        """The files that are set."""
        return [path for path in (self.authorities, self.certificate, self.key, self.token) if path is not None]


@dataclass(frozen=True, slots=True)
class _ChannelState:
    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]] = field(repr=False)
    service: "IntegrationServiceAsyncStub"
    health: Any  # its stub has no types

    def metadata_of_call(self) -> Sequence[tuple[str, str]]:
        """The metadata of a call now, with the ids of the request that it is made for."""
        return [*self.metadata, *_metadata_of_ids(current_ids.get())]


@dataclass(frozen=True, slots=True)
class _Channels:
    """A channel to each worker of the server, and the index of the one that is next in turn."""

    states: Sequence[_ChannelState]
    turns: Iterator[int]

    def next(self) -> _ChannelState:
        """The next channel that is connected, while none is the next one.

        A call over a channel to a worker that has ended fails at once. Asking for the state lets a channel connect.
        """
        first = next(self.turns) % len(self.states)
        in_turn = [*self.states[first:], *self.states[:first]]
        if len(in_turn) == 1:
            return in_turn[0]
        connected = [state for state in in_turn if state.channel.get_state(try_to_connect=True) is _READY]
        return (connected or in_turn)[0]

    async def close(self, grace: float | None = None) -> None:
        """Close all channels; calls have `grace` seconds to finish."""
        await asyncio.gather(*(state.channel.close(grace) for state in self.states))


class ServerClient:
    """Calls the server's RPCs; each `timeout` is in seconds. Raises `InvalidFile` if a TLS file cannot be used.

    Calls take turns over the `targets`, the workers of one server. `token` authenticates the sidecar, unless a file of
    `tls_files` has its token.
    """

    def __init__(self, *targets: str, tls_files: TlsFiles | None = None, token: str | None = None) -> None:
        self._targets = targets
        self._token = token
        self._tls_files = tls_files or TlsFiles()
        self._reloaded = ReloadedFile("sidecar credentials", self._tls_files.paths, self._open)
        self._channels = self._reloaded.value
        self._open_span: OpenSpan | None = None
        self._closing_channels: set[asyncio.Task[None]] = set()

    async def poll(self) -> None:
        """Read the files again, and replace the channels if they have changed."""
        await self._reloaded.poll()
        if self._reloaded.value is not self._channels:
            task = asyncio.create_task(self._channels.close(_CHANNEL_CLOSE_GRACE))
            self._channels = self._reloaded.value
            self._closing_channels.add(task)
            task.add_done_callback(self._closing_channels.discard)

    def validity_periods(self) -> Mapping[str, tuple[datetime, datetime]]:
        """Return begin and end of the validity of the certificates in use, by their role."""
        files = {"sidecar": self._tls_files.certificate, "sidecar_ca": self._tls_files.authorities}
        contents = self._reloaded.contents_in_use
        return {name: validity_period(contents[path]) for name, path in files.items() if path is not None}

    async def aclose(self) -> None:
        """Close the channels and cancel their calls."""
        await self._channels.close()
        for task in self._closing_channels:
            task.cancel()

    def handle_callback(self, request: HandleCallbackRequest, *, timeout: float) -> Awaitable[HandleCallbackResponse]:
        """Call `HandleCallback`."""
        return self._call(
            "HandleCallback",
            lambda state: state.service.HandleCallback(request, timeout=timeout, metadata=state.metadata_of_call()),
        )

    def receive_webhook(self, request: ReceiveWebhookRequest, *, timeout: float) -> Awaitable[ReceiveWebhookResponse]:
        """Call `ReceiveWebhook`."""
        return self._call(
            "ReceiveWebhook",
            lambda state: state.service.ReceiveWebhook(request, timeout=timeout, metadata=state.metadata_of_call()),
        )

    def check_health(self, request: HealthCheckRequest, *, timeout: float) -> Awaitable[HealthCheckResponse]:
        """Call `Health.Check`."""
        state = self._channels.next()
        response: Awaitable[HealthCheckResponse] = state.health.Check(
            request, timeout=timeout, metadata=state.metadata_of_call()
        )
        return response

    def trace(self, open_span: OpenSpan) -> None:
        """Open a span for each call from now on, but not for health checks."""
        self._open_span = open_span

    def _call(self, name: str, call: Callable[[_ChannelState], Awaitable[T]]) -> Awaitable[T]:
        state = self._channels.next()
        return call(state) if self._open_span is None else self._call_in_span(self._open_span, name, call, state)

    async def _call_in_span(
        self, open_span: OpenSpan, name: str, call: Callable[[_ChannelState], Awaitable[T]], state: _ChannelState
    ) -> T:
        method = f"{SERVICE}/{name}"
        with open_span(method, {"rpc.system.name": "grpc", "rpc.method": method}):
            return await call(state)

    def _open(self, contents: Contents) -> _Channels:
        path = self._tls_files.token
        token = self._token if path is None else _read_token(path, contents[path])
        metadata = () if token is None else [("authorization", f"Bearer {token}")]
        channels = [self._channel(target, contents) for target in self._targets]
        states = [
            _ChannelState(channel, metadata, IntegrationServiceStub(channel), HealthStub(channel))
            for channel in channels
        ]
        return _Channels(states, itertools.count())

    def _channel(self, target: str, contents: Contents) -> grpc.aio.Channel:
        files = self._tls_files
        if files.authorities is None:
            return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        problems = list(certificate_problems(files.authorities, contents[files.authorities]))
        key = certificate = None
        if files.key is not None and files.certificate is not None:
            key, certificate = contents[files.key], contents[files.certificate]
            problems += pair_problems(files.certificate, certificate, files.key, key)
        if problems:
            raise InvalidFile(*problems)
        credentials = grpc.ssl_channel_credentials(contents[files.authorities], key, certificate)
        name = [] if files.server_name is None else [("grpc.ssl_target_name_override", files.server_name)]
        return grpc.aio.secure_channel(target, credentials, options=[*_CHANNEL_OPTIONS, *name])


def _read_token(path: Path, content: bytes) -> str:
    token = content.decode("ascii", errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise InvalidFile(f"{path}: is not a token")
    return token


def _metadata_of_ids(ids: CallIds | None) -> list[tuple[str, str]]:
    """The metadata with which a call to the server continues a request."""
    if ids is None:
        return []
    trace = [(TRACEPARENT, ids.traceparent)] if ids.traceparent else []
    return [(REQUEST_ID, ids.request_id), *trace]
