"""Hot reload of files: keys, certificates, policies. Imports no other module of this package.

Contents are compared, not modification times: a file may be replaced twice within one tick of the clock, or through a
symbolic link.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

Contents = Mapping[Path, bytes]


class InvalidFile(Exception):
    """A file is missing or invalid. `problems` has one line for each problem and quotes no secret."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ReloadedFile(Generic[T]):
    """A value read from files. `poll` reads changed files again; invalid ones are logged once and leave `value` as is.

    `read` converts the contents to the value, or raises `InvalidFile`. The constructor raises `InvalidFile` too.
    `contents_in_use` are those of `value`.
    """

    def __init__(self, name: str, paths: Sequence[Path], read: Callable[[Contents], T]) -> None:
        self._name = name
        self._paths = paths
        self._read = read
        self._contents = _read_contents(paths)
        self._problems: tuple[str, ...] = ()
        self.value = read(self._contents)
        self.contents_in_use = self._contents

    async def poll(self) -> None:
        """Replace the value if the files have changed and are valid."""
        try:
            contents = await asyncio.to_thread(_read_contents, self._paths)
            if contents == self._contents:
                return
            self._contents = contents
            self.value = self._read(contents)
            self.contents_in_use = contents
        except InvalidFile as error:
            if error.problems != self._problems:
                structlog.get_logger(__name__).error("reload_failed", name=self._name, problems=error.problems)
            self._problems = error.problems
        else:
            self._problems = ()
            structlog.get_logger(__name__).info("reloaded", name=self._name)


def _read_contents(paths: Sequence[Path]) -> Contents:
    contents, problems = {}, []
    for path in paths:
        try:
            contents[path] = path.read_bytes()
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror})")
    if problems:
        raise InvalidFile(*problems)
    return contents
