"""A provider on loopback HTTP, which accepts the secrets of some generations, and a source of such secrets."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from integration_server.client.credentials import Credentials

Scheme = Literal["bearer", "header", "query", "basic"]
_GENERATION = re.compile(r"s3cret-g(\d+)")
_AWS_ERROR = "<Error><Code>ExpiredToken</Code><Message>rejected</Message></Error>"
_AWS_BUCKETS = "<ListAllMyBucketsResult><Owner><ID>1</ID></Owner><Buckets></Buckets></ListAllMyBucketsResult>"


class FakeSource:
    """Secrets in generations, each of which ends the one before. `renewals` counts those that `renew` caused."""

    def __init__(self, scheme: Scheme = "bearer") -> None:
        self.renewals = 0
        self.has_newer = True
        self.lifetime = timedelta(hours=1)
        self._scheme = scheme
        self._lock = threading.Lock()
        self._generation = 1
        self._current = self._issue()

    def credentials(self, min_ttl: timedelta | None = None) -> Credentials:
        """The current secret."""
        return self._current

    def renew(self, rejected: Credentials) -> Credentials:
        """The next secret, once for callers that have the same one rejected."""
        with self._lock:
            if rejected.has_same_secret(self._current) and self.has_newer:
                self.renewals += 1
                self.rotate()
            return self._current

    def rotate(self) -> None:
        """Begin a generation, as if another process had renewed the secret."""
        self._generation += 1
        self._current = self._issue()

    def _issue(self) -> Credentials:
        secret = f"s3cret-g{self._generation}"
        expire_time = datetime.now(UTC) + self.lifetime
        issued = Credentials(integration_id=7, integration_type="example", expire_time=expire_time, scopes=("read",))
        match self._scheme:
            case "bearer":
                return replace(issued, access_token=secret, headers={"Authorization": f"Bearer {secret}"})
            case "header":
                return replace(issued, api_key=secret, headers={"X-Api-Key": secret})
            case "query":
                return replace(issued, api_key=secret, query={"api_key": secret})
            case "basic":
                sid = f"AC{1:032}"
                pair = base64.b64encode(f"{sid}:{secret}".encode()).decode()
                return replace(issued, api_key=sid, api_secret=secret, headers={"Authorization": f"Basic {pair}"})


class AsyncFakeSource(FakeSource):
    """`FakeSource` for asyncio."""

    async def credentials(self, min_ttl: timedelta | None = None) -> Credentials:  # type: ignore[override]
        """The current secret."""
        return super().credentials(min_ttl)

    async def renew(self, rejected: Credentials) -> Credentials:  # type: ignore[override]
        """The next secret, once for callers that have the same one rejected."""
        return super().renew(rejected)


class AwsSource(FakeSource):
    """Keys of AWS: the id of the access key has the generation, because no request has the secret."""

    def _issue(self) -> Credentials:
        return Credentials(integration_id=7, api_key=f"s3cret-g{self._generation}", api_secret="aws-secret")


@dataclass(frozen=True)
class Received:
    """A request that the provider has received; `secrets` are the generations of the secrets in it."""

    method: str
    path: str
    body: bytes
    secrets: frozenset[int]


@dataclass
class Provider:
    """What the provider accepts, and what it has received."""

    url: str
    valid: set[int] = field(default_factory=lambda: {1})
    valid_for: dict[str, set[int]] = field(default_factory=dict)  # by path
    received: list[Received] = field(default_factory=list)
    redirects: dict[str, tuple[int, str]] = field(default_factory=dict)
    challenge: str = 'Bearer error="invalid_token"'
    next_cursor: str = ""

    @property
    def secrets(self) -> list[list[int]]:
        """The generations of the secrets in each request."""
        return [sorted(request.secrets) for request in self.received]


@contextmanager
def running_provider() -> Iterator[Provider]:
    """Run a provider in threads."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        provider = server.provider = Provider(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    provider: Provider


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _respond(self) -> None:
        provider = self.server.provider
        received = self._receive()
        provider.received.append(received)
        path = urlsplit(self.path).path
        accepted = bool(received.secrets & provider.valid_for.get(path, provider.valid))
        if accepted and path in provider.redirects:
            status, target = provider.redirects[path]
            self._send(status, b"", {"Location": target})
        elif "AWS4" in self.headers.get("Authorization", ""):
            self._send(200 if accepted else 403, (_AWS_BUCKETS if accepted else _AWS_ERROR).encode(), {})
        elif path.startswith("/slack/"):
            more = {"response_metadata": {"next_cursor": provider.next_cursor}}
            self._send_json(200, {"ok": True, **more} if accepted else {"ok": False, "error": "token_expired"})
        elif accepted:
            self._send_json(200, {"id": 1, "login": "ada", "items": [], "object": "balance", "sid": "AC1"})
        else:
            message = {"message": "Bad credentials", "error": {"message": "rejected"}}
            self._send_json(401, message, {"WWW-Authenticate": provider.challenge})

    do_GET = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815 — the base class's names

    def _receive(self) -> Received:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        if authorization.startswith("Basic "):
            authorization = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        query = parse_qs(urlsplit(self.path).query).get("api_key", [])
        places = " ".join([authorization, self.headers.get("X-Api-Key", ""), *query])
        return Received(self.command, self.path, body, frozenset(map(int, _GENERATION.findall(places))))

    def _send_json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""
