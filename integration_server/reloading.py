"""Files that are read again when they change: keys, certificates, policies. Imports nothing of ours.

Contents are compared, not times: a file may be replaced twice in one tick of the clock, or by a link that moves.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

Contents = Mapping[Path, bytes]


class Unusable(Exception):
    """What was read is no good; `problems` says why, a line each, and quotes no secret."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Reloaded(Generic[T]):
    """What some files say. `value` follows them with each `look`; bad files leave it as it was, and are told of once.

    `read` makes the value of the contents, or raises `Unusable`; the constructor raises it too, since then there is
    no older value to keep.
    """

    def __init__(self, name: str, paths: Sequence[Path], read: Callable[[Contents], T]) -> None:
        self._name = name
        self._paths = paths
        self._read = read
        self._seen: Contents | None = _contents_of(paths)
        self._trouble: tuple[str, ...] = ()
        self.value = read(self._seen)

    async def look(self) -> None:
        """Read the files again, and take over what they say if it is new and good."""
        try:
            contents = await asyncio.to_thread(_contents_of, self._paths)
            if contents == self._seen:
                return
            self._seen = contents
            self.value = self._read(contents)
        except Unusable as error:
            self._tell(error.problems)
        else:
            self._trouble = ()
            structlog.get_logger(__name__).info("reloaded", what=self._name)

    def _tell(self, problems: tuple[str, ...]) -> None:
        if problems != self._trouble:
            structlog.get_logger(__name__).error("reload_refused", what=self._name, problems=problems)
        self._trouble = problems


def _contents_of(paths: Sequence[Path]) -> Contents:
    contents, problems = {}, []
    for path in paths:
        try:
            contents[path] = path.read_bytes()
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror})")
    if problems:
        raise Unusable(*problems)
    return contents
