"""The sandbox in its own process, so that its CPU time counts for no other process.

The benchmark sends functions over a pipe, which the process runs with the sandbox.
"""

import asyncio
import multiprocessing
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import TypeVar

from integration_server.sandbox.behaviour import Fault
from integration_server.sandbox.model import Account
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox

T = TypeVar("T")

SCOPES = ("read",)
_REDIRECT_URI = "https://app.example/callback"  # no code is sent to it


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """The OAuth client of the server."""

    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class IssuedGrant:
    """Valid tokens of an account at the provider."""

    account_id: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenCalls:
    """Counts of the requests to the token endpoint."""

    calls: int
    refreshed: int
    in_flight: int
    max_in_flight: int


class SandboxProcess:
    """The sandbox process. `url` is its address, `client` the OAuth client registered there."""

    def __init__(self, url: str, client: OAuthClient, pipe: Connection) -> None:
        self.url = url
        self.client = client
        self._pipe = pipe
        self._lock = asyncio.Lock()

    async def issue_grants(self, prefix: str, count: int) -> Sequence[IssuedGrant]:
        """Issue grants of `count` accounts, whose names begin with the prefix."""
        return await self._call(partial(_issue_grants, self.client.client_id, prefix, count))

    async def break_token_endpoint(self, fault: Fault) -> None:
        """Make the token endpoint fail in this way from now on."""
        await self._call(partial(_break_token_endpoint, fault))

    async def token_calls(self) -> TokenCalls:
        """The counts of the requests to the token endpoint so far."""
        return await self._call(_token_calls)

    async def _call(self, function: Callable[[Sandbox], T]) -> T:
        # Shielded: after a cancellation the next caller must not receive this result.
        return await asyncio.shield(asyncio.create_task(self._exchange(function)))

    async def _exchange(self, function: Callable[[Sandbox], T]) -> T:
        async with self._lock:
            await asyncio.to_thread(self._pipe.send, function)
            result: T = await asyncio.to_thread(self._pipe.recv)
            return result


@asynccontextmanager
async def running_provider() -> AsyncIterator[SandboxProcess]:
    """Run a sandbox in another process until the block ends."""
    client = OAuthClient("benchmark", secrets.token_urlsafe(32))
    context = multiprocessing.get_context("spawn")
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_run, args=(child_end, client), name="provider", daemon=True)
    process.start()
    child_end.close()
    try:
        yield SandboxProcess(await asyncio.to_thread(parent_end.recv), client, parent_end)
    finally:
        parent_end.close()  # which ends the process
        await asyncio.to_thread(process.join)


# --- in the sandbox process----------------------------------------------------------------------------------------


def _run(pipe: Connection, client: OAuthClient) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C and ends this process
    asyncio.run(_serve(pipe, client))


async def _serve(pipe: Connection, client: OAuthClient) -> None:
    sandbox = Sandbox(scopes=SCOPES)
    sandbox.register_client(client.client_id, client.client_secret, [_REDIRECT_URI])
    async with run_sandbox(sandbox) as url:
        pipe.send(url)
        while True:
            try:
                function = await asyncio.to_thread(pipe.recv)
            except EOFError:
                return
            pipe.send(function(sandbox))


def _issue_grants(client_id: str, prefix: str, count: int, sandbox: Sandbox) -> list[IssuedGrant]:
    return [_issue_grant(client_id, f"{prefix}-{number}", sandbox) for number in range(count)]


def _issue_grant(client_id: str, account_id: str, sandbox: Sandbox) -> IssuedGrant:
    sandbox.accounts[account_id] = Account(account_id, f"{account_id}@example.com", account_id)
    client = sandbox.clients.get(client_id)
    assert client is not None
    code = sandbox.issue_code(client, _REDIRECT_URI, account_id, SCOPES, code_challenge=None)
    issued = sandbox.redeem_code(client, code, _REDIRECT_URI, code_verifier=None)
    assert issued.refresh_token is not None
    return IssuedGrant(account_id, issued.access_token, issued.refresh_token)


def _break_token_endpoint(fault: Fault, sandbox: Sandbox) -> None:
    sandbox.behaviour = replace(sandbox.behaviour, faults={"token": fault})


def _token_calls(sandbox: Sandbox) -> TokenCalls:
    return TokenCalls(
        calls=sandbox.calls["token"],
        refreshed=sum(call.outcome == "ok" for call in sandbox.token_calls),
        in_flight=sandbox.in_flight["token"],
        max_in_flight=sandbox.max_in_flight["token"],
    )
