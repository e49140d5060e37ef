"""Standard input, output and error of a process: open, and standard error such that writing to it never fails or hangs.

Whoever reads the log can end or stop reading, and the disk that it is on can be full. None of it may fail the call that
a line is about. Imports no other module of this package.
"""

import os
import select
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

# The last one: a signal has interrupted another write to the same stream.
_FAILURES = (OSError, ValueError, RuntimeError)

_PATIENCE = 1.0  # seconds: a reader that runs at all reads within it, and no caller gives up
_PIECE = 4096  # bytes: a pipe that can be written to has room for as many, so that writing them does not wait


class PatientOutput:
    """Writes to a descriptor that may take nothing, such as a pipe whose reader is stopped or a terminal after Ctrl-S.

    What it does not take within `patience` seconds is lost, and then everything at once until it takes something again.
    `lost` counts bytes. `patience` is None in negative controls: it waits.
    """

    def __init__(self, descriptor: int, *, patience: float | None = _PATIENCE) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._patience = patience
        self._is_stuck = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Write as much as possible. Raises `OSError`."""
        while data:
            if not self._has_room():
                self.lost += len(data)
                return
            with suppress(BlockingIOError):  # another process has taken the room
                data = data[os.write(self._descriptor, data[:_PIECE]) :]

    def _has_room(self) -> bool:
        patience = 0 if self._is_stuck else self._patience
        self._is_stuck = not self._poll.poll(None if patience is None else patience * 1000)
        return not self._is_stuck


class UnfailingStream:
    """A text stream on which writing neither fails nor hangs: what cannot be written is lost. The rest is that of
    `stream`."""

    def __init__(self, stream: TextIO, *, patience: float | None = _PATIENCE) -> None:
        self._stream = stream
        self._line = ""
        self._lock = threading.RLock()  # a signal may interrupt its own thread
        self._output: PatientOutput | None = None
        with suppress(*_FAILURES):  # of a stream that is no file, or closed
            self._output = PatientOutput(stream.fileno(), patience=patience)

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
    given: object = stream
    wrapped: Any = stream if isinstance(given, UnfailingStream) else UnfailingStream(stream)
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
