"""Serves a sandbox over loopback HTTP, inside the event loop of whoever runs it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from integration_server.sandbox.app import create_app
from integration_server.sandbox.state import Sandbox
from integration_server.sandbox.transport import TransportExposingProtocol


@asynccontextmanager
async def run_sandbox(sandbox: Sandbox, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Yields the base URL, which becomes the sandbox's issuer. Port 0 takes one that is free."""
    async with serving(create_app(sandbox), host, port) as base_url:
        sandbox.issuer = base_url
        yield base_url


@asynccontextmanager
async def serving(app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serves an application, and yields its base URL.

    Requests under way at the end are cut off, as by a process that dies: a fault may hold one for ever.
    """
    with socket.create_server((host, port)) as listener:
        # Accepted sockets inherit it. asyncio would not set it on these, and answers would wait 40 ms for nothing.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        base_url = f"http://{host}:{listener.getsockname()[1]}"
        server = _QuietServer(
            uvicorn.Config(
                _suppress_cancellation(app),
                http=TransportExposingProtocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                # Seconds; longer than clients keep their connections.
                timeout_keep_alive=75,
                # Seconds; for connections that arrive in the very moment in which the others are cut off.
                timeout_graceful_shutdown=1,
            )
        )
        # The socket listens already: a request that comes before the server is up waits in its backlog.
        serving = asyncio.create_task(server.serve([listener]), name="sandbox")
        try:
            yield base_url
        finally:
            server.should_exit = True
            await serving


class _QuietServer(uvicorn.Server):
    """Leaves the process's signals to whoever owns the process, and waits for nobody when it stops."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The connections first: uvicorn has nothing to say about a request whose client is gone.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for request in self.server_state.tasks:
            request.cancel()
        await super().shutdown(sockets)


def _suppress_cancellation(app: ASGIApp) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        # Only `shutdown` cancels a request, and uvicorn would print a traceback.
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return wrapped
