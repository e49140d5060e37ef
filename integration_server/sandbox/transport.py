"""Access to the connection of a request, which some faults need."""

import asyncio

from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol


class TransportExposingProtocol(H11Protocol):
    """uvicorn's protocol, which adds its transport to the state of each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the connection is closed, by the client, a reset, or the end of the sandbox."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
