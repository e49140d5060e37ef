"""Standard input, output and error of a process: open, and standard error such that writing to it never fails.

Whoever reads the log can end, and the disk that it is on can be full. Neither may fail the call that a line is about.
Imports no other module of this package.
"""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

# The last one: a signal has interrupted another write to the same stream.
_FAILURES = (OSError, ValueError, RuntimeError)


class UnfailingStream:
    """A text stream on which writing does not fail: what cannot be written is lost. The rest is that of `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if that is possible."""
        with suppress(*_FAILURES):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, if that is possible."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what has been buffered, if that is possible."""
        with suppress(*_FAILURES):
            self._stream.flush()

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
