"""Heads: what the newest state of a chain was, recorded where a writer to the database cannot change it.

A restored older database is consistent in itself. Only a comparison with a later head shows that it is older.

A head is recorded as a line of JSON: `kind`, `name`, `number`, `version`, `mac` in hexadecimal, and the `time` of
recording. Readers ignore other kinds and other keys.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Protocol, Self

import structlog

from integration_server.service.common_types import Clock

AUDIT_CHAIN = "audit_chain"
"""The kind of the heads of audit chains. `version` is the number of entries, `mac` the MAC of the last one."""

_CLOSE_TIMEOUT = timedelta(seconds=10)  # as for an HTTP request: a stop must not wait longer for another machine


@dataclass(frozen=True, slots=True)
class Head:
    """The newest state of something that has versions and a MAC: the thing's kind and name, its version, the MAC.

    `number` is the chain's number, for messages only.
    """

    kind: str
    name: str
    number: int
    version: int
    mac: bytes = field(repr=False)


def encode_head(head: Head, time: str) -> bytes:
    """Return the line of a head that is recorded at this time."""
    return json.dumps({**asdict(head), "mac": head.mac.hex(), "time": time}).encode() + b"\n"


def decode_head(line: bytes) -> Head:
    """Return the head in a line. Raises `ValueError`."""
    try:
        values = json.loads(line)
        kind, name, number, version = (values[key] for key in ("kind", "name", "number", "version"))
        head = Head(kind, name, number, version, bytes.fromhex(values["mac"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("is not a head") from error
    if not (isinstance(kind, str) and isinstance(name, str) and type(number) is type(version) is int):
        raise ValueError("is not a head")
    return head


class HeadSink(Protocol):
    """Where heads are recorded. It only appends."""

    async def append(self, lines: Sequence[bytes]) -> None:
        """Record lines durably, all or an unknown number of them. Any exception means that it may not have."""


class HeadRecorder:
    """Records the heads of a source that have changed, at each call of `record` and on leaving the context.

    A failure is logged once, and the heads are recorded by the next call that succeeds. RPCs never wait for it.
    """

    def __init__(
        self,
        source: Callable[[], Sequence[Head]],
        sink: HeadSink,
        clock: Clock,
        *,
        close_timeout: timedelta = _CLOSE_TIMEOUT,
    ) -> None:
        self._source = source
        self._sink = sink
        self._clock = clock
        self._close_timeout = close_timeout.total_seconds()
        self._recorded: frozenset[Head] = frozenset()
        self._is_failing = False
        self._lock = asyncio.Lock()
        self._log = structlog.get_logger(__name__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            async with asyncio.timeout(self._close_timeout):
                await self.record()
        except TimeoutError:
            self._log.error("audit_heads_not_recorded", kind="TimeoutError")

    async def record(self) -> bool:
        """Record the heads that have changed. Returns whether all heads are recorded."""
        async with self._lock:
            heads = frozenset(self._source())
            changed = sorted(heads - self._recorded, key=lambda head: head.number)
            if not changed:
                return True
            now = self._clock().isoformat(timespec="seconds")
            try:
                await self._sink.append([encode_head(head, now) for head in changed])
            except Exception as error:  # whatever the sink's problem is, it is not the server's
                if not self._is_failing:
                    self._log.error("audit_heads_not_recorded", kind=type(error).__qualname__)
                self._is_failing = True
                return False
            if self._is_failing:
                self._log.info("audit_heads_recorded_again")
            self._is_failing, self._recorded = False, heads
            return True
