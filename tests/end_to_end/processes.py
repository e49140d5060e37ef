"""`python -m integration_server` as a process of its own, configured by environment variables and nothing else."""

import asyncio
import base64
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from integration_server.sandbox import Sandbox, run_sandbox
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.secret_scanner import (
    assert_no_secrets,
    dump_rows,
    read_database_files,
    read_files,
    secret_variables,
)
from tests.end_to_end.system import (
    APP_CALLBACK,
    CLIENT_ID,
    PUBLIC_URL,
    RETURN_URL,
    Clients,
    callback_url,
    clients_of,
)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0  # seconds for a process to start or end: many times what it takes, since machines may be busy


def new_key() -> str:
    """A key, as `ENCRYPTION_KEY` has it."""
    return base64.b64encode(os.urandom(32)).decode()


def free_port() -> int:
    """A port that is free, and that the system gives to no outgoing connection in the meantime."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def server_environment(database_url: str, **settings: str) -> dict[str, str]:
    """Variables for a server in dev mode, on free ports. An empty one counts as not set."""
    return {
        "DATABASE_URL": database_url,
        "DEV_MODE": "true",
        "ENCRYPTION_KEY": new_key(),
        "GRPC_ADDRESS": "127.0.0.1:0",
        "SIDECAR_ADDRESS": "127.0.0.1:0",
        "PUBLIC_URL": PUBLIC_URL,
        "ALLOWED_REDIRECT_URIS": APP_CALLBACK,
        "ALLOWED_RETURN_URLS": RETURN_URL,
        **settings,
    }


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """How a command ended."""

    code: int
    out: str
    err: str


class Process(Protocol):
    """What is needed of a process: `subprocess.Popen` has it."""

    pid: int

    @property
    def returncode(self) -> int | None:
        """How it ended, once that was looked at."""

    def poll(self) -> int | None:
        """Look whether it has ended, and how."""

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command under way, with what it has written so far in files of the directory that it runs in."""

    process: Process
    out_path: Path
    err_path: Path
    serving: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """All that it wrote, on both streams."""
        return self.out_path.read_text() + self.err_path.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def finished(self, within: float = DEADLINE) -> CompletedCommand:
        """Wait for it to end by itself."""
        async with asyncio.timeout(within):
            while self.process.poll() is None:  # noqa: ASYNC110  # a process of its own sets no event of ours
                await asyncio.sleep(0.02)
        assert self.process.returncode is not None
        return CompletedCommand(self.process.returncode, self.out_path.read_text(), self.err_path.read_text())

    async def wait_for_output(self, text: str) -> str:
        """Wait until it has written the text; all that it wrote."""
        async with asyncio.timeout(DEADLINE):
            while text not in (output := self.output):
                assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{output}"
                await asyncio.sleep(0.02)
        return output


@asynccontextmanager
async def started(
    directory: Path,
    environment: Mapping[str, str],
    *arguments: str,
    module: str = "integration_server",
    open_files: int | None = None,
) -> AsyncIterator[Command]:
    """The command, running in the directory; ended at the latest when the block ends.

    It is that of another module, or may have no more than so many open files, if that is said.
    """
    command_line = [sys.executable, "-m", module, *arguments]
    if open_files is not None:
        command_line = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command_line]
    with _started(directory, environment, command_line) as command:
        yield command


def output_paths(directory: Path) -> tuple[Path, Path]:
    """New files in the directory for what a command writes on both streams."""
    number = len(list(directory.glob("*.out")))
    paths = directory / f"{number}.out", directory / f"{number}.err"
    for path in paths:
        path.touch()
    return paths


@contextmanager
def _started(directory: Path, environment: Mapping[str, str], command_line: Sequence[str]) -> Iterator[Command]:
    out_path, err_path = output_paths(directory)
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG", "TMPDIR"}}
    with (
        out_path.open("wb") as out,
        err_path.open("wb") as err,
        subprocess.Popen(
            command_line,
            cwd=directory,
            env={**inherited, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}", **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        ) as process,
    ):
        try:
            yield Command(process, out_path, err_path)
        finally:
            if process.poll() is None:
                process.kill()
    assert_no_secrets(secret_variables(environment), read_files(directory, out_path.name, err_path.name))


async def run(directory: Path, environment: Mapping[str, str], *arguments: str) -> CompletedCommand:
    """Run a command to its end."""
    async with started(directory, environment, *arguments) as command:
        return await command.finished()


@asynccontextmanager
async def serving(
    directory: Path,
    environment: Mapping[str, str],
    *,
    module: str = "integration_server",
    open_files: int | None = None,
) -> AsyncIterator[Command]:
    """`serve`, once it says where: `Command.serving` has `grpc` and `sidecar`."""
    async with started(directory, environment, "serve", module=module, open_files=open_files) as command:
        yield await wait_until_serving(command)


async def wait_until_serving(command: Command) -> Command:
    """The command, once it says where it serves."""
    output = await command.wait_for_output('"event": "serving"')
    (line,) = (line for line in output.splitlines() if '"event": "serving"' in line)
    command.serving.update(json.loads(line))
    return command


@dataclass(frozen=True, slots=True)
class ProcessSystem(Clients):
    """A server that is a process of its own, beside a sandbox in this one."""

    command: Command
    sandbox: Sandbox
    client_secret: str = field(repr=False)


@asynccontextmanager
async def run_server_process(
    directory: Path, database_url: str, *, sandbox: Sandbox | None = None, **settings: str
) -> AsyncIterator[ProcessSystem]:
    """Such a system on a migrated database. Raises `SecretLeaked` if a secret of the sandbox is left behind in the
    end.
    """
    sandbox = sandbox or Sandbox()
    client_secret = secrets.token_urlsafe(32)
    sandbox.register_client(CLIENT_ID, client_secret, [callback_url("sandbox")])
    async with run_sandbox(sandbox) as sandbox_url:
        providers = directory / "providers"
        providers.mkdir()
        declare_sandbox(providers, sandbox_url)
        environment = server_environment(
            database_url,
            PROVIDERS_DIR=str(providers),
            SANDBOX_CLIENT_ID=CLIENT_ID,
            SANDBOX_CLIENT_SECRET=client_secret,
            **settings,
        )
        async with (
            serving(directory, environment) as command,
            clients_of(command.serving["grpc"], command.serving["sidecar"]) as clients,
        ):
            yield ProcessSystem(
                grpc_address=clients.grpc_address,
                sidecar_url=clients.sidecar_url,
                channel=clients.channel,
                browser=clients.browser,
                command=command,
                sandbox=sandbox,
                client_secret=client_secret,
            )
    left = {**read_files(directory, "*.out", "*.err", "data/refresh-journal/*"), **read_database_files(database_url)}
    assert_no_secrets({"sandbox": sandbox.secrets}, {**left, "rows": await dump_rows(database_url)})
