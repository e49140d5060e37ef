"""Access to the connection of a request, which some faults need."""

import asyncio
import socket
import struct
from typing import Final

from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

# With a linger time of zero, closing sends RST instead of FIN.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class TransportExposingProtocol(H11Protocol):
    """uvicorn's protocol, which adds its transport to the state of each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


def reset(request: Request) -> None:
    """Reset the request's connection. Data that was not received yet may be lost."""
    transport: asyncio.Transport = request.state.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the connection is closed, by the client, a reset, or the end of the sandbox."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
