"""A provider's API on loopback whose bodies are streams, and which ends them in odd ways."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.end_to_end.fake_api import FakeApi

PART = bytes(range(256)) * 256  # 64 KiB


@dataclass
class Upload:
    """A request as it arrived. `is_complete` says that its body had its end."""

    target: str
    headers: dict[str, str]
    size: int = 0
    digest: str = ""
    is_complete: bool = False
    is_closed: bool = False


def digest_of(parts: int) -> str:
    """The digest of a body of this many parts."""
    digest = hashlib.sha256()
    for _ in range(parts):
        digest.update(PART)
    return digest.hexdigest()


@dataclass
class StreamingApi(FakeApi):
    """Responds by the last segment of the path; `uploads` has every request but verifications.

    `take` reads a body and responds with its size and digest. `send/N` sends N parts. The others are in `_respond_to`.
    """

    uploads: list[Upload] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    accounts: int = 0
    rejected_keys: set[str] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection."""
        upload = Upload("", {})
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                target = head[0].split()[1]
                if target == "/verify":
                    self.accounts += 1
                    await respond(writer, b'{"id": "account-%d"}' % self.accounts)
                    continue
                upload = Upload(target, headers)
                self.uploads.append(upload)
                if not await self._respond_to(upload, head[0].split()[0], reader, writer):
                    return
        finally:
            upload.is_closed = True

    async def _respond_to(
        self, upload: Upload, method: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Respond to one request; whether the connection can be used again."""
        action, _, argument = upload.target.partition("?")[0].removeprefix("/v1/").partition("/")
        body = parts_of(upload, reader)
        if upload.headers.get("x-api-key") in self.rejected_keys:
            await receive(upload, body)
            await respond(writer, b"{}", b"401 Unauthorized")
        elif action == "take":
            await receive(upload, body)
            await respond(writer, f"{upload.size} {upload.digest}".encode())
        elif action == "send":
            count = int(argument)
            writer.write(b"HTTP/1.1 200 OK\r\nX-Kind: odd\r\nContent-Length: %d\r\n\r\n" % (count * len(PART)))
            for _ in range(0 if method == "HEAD" else count):
                writer.write(PART)
                await writer.drain()
        elif action == "echo":  # responds while it reads
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            async for part in body:
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
        elif action == "refuse":  # before the body, of which it reads nothing
            await respond(writer, b"too large", b"413 Payload Too Large")
            await self.gate.wait()
            return False
        elif action == "enough":  # a response that ends before the body does
            await anext(body)
            await respond(writer, b"enough")
            await self.gate.wait()
            return False
        elif action == "hang":  # takes nothing and says nothing
            await self.gate.wait()
        elif action in {"raw", "answer"}:  # exactly these bytes, for "answer" after the body, and then the end
            if action == "answer":
                await receive(upload, body)
            writer.write(bytes.fromhex(argument))
            await writer.drain()
            return False
        await writer.drain()
        return True


async def respond(writer: asyncio.StreamWriter, body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> None:
    """Send a complete response."""
    writer.write(b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body))
    await writer.drain()


async def receive(upload: Upload, body: AsyncIterator[bytes]) -> None:
    """Read a body to its end."""
    digest = hashlib.sha256()
    async for part in body:
        digest.update(part)
        upload.digest = digest.hexdigest()


async def parts_of(upload: Upload, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The parts of a request's body as they arrive."""
    if upload.headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            part = await reader.readexactly(size)
            await reader.readexactly(2)
            upload.size += size
            yield part
        await reader.readexactly(2)
    left = int(upload.headers.get("content-length", "0"))
    while left:
        part = await reader.read(min(left, 1 << 20))
        if not part:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(part)
        upload.size += len(part)
        yield part
    upload.is_complete = True
