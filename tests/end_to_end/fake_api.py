"""A provider's API on loopback that records each call, and rejects calls with 429 for a time."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.loopback import accepting


@dataclass
class FakeApi:
    """The calls that arrived: time and API key."""

    url: str = ""
    arrivals: list[tuple[float, str]] = field(default_factory=list)
    rejection_times: list[float] = field(default_factory=list)
    rejects_until: float = 0.0
    raw: list[bytes] = field(default_factory=list)

    def max_within(self, seconds: float) -> int:
        """The largest number of calls in any interval of this length in seconds."""
        times = sorted(moment for moment, _ in self.arrivals)
        return max((sum(begin <= other < begin + seconds for other in times) for begin in times), default=0)

    def by_key(self) -> Counter[str]:
        """The number of calls per API key."""
        return Counter(key for _, key in self.arrivals)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of one connection."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            headers = dict(
                line.lower().split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ": " in line
            )
            await reader.readexactly(int(headers.get("content-length", "0")))
            writer.write(self._respond(head, headers.get("x-api-key", "")))
            await writer.drain()

    def _respond(self, head: bytes, key: str) -> bytes:
        now = time.monotonic()
        if head.startswith(b"GET /verify "):
            body = b'{"id": "' + key.encode() + b'"}'
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        self.raw.append(head)
        if now < self.rejects_until:
            self.rejection_times.append(now)
            left = max(1, round(self.rejects_until - now + 0.5))
            return b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % left
        self.arrivals.append((now, key))
        return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def run_fake_api(api: FakeApi | None = None) -> AsyncIterator[FakeApi]:
    """Run the API."""
    api = api or FakeApi()
    async with accepting(api.serve, backlog=1000) as port:
        api.url = f"http://127.0.0.1:{port}"
        yield api


def declare_api(directory: Path, api: FakeApi, limits: str = "") -> None:
    """Declare the API as the integration type "acme", which accepts any key."""
    assert urlsplit(api.url).hostname == "127.0.0.1"
    (directory / "acme.toml").write_text(f"""\
integration_type = "acme"
auth_method = "api_key"
verify_url = "{api.url}/verify"
account_id_field = "id"
api_base_url = "{api.url}/v1"
api_key_header = "X-Api-Key"
{limits}
""")
