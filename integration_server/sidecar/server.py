"""Serves the sidecar's app with uvicorn in the caller's event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import uvicorn

from integration_server.sidecar.app import create_app
from integration_server.sidecar.grpc_client import ServerClient
from integration_server.sidecar.http_timeouts import limited_protocol
from integration_server.sidecar.middleware import HttpLimits


@asynccontextmanager
async def run_sidecar(
    *, server: ServerClient, host: str, port: int, limits: HttpLimits, public_url: str
) -> AsyncIterator[str]:
    """Run the sidecar; yields its local base URL. Port 0 selects a free port. Closes `server` at the end.

    Raises `OSError`, with the address in it, if the port is taken. The gRPC server may start later: until then
    `/readyz` responds 503. At exit the listener closes, and requests in progress have 5 seconds to finish.
    """
    config = uvicorn.Config(
        create_app(server, limits, public_url),
        http=limited_protocol(limits),
        ws="none",
        lifespan="off",
        # uvicorn's access log contains the query, and its TRACE level whole requests, both with code and state.
        access_log=False,
        log_config=None,
        log_level="warning",
        # Nothing here depends on the client's address, so headers of proxies are not read.
        proxy_headers=False,
        server_header=False,
        # Each accepted connection is an open file before it is counted.
        backlog=64,
        timeout_keep_alive=round(limits.keepalive_timeout.total_seconds()),
        # For an incomplete head; `RequestLimits` measures complete ones.
        h11_max_incomplete_event_size=limits.head_bytes,
        # Seconds. Most requests wait for one response of a provider, which rarely takes longer.
        timeout_graceful_shutdown=5,
    )
    async with aclosing(server):
        with _listener(host, port) as listener:
            http = _SignalFreeServer(config)
            # The socket listens already: requests that arrive before the server runs wait in the backlog.
            serving = asyncio.create_task(http.serve([listener]), name="sidecar")
            try:
                yield _local_url(listener)
            finally:
                http.should_exit = True
                await serving


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket of our own. uvicorn would exit the process if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # Accepted sockets inherit the option. asyncio sets it only on sockets that were created with the number of the
    # protocol. Without it the second segment of a response waits about 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _local_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _SignalFreeServer(uvicorn.Server):
    """Installs no signal handlers; they belong to the owner of the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
