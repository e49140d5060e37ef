"""The refresh journal on disk: implements the port `RefreshJournal`.

Each refresh is one file, written under a temporary name, fsynced and renamed, with an fsync of the directory: then it
survives a crash. The credentials are encrypted and bound to their row, so that a file reveals no more than the row.
"""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import structlog
from pydantic import ConfigDict, TypeAdapter

from integration_server.service.credentials.ports import JournaledRefresh

# The content of a file is a list of one refresh: the adapter of a dataclass itself takes no configuration.
_FILE_CONTENT = TypeAdapter(
    tuple[JournaledRefresh], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
)


class FileRefreshJournal:
    """A `RefreshJournal` in a directory that is created when needed. The processes of a machine share it.

    A refresh that cannot be written is kept in memory, until the process ends.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unwritten: dict[Path, JournaledRefresh] = {}
        self._log = structlog.get_logger(__name__)

    async def append(self, refresh: JournaledRefresh) -> None:
        """Write a refresh durably."""
        try:
            await asyncio.to_thread(self._write, refresh)
        except OSError as error:
            self._unwritten[self._path(refresh)] = refresh
            self._log.error("refresh_journal_write_failed", directory=str(self._directory), reason=error.strerror)

    async def pending(self) -> Sequence[JournaledRefresh]:
        """All refreshes. An unreadable file is logged and stays for an operator."""
        return [*await asyncio.to_thread(self._read), *self._unwritten.values()]

    async def count(self) -> int:
        """The number of refreshes, without reading them."""
        files = await asyncio.to_thread(lambda: sum(1 for _ in self._directory.glob("*.refresh")))
        return files + len(self._unwritten)

    async def remove(self, refresh: JournaledRefresh) -> None:
        """Delete the file of a refresh."""
        if self._unwritten.pop(self._path(refresh), None) is None:
            await asyncio.to_thread(self._path(refresh).unlink, missing_ok=True)

    def _path(self, refresh: JournaledRefresh) -> Path:
        return self._directory / f"{refresh.integration.integration_id}-{refresh.integration.version}.refresh"

    def _write(self, refresh: JournaledRefresh) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(refresh)
        unfinished = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(_FILE_CONTENT.dump_json((refresh,)))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        _sync(self._directory)

    def _read(self) -> list[JournaledRefresh]:
        refreshes: list[JournaledRefresh] = []
        for path in sorted(self._directory.glob("*.refresh")):
            try:
                refreshes += _FILE_CONTENT.validate_json(path.read_bytes())
            except FileNotFoundError:
                continue  # another process has committed it
            except (OSError, ValueError) as error:
                self._log.error("refresh_journal_entry_unreadable", path=str(path), kind=type(error).__name__)
        return refreshes


def require_writable(directory: Path) -> None:
    """Raise `OSError` if the directory is not writable, at the start of the server."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(1))
    except OSError as error:
        raise OSError(f"REFRESH_JOURNAL_DIR: nothing can be written to {directory}: {error.strerror}") from error


def _sync(directory: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
