"""The file of heads, to which several processes append lines (`audit_heads.py`)."""

import asyncio
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from integration_server.service.audit.audit_heads import AUDIT_CHAIN, Head, decode_head

_MAX_BYTES = 16 * 1024 * 1024  # about 70,000 heads: at one a minute, those of seven weeks
_LOCK_ATTEMPTS, _LOCK_INTERVAL = 100, 0.1  # seconds; a process holds the lock for milliseconds


@dataclass(frozen=True, slots=True)
class RecordedHeads:
    """The heads of a file: of each kind and name, those with the highest version. Two of them contradict each other.

    `unreadable_lines` are the numbers of lines that are no heads, such as one whose write was interrupted.
    """

    heads: Mapping[tuple[str, str], frozenset[Head]] = field(default_factory=dict)
    unreadable_lines: Sequence[int] = ()

    def of_chain(self, chain_id: str) -> frozenset[Head]:
        """Return the newest heads of an audit chain; none, if it is not in the file."""
        return self.heads.get((AUDIT_CHAIN, chain_id), frozenset())

    @property
    def chain_ids(self) -> Sequence[str]:
        """The ids of the audit chains in the file."""
        return [name for kind, name in self.heads if kind == AUDIT_CHAIN]


def read_heads(path: Path) -> RecordedHeads:
    """Return the heads in a file. Raises `OSError`."""
    newest, unreadable = _newest_lines(path)
    return RecordedHeads({key: frozenset(lines) for key, lines in newest.items()}, unreadable)


def _newest_lines(path: Path) -> tuple[dict[tuple[str, str], dict[Head, bytes]], list[int]]:
    """Return the newest heads with their lines, by kind and name, and the numbers of unreadable lines."""
    newest: dict[tuple[str, str], dict[Head, bytes]] = {}
    unreadable = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                head = decode_head(line)
            except ValueError:
                unreadable.append(number)
                continue
            known = newest.setdefault((head.kind, head.name), {})
            if any(other.version < head.version for other in known):
                known.clear()
            if all(other.version == head.version for other in known):
                known[head] = line
    return newest, unreadable


class HeadFile:
    """Appends lines to a file, one process at a time, and returns once they are on the disk.

    A file of more than `max_bytes` is replaced by one with the newest head of each kind and name. Where that is not
    possible, because the file is append-only, it grows.
    """

    def __init__(self, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._compact_above = max_bytes

    async def append(self, lines: Sequence[bytes]) -> None:
        """Append lines. Raises `OSError`."""
        for attempt in range(_LOCK_ATTEMPTS):
            try:
                await asyncio.to_thread(self._append, b"".join(lines))
                return
            except BlockingIOError:
                if attempt == _LOCK_ATTEMPTS - 1:
                    raise
            await asyncio.sleep(_LOCK_INTERVAL)

    def _append(self, content: bytes) -> None:
        with self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            # An interrupted write may have left a line without an end.
            separator = b"" if not size or os.pread(descriptor, 1, size - 1) == b"\n" else b"\n"
            _write(descriptor, separator + content)
            os.fsync(descriptor)
            if not size:
                _sync_directory(self._path.resolve().parent)  # which has the new file's name
            if size + len(content) > self._compact_above:
                with suppress(OSError):
                    self._compact()
                # Not again at once, if that many chains have heads.
                self._compact_above = max(self._max_bytes, 2 * self._path.stat().st_size)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open and lock the file. Raises `BlockingIOError` if another process has it, or replaces it."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK  # a FIFO without a reader would block
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{self._path} is not a file")
            if not self._path.exists() or not os.path.samestat(os.fstat(descriptor), self._path.stat()):
                raise BlockingIOError
            yield descriptor
        finally:
            os.close(descriptor)  # also releases the lock

    def _compact(self) -> None:
        newest, _ = _newest_lines(self._path)
        target = self._path.resolve()  # a symbolic link stays
        replacement = target.with_name(f"{target.name}.{os.getpid()}")
        descriptor = os.open(replacement, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write(descriptor, b"".join(line for lines in newest.values() for line in lines.values()))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        replacement.replace(target)
        _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
