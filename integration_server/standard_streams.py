"""Standard input, output and error of a process: open, and standard error such that writing to it never fails or hangs.

Whoever reads the log can end or stop reading, and the disk that it is on can be full. None of it may fail the call that
a line is about. Imports no other module of this package.
"""

import math
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# The last one: a signal has interrupted another write to the same stream.
_FAILURES = (OSError, ValueError, RuntimeError)

_MAX_WAIT = 1.0  # seconds: a reader that runs at all reads within it, and no caller gives up
_WAITING_SHARE = 0.01  # of the time: what calls lose to a reader that is always too slow
_PIECE = 4096  # bytes: a pipe that can be written to has room for as many, so that writing them does not wait
_RETRY_DELAY = 0.01  # seconds


class BoundedOutput:
    """Writes to a descriptor that may take nothing, such as a pipe whose reader is stopped or a terminal after Ctrl-S.

    What it does not take within `max_wait` seconds is lost, and then everything at once until it takes something again.
    The seconds are those of all writes together, and come back with `waiting_share` of the time: a reader that is too
    slow would take them for each write. `lost` counts bytes. In negative controls `max_wait` is None, and it waits, or
    the share is a large one. `poll` waits for room for so many milliseconds, and returns whether there is.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        max_wait: float | None = _MAX_WAIT,
        waiting_share: float = _WAITING_SHARE,
        monotonic: Callable[[], float] = time.monotonic,
        poll: Callable[[float | None], object] | None = None,
    ) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._is_terminal = os.isatty(descriptor)
        self._max_wait = self._remaining = math.inf if max_wait is None else max_wait
        self._monotonic = monotonic
        self._remaining_at = monotonic()
        self._waiting_share = waiting_share
        self._is_stuck = False
        self._is_cut = False  # the last line that was written
        room = select.poll()
        room.register(descriptor, select.POLLOUT)
        self._poll = poll or room.poll

    def write(self, data: bytes) -> None:
        """Write as much as possible; what follows a line that was cut begins a new one. Raises `OSError`."""
        rest = b"\n" + data if self._is_cut else data
        with self._opened() as descriptor:
            while rest:
                written = self._write_piece(descriptor, rest[:_PIECE])
                if not written:
                    self.lost += min(len(rest), len(data))
                    return
                self._is_cut = not rest.endswith(b"\n", 0, written)
                rest = rest[written:]
        self._is_cut = False

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The descriptor to write to. A terminal that takes a part of a line waits until it takes the rest, unless it
        is opened again; the given descriptor has the same mode in other programs."""
        own = self._descriptor
        if self._is_terminal:
            with suppress(OSError):  # of another user's
                own = os.open(f"/proc/self/fd/{own}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            yield own
        finally:
            if own != self._descriptor:
                os.close(own)

    def _write_piece(self, descriptor: int, piece: bytes) -> int:
        """Returns the number of bytes that are written, 0 if there is no room in time."""
        begin = self._monotonic()
        remaining = min(self._max_wait, self._remaining + (begin - self._remaining_at) * self._waiting_share)
        deadline = begin if self._is_stuck else begin + remaining
        written = 0
        while not written and self._poll_until(deadline):
            try:
                written = os.write(descriptor, piece)
            except BlockingIOError:  # another process has taken the room, or a terminal has too little for a line feed
                if self._monotonic() >= deadline:
                    break
                time.sleep(_RETRY_DELAY)
        self._remaining_at = self._monotonic()
        self._remaining = remaining - (self._remaining_at - begin)
        self._is_stuck = not written
        return written

    def _poll_until(self, deadline: float) -> bool:
        seconds = max(0.0, deadline - self._monotonic())
        return bool(self._poll(None if seconds == math.inf else seconds * 1000))


class UnfailingStream:
    """A text stream on which writing neither fails nor hangs: what cannot be written is lost. The rest is that of
    `stream`."""

    def __init__(self, stream: TextIO, *, max_wait: float | None = _MAX_WAIT) -> None:
        self._stream = stream
        self._line = ""
        self._lock = threading.RLock()  # a signal may interrupt its own thread
        self._output: BoundedOutput | None = None
        with suppress(*_FAILURES):  # of a stream that is no file, or closed
            self._output = BoundedOutput(stream.fileno(), max_wait=max_wait)

    def write(self, text: str) -> int:
        """Write a text, if that is possible; after its last line, when it is flushed."""
        with self._lock:
            self._line += text
            if "\n" in text:
                self.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, if that is possible."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what has been buffered, if that is possible."""
        with self._lock, suppress(*_FAILURES):
            line, self._line = self._line, ""
            if self._output is None:
                self._stream.write(line)
                self._stream.flush()
            elif line:
                self._output.write(line.encode(self._stream.encoding, "backslashreplace"))

    def isatty(self) -> bool:
        """Whether it is a terminal; a closed one is not."""
        with suppress(*_FAILURES):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def unfailing(stream: TextIO) -> TextIO:
    """The stream, such that writing to it does not fail."""
    untyped: object = stream
    wrapped: Any = stream if isinstance(untyped, UnfailingStream) else UnfailingStream(stream)
    return wrapped  # type: ignore[no-any-return]  # it has what a TextIO has


def prepare_standard_streams() -> None:
    """Open those that whoever started the process has closed, and let writing to standard error not fail.

    The next file or socket that is opened would get the number of a closed one, and with it what libraries print;
    libuv ends the process instead.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # open until the process ends
    sys.stderr = unfailing(sys.stderr)
