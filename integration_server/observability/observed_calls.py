"""What a call leaves behind beside its metrics: the ids by which its log lines, its error and its trace are found, its
line in the access log, and its span.

A call is an RPC, or a request to the sidecar. Its ids are a request id and a trace id. A caller may send both:
`x-request-id`, and the trace id in `traceparent` (www.w3.org/TR/trace-context, §3.2). They are its own text and get
into logs, responses and metadata of other calls, so that only ids of a harmless form are taken.

The metadata of an RPC are read once, when gRPC looks for the method's handler. That is in the task of the call, so that
the handler finds them in a context variable: each reading by the context of the call copies all of them.

The access log has one line for each RPC, with what it was, how it ended and who made it. It has no user and no token.
A line costs a few microseconds: its parts are formatted once for each method and caller, and lines are written
together. docs/logs-and-traces.md has its fields.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import structlog

from integration_server.observability.spans import REQUEST_ID_ATTRIBUTE, Attributes, Tracing

# --- ids -------------------------------------------------------------------------------------------------------------

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"

MAX_REQUEST_ID_LENGTH = 128
"""Characters. UUIDs have 36; proxies append counters and places to them, and W3C's own `traceparent` has 55."""

_REQUEST_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/+=#@-]{{0,{MAX_REQUEST_ID_LENGTH - 1}}}", re.ASCII)
HEXADECIMAL = re.compile(r"[0-9a-f][0-9a-f-]{0,63}")
"""The form of most ids. No format of a secret is that plain, so that redaction need not look at them."""

_TRACEPARENT = re.compile(
    # Version ff is invalid, and later ones than 00 may add to it: §3.2.2.1 and §4.3.
    r"(?!ff|00.{54})[0-9a-f]{2}-(?P<ids>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?",
    re.ASCII,
)

Entries = Iterable[tuple[str, str | bytes]]
"""Metadata of a call, or headers of a request: names in lower case, and values."""


@dataclass(frozen=True, slots=True)
class CallIds:
    """The ids of a call. `traceparent` continues its trace in further calls; empty if its caller sent none, and the
    call is not traced."""

    request_id: str
    traceparent: str = ""

    @property
    def trace_id(self) -> str:
        """The id of the trace; empty without one."""
        return self.traceparent[3:35]


current_ids: ContextVar[CallIds | None] = ContextVar("call_ids", default=None)
"""The ids of the call that the running code works for."""


def new_request_id() -> str:
    """A new request id. It proves nothing, so that it need not be unpredictable."""
    return f"{random.getrandbits(128):032x}"  # nosec B311


class CallIdReader:
    """Reads the ids of calls. A request id for which `redact` returns another text looks like a secret, and is replaced
    like one of another form.

    `accepts_any` is for negative controls.
    """

    def __init__(
        self,
        redact: Callable[[str], str],
        new_id: Callable[[], str] = new_request_id,
        *,
        accepts_any: bool = False,
    ) -> None:
        self._redact = redact
        self.new_id = new_id
        self._accepts_any = accepts_any

    def caller_request_id(self, entries: Entries) -> str:
        """The request id that the caller sent; empty if it sent none, several, or one that is not taken."""
        values = [value for name, value in entries if name == REQUEST_ID]
        if not values:
            return ""
        return values[0] if len(values) == 1 and isinstance(values[0], str) and self._is_accepted(values[0]) else ""

    def read(self, entries: Entries) -> CallIds:
        """The ids of a call; its request id is a new one if the caller's is not taken."""
        return CallIds(self.caller_request_id(entries) or self.new_id(), traceparent_in(entries))

    def _is_accepted(self, text: str) -> bool:
        if self._accepts_any or HEXADECIMAL.fullmatch(text):
            return True
        return _REQUEST_ID.fullmatch(text) is not None and self._redact(text) == text


