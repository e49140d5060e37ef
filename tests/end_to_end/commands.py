"""A command in its own process, whose output goes to files."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0  # seconds for a process to start or end: many times what it takes, since machines may be busy


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


class Process(Protocol):
    """The part of `subprocess.Popen` that `Command` uses."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """The exit code, once `poll` has found one."""

    def poll(self) -> int | None:
        """The exit code, None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""


@dataclass(frozen=True, slots=True)
class Command:
    """A running command, whose output goes to files in the directory that it runs in."""

    process: Process
    out_path: Path
    err_path: Path
    serving: dict[str, Any] = field(default_factory=dict)

    def pid(self, name: str) -> int:
        """The id of a process of `serve`: "server" or "sidecar". A command of one process is both."""
        pids: dict[str, int] = self.serving.get("pids", {})
        return pids.get(name, self.process.pid)

    @property
    def output(self) -> str:
        """The output so far, of both streams."""
        return self.out_path.read_text() + self.err_path.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal. All processes of `serve` are suspended and resumed together, as a machine is."""
        if number in {signal.SIGSTOP, signal.SIGCONT}:
            for pid in self.serving.get("pids", {}).values():
                os.kill(pid, number)
        self.process.send_signal(number)

    async def finished(self, within: float = DEADLINE) -> CompletedCommand:
        """Wait for it to end by itself."""
        async with asyncio.timeout(within):
            while self.process.poll() is None:  # noqa: ASYNC110  # a process of its own sets no event of ours
                await asyncio.sleep(0.02)
        assert self.process.returncode is not None
        return CompletedCommand(self.process.returncode, self.out_path.read_text(), self.err_path.read_text())

    async def wait_for_output(self, text: str) -> str:
        """Wait until the output contains the text; the output so far."""
        async with asyncio.timeout(DEADLINE):
            while text not in (output := self.output):
                assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{output}"
                await asyncio.sleep(0.02)
        return output


@contextmanager
def own_temporary_directory() -> Iterator[dict[str, str]]:
    """The environment variable of a temporary directory: a command that is killed leaves files in it."""
    with TemporaryDirectory(prefix="command-", ignore_cleanup_errors=True) as directory:
        yield {"TMPDIR": directory}


def output_paths(directory: Path) -> tuple[Path, Path]:
    """New files in the directory for the two output streams of a command."""
    number = len(list(directory.glob("*.out")))
    paths = directory / f"{number}.out", directory / f"{number}.err"
    for path in paths:
        path.touch()
    return paths


async def wait_until_serving(command: Command) -> Command:
    """The command, once it has logged its addresses."""
    output = await command.wait_for_output('"event": "serving"')
    (line,) = (line for line in output.splitlines() if '"event": "serving"' in line)
    command.serving.update(json.loads(line))
    return command
