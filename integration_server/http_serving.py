"""Serves an HTTP app with uvicorn in the caller's event loop, and resets connections.

Imports no other module of this package.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn


class SignalFreeServer(uvicorn.Server):
    """Installs no signal handlers; they belong to the owner of the process."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def reset_connection(transport: asyncio.Transport) -> None:
    """Reset a connection: with a linger time of zero, closing sends RST instead of FIN. Unsent data is lost."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


@asynccontextmanager
async def serving_http(server: SignalFreeServer, host: str, port: int) -> AsyncIterator[str]:
    """Serve until exit; yields the local base URL. Port 0 selects a free port.

    Raises `OSError`, with the address in it, if the port is taken; uvicorn alone would exit the process.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        # Accepted sockets inherit the option. asyncio sets it only on sockets that were created with the number of the
        # protocol. Without it the second segment of a response waits about 40 ms for an acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The socket listens already: requests that arrive before the server runs wait in the backlog.
        serving = asyncio.create_task(server.serve([listener]), name="http server")
        host, port = listener.getsockname()[:2]
        try:
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        finally:
            server.should_exit = True
            await serving
