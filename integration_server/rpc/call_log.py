"""Counts calls that do not succeed, and logs them in bounded numbers.

A call whose client is gone (it disconnected, reset the stream, cancelled, or its deadline passed) is nobody's fault: it
is only counted. Rejected calls and unhandled exceptions are logged once in a minute for each kind, so that no client
can fill the disk, and `report` logs how many there were.
"""

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import structlog

from integration_server.domain.peers import LogLimiter

CLIENT_GONE = "client_gone"
INVALID_METADATA = "invalid_metadata"  # entries that are not UTF-8, each time that one is read
UNAUTHENTICATED = "unauthenticated"
REJECTED = "rpc_rejected"
UNHANDLED = "unhandled_exception"

# In a minute. Together at most 1 kB/s: a stack has some 4 kB, another line 200 bytes.
_MAX_LINES = {UNAUTHENTICATED: 60, REJECTED: 60, UNHANDLED: 8}

_GRPC_LOGGER = "grpc._cython.cygrpc"


def is_call_over(error: BaseException | None) -> bool:
    """Whether gRPC raised this error because the call has ended, so that nobody waits for a response.

    Its other errors are an abort, and `UsageError`, which is a bug.
    """
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, (grpc.aio.AbortError, grpc.aio.UsageError))


class CallLog:
    """The counters and the log lines of calls that do not succeed, in this process."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        # One each, so that no event uses up the lines of another.
        self._limiters = {
            event: LogLimiter(monotonic=monotonic, max_lines=lines) for event, lines in _MAX_LINES.items()
        }

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of calls by their outcome, since the start."""
        return dict(self._counts)

    def client_gone(self) -> None:
        """Count a call whose client is gone."""
        self._counts[CLIENT_GONE] += 1

    def unauthenticated(self, method: str, problem: str, peer: str) -> None:
        """Log a call of an unknown caller: one line for each peer."""
        self._log(UNAUTHENTICATED, peer, "info", method=method, problem=problem, peer=peer)

    def rejected(self, method: str, reason: str, caller: str, provider_reason: str | None = None) -> None:
        """Log a rejected call: one line for each caller, method and reason, ours and the provider's."""
        key = f"{caller} {method} {reason} {provider_reason}"
        fields = {"caller": caller, "provider_reason": provider_reason}
        known = {name: value for name, value in fields.items() if value}
        self._log(REJECTED, key, "info", method=method, reason=reason, **known)

    def unhandled(self, method: str, error: Exception) -> None:
        """Log a bug: one line for each method and class of exception.

        The text of an exception may quote secret input, so only its type and location are logged.
        """
        kind = type(error).__qualname__
        stack = "".join(traceback.format_tb(error.__traceback__))
        self._log(UNHANDLED, f"{method} {kind}", "error", method=method, kind=kind, stack=stack)

    async def report(self) -> None:
        """Log the numbers of calls that did not succeed since the last report, if there were any."""
        counts = self._counts - self._reported
        self._reported = Counter(self._counts)
        if counts:
            structlog.get_logger(__name__).info("calls_not_served", **counts)

    @contextmanager
    def watching_grpc_log(self) -> Iterator[None]:
        """Count what gRPC itself logs as an error, with a traceback, although a client causes it at will: clients that
        are gone when it sends a response, and metadata that is not UTF-8, whose bytes it would log too."""
        logger = logging.getLogger(_GRPC_LOGGER)
        logger.addFilter(self._is_fault)
        try:
            yield
        finally:
            logger.removeFilter(self._is_fault)

    def _is_fault(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UnicodeDecodeError):
            self._counts[INVALID_METADATA] += 1
        elif is_call_over(error):
            self.client_gone()
        else:
            return True
        return False

    def _log(self, event: str, key: str, level: str, **fields: Any) -> None:  # noqa: ANN401  # what structlog takes
        self._counts[event] += 1
        suppressed = self._limiters[event].admit(key)
        if suppressed is not None:
            more = {"suppressed": suppressed} if suppressed else {}
            getattr(structlog.get_logger(__name__), level)(event, **fields, **more)
