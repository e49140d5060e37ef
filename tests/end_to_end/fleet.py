"""Replicas behind a real Envoy that are stopped and started again, and callers that never pause."""

import asyncio
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import httpx

from integration_server.sandbox.behaviour import Behaviour, Fault
from integration_server.sandbox.model import Account
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.event_pb2 import IntegrationEventKind
from tests.end_to_end.commands import Command
from tests.end_to_end.processes import free_port, server_environment, serving
from tests.end_to_end.replicas import wait_until
from tests.end_to_end.rpc_errors import parse_rpc_error
from tests.end_to_end.sandbox_declaration import declare_sandbox
from tests.end_to_end.system import CLIENT_ID, Clients, callback_url, clients_of
from tests.envoy import Envoy, are_healthy, is_ejected, run_envoy

TIMEOUT = 60.0  # seconds of a call: many times what it takes
UNTIL_NOTICED = "300"
"""`DRAIN_SECONDS` of a server whose drain the test ends, when Envoy has noticed: no matter how busy the machine is."""

ACCOUNTS = ("read", "renamed", "refreshed", "also refreshed", "connected")
"""The accounts at the provider, by what the load does with them."""

_UPDATED = IntegrationEventKind.INTEGRATION_EVENT_KIND_UPDATED
_PAUSE = 0.01  # seconds between two calls of a caller
_PROVIDER_DELAY = 1.0  # seconds of a token request, so that calls are in progress when a server stops


