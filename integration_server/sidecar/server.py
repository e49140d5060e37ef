"""Serves the sidecar over HTTP, inside the event loop of whoever runs it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette

from integration_server.sidecar.app import create_app
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_timeouts import limited_protocol
from integration_server.sidecar.limits import HttpLimits


@asynccontextmanager
async def run_sidecar(
    *, server: ServerClient, host: str, port: int, limits: HttpLimits, public_url: str
) -> AsyncIterator[str]:
    """Yields the base URL, which outside may be `public_url`. Port 0 takes one that is free. The connection to the
    server is closed in the end.

    Raises `OSError`, with the address in it, if that is taken. The gRPC server may come later: until then `/readyz`
    says no. On leaving, no more connections are taken, and requests under way have some seconds to finish.
    """
    app = create_app(
        handle_callback=server.handle_callback,
        receive_webhook=server.receive_webhook,
        check_health=server.check_health,
        limits=limits,
        public_url=public_url,
    )
    async with aclosing(server):
        with _listener(host, port) as listener:
            http = _QuietServer(_config(app, limits))
            # The socket listens already: a request that comes before the server is up waits in its backlog.
            serving = asyncio.create_task(http.serve([listener]), name="sidecar")
            try:
                yield _url_of(listener)
            finally:
                http.should_exit = True
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
        timeout_keep_alive=round(limits.keepalive_timeout.total_seconds()),
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
