"""The process of the pytest plugin: server, sidecar and sandbox provider, on free ports.

It reads commands from standard input, one JSON object in a line, and writes a response to each on standard output. It
ends when its input does, that is with the tests. Everything else that it prints goes to standard error.
"""

import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, get_args

import grpc
import httpx
import uvloop

from integration_server.dev import connect_account, new_sandbox, running_with_sandbox
from integration_server.logs import configure_logging
from integration_server.sandbox.behaviour import Behaviour, Endpoint, Fault
from integration_server.sandbox.model import Account
from integration_server.sandbox.state import Sandbox
from integration_server.settings import Settings
from integration_server.storage.schema import migrate
from integration_server.testing.sandbox import MAX_COMMAND
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

_DEADLINE = 30.0  # seconds; everything runs on this machine
_MAX_SHIFT = timedelta(days=36_500)  # far from the end of what dates and databases express
_ENDPOINTS: Final[Sequence[Endpoint]] = get_args(Endpoint)


class ShiftedClock:
    """The real time plus `shift`."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def __call__(self) -> datetime:
        """Return the time."""
        return datetime.now(UTC) + self.shift


class Commands:
    """The commands of `IntegrationServerSandbox`, one method for each."""

    def __init__(self, grpc_address: str, sandbox: Sandbox, clock: ShiftedClock) -> None:
        self._grpc_address = grpc_address
        self._sandbox = sandbox
        self._clock = clock

    async def execute(self, command: str, arguments: dict[str, Any]) -> object:
        """Execute a command; its result."""
        return await getattr(self, f"_{command}")(**arguments)

    async def _connect(self, user: str, integration_type: str) -> int:
        if integration_type == "sandbox_api_key":
            return await self._connect_with_key(user, integration_type)
        self._sandbox.accounts.setdefault(user, Account(user, f"{user}@example.com", user))
        integration = await connect_account(self._grpc_address, user, integration_type, account=user)
        return integration.integration_id

    async def _connect_with_key(self, user: str, integration_type: str) -> int:
        request = pb.ConnectWithApiKeyRequest(
            user_id=user, integration_type=integration_type, api_key=self._sandbox.api_key.key
        )
        async with grpc.aio.insecure_channel(self._grpc_address) as channel:
            response = await IntegrationServiceStub(channel).ConnectWithApiKey(request, timeout=_DEADLINE)
            return response.integration.integration_id

    async def _expire_tokens(self) -> None:
        self._sandbox.expire_access_tokens()

    async def _revoke(self, user: str) -> None:
        if user not in self._sandbox.accounts:
            raise ValueError(f"{user} has no account at the provider: connect it first")
        self._sandbox.revoke_grants(user)

    async def _set_behaviour(self, **values: Any) -> None:  # noqa: ANN401 — of the fields of Behaviour
        self._sandbox.behaviour = replace(self._sandbox.behaviour, **values)

    async def _fail(
        self,
        endpoints: Sequence[Endpoint],
        status: int | None = None,
        headers: dict[str, str] | None = None,
        body: str = "",
        delay: float = 0,
    ) -> None:
        if unknown := set(endpoints) - set(_ENDPOINTS):
            raise ValueError(f"unknown endpoints {sorted(unknown)}; there are {sorted(_ENDPOINTS)}")
        if (status is not None and not 200 <= status <= 599) or delay < 0:
            raise ValueError("the status has to be from 200 to 599, and the delay not negative")
        content_type = {"Content-Type": "application/json"} if body.startswith("{") else {}
        fault = Fault(status=status, headers={**content_type, **(headers or {})}, body=body.encode(), delay=delay)
        faults = {**self._sandbox.behaviour.faults, **dict.fromkeys(endpoints or _ENDPOINTS, fault)}
        self._sandbox.behaviour = replace(self._sandbox.behaviour, faults=faults)

    async def _recover(self) -> None:
        self._sandbox.behaviour = replace(self._sandbox.behaviour, faults={})

    async def _reset(self) -> None:
        self._sandbox.behaviour = Behaviour()
        self._clock.shift = timedelta()

    async def _advance(self, seconds: float) -> None:
        if not 0 <= seconds <= (_MAX_SHIFT - self._clock.shift).total_seconds():
            raise ValueError(f"the clock moves forward, by at most {_MAX_SHIFT.days} days in a test")
        self._clock.shift += timedelta(seconds=seconds)

    async def _calls(self) -> dict[Endpoint, int]:
        return dict(self._sandbox.calls)


async def serve(directory: Path, responses: int) -> None:
    """Serve until standard input ends. `responses` is the descriptor that responses are written to."""
    settings = Settings.from_environment(
        {
            "DATABASE_URL": f"sqlite:///{directory / 'integrations.db'}",
            "DEV_MODE": "true",
            "ENCRYPTION_KEY": base64.b64encode(os.urandom(32)).decode(),
            "FORCED_REFRESH_MIN_INTERVAL_SECONDS": "0",  # tests end tokens again and again
            "GRPC_ADDRESS": "127.0.0.1:0",
            "METRICS_ADDRESS": "",
            "REFRESH_JOURNAL_DIR": str(directory / "refresh-journal"),
            "SANDBOX_ADDRESS": "127.0.0.1:0",
            "SHUTDOWN_GRACE_SECONDS": "1",
            # Its port is a part of the redirect URIs, which are registered before it listens.
            "SIDECAR_ADDRESS": f"127.0.0.1:{_free_port()}",
        }
    )
    configure_logging(settings.log_level)
    await migrate(settings.database_url)
    clock = ShiftedClock()
    sandbox = new_sandbox(clock)
    async with running_with_sandbox(settings, {}, sandbox, clock=clock) as (addresses, sandbox_url, _):
        commands = Commands(addresses.grpc_address, sandbox, clock)
        _respond(
            responses,
            {
                "address": addresses.grpc_address,
                "sidecar_url": addresses.sidecar_url,
                "provider_url": sandbox_url,
            },
        )
        async for line in await _standard_input():
            _respond(responses, await _response(commands, line))


async def _response(commands: Commands, line: bytes) -> dict[str, object]:
    arguments = json.loads(line)
    try:
        return {"result": await commands.execute(arguments.pop("command"), arguments)}
    except httpx.HTTPStatusError as error:
        # Not its own message, whose URL has the state of the connection.
        return {"error": f"{error.request.url.path} responded with {error.response.status_code}"}
    except Exception as error:  # whatever it is, the test is told
        details = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        return {"error": f"{type(error).__name__}: {details}"}


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MAX_COMMAND)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _respond(descriptor: int, message: dict[str, object]) -> None:
    os.write(descriptor, json.dumps(message).encode() + b"\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    descriptor = os.dup(1)
    os.dup2(2, 1)
    uvloop.run(serve(Path(sys.argv[1]), descriptor))