@dataclass(slots=True)
class Replica:
    """A server at fixed addresses. `directory` is that of its output."""

    directory: Path
    environment: dict[str, str] = field(repr=False)
    running: AsyncExitStack
    command: Command

    @classmethod
    async def start(cls, directory: Path, environment: Mapping[str, str]) -> "Replica":
        """Start one on free ports, which it keeps, in an existing directory."""
        addresses = {name: f"127.0.0.1:{free_port()}" for name in ("GRPC_ADDRESS", "SIDECAR_ADDRESS")}
        chosen = {**environment, **addresses}
        stack = AsyncExitStack()
        return cls(directory, chosen, stack, await stack.enter_async_context(serving(directory, chosen)))

    @property
    def addresses(self) -> Sequence[str]:
        """The addresses of its server and its sidecar."""
        return self.environment["GRPC_ADDRESS"], self.environment["SIDECAR_ADDRESS"]

    async def stop(self) -> None:
        """Wait for the end of a server that was told to stop."""
        finished = await self.command.finished()
        assert finished.code == 0, finished.err
        await self.running.aclose()

    async def start_again(self, **changes: str) -> None:
        """Start it again, with changes of its environment."""
        self.environment.update(changes)
        self.running = AsyncExitStack()
        self.command = await self.running.enter_async_context(serving(self.directory, self.environment))


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas, Envoy, and clients that call the replicas over it."""

    replicas: Sequence[Replica]
    envoy: Envoy
    clients: Clients

    async def restart(self, replica: Replica, load: "Load", **changes: str) -> None:
        """Restart a replica as an orchestrator does: the next one waits until this one is ready again."""
        replica.command.send(signal.SIGTERM)
        if replica.environment["DRAIN_SECONDS"] == UNTIL_NOTICED:
            await self.envoy.wait_until(
                lambda healths: all(is_ejected(healths[address]) for address in replica.addresses)
            )
            await load.reach(1)  # Envoy's threads know it a moment after its administration
            replica.command.send(signal.SIGTERM)
        await replica.stop()
        await replica.start_again(**changes)
        await self.envoy.wait_until(are_healthy)
        await load.reach(1)


@asynccontextmanager
async def run_fleet(
    directory: Path, database_url: str, replicas: int = 2, *, retries: bool = False, **settings: str
) -> AsyncIterator[Fleet]:
    """Run replicas behind Envoy, which repeats no call unless with `retries`."""
    accounts = [Account(name, f"{name}@example.com", name) for name in ACCOUNTS]
    sandbox = Sandbox(accounts=accounts, behaviour=Behaviour(faults={"token": Fault(delay=_PROVIDER_DELAY)}))
    secret = secrets.token_urlsafe(32)
    sandbox.register_client(CLIENT_ID, secret, [callback_url("sandbox")])
    async with run_sandbox(sandbox) as sandbox_url, AsyncExitStack() as stack:
        providers = directory / "providers"
        providers.mkdir()
        declare_sandbox(providers, sandbox_url)
        environment = server_environment(
            database_url,
            PROVIDERS_DIR=str(providers),
            SANDBOX_CLIENT_ID=CLIENT_ID,
            SANDBOX_CLIENT_SECRET=secret,
            **{"DRAIN_SECONDS": UNTIL_NOTICED, **settings},
        )
        running: list[Replica] = []
        for number in range(replicas):
            (directory / f"replica-{number}").mkdir()
            running.append(await Replica.start(directory / f"replica-{number}", environment))
            stack.push_async_callback(_close, running[-1])
        servers, sidecars = zip(*(replica.addresses for replica in running), strict=True)
        envoy = await stack.enter_async_context(run_envoy(directory, servers, sidecars, retries=retries))
        address = envoy.url.removeprefix("http://")
        yield Fleet(running, envoy, await stack.enter_async_context(clients_of(address, envoy.url)))


async def _close(replica: Replica) -> None:
    await replica.running.aclose()


class Load:
    """Callers of every kind, each of which makes its next call when the last one has ended.

    `calls` counts those that succeeded, by kind; `failures` describes the others. Streams that end because their server
    stops, with a cursor, are neither: `stops` counts them, and they are resumed.
    """

    def __init__(self, clients: Clients) -> None:
        self.calls = Counter[str]()
        self.failures: list[str] = []
        self.stops = 0
        self._clients = clients
        self._is_over = False
        self._renamed = 0
        self._seen = Counter[int]()  # the events of renames, by stream
        self._tokens: dict[tuple[int, int], str] = {}  # the last ones, by stream and integration

    @asynccontextmanager
    async def running(self, streams: int = 3) -> AsyncIterator[None]:
        """Call while the block runs, with as many streams of events and of credentials.

        At its end each stream of events has had each event, once, and those of credentials the current ones.
        """
        clients = self._clients
        read, renamed, *refreshed = [await clients.connect(account=name) for name in ACCOUNTS[:4]]
        self._renamed = renamed
        names = count()
        begun = [asyncio.Event() for _ in range(2 * streams)]
        watching = [
            *(asyncio.create_task(self._watch_events(number, event)) for number, event in enumerate(begun[:streams])),
            *(
                asyncio.create_task(self._watch_credentials(number, refreshed, event))
                for number, event in enumerate(begun[streams:])
            ),
        ]
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(event.wait() for event in begun))
        kinds: Sequence[tuple[str, Callable[[], Awaitable[object]]]] = (
            *3 * [("GetCredentials", lambda: clients.bearer_token(read))],
            *2 * [("GET /integrations/{id}", lambda: self._get(read))],
            ("UpdateIntegration", lambda: self._rename(f"name {next(names)}")),
            *((("RefreshToken", lambda number=number: self._refresh(number))) for number in refreshed),
            ("callback", lambda: clients.connect(f"user {next(names)}", account="connected")),
        )
        self.calls.update({kind: 0 for kind, _ in kinds})
        calling = [asyncio.create_task(self._repeat(kind, call)) for kind, call in kinds]
        try:
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*calling)
            if not self.failures:
                await wait_until(self._all_have_seen_each_event)
                await wait_until(self._all_have_current_tokens)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def reach(self, calls: int) -> None:
        """Wait until each kind has succeeded this many times more."""
        goal = {kind: number + calls for kind, number in self.calls.items()}

        async def is_reached() -> bool:
            return all(self.calls[kind] >= number for kind, number in goal.items())

        await wait_until(is_reached)

    async def reach_failure(self) -> None:
        """Wait until a call has failed."""

        async def has_failed() -> bool:
            return bool(self.failures)

        await wait_until(has_failed)

    async def _all_have_seen_each_event(self) -> bool:
        return all(number == self.calls["UpdateIntegration"] for number in self._seen.values())

    async def _all_have_current_tokens(self) -> bool:
        current = {number: await self._clients.bearer_token(number) for number in {one for _, one in self._tokens}}
        return all(token == current[number] for (_, number), token in self._tokens.items())

    async def _repeat(self, kind: str, call: Callable[[], Awaitable[object]]) -> None:
        while not self._is_over:
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{kind}: {error.code().name} {error.details()}")
            except (httpx.HTTPError, AssertionError) as error:
                self.failures.append(f"{kind}: {error!r}")
            else:
                self.calls[kind] += 1
            await asyncio.sleep(_PAUSE)

    async def _get(self, integration_id: int) -> None:
        url = f"{self._clients.sidecar_url}/api/v1/integrations/{integration_id}"
        (await self._clients.browser.get(url, params={"user_id": "ada"})).raise_for_status()

    async def _rename(self, name: str) -> None:
        request = pb.UpdateIntegrationRequest(integration_id=self._renamed, user_id="ada", name=name)
        await self._clients.service.UpdateIntegration(request, timeout=TIMEOUT)

    async def _refresh(self, integration_id: int) -> None:
        request = pb.RefreshTokenRequest(integration_id=integration_id, user_id="ada", force=True)
        await self._clients.service.RefreshToken(request, timeout=TIMEOUT)

    async def _watch_events(self, number: int, begun: asyncio.Event) -> None:
        def receive(response: pb.WatchIntegrationsResponse) -> None:
            event = response.event
            self._seen[number] += event.kind == _UPDATED and event.integration_id == self._renamed

        service = self._clients.service
        await self._resume(lambda cursor: service.WatchIntegrations(_events_of("ada", cursor)), receive, begun)

    async def _watch_credentials(self, number: int, integration_ids: Sequence[int], begun: asyncio.Event) -> None:
        def receive(response: pb.WatchCredentialsResponse) -> None:
            for result in response.results:
                self._tokens[number, result.integration_id] = result.result.credentials.bearer_token

        def watch(cursor: str) -> Any:
            request = pb.WatchCredentialsRequest(integration_ids=integration_ids, user_id="ada", cursor=cursor)
            return self._clients.service.WatchCredentials(request)

        await self._resume(watch, receive, begun)

    async def _resume(self, watch: Callable[[str], Any], receive: Callable[[Any], None], begun: asyncio.Event) -> None:
        """Read a stream, and begin again at the last cursor when its server stops."""
        cursor = ""
        while True:
            is_resumable = False
            try:
                async for response in watch(cursor):
                    receive(response)
                    cursor, is_resumable = response.cursor or cursor, bool(response.cursor)
                    begun.set()
            except grpc.aio.AioRpcError as error:
                if is_resumable and parse_rpc_error(error).reason == "SERVER_STOPPING":
                    self.stops += 1
                else:
                    self.failures.append(f"stream: {error.code().name} {error.details()}")


def _events_of(user_id: str, cursor: str) -> pb.WatchIntegrationsRequest:
    return pb.WatchIntegrationsRequest(user_id=user_id, cursor=cursor)
