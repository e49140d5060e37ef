"""Serves the sidecar's app with its limits."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import uvicorn

from integration_server.http_serving import SignalFreeServer, serving_http
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
    async with aclosing(server), serving_http(SignalFreeServer(config), host, port) as url:
        yield url
