"""The listener's app: asks all processes for their metrics, and responds with the sums at `/metrics`.

A scrape asks the processes at most once a second, however many there are, and waits for each at most `_TIMEOUT`: a
process that hangs costs a scrape its own numbers, and no more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import structlog

from integration_server.observability.merging import SnapshotMerger
from integration_server.observability.metrics import Metric, Metrics
from integration_server.observability.snapshots import (
    MAX_SNAPSHOT_BYTES,
    InvalidSnapshot,
    Snapshot,
    decode_snapshot,
    take_snapshot,
)

PATH = "/metrics"

_CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"  # prometheus.io/docs/instrumenting/exposition_formats
_MAX_AGE = 1.0  # seconds; Prometheus scrapes every 15 by default
_TIMEOUT = 2.0  # seconds; a snapshot takes some 20 ms, and Prometheus waits for 10 by default


class SnapshotSource(Protocol):
    """Where the snapshot of a process comes from."""

    async def fetch(self) -> Snapshot:
        """Ask the process. Raises `OSError` or `InvalidSnapshot`."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The metrics of this process."""

    metrics: Metrics
    instance: str = "this"

    async def fetch(self) -> Snapshot:
        """Read them in another thread."""
        return await asyncio.to_thread(take_snapshot, self.metrics, self.instance)


@dataclass(frozen=True, slots=True)
class SocketSource:
    """The metrics of another process, which listens on a Unix socket. `allowed` is what it may report; None: all."""

    path: Path
    allowed: Collection[Metric] | None = None

    async def fetch(self) -> Snapshot:
        """Read a snapshot to its end."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            data = bytearray()
            while chunk := await reader.read(64 * 1024):
                data += chunk
                if len(data) > MAX_SNAPSHOT_BYTES:
                    raise InvalidSnapshot("too large")
        finally:
            writer.close()
        return await asyncio.to_thread(decode_snapshot, bytes(data), self.allowed)


@dataclass(eq=False)
class MetricsCollector:
    """Merges the metrics of all processes, given by name."""

    sources: Mapping[str, SnapshotSource]
    _: KW_ONLY
    monotonic: Callable[[], float] = time.monotonic
    max_age: float = _MAX_AGE
    timeout: float = _TIMEOUT
    merger: SnapshotMerger = field(default_factory=SnapshotMerger)

    def __post_init__(self) -> None:
        self._task: asyncio.Task[bytes] | None = None
        self._begin = 0.0
        self._log = structlog.get_logger(__name__)
        self._silent = set[str]()

    async def exposition(self) -> bytes:
        """The metrics in Prometheus' text format, at most `max_age` seconds old. All who wait share one result."""
        is_old = self.monotonic() - self._begin >= self.max_age
        if self._task is None or (self._task.done() and is_old):
            self._begin = self.monotonic()
            self._task = asyncio.create_task(self._collect())
        return await asyncio.shield(self._task)

    async def _collect(self) -> bytes:
        snapshots = await asyncio.gather(*(self._fetch(name, source) for name, source in self.sources.items()))
        return await asyncio.to_thread(self.merger.exposition, dict(zip(self.sources, snapshots, strict=True)))

    async def _fetch(self, name: str, source: SnapshotSource) -> Snapshot | None:
        """None if the process does not answer in time; logged once until it answers again."""
        try:
            async with asyncio.timeout(self.timeout):
                snapshot = await source.fetch()
        except (OSError, InvalidSnapshot) as error:  # TimeoutError is an OSError
            if name not in self._silent:
                self._silent.add(name)
                self._log.warning("metrics_not_received", name=name, kind=type(error).__qualname__)
            return None
        self._silent.discard(name)
        return snapshot


Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class MetricsApp:
    """An ASGI app that responds to GET and HEAD of `/metrics`."""

    def __init__(self, collector: MetricsCollector) -> None:
        self._collector = collector

    async def __call__(self, scope: Scope, _receive: object, send: Send) -> None:
        """Respond to a request."""
        if scope["path"] != PATH:
            await _respond(send, HTTPStatus.NOT_FOUND, b"the metrics are at /metrics\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _respond(send, HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n")
        else:
            await _respond(send, HTTPStatus.OK, await self._collector.exposition(), _CONTENT_TYPE)


async def _respond(send: Send, status: HTTPStatus, body: bytes, content_type: bytes = b"text/plain") -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
