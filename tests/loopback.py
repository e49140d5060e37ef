"""Servers on loopback whose connections a test serves itself."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

ConnectionHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one connection, which is closed when it returns, or when the client has closed it."""


@asynccontextmanager
async def accepting(
    serve: ConnectionHandler, *, tls: ssl.SSLContext | None = None, backlog: int = 100
) -> AsyncIterator[int]:
    """Accept connections, and serve each in a task; the port. No connection outlives the block."""
    connections: list[tuple[asyncio.StreamWriter, asyncio.Task[None]]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append((writer, asyncio.get_running_loop().create_task(handle(reader, writer))))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, backlog=backlog)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer, task in connections:
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for _, task in connections), return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the sockets in its next iteration
