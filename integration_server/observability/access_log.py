"""The access log: one line for each RPC and each HTTP request, with what it was, how it ended and who made it.

It has no user, no token and no query. A line costs a few microseconds: its parts are formatted once for each method
and caller, and lines are written together. docs/logs-and-traces.md has its fields.
"""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from integration_server.observability.correlation import CallIds

MAX_BATCH = 4096
"""Bytes that are written at a time: a pipe takes as many as a whole (PIPE_BUF on Linux), whoever else writes to it."""

_FLUSH_AFTER = 0.2  # seconds: what a killed process loses

_KNOWN_TEXTS = 4096  # methods, statuses, reasons, callers and peers that are kept as they were formatted

CallLater = Callable[[float, Callable[[], None]], object]


def _call_later(seconds: float, function: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, function)


class AccessLog:
    """Writes the lines as JSON, in batches. `clean` makes a text that others choose harmless.

    `process` is in each line, where several processes write one log.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        clean: Callable[[str], str],
        *,
        process: str = "",
        now: Callable[[], float] = time.time,
        call_later: CallLater = _call_later,
    ) -> None:
        self._write = write
        self._now = now
        self._call_later = call_later
        self._lines: list[str] = []
        self._size = 0
        self._quote = lru_cache(_KNOWN_TEXTS)(lambda text: json.dumps(clean(text)))
        self._second, self._prefix = -1, ""
        self._process = f', "process": {json.dumps(process)}' if process else ""

    def rpc(self, method: str, status: str, reason: str, seconds: float, caller: str, ids: CallIds) -> None:
        """Write the line of an RPC."""
        quote = self._quote
        self._add(
            f'"event": "rpc", "method": {quote(method)}, "status": {quote(status)}, "reason": {quote(reason)}, '
            f'"ms": {seconds * 1000:.1f}, "caller": {quote(caller)}',
            ids,
        )

    def flush(self) -> None:
        """Write what has not been written yet."""
        lines, self._lines, self._size = self._lines, [], 0
        if lines:
            self._write("".join(lines))

    def _add(self, fields: str, ids: CallIds) -> None:
        now = self._now()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = f'{{"timestamp": "{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.'
        line = (
            f'{self._prefix}{int((now - second) * 1_000_000):06d}Z", "level": "info"{self._process}, {fields}, '
            f'"request_id": "{ids.request_id}", "trace_id": "{ids.trace_id}"}}\n'
        )
        if self._size + len(line) > MAX_BATCH:
            self.flush()
        if not self._lines:
            self._call_later(_FLUSH_AFTER, self.flush)
        self._lines.append(line)
        self._size += len(line)


class TerminalLog:
    """The same lines for people, through a logger."""

    def __init__(self, logger: Any) -> None:  # noqa: ANN401  # structlog's types are no narrower
        self._logger = logger

    def rpc(self, method: str, status: str, reason: str, seconds: float, caller: str, ids: CallIds) -> None:
        """Write the line of an RPC."""
        given = {"reason": reason, "caller": caller, "request_id": ids.request_id, "trace_id": ids.trace_id}
        fields = {name: value for name, value in given.items() if value}
        self._logger.info("rpc", method=method, status=status, ms=round(seconds * 1000, 1), **fields)

    def flush(self) -> None:
        """Each line is written at once."""
