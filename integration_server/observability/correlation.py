"""The ids of a call, by which its log lines, its error and its trace are found: a request id, and a trace id.

A caller may send both: `x-request-id`, and the trace id in `traceparent` (www.w3.org/TR/trace-context, §3.2). They are
its own text and get into logs, responses and metadata of other calls, so that only ids of a harmless form are taken.
"""

import random
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass

import structlog

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"

MAX_REQUEST_ID_LENGTH = 128
"""Characters. UUIDs have 36; proxies append counters and places to them, and W3C's own `traceparent` has 55."""

_REQUEST_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._:/+=#@-]{{0,{MAX_REQUEST_ID_LENGTH - 1}}}", re.ASCII)
_HEXADECIMAL = re.compile(r"[0-9a-f][0-9a-f-]{0,63}")  # most ids; no format of a secret is that plain
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?P<ids>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?",
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
        self._new_id = new_id
        self._accepts_any = accepts_any

    def given_id(self, entries: Entries) -> str:
        """The request id that the caller sent; empty if it sent none, several, or one that is not taken."""
        given = [value for name, value in entries if name == REQUEST_ID]
        if not given:
            return ""
        return given[0] if len(given) == 1 and isinstance(given[0], str) and self._is_taken(given[0]) else ""

    def read(self, entries: Entries) -> CallIds:
        """The ids of a call; its request id is a new one if the caller's is not taken."""
        return CallIds(self.given_id(entries) or self._new_id(), traceparent_in(entries))

    def _is_taken(self, text: str) -> bool:
        if self._accepts_any or _HEXADECIMAL.fullmatch(text):
            return True
        return _REQUEST_ID.fullmatch(text) is not None and self._redact(text) == text


def traceparent_in(entries: Entries) -> str:
    """The caller's valid `traceparent`, without what later versions add; empty without one."""
    given = [value for name, value in entries if name == TRACEPARENT]
    match = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 and isinstance(given[0], str) else None
    return f"00-{match['ids']}" if match else ""


def add_ids(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """The structlog processor that adds the ids of the call to its log lines."""
    ids = current_ids.get()
    if ids is None:
        return event
    trace = {"trace_id": ids.trace_id} if ids.trace_id else {}
    return {"request_id": ids.request_id, **trace, **event}
