"""Senders of webhooks to several servers: they repeat each event until it is accepted, and send some twice."""

import asyncio
import random
import signal
import ssl
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import httpx
import psutil

from integrations.v1 import event_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.end_to_end.commands import Command
from tests.end_to_end.prefork import PreforkServer
from tests.end_to_end.processes import server_environment
from tests.end_to_end.system import Clients, clients_of
from tests.signed_webhook_provider import APP_SECRET_SETTING, SIGNED_WEBHOOK, signature_headers, webhook_body

APP_SECRET = "the secret of the app's own webhooks"
TIMEOUT = 60.0  # seconds for one delivery with all repetitions


@dataclass(frozen=True, slots=True)
class Server:
    """A server with its sidecar."""

    command: Command
    clients: Clients

    def kill(self) -> None:
        """Send SIGKILL."""
        self.command.send(signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """The CPU time used so far, in seconds."""
        times = psutil.Process(self.command.process.pid).cpu_times()
        return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers, including the killed ones."""

    stack: AsyncExitStack
    prefork: PreforkServer
    directory: Path
    environment: dict[str, str]
    variant: str
    all: list[Server] = field(default_factory=list)

    async def start(self) -> Server:
        """Start a further server."""
        command = await self.stack.enter_async_context(
            self.prefork.serving(self.directory, self.environment, self.variant)
        )
        clients = clients_of(command.serving["grpc"], command.serving["sidecar"])
        server = Server(command, await self.stack.enter_async_context(clients))
        self.all.append(server)
        return server


@asynccontextmanager
async def run_servers(
    directory: Path, database_url: str, prefork: PreforkServer, variant: str, count: int = 2, **settings: str
) -> AsyncIterator[Servers]:
    """Run this many servers that share a database."""
    environment = server_environment(
        database_url,
        **{APP_SECRET_SETTING: APP_SECRET, "REFRESH_JOURNAL_DIR": str(directory / "refresh-journal"), **settings},
    )
    async with AsyncExitStack() as stack:
        servers = Servers(stack, prefork, directory, environment, variant)
        for _ in range(count):
            await servers.start()
        yield servers


@dataclass(frozen=True, slots=True)
class Account:
    """An account at the provider and its integration."""

    name: str
    user_id: str
    integration_id: int
    path: str
    secret: str = field(repr=False)


async def connect_accounts(server: Server, count: int) -> list[Account]:
    """Connect this many accounts, each with its own user and webhook URL."""
    accounts = []
    for number in range(count):
        name, user_id, secret = f"account-{number}", f"user-{number}", f"the secret of account {number}"
        service = server.clients.service
        connected = await service.ConnectWithApiKey(
            pb.ConnectWithApiKeyRequest(
                user_id=user_id, integration_type=SIGNED_WEBHOOK, api_key=f"{name}:key", webhook_secret=secret
            )
        )
        integration_id = connected.integration.integration_id
        endpoint = await service.GetWebhookEndpoint(
            pb.GetWebhookEndpointRequest(integration_id=integration_id, user_id=user_id)
        )
        path = "/" + endpoint.webhook_url.split("/", 3)[3]
        accounts.append(Account(name, user_id, integration_id, path, secret))
    return accounts


class WebhookSender:
    """Sends the events of all accounts, in order for each account. A share of them is sent twice concurrently."""

    def __init__(self, servers: Servers, rng: random.Random, seconds_between: float = 0, sent_twice: float = 1) -> None:
        self._servers = servers
        self._rng = rng
        self._seconds_between = seconds_between
        self._sent_twice = sent_twice
        self._tls = ssl.create_default_context()  # unused and slow to create: one for all clients
        self.accepted: defaultdict[str, list[str]] = defaultdict(list)
        self.outcomes: Counter[str] = Counter()

    async def send_all(self, accounts: Sequence[Account], events: int) -> float:
        """Send this many events for each account; the duration in seconds."""
        begun = time.monotonic()
        await asyncio.gather(*(self._send_events(account, events) for account in accounts))
        return time.monotonic() - begun

    @property
    def count(self) -> int:
        """The number of accepted events."""
        return sum(map(len, self.accepted.values()))

    async def _send_events(self, account: Account, events: int) -> None:
        begun = time.monotonic() + self._rng.uniform(0, self._seconds_between)
        # One client per account: the cost of a request grows with the client's connections.
        async with httpx.AsyncClient(trust_env=False, timeout=30, verify=self._tls) as client:
            for number in range(events):
                await asyncio.sleep(max(0.0, begun + number * self._seconds_between - time.monotonic()))
                event_id = f"event-{number}"
                # Providers repeat events that were accepted.
                copies = 2 if self._rng.random() < self._sent_twice else 1
                await asyncio.gather(*(self._deliver(client, account, event_id) for _ in range(copies)))
                self.accepted[account.name].append(event_id)

    async def _deliver(self, client: httpx.AsyncClient, account: Account, event_id: str) -> None:
        """Send the event until a server accepts it."""
        body = webhook_body({"id": event_id, "account": account.name})
        to_app = self._rng.random() < 0.5
        path, secret = (
            (f"/api/v1/webhooks/{SIGNED_WEBHOOK}/app", APP_SECRET) if to_app else (account.path, account.secret)
        )
        async with asyncio.timeout(TIMEOUT):
            while True:
                url = self._rng.choice(self._servers.all).clients.sidecar_url
                try:
                    response = await client.post(url + path, content=body, headers=signature_headers(body, secret))
                except httpx.HTTPError as error:
                    self.outcomes[type(error).__name__] += 1
                else:
                    self.outcomes[str(response.status_code)] += 1
                    if response.is_success:
                        return
                await asyncio.sleep(0.05)


async def list_inbox(clients: Clients, account: Account, consumer: str = "checker") -> list[tuple[int, str]]:
    """All events that a consumer receives, page by page."""
    found: list[tuple[int, str]] = []
    request = pb.ListWebhookEventsRequest(
        integration_id=account.integration_id, user_id=account.user_id, consumer=consumer, page_size=7
    )
    while True:
        page = await clients.service.ListWebhookEvents(request)
        found += [(event.number, event.event_id) for event in page.events]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


class EventWatcher:
    """Reads the event stream of all integrations, and continues at another server from the last cursor when it ends."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.cursor = ""
        self.streams = 0
        self.reported: list[event_pb2.IntegrationEvent] = []
        self.begun = asyncio.Event()

    async def watch(self) -> None:
        """Read until cancelled."""
        while True:
            for server in list(reversed(self._servers.all)):
                try:
                    await self._watch_server(server)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
            await asyncio.sleep(0.05)

    async def _watch_server(self, server: Server) -> None:
        async for response in server.clients.service.WatchIntegrations(
            pb.WatchIntegrationsRequest(cursor=self.cursor), wait_for_ready=False
        ):
            self.streams += not self.begun.is_set()
            self.begun.set()
            self.cursor = response.cursor
            if response.HasField("event"):
                self.reported.append(response.event)

    def webhook_numbers(self, account: Account) -> list[int]:
        """The numbers of the reported webhook events, in order."""
        return [
            event.webhook_event_number
            for event in self.reported
            if event.integration_id == account.integration_id
            and event.kind == event_pb2.INTEGRATION_EVENT_KIND_WEBHOOK_RECEIVED
        ]


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a run."""

    seconds: float
    cpu_seconds: float
    accepted: int
    lost: int
    duplicates: int
    out_of_order: int
    unreported: int
    outcomes: Counter[str]

    def __str__(self) -> str:
        return (
            f"{self.accepted} accepted in {self.seconds:.1f} s ({60 * self.accepted / self.seconds:.0f} a minute), "
            f"{1000 * self.cpu_seconds / self.outcomes['202']:.1f} ms of CPU in the servers a delivery, "
            f"lost {self.lost}, duplicates {self.duplicates}, out of order {self.out_of_order}, "
            f"not reported {self.unreported}; responses: {dict(self.outcomes)}"
        )


async def send_while_killing_a_server(
    servers: Servers,
    rng: random.Random,
    accounts_count: int,
    events: int,
    seconds_between: float = 0,
    sent_twice: float = 1,
) -> Result:
    """Send events, kill a server, start another one, and read the inbox at the end."""
    accounts = await connect_accounts(servers.all[0], accounts_count)
    sender, watcher = WebhookSender(servers, rng, seconds_between, sent_twice), EventWatcher(servers)
    watch_task = asyncio.create_task(watcher.watch())
    await asyncio.wait_for(watcher.begun.wait(), TIMEOUT)
    begun = sum(server.cpu_seconds() for server in servers.all)
    sent = asyncio.create_task(sender.send_all(accounts, events))
    while sender.count < accounts_count * events / 2:
        assert not sent.done(), sent.result()
        await asyncio.sleep(0.01)
    used = servers.all[-1].cpu_seconds()
    servers.all[-1].kill()  # the server that is watched
    newcomer = await servers.start()
    begun += newcomer.cpu_seconds()
    seconds = await sent
    used += sum(server.cpu_seconds() for server in (*servers.all[:-2], newcomer)) - begun
    lost = duplicates = out_of_order = 0
    for account in accounts:
        found = await list_inbox(servers.all[-1].clients, account)
        ids = [event_id for _, event_id in found]
        assert [number for number, _ in found] == list(range(1, len(found) + 1))
        lost += len(set(sender.accepted[account.name]) - set(ids))
        duplicates += len(ids) - len(set(ids))
        out_of_order += list(dict.fromkeys(ids)) != sender.accepted[account.name]
    unreported = await _count_unreported(watcher, accounts, events)
    watch_task.cancel()
    await asyncio.gather(watch_task, return_exceptions=True)
    return Result(seconds, used, sender.count, lost, duplicates, out_of_order, unreported, sender.outcomes)


async def _count_unreported(watcher: EventWatcher, accounts: Sequence[Account], events: int) -> int:
    """The number of accounts whose events were not each reported once and in order in time."""
    expected = list(range(1, events + 1))
    async with asyncio.timeout(TIMEOUT):
        while sum(len(watcher.webhook_numbers(account)) for account in accounts) < events * len(accounts):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return sum(watcher.webhook_numbers(account) != expected for account in accounts)
