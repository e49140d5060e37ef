"""What HTTP servers hide and some faults need: the connection under a request."""

import asyncio
import socket
import struct
from typing import Final

from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

# The linger time is on, and zero: what closes then sends RST, and not the FIN of an orderly end.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class TransportExposingProtocol(H11Protocol):
    """uvicorn's protocol, which hands each request its transport along."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


def reset(request: Request) -> None:
    """Reset the request's connection. What was sent but not yet received may be lost with it."""
    transport: asyncio.Transport = request.state.transport
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


async def wait_for_disconnect(request: Request) -> None:
    """Until the connection is gone: the client left, it was reset, or the sandbox stops."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
