"""Measures for how long one callback holds an event loop, in CPU time of the loop's thread.

CPU time does not include the time that other processes take. Beside them it is longer nevertheless, by up to a half,
because cores share caches. Short calls are therefore measured several times.
"""

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import ROOT

MAX_HOLD = 0.05
"""The longest that any input may hold the loop, in seconds."""

_MAX_ATTEMPTS = 20

_DIRECTORY = "PYTHON_LOOP_HOLD_DIRECTORY"
_FILE_SIZE = 4096
_SECONDS = struct.Struct("d")


def shortest_time(call: Callable[[], object], sufficient: float = MAX_HOLD) -> float:
    """The CPU seconds of the fastest of 20 calls, or of the first that is faster than `sufficient`."""
    shortest = inf
    for _ in range(_MAX_ATTEMPTS):
        begin = time.thread_time()
        call()
        shortest = min(shortest, time.thread_time() - begin)
        if shortest < sufficient:
            break
    return shortest


@dataclass(frozen=True, slots=True, order=True)
class Hold:
    """How long a callback held the loop, in seconds, and what the callback was."""

    seconds: float = 0.0
    callback: str = ""

    def __str__(self) -> str:
        return f"{self.seconds * 1000:.1f} ms in {self.callback}"


class HoldRecorder:
    """The longest hold so far, in a file that another process reads and resets."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(_FILE_SIZE)
            self._memory = mmap.mmap(file.fileno(), _FILE_SIZE)

    def measure(self, run: Callable[[Any], None]) -> Callable[[Any], None]:
        """Wrap the method of a handle that runs its callback."""
        memory = self._memory

        def measured_run(handle: Any) -> None:
            begin = time.thread_time()
            run(handle)
            held = time.thread_time() - begin
            if held > _SECONDS.unpack_from(memory)[0]:
                _SECONDS.pack_into(memory, 0, held)
                described = _describe(handle).encode()[: _FILE_SIZE - _SECONDS.size]
                memory[_SECONDS.size :] = described.ljust(_FILE_SIZE - _SECONDS.size, b"\0")

        return measured_run


def _describe(handle: Any) -> str:
    callback = getattr(handle, "_callback", None)  # None after it was cancelled
    return repr(getattr(callback, "__self__", callback))


def install_recorder() -> None:
    """Measure the event loops of this process, which must be asyncio's own, if the environment asks for it."""
    directory = os.environ.get(_DIRECTORY)
    if directory:
        handle: Any = asyncio.Handle
        handle._run = HoldRecorder(Path(directory, f"{os.getpid()}.hold")).measure(handle._run)


@dataclass(frozen=True, slots=True)
class LoopHolds:
    """The longest hold in any of the processes that are started with `environment`."""

    directory: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables for a server process, and for those that it starts."""
        stand_in = Path(__file__).parent / "stand_in"
        return {
            _DIRECTORY: str(self.directory),
            "PYTHONPATH": os.pathsep.join(map(str, (stand_in, ROOT, ROOT / "generated"))),
        }

    def take(self) -> Hold:
        """Return the longest hold since the last time."""
        return max((_take(path) for path in self.directory.glob("*.hold")), default=Hold())


def _take(path: Path) -> Hold:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), _FILE_SIZE) as memory:
        (seconds,) = _SECONDS.unpack_from(memory)
        callback = bytes(memory[_SECONDS.size :]).rstrip(b"\0").decode(errors="replace")
        _SECONDS.pack_into(memory, 0, 0.0)
    return Hold(seconds, callback)
