"""Serves a sandbox over loopback HTTP in the caller's event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from integration_server.http_serving import SignalFreeServer, serving_http
from integration_server.sandbox.app import create_app
from integration_server.sandbox.state import Sandbox
from integration_server.sandbox.transport import TransportExposingProtocol


@asynccontextmanager
async def run_sandbox(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Run the sandbox; yields its base URL, which becomes its issuer. Port 0 selects a free port."""
    async with serving(create_app(sandbox), host, port) as base_url:
        sandbox.issuer = base_url
        yield base_url


@asynccontextmanager
async def serving(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve an app; yields its base URL.

    At the end, requests in progress are aborted, because a fault may hold one forever.
    """
    config = uvicorn.Config(
        _suppress_cancellation(app),
        http=TransportExposingProtocol,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        # Seconds; longer than clients keep idle connections.
        timeout_keep_alive=75,
        # Seconds; for connections that arrive while the others are being aborted.
        timeout_graceful_shutdown=1,
    )
    async with serving_http(_AbortingServer(config), host, port) as base_url:
        yield base_url


class _AbortingServer(SignalFreeServer):
    """Aborts all connections when it stops."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Connections first: uvicorn logs nothing about a request whose client has disconnected.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for request in self.server_state.tasks:
            request.cancel()
        await super().shutdown(sockets)


def _suppress_cancellation(app: ASGIApp) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        # Only `shutdown` cancels requests; uvicorn would log a traceback.
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return wrapped
