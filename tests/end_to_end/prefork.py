"""The client of `prefork_process`: it starts processes in a tenth of the usual time.

The fixture `prefork` has one for each test worker. `processes.started` uses it too, through `PREFORK_SOCKET`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import ROOT, Command, output_paths, own_temporary_directory, wait_until_serving

PREFORK_SOCKET = "TESTS_PREFORK_SOCKET"
"""The environment variable with the path of the socket of this worker's prefork process, if one runs."""


@dataclass(slots=True)
class ForkedProcess:
    """A process that the prefork server forked, with the part of `subprocess.Popen` that `Command` uses."""

    prefork: "PreforkServer"
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, None while it runs. The process id stays reserved until this returns an exit code."""
        if self.returncode is None:
            self.returncode = self.prefork.send_request({"poll": self.pid})
        return self.returncode

    def wait(self) -> None:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = self.prefork.send_request({"wait": self.pid})

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, even if it is stopped."""
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class PreforkServer:
    """A client of `prefork_process`, which listens on a Unix socket."""

    socket_path: str

    def send_request(self, request: dict[str, Any]) -> Any:
        """The response to a request."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket_path)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                return json.loads(stream.readline())

    @contextmanager
    def fork(
        self, directory: Path, environment: Mapping[str, str], *, open_files: int | None = None, **program: Any
    ) -> Iterator[Command]:
        """A command that runs in the directory; killed at the latest when the block ends.

        `program` is `variant`, a key of `variants.VARIANTS`, or `arguments` of `python -m integration_server`.
        """
        out, err = output_paths(directory)
        request = {
            "directory": str(directory),
            "environment": dict(environment),
            "out": str(out),
            "err": str(err),
            "open_files": open_files,
            **program,
        }
        process = ForkedProcess(self, self.send_request({"fork": request}))
        try:
            yield Command(process, out, err)
        finally:
            process.kill()
            process.wait()

    @asynccontextmanager
    async def serving(
        self, directory: Path, environment: Mapping[str, str], variant: str = ""
    ) -> AsyncIterator[Command]:
        """A server of a variant in its own process, once it serves; killed at the latest when the block ends."""
        with (
            own_temporary_directory() as temporary,
            self.fork(directory, {**environment, **temporary}, variant=variant) as command,
        ):
            yield await wait_until_serving(command)


@pytest.fixture(scope="session")
def prefork() -> Iterator[PreforkServer]:
    """The prefork process of this test worker."""
    with (
        tempfile.TemporaryDirectory(prefix="prefork-") as directory,
        subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.prefork_process", socket_path := f"{directory}/socket"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield PreforkServer(socket_path)
        finally:
            process.stdin.close()
