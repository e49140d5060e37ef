"""What is kept of each call beside its metrics: its ids, and its line in the access log.

The metadata of a call are read once, when gRPC looks for the method's handler. That is in the task of the call, so that
the handler finds them in a context variable: each reading by `Context` copies all of them.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeAlias

from integration_server.observability.correlation import REQUEST_ID, CallIdReader, CallIds, current_ids
from integration_server.observability.spans import Attributes, Tracing
from integration_server.rpc.methods import Context, Metadata, Method, Permission

call_metadata: ContextVar[Metadata] = ContextVar("call_metadata", default=())
"""The metadata of the current call."""

WriteLine: TypeAlias = Callable[[str, str, str, float, str, CallIds], object]
"""Writes the line of a call: its method, status, reason, seconds, caller and ids."""

# Of the server; the others are its callers' (opentelemetry.io/docs/specs/semconv/rpc/grpc).
_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

_PROBE_SUCCESS = frozenset({"OK", "CANCELLED"})  # also of a watch that its client ends


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
        caller_of: Callable[[Context], str] = lambda _context: "",
        is_known: Callable[[Context], bool] = lambda _context: True,
    ) -> None:
        self._reader = reader
        self._write_line = write_line
        self._caller_of = caller_of
        self._is_known = is_known

    def begin(self, _method: Method, context: Context) -> CallIds:
        """Begin a call in its own task: what is logged from now on has its ids, and so has its response."""
        ids = self._reader.read(call_metadata.get())
        current_ids.set(ids)
        context.set_trailing_metadata(((REQUEST_ID, ids.request_id),))
        return ids

    def end(
        self, method: Method, status: str, reason: str, seconds: float, context: Context, ids: CallIds, address: str
    ) -> None:
        """End a call from an address."""
        if self._write_line is None or (method.permission is Permission.HEALTH and status in _PROBE_SUCCESS):
            return
        if status == "OK" or self._is_known(context):
            self._write_line(method.path, status, reason, seconds, self._caller_of(context) or address, ids)

    def note_repeated(self, method: Method, metadata: Metadata, context: Context, seconds: float, caller: str) -> None:
        """Note a call that got an earlier response again.

        Without an id of its caller, and without an access log, nobody would ever see its id: it has none.
        """
        if self._write_line is None:
            if given := self._reader.given_id(metadata):
                context.set_trailing_metadata(((REQUEST_ID, given),))
            return
        self._note(method, context, seconds, caller, self._reader.read(metadata))

    def _note(self, method: Method, context: Context, seconds: float, caller: str, ids: CallIds) -> None:
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
        caller_of: Callable[[Context], str] = lambda _context: "",
        is_known: Callable[[Context], bool] = lambda _context: True,
    ) -> None:
        super().__init__(reader, write_line, caller_of, is_known)
        self._tracing = tracing

    def begin(self, method: Method, context: Context) -> CallIds:
        """Begin a call in its own task, and its span."""
        ids = super().begin(method, context)
        if method.permission is Permission.HEALTH:
            return ids
        traceparent = self._tracing.begin(method.path[1:], _attributes_of(method, ids), ids.traceparent)
        ids = CallIds(ids.request_id, traceparent)
        current_ids.set(ids)
        return ids

    def end(
        self, method: Method, status: str, reason: str, seconds: float, context: Context, ids: CallIds, address: str
    ) -> None:
        """End a call and its span."""
        super().end(method, status, reason, seconds, context, ids, address)
        if method.permission is not Permission.HEALTH:
            outcome = {"rpc.response.status_code": status, **({"error.type": reason} if reason else {})}
            self._tracing.end(outcome, failed=status in _SERVER_FAULTS)

    def note_repeated(self, method: Method, metadata: Metadata, context: Context, seconds: float, caller: str) -> None:
        """Note a call that got an earlier response again; its span is made when it has ended."""
        ids = self._reader.read(metadata)
        outcome = {**_attributes_of(method, ids), "rpc.response.status_code": "OK"}
        traceparent = self._tracing.add(method.path[1:], outcome, ids.traceparent, seconds)
        self._note(method, context, seconds, caller, CallIds(ids.request_id, traceparent))


def _attributes_of(method: Method, ids: CallIds) -> Attributes:
    return {"rpc.system.name": "grpc", "rpc.method": method.path[1:], "request_id": ids.request_id}