def traceparent_in(entries: Entries) -> str:
    """The caller's valid `traceparent`, without what later versions add; empty without one."""
    values = [value for name, value in entries if name == TRACEPARENT]
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 and isinstance(values[0], str) else None
    return f"00-{match['ids']}" if match else ""


def add_ids(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The structlog processor that adds the ids of the call to its log lines."""
    ids = current_ids.get()
    if ids is None:
        return event
    trace = {"trace_id": ids.trace_id} if ids.trace_id else {}
    return {"request_id": ids.request_id, **trace, **event}


# --- access log ------------------------------------------------------------------------------------------------------

MAX_BATCH = 4096
"""Bytes that are written at a time: a pipe takes as many as a whole (PIPE_BUF on Linux), whoever else writes to it."""

_FLUSH_AFTER = 0.2  # seconds: what a killed process loses

_KNOWN_TEXTS = 4096  # methods, paths, statuses, reasons and callers that are kept as they were formatted

_NO_IDS = CallIds("")

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

    def http(
        self, method: str, path: str, status: int, reason: str, seconds: float, caller: str, ids: CallIds | None
    ) -> None:
        """Write the line of an HTTP request to this path, which has no query."""
        quote = self._quote
        self._add(
            f'"event": "http_request", "method": {quote(method)}, "path": {quote(path)}, "status": {status}, '
            f'"reason": {quote(reason)}, "ms": {seconds * 1000:.1f}, "caller": {quote(caller)}',
            ids or _NO_IDS,
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
        optional_fields = {"reason": reason, "caller": caller, "request_id": ids.request_id, "trace_id": ids.trace_id}
        fields = {name: value for name, value in optional_fields.items() if value}
        self._logger.info("rpc", method=method, status=status, ms=round(seconds * 1000, 1), **fields)

    def http(
        self, method: str, path: str, status: int, reason: str, seconds: float, caller: str, _ids: CallIds | None
    ) -> None:
        """Write the line of an HTTP request. The logger adds the ids of the current one."""
        fields = {"method": method, "path": path, "status": status, "reason": reason, "caller": caller}
        self._logger.info("http_request", ms=round(seconds * 1000, 1), **fields)

    def flush(self) -> None:
        """Each line is written at once."""


# --- calls -----------------------------------------------------------------------------------------------------------

call_metadata: ContextVar[Sequence[tuple[str, str | bytes]]] = ContextVar("call_metadata", default=())
"""The metadata of the current call."""

WriteLine: TypeAlias = Callable[[str, str, str, float, str, CallIds], object]
"""Writes the line of a call: its method, status, reason, seconds, caller and ids."""

# Of the server; the others are its callers' (opentelemetry.io/docs/specs/semconv/rpc/grpc).
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

_PROBE_SUCCESS = frozenset({"OK", "CANCELLED"})  # also of a watch that its client ends


@dataclass(frozen=True, slots=True)
class ObservedMethod:
    """The method of a call: its path, and whether it is a probe."""

    path: str
    is_probe: bool = False


class CallContext(Protocol):
    """What is used of gRPC's context of a call."""

    def set_trailing_metadata(self, trailing_metadata: Any, /) -> None:  # noqa: ANN401  # as gRPC declares it
        """Set the metadata that end the response."""


class ObservedCalls:
    """Gives calls their ids, and writes their lines.

    `write_line` is None without an access log. `caller_of` names the caller, as in the audit trail; where that is
    empty, the caller is the client's address. Calls that fail before their caller is known (`is_known`) have no line:
    `CallLog` logs them in bounded numbers, and anybody can make them.
    """

    def __init__(
        self,
        reader: CallIdReader,
        write_line: WriteLine | None = None,
        caller_of: Callable[[Any], str] = lambda _context: "",
        is_known: Callable[[Any], bool] = lambda _context: True,
    ) -> None:
        self._reader = reader
        self._write_line = write_line
        self._caller_of = caller_of
        self._is_known = is_known

    def begin(self, _method: ObservedMethod, context: CallContext) -> CallIds:
        """Begin a call in its own task: what is logged from now on has its ids, and so has its response."""
        ids = self._reader.read(call_metadata.get())
        current_ids.set(ids)
        context.set_trailing_metadata(((REQUEST_ID, ids.request_id),))
        return ids

    def end(
        self,
        method: ObservedMethod,
        status: str,
        reason: str,
        seconds: float,
        context: CallContext,
        ids: CallIds,
        address: str,
    ) -> None:
        """End a call from an address."""
        if self._write_line is None or (method.is_probe and status in _PROBE_SUCCESS):
            return
        if status == "OK" or self._is_known(context):
            self._write_line(method.path, status, reason, seconds, self._caller_of(context) or address, ids)

    def note_repeated(
        self, method: ObservedMethod, metadata: Entries, context: CallContext, seconds: float, caller: str
    ) -> None:
        """Note a call that got an earlier response again.

        Without an id of its caller, and without an access log, nobody would ever see its id: it has none.
        """
        if self._write_line is None:
            if request_id := self._reader.caller_request_id(metadata):
                context.set_trailing_metadata(((REQUEST_ID, request_id),))
            return
        self._note(method, context, seconds, caller, self._reader.read(metadata))

    def _note(self, method: ObservedMethod, context: CallContext, seconds: float, caller: str, ids: CallIds) -> None:
        context.set_trailing_metadata(((REQUEST_ID, ids.request_id),))
        if self._write_line is not None:
            self._write_line(method.path, "OK", "", seconds, caller, ids)


class TracedCalls(ObservedCalls):
    """As `ObservedCalls`, with a span for each call, which continues the trace of its caller.

    Probes have none.
    """

    def __init__(
        self,
        tracing: Tracing,
        reader: CallIdReader,
        write_line: WriteLine | None = None,
        caller_of: Callable[[Any], str] = lambda _context: "",
        is_known: Callable[[Any], bool] = lambda _context: True,
    ) -> None:
        super().__init__(reader, write_line, caller_of, is_known)
        self._tracing = tracing

    def begin(self, method: ObservedMethod, context: CallContext) -> CallIds:
        """Begin a call in its own task, and its span."""
        if method.is_probe:
            return super().begin(method, context)
        request_id, attributes, traceparent = self._read(method, call_metadata.get())
        ids = CallIds(request_id, self._tracing.begin(method.path[1:], attributes, traceparent))
        current_ids.set(ids)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        return ids

    def end(
        self,
        method: ObservedMethod,
        status: str,
        reason: str,
        seconds: float,
        context: CallContext,
        ids: CallIds,
        address: str,
    ) -> None:
        """End a call and its span."""
        super().end(method, status, reason, seconds, context, ids, address)
        if not method.is_probe:
            self._tracing.end(_outcome(status, reason), failed=status in _SERVER_FAULTS)

    def note_repeated(
        self, method: ObservedMethod, metadata: Entries, context: CallContext, seconds: float, caller: str
    ) -> None:
        """Note a call that got an earlier response again; its span is made when it has ended."""
        request_id, attributes, traceparent = self._read(method, metadata)
        attributes = {**attributes, **_outcome("OK", "")}
        traceparent = self._tracing.add(method.path[1:], attributes, traceparent, seconds)
        self._note(method, context, seconds, caller, CallIds(request_id, traceparent))

    def _read(self, method: ObservedMethod, metadata: Entries) -> tuple[str, Attributes, str]:
        """The request id of a call, what its span says, and the traceparent of its caller."""
        request_id = self._reader.caller_request_id(metadata) or self._reader.new_id()
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": method.path[1:],
            REQUEST_ID_ATTRIBUTE: request_id,
        }
        return request_id, attributes, traceparent_in(metadata)


@lru_cache(_KNOWN_TEXTS)
def _outcome(status: str, reason: str) -> Attributes:
    outcome = {"rpc.response.status_code": status}
    return {**outcome, "error.type": reason} if reason else outcome
