"""A small HTTP server on loopback that a test writes a handler for: a provider of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.loopback import accepting


@dataclass(frozen=True)
class Received:
    """A request. Header names are lower case; a repeated parameter has its first value."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        """The form in the body."""
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}

    @property
    def json(self) -> Any:
        """The JSON value in the body."""
        return json.loads(self.body)


Handler = Callable[[Received], tuple[int, Any] | tuple[int, Any, Sequence[tuple[str, str]]]]
"""Returns a status and a JSON value, and headers if there are any."""


@dataclass
class SmallServer:
    """The requests that arrived, and the handler that responds to them."""

    handle: Handler
    url: str = ""
    received: list[Received] = field(default_factory=list)

    def calls(self, path: str) -> list[Received]:
        """The requests for a path."""
        return [one for one in self.received if one.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection."""
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, target, _ = head[0].split(" ")
            parts = urlsplit(target)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            request = Received(method, parts.path, query, headers, body)
            self.received.append(request)
            status, value, *more = self.handle(request)
            content = json.dumps(value).encode()
            headers_sent = "".join(f"{name}: {text}\r\n" for name, text in (more[0] if more else ())).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
                % (status, headers_sent, len(content), content)
            )
            await writer.drain()


@asynccontextmanager
async def run_small_server(handle: Handler) -> AsyncIterator[SmallServer]:
    """Run a server."""
    small = SmallServer(handle)
    async with accepting(small.serve, backlog=200) as port:
        small.url = f"http://127.0.0.1:{port}"
        yield small
