"""Servers by the dozen: processes of their own, forked from one that has everything imported."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import ROOT, Command, output_paths, wait_until_serving


@dataclass(slots=True)
class ForkedProcess:
    """A process that the nursery forked, with what `Command` uses of `subprocess.Popen`."""

    prefork: "PreforkServer"
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, once it has ended. Its id stays its own until then."""
        if self.returncode is None:
            self.returncode = self.prefork.send_request({"poll": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, even if it is stopped."""
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class PreforkServer:
    """Starts servers of each of `variants.VARIANTS`."""

    process: "subprocess.Popen[str]" = field(repr=False)

    def send_request(self, request: dict[str, Any]) -> Any:
        """Have an order done."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @asynccontextmanager
    async def serving(
        self, directory: Path, environment: Mapping[str, str], variant: str = ""
    ) -> AsyncIterator[Command]:
        """A server in a process of its own, once it says where; ended at the latest when the block ends."""
        out, err = output_paths(directory)
        request = {
            "variant": variant,
            "directory": str(directory),
            "environment": dict(environment),
            "out": str(out),
            "err": str(err),
        }
        process = ForkedProcess(self, self.send_request({"fork": request}))
        try:
            yield await wait_until_serving(Command(process, out, err))
        finally:
            process.kill()


@pytest.fixture(scope="session")
def prefork() -> Iterator[PreforkServer]:
    """One for the whole run, started for the first test that wants it."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.end_to_end.prefork_process"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield PreforkServer(process)
        finally:
            process.stdin.close()
