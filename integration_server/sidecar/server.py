"""Serves the sidecar over HTTP, inside the event loop of whoever runs it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc.aio
import uvicorn
from grpc_health.v1.health_pb2_grpc import HealthStub
from starlette.applications import Starlette

from integration_server.sidecar.app import create_app
from integration_server.sidecar.limits import HttpLimits
from integration_server.sidecar.protocol import limited_protocol
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

_CHANNEL_OPTIONS = (
    # The server is a neighbour: an outbound proxy from the environment has no business between.
    ("grpc.enable_http_proxy", 0),
    # A restarted server is found again in two seconds; the default lets it grow to two minutes.
    ("grpc.max_reconnect_backoff_ms", 2000),
)


@asynccontextmanager
async def run_sidecar(*, grpc_target: str, host: str, port: int, limits: HttpLimits) -> AsyncIterator[str]:
    """Yields the base URL. Port 0 takes one that is free.

    Raises `OSError`, with the address in it, if that is taken. The gRPC server may come later: until then `/readyz`
    says no. On leaving, no more connections are taken, and requests under way have some seconds to finish.
    """
    with _listener(host, port) as listener:
        async with grpc.aio.insecure_channel(grpc_target, options=_CHANNEL_OPTIONS) as channel:
            server = _QuietServer(_config(_app_on(channel, limits), limits))
            # The socket listens already: a request that comes before the server is up waits in its backlog.
            serving = asyncio.create_task(server.serve([listener]), name="sidecar")
            try:
                yield _url_of(listener)
            finally:
                server.should_exit = True
                await serving


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket of our own: uvicorn, left to bind, ends the process where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # Accepted sockets inherit it. asyncio sets it only on sockets made with the protocol's number, which these are not,
    # and without it the second half of an answer waits some 40 ms for the first to be acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _app_on(channel: grpc.aio.Channel, limits: HttpLimits) -> Starlette:
    return create_app(
        handle_callback=IntegrationServiceStub(channel).HandleCallback,
        check_health=HealthStub(channel).Check,
        limits=limits,
    )


def _config(app: Starlette, limits: HttpLimits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        lifespan="off",
        # Its access log has the query in every line, and at its TRACE level whole requests: code and state.
        access_log=False,
        log_config=None,
        log_level="warning",
        # Nothing here depends on who calls: what a proxy says about that is not read.
        proxy_headers=False,
        server_header=False,
        # As many are accepted at a time, each of them a file, before any is counted.
        backlog=64,
        timeout_keep_alive=round(limits.idle_time.total_seconds()),
        # Of a head that is not complete yet; a complete one is measured by `RequestLimits`.
        h11_max_incomplete_event_size=limits.head_bytes,
        # Seconds for requests under way: most wait for one answer of a provider, which rarely takes longer.
        timeout_graceful_shutdown=5,
    )


class _QuietServer(uvicorn.Server):
    """Leaves the process's signals to whoever owns the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
