"""The queue of audit entries that are not written yet. It decides which calls share an entry.

Equal reads within a second share one entry, which has their number. Whatever changes something has its own. The queue
has room for a limited number of bytes of reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from integration_server.domain.audit import Action, AuditEntry

BATCH_SIZE = 1000
"""The most entries that are written at once."""

_ENTRY_BYTES = 512  # of all objects of a queued entry that have one size, in the queue and among the shared ones
_CHARACTER_BYTES = 4  # of texts that callers choose, at most

READS = frozenset(
    {
        Action.READ_CREDENTIALS,
        Action.READ_WEBHOOKS,
        Action.READ_UNROUTED_WEBHOOKS,
        Action.FIND_INTEGRATIONS,
        Action.READ_DUE_WORK,
        Action.READ_AUDIT_ENTRIES,
    }
)
"""The actions whose equal calls may share an entry: they change nothing."""


@dataclass(slots=True, eq=False)
class QueuedEntry:
    """An entry that is not written yet, and the number of calls that share it."""

    entry: AuditEntry
    size: int  # in bytes
    call_count: int = 1

    def record(self) -> AuditEntry:
        """The entry to write."""
        return self.entry if self.call_count == 1 else replace(self.entry, call_count=self.call_count)


def queued_bytes(entry: AuditEntry) -> int:
    """The memory that an entry takes in the queue, at most."""
    characters = len(entry.user_id) + len(entry.purpose) + len(entry.integration_type) + len(entry.details)
    return _ENTRY_BYTES + _CHARACTER_BYTES * characters


class AuditQueue:
    """Entries in the order in which they are written, of at most `max_bytes`.

    `interval` is the time within which equal reads share an entry. `on_batch` is called when a batch is complete.
    """

    def __init__(self, interval: timedelta, max_bytes: int, on_batch: Callable[[], object] = lambda: None) -> None:
        self._interval = interval
        self._max_bytes = max_bytes
        self._on_batch = on_batch
        self._bytes = 0
        self._entries: list[QueuedEntry] = []
        self._shared: dict[tuple[object, ...], QueuedEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def has_room(self) -> bool:
        """Whether the entries have fewer bytes than there is room for."""
        return self._bytes < self._max_bytes

    def age(self, now: datetime) -> timedelta:
        """The age of the oldest entry; 0 if there is none."""
        return now - self._entries[0].entry.time if self._entries else timedelta(0)

    def enqueue(self, entry: AuditEntry) -> bool:
        """Queue an entry, or count a read with an equal one. Returns False, without doing so, if the queue is full."""
        call, is_read = entry.call, entry.action in READS
        if is_read and self._count(call, entry.time):
            return True
        size = queued_bytes(entry)
        if self._bytes + size > self._max_bytes:
            return False
        queued = self._append(entry, size)
        if is_read:
            self._shared[call] = queued
        return True

    def enqueue_again(self, entry: AuditEntry, time: datetime) -> bool:
        """Queue or count a read that is equal to that of an entry. Returns False if the queue is full."""
        return self._count(entry.call, time) or self.enqueue(replace(entry, time=time))

    def append(self, entry: AuditEntry) -> QueuedEntry:
        """Queue an entry, also if the queue is full: it is about a change that is already made."""
        return self._append(entry, queued_bytes(entry))

    def end_sharing(self) -> None:
        """Let no further call share an entry that is queued now, because it is about to be written."""
        self._shared.clear()

    def first(self, size: int) -> Sequence[QueuedEntry]:
        """The oldest entries, at most `size`."""
        return self._entries[:size]

    def remove_first(self, size: int) -> None:
        """Remove the oldest entries: they are written."""
        self._bytes -= sum(queued.size for queued in self._entries[:size])
        del self._entries[:size]

    def _append(self, entry: AuditEntry, size: int) -> QueuedEntry:
        queued = QueuedEntry(entry, size)
        self._entries.append(queued)
        self._bytes += size
        if len(self._entries) == BATCH_SIZE:
            self._on_batch()
        return queued

    def _count(self, call: tuple[object, ...], time: datetime) -> bool:
        """Count a call with an equal one of the same interval. Returns False if there is none."""
        shared = self._shared.get(call)
        if shared is None or not timedelta(0) <= time - shared.entry.time < self._interval:
            return False
        shared.call_count += 1
        return True
