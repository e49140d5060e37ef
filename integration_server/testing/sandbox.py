"""The handle of a server process with the sandbox provider: accounts, switches, clock."""

import json
import os
import select
import subprocess  # nosec B404
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, cast

from integration_server.client import Account, Integrations

_START_DEADLINE = 120.0  # seconds, on a busy machine
_COMMAND_DEADLINE = 60.0  # seconds
_STOP_DEADLINE = 15.0  # seconds; the server gives calls in progress a few
MAX_COMMAND = 16 << 20  # bytes; a body that exceeds the limits of responses fits
_LOG_TAIL = 20_000  # bytes of the log in a report

Endpoint = Literal["token", "authorize", "userinfo", "account", "revoke", "calendar"]


class SandboxError(Exception):
    """The server process has refused a command, or has ended. The message has the reason, or the end of its log."""


class IntegrationServerSandbox:
    """A running server whose provider is the sandbox.

    Attributes:
        address: the server's gRPC address, `host:port`. It serves loopback without authentication.
        sidecar_url: the base URL of its HTTP sidecar.
        provider_url: the base URL of the sandbox's API, for requests with a connected account's credentials.
        integrations: a connected client.
    """

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self._process = process
        self._commands = cast("IO[bytes]", process.stdin)  # both are pipes
        self._responses = cast("IO[bytes]", process.stdout)
        self._log_path = log_path
        self._received = b""
        addresses = self._receive(_START_DEADLINE)
        self.address: str = addresses["address"]
        self.sidecar_url: str = addresses["sidecar_url"]
        self.provider_url: str = addresses["provider_url"]
        self.integrations = Integrations(self.address)
        self._is_changed = False

    def __repr__(self) -> str:
        return f"<IntegrationServerSandbox at {self.address}>"

    # --- Accounts ---------------------------------------------------------------------------------------------------

    def connect(self, user: str = "ada", type: str = "sandbox") -> Account:  # noqa: A002 — as in the client
        """Connect the user's account at the sandbox, with its consent page and the callback, and return it.

        Types: `sandbox` and `google_calendar` (OAuth), `sandbox_api_key`. Each user has an account of their own.
        """
        integration_id = self._command("connect", user=user, integration_type=type)
        return self.integrations.account(user=user, type=type, integration_id=integration_id)

    # --- Switches of the provider, all of them off after each test --------------------------------------------------

    def expire_tokens(self) -> None:
        """End all access tokens, which the server and its callers still take for valid. Refresh tokens stay valid."""
        self._command("expire_tokens")

    def revoke(self, user: str = "ada") -> None:
        """The user ends all grants at the provider: access tokens are rejected, a refresh is `invalid_grant`."""
        self._command("revoke", user=user)

    def set_token_lifetime(self, lifetime: timedelta) -> None:
        """Set how long access tokens that are issued from now on last; an hour by default. At least a second."""
        self._change("set_behaviour", access_token_lifetime=max(1, round(lifetime.total_seconds())))

    def refuse_refresh(self, error: str = "invalid_grant") -> None:
        """Let the provider reject all refreshes with an OAuth error."""
        self._change("fail", endpoints=["token"], status=400, body=json.dumps({"error": error}))

    def fail(
        self,
        *endpoints: Endpoint,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: str = "",
        delay: timedelta = timedelta(),
    ) -> None:
        """Let endpoints of the provider respond with a status, or with their own response after a delay.

        Without endpoints: all of them.
        """
        fault = {"status": status, "headers": dict(headers or {}), "body": body, "delay": delay.total_seconds()}
        self._change("fail", endpoints=list(endpoints), **fault)

    def outage(self, status: int = 503) -> None:
        """Let the whole provider respond with an error."""
        self.fail(status=status)

    def rate_limit(self, retry_after: timedelta = timedelta(seconds=1)) -> None:
        """Let the whole provider respond with 429 and `Retry-After`."""
        self.fail(status=429, headers={"Retry-After": str(max(0, round(retry_after.total_seconds())))})

    def slow_down(self, delay: timedelta) -> None:
        """Let the whole provider respond after a delay."""
        self.fail(delay=delay)

    def recover(self) -> None:
        """Let the provider work again: ends what `fail` and its variants have begun."""
        self._command("recover")

    def reset(self) -> None:
        """Switch everything back, the clock too. Accounts stay connected."""
        if self._is_changed and self._process.poll() is None:
            self._command("reset")
            self._is_changed = False

    # --- Clock and counts -------------------------------------------------------------------------------------------

    def advance(self, time: timedelta) -> None:
        """Move the clock of the server and of the provider forward. The clock of the test's process stays as it is."""
        self._change("advance", seconds=time.total_seconds())

    def calls(self) -> Mapping[Endpoint, int]:
        """Return the number of requests to each endpoint of the provider since its start."""
        counts: Mapping[Endpoint, int] = self._command("calls")
        return counts

    # --- Log --------------------------------------------------------------------------------------------------------

    @property
    def log_size(self) -> int:
        """The size of the server's log, in bytes."""
        return self._log_path.stat().st_size

    def read_log(self, start: int = 0) -> str:
        """Return the server's log from a position on; the end of it if it is long."""
        with self._log_path.open("rb") as log:
            log.seek(max(start, self.log_size - _LOG_TAIL))
            return log.read().decode(errors="replace")

    # --- Process ----------------------------------------------------------------------------------------------------

    def _change(self, command: str, **arguments: object) -> None:
        self._is_changed = True
        self._command(command, **arguments)

    def _command(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 — of the command
        line = json.dumps({"command": command, **arguments}).encode() + b"\n"
        if len(line) > MAX_COMMAND:  # the server would end
            raise SandboxError(f"{command}: has {len(line)} bytes; at most {MAX_COMMAND} are possible")
        try:
            self._commands.write(line)
            self._commands.flush()
        except OSError as error:
            raise self._ended() from error
        response = self._receive(_COMMAND_DEADLINE)
        if "error" in response:
            raise SandboxError(response["error"])
        return response.get("result")

    def _receive(self, seconds: float) -> dict[str, Any]:
        descriptor = self._responses.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            if not select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0]:
                raise SandboxError(
                    f"the server process does not respond within {seconds:.0f} seconds\n{self.read_log()}"
                )
            part = os.read(descriptor, 65536)
            if not part:
                raise self._ended()
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _ended(self) -> SandboxError:
        return SandboxError(f"the server process has ended\n{self.read_log()}")

    def close(self) -> None:
        """Close the client."""
        self.integrations.close()


def require_server(modules: Sequence[str] = ("sqlalchemy", "starlette")) -> None:
    """Raise `SandboxError` if the server's dependencies are not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise SandboxError(f"the server needs {module}: pip install 'integration-server[testing]'")


@contextmanager
def running_sandbox_server(directory: Path) -> Iterator[IntegrationServerSandbox]:
    """Run a server process whose files are in the directory. It ends with the block, or with this process.

    Raises `SandboxError`.
    """
    require_server()
    log_path = directory / "server.log"
    command = [sys.executable, "-m", "integration_server.testing.server_process", str(directory)]
    # Settings of the developer's own server are none of this one.
    inherited = ("HOME", "LANG", "PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in inherited if name in os.environ}
    with (
        log_path.open("wb") as log,
        subprocess.Popen(  # noqa: S603  # nosec B603  # this Python, and a module of ours
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop it
        ) as process,
    ):
        try:
            sandbox = IntegrationServerSandbox(process, log_path)
            try:
                yield sandbox
            finally:
                sandbox.close()
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
