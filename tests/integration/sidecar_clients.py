"""The sidecar over a fake server, and HTTP clients that send raw bytes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import httpx

from integration_server.domain.peers import parse_networks
from integration_server.sidecar.http_limits import HttpLimits
from integration_server.sidecar.server import run_sidecar
from tests.fakes.limits import LIMITS
from tests.unit.sidecar.fakes import FakeServer

DEADLINE = 60.0  # seconds; the machine may be busy


@dataclass
class RawConnection:
    """A client connection that sends raw bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with suppress(OSError):  # the server may have closed the connection
            await self.writer.drain()

    async def drip(self, data: bytes, every: float = 0.05) -> NoReturn:
        """Send `data` repeatedly."""
        while True:
            await self.send(data)
            await asyncio.sleep(every)

    async def response(self) -> bytes:
        """The head of one response, whose body is read too."""
        async with asyncio.timeout(DEADLINE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split()[0])
            await self.reader.readexactly(length)
            return head

    async def received(self) -> bytes:
        """All data until the server closes the connection."""
        data = bytearray()
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionError):
                while more := await self.reader.read(65536):
                    data += more
        return bytes(data)


@asynccontextmanager
async def connect(port: int, source: str = "127.0.0.1") -> AsyncIterator[RawConnection]:
    """A connection, from any address of the loopback network."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def serving_sidecar(
    limits: HttpLimits = LIMITS, server: FakeServer | None = None, proxies: str = ""
) -> AsyncIterator[int]:
    """The sidecar; yields its port."""
    sidecar = run_sidecar(
        server=server or FakeServer(),
        host="127.0.0.1",
        port=0,
        limits=limits,
        public_url="",
        trusted_proxies=parse_networks(proxies),
    )
    async with sidecar as url:
        yield httpx.URL(url).port or 0


def send_blocking(port: int, data: bytes) -> bytes:
    """Send `data` from another thread, so that its CPU time is not that of the loop, and return the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as client:
        with suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        received = bytearray()
        with suppress(ConnectionError):
            while more := client.recv(65536):
                received += more
        return bytes(received)
