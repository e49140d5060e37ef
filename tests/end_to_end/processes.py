"""`python -m integration_server` in its own process, configured by environment variables only."""

import base64
import os
import random
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from tests.end_to_end.commands import (
    ROOT,
    Command,
    CompletedCommand,
    output_paths,
    own_temporary_directory,
    wait_until_serving,
)
from tests.end_to_end.prefork import PREFORK_SOCKET, PreforkServer
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


def new_key() -> str:
    """A new value for `ENCRYPTION_KEY`."""
    return base64.b64encode(os.urandom(32)).decode()


def free_port() -> int:
    """A free port outside the range from which the system takes ports of outgoing connections."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def server_environment(database_url: str, **settings: str) -> dict[str, str]:
    """Environment variables for a server in dev mode, on free ports. An empty variable counts as not set."""
    return {
        "DATABASE_URL": database_url,
        "DEV_MODE": "true",
        "DRAIN_SECONDS": "0",  # also for servers outside dev mode
        "ENCRYPTION_KEY": new_key(),
        "GRPC_ADDRESS": "127.0.0.1:0",
        "SIDECAR_ADDRESS": "127.0.0.1:0",
        "METRICS_ADDRESS": "",
        "PUBLIC_URL": PUBLIC_URL,
        "ALLOWED_REDIRECT_URIS": APP_CALLBACK,
        "ALLOWED_RETURN_URLS": RETURN_URL,
        "FORCED_REFRESH_MIN_INTERVAL_SECONDS": "0",  # tests force refreshes to get other tokens
        **settings,
    }


@asynccontextmanager
async def started(
    directory: Path,
    environment: Mapping[str, str],
    *arguments: str,
    module: str = "integration_server",
    open_files: int | None = None,
    forked: bool = True,
) -> AsyncIterator[Command]:
    """`python -m module`, running in the directory; killed at the latest when the block ends.

    The prefork process of this test worker starts it, if one runs, unless `forked` is False, or it is another module or
    has its own import path. `open_files` limits its open files.
    """
    inherited = {name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}}
    prefork_socket = os.environ.get(PREFORK_SOCKET)
    with own_temporary_directory() as temporary:
        path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"}
        everything = {**inherited, **path, **temporary, **environment}
        if forked and prefork_socket and module == "integration_server" and "PYTHONPATH" not in environment:
            server = PreforkServer(prefork_socket)
            starting = server.fork(directory, everything, arguments=arguments, open_files=open_files)
        else:
            starting = _start_subprocess(directory, everything, [sys.executable, "-m", module, *arguments], open_files)
        with starting as command:
            yield command
    left = read_files(directory, command.out_path.name, command.err_path.name)
    assert_no_secrets(secret_variables(environment), left)


@contextmanager
def _start_subprocess(
    directory: Path, environment: Mapping[str, str], command_line: Sequence[str], open_files: int | None
) -> Iterator[Command]:
    if open_files is not None:
        command_line = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command_line]
    out_path, err_path = output_paths(directory)
    with (
        out_path.open("wb") as out,
        err_path.open("wb") as err,
        subprocess.Popen(
            command_line, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        ) as process,
    ):
        try:
            yield Command(process, out_path, err_path)
        finally:
            if process.poll() is None:
                process.kill()


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
    forked: bool = True,
) -> AsyncIterator[Command]:
    """Run `serve`; the command, once it serves. `Command.serving` has the addresses `grpc` and `sidecar`."""
    async with started(directory, environment, "serve", module=module, open_files=open_files, forked=forked) as command:
        yield await wait_until_serving(command)


@dataclass(frozen=True, slots=True)
class ProcessSystem(Clients):
    """A server in its own process, and a sandbox in this one."""

    command: Command
    sandbox: Sandbox
    client_secret: str = field(repr=False)


@asynccontextmanager
async def run_server_process(
    directory: Path, database_url: str, *, sandbox: Sandbox | None = None, forked: bool = True, **settings: str
) -> AsyncIterator[ProcessSystem]:
    """Run a server process and a sandbox on a migrated database.

    Raises `SecretLeaked` if the logs or the database contain a secret of the sandbox at the end.
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
            serving(directory, environment, forked=forked) as command,
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
