"""A mixed load with faults on a running `make run`: what backends, users, providers and strangers send.

    python -m benchmarks.load --seconds 300

Every half minute the provider has a fault for ten seconds: an outage, slow responses, a rate limit, refused refreshes.
It ends by itself or at Ctrl-C, switches the fault off and disconnects what it has connected. If Prometheus is installed
and starts, it scrapes the server meanwhile, and the end shows which queries of the dashboards return data.
"""

import asyncio
import base64
import hashlib
import hmac
import random
import shutil
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import grpc.aio
import httpx
import typer
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from rich.console import Console
from rich.status import Status

from benchmarks.dashboard_queries import NoPrometheus, Scraper, dashboard_queries, scraping
from integration_server.dev import connect_account
from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.model import SAMPLE_ACCOUNTS
from integrations.v1 import google_calendar_pb2 as calendar_pb
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.google_calendar_pb2_grpc import GoogleCalendarServiceStub
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

if TYPE_CHECKING:
    from integrations.v1.google_calendar_pb2_grpc import GoogleCalendarServiceAsyncStub
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

T = TypeVar("T")

USERS = 5
CONSUMER = "load"
DEADLINE = 20.0  # seconds of a call: longer than a slow provider takes
PERIOD, FAULT_LENGTH = 30.0, 10.0  # seconds
MAX_IN_FLIGHT = 200  # a server that does not keep up gets fewer calls

_RULES_EVALUATED = 90.0  # seconds: three intervals of the recording rules
_PROVIDER = ("token", "userinfo", "account", "calendar")
FAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "outage": {name: {"status": 503} for name in _PROVIDER},
    "slow": {name: {"delay": 1.5} for name in _PROVIDER},
    "rate limit": {name: {"status": 429, "headers": {"Retry-After": "2"}} for name in _PROVIDER},
    "refreshes fail": {"token": {"status": 500}},
}


@dataclass(frozen=True, slots=True)
class Load:
    """The load, with its connected integrations by user, and the count of outcomes."""

    channel: grpc.aio.Channel
    browser: httpx.AsyncClient
    sidecar_url: str
    sandbox_url: str
    accounts: dict[str, int] = field(default_factory=dict)
    calendars: dict[str, int] = field(default_factory=dict)
    hooks: dict[str, tuple[int, str, str]] = field(default_factory=dict, repr=False)
    """Of a user, the integration that has webhooks, the webhook's URL and its secret."""
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def service(self) -> "IntegrationServiceAsyncStub":
        """The service."""
        return IntegrationServiceStub(self.channel)

    # --- Accounts

    async def connect(self, address: str) -> None:
        """Connect an account of each kind for each user."""
        samples = [account.sub for account in SAMPLE_ACCOUNTS]
        for number in range(USERS):
            user, account = f"load-{number}", samples[number % len(samples)]
            self.accounts[user] = (await connect_account(address, user, "sandbox", account=account)).integration_id
            if number < 2:
                calendar = await connect_account(address, user, "google_calendar", account=account)
                self.calendars[user] = calendar.integration_id
                await self._connect_webhooks(user)

    async def _connect_webhooks(self, user: str) -> None:
        config = Struct()
        config.update({"webhook_url": "https://provider.example/hooks"})
        connected = await self.service.ConnectWithApiKey(
            pb.ConnectWithApiKeyRequest(
                user_id=user, integration_type="custom", api_key=uuid.uuid4().hex, config=config
            )
        )
        integration_id = connected.integration.integration_id
        hook = await self.service.SetWebhookSecret(
            pb.SetWebhookSecretRequest(integration_id=integration_id, user_id=user)
        )
        self.hooks[user] = integration_id, hook.webhook_url, hook.webhook_secret

    async def disconnect(self) -> None:
        """Disconnect everything."""
        hooks = {user: integration_id for user, (integration_id, _, _) in self.hooks.items()}
        for accounts in (self.accounts, self.calendars, hooks):
            for user, integration_id in accounts.items():
                request = pb.DisconnectIntegrationRequest(integration_id=integration_id, user_id=user)
                with suppress(grpc.aio.AioRpcError):
                    await self.service.DisconnectIntegration(request, timeout=DEADLINE)

    # --- What callers, users, providers and strangers send

    async def get_credentials(self) -> None:
        """As most backends do most of the time."""
        user, integration_id = random.choice(list(self.accounts.items()))
        await self._call(
            self.service.GetCredentials, pb.GetCredentialsRequest(integration_id=integration_id, user_id=user)
        )

    async def read(self) -> None:
        """A page with a user's integrations."""
        user, integration_id = random.choice(list(self.accounts.items()))
        await self._call(self.service.ListIntegrations, pb.ListIntegrationsRequest(user_id=user))
        await self._call(
            self.service.GetIntegration, pb.GetIntegrationRequest(integration_id=integration_id, user_id=user)
        )

    async def call_provider(self) -> None:
        """A call through the server."""
        user, integration_id = random.choice(list(self.accounts.items()))
        request = pb.CallProviderRequest(integration_id=integration_id, user_id=user, method="GET", path="/userinfo")
        await self._call(self.service.CallProvider, request)

    async def list_calendars(self) -> None:
        """A typed call to a provider."""
        user, integration_id = random.choice(list(self.calendars.items()))
        request = calendar_pb.ListCalendarsRequest(integration_id=integration_id, user_id=user)
        calendars: GoogleCalendarServiceAsyncStub = GoogleCalendarServiceStub(self.channel)
        await self._call(calendars.ListCalendars, request)

    async def refresh(self) -> None:
        """A forced refresh, and a health check."""
        user, integration_id = random.choice(list(self.accounts.items()))
        await self._call(
            self.service.RefreshToken, pb.RefreshTokenRequest(integration_id=integration_id, user_id=user, force=True)
        )
        await self._call(self.service.CheckHealth, pb.CheckHealthRequest(integration_id=integration_id, user_id=user))

    async def webhook(self) -> None:
        """An event, which a consumer acknowledges; one in ten has a forged signature, or no integration."""
        user, (integration_id, url, secret) = random.choice(list(self.hooks.items()))
        kind = random.random()
        await self._post(url + ("x" if kind < 0.05 else ""), "whsec_Zm9yZ2Vk" if 0.05 <= kind < 0.1 else secret)
        listed = pb.ListWebhookEventsRequest(integration_id=integration_id, user_id=user, consumer=CONSUMER)
        page = await self._call(self.service.ListWebhookEvents, listed)
        if page is not None and page.events:
            through = page.events[-1].number
            request = pb.AckWebhookEventsRequest(
                integration_id=integration_id, user_id=user, consumer=CONSUMER, through_number=through
            )
            await self._call(self.service.AckWebhookEvents, request)

    async def reconnect(self) -> None:
        """A user connects the account again, or declines."""
        user = random.choice(list(self.accounts))
        request = pb.ConnectRequest(user_id=user, integration_type="sandbox")
        begun = await self._call(self.service.Connect, request)
        if begun is not None:
            account = SAMPLE_ACCOUNTS[list(self.accounts).index(user) % len(SAMPLE_ACCOUNTS)].sub
            allow = random.random() < 0.7
            with suppress(httpx.HTTPError):  # the page of a provider with a fault
                await self._get(await decide(self.browser, begun.authorization_url, account=account, allow=allow))

    async def mistake(self) -> None:
        """What is refused: another user's integration, an unknown type, an invalid field, a made-up callback."""
        integration_id = random.choice(list(self.accounts.values()))
        await self._call(
            self.service.GetCredentials, pb.GetCredentialsRequest(integration_id=integration_id, user_id="stranger")
        )
        await self._call(self.service.Connect, pb.ConnectRequest(user_id="load-0", integration_type="no-such-type"))
        await self._call(self.service.ListIntegrations, pb.ListIntegrationsRequest(user_id="load-0", page_size=-1))
        await self._get(f"{self.sidecar_url}/api/v1/integrations/callback/sandbox?state=made-up&code=x")
        await self._get(f"{self.sidecar_url}/no-such-page")

    async def watch(self) -> None:
        """Follow all changes of a user for some seconds, again and again."""
        while True:
            user = random.choice(list(self.accounts))
            stream = self.service.WatchIntegrations(pb.WatchIntegrationsRequest(user_id=user))
            with suppress(TimeoutError, grpc.aio.AioRpcError):
                async with asyncio.timeout(random.uniform(2, 10)):
                    async for _ in stream:
                        self.outcomes["events"] += 1
            stream.cancel()
            await asyncio.sleep(0.1)

    async def _call(self, method: Callable[..., Awaitable[T]], request: Message) -> T | None:
        """The response, or None after an error, which is counted: faults are part of the load."""
        try:
            response = await method(request, timeout=DEADLINE)
        except grpc.aio.AioRpcError as error:
            self.outcomes[error.code().name] += 1
            return None
        self.outcomes["ok"] += 1
        return response

    async def _get(self, url: str) -> None:
        await self._request("GET", url)

    async def _post(self, url: str, secret: str) -> None:
        body = '{"type": "thing.happened"}'
        event_id, timestamp = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
        key = base64.b64decode(secret.removeprefix("whsec_"))
        digest = hmac.digest(key, f"{event_id}.{timestamp}.{body}".encode(), hashlib.sha256)
        signature = f"v1,{base64.b64encode(digest).decode()}"
        headers = {"webhook-id": event_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
        await self._request("POST", url, body, headers)

    async def _request(
        self, method: str, url: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        try:
            response = await self.browser.request(method, url, content=body, headers=headers)
        except httpx.TransportError:
            self.outcomes["HTTP without a response"] += 1
        else:
            self.outcomes["ok" if response.is_success else f"HTTP {response.status_code}"] += 1

    # --- Faults

    async def set_faults(self, faults: Mapping[str, Any]) -> None:
        """Replace the faults of the provider."""
        response = await self.browser.put(f"{self.sandbox_url}/faults", json=faults)
        response.raise_for_status()

    def weighted_actions(self) -> Mapping[Callable[[], Awaitable[None]], int]:
        """What is done how often."""
        return {
            self.get_credentials: 50,
            self.read: 15,
            self.call_provider: 10,
            self.webhook: 10,
            self.list_calendars: 5,
            self.refresh: 4,
            self.reconnect: 3,
            self.mistake: 3,
        }


def fault_at(seconds: float) -> str | None:
    """The fault at a time since the start: one in the last ten seconds of each half minute."""
    number, since = divmod(seconds, PERIOD)
    return list(FAULTS)[int(number) % len(FAULTS)] if since >= PERIOD - FAULT_LENGTH else None


async def run_load(
    load: Load, seconds: float, rate: float, stop: asyncio.Event, show: Callable[[str], None], *, has_faults: bool
) -> None:
    """Send `rate` actions per second until the time is over or `stop` is set. `seconds` 0: until then."""
    actions = load.weighted_actions()
    begin, current, sent = time.monotonic(), None, 0
    tasks: set[asyncio.Task[None]] = set()
    watching = [asyncio.create_task(load.watch()) for _ in range(3)]
    try:
        while not stop.is_set() and ((elapsed := time.monotonic() - begin) < seconds or not seconds):
            if has_faults and (fault := fault_at(elapsed)) != current:
                current = fault
                await load.set_faults(FAULTS[fault] if fault else {})
            while sent < elapsed * rate:
                sent += 1
                if len(tasks) < MAX_IN_FLIGHT:
                    (action,) = random.choices(list(actions), list(actions.values()))
                    task = asyncio.ensure_future(action())
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            show(f"{_progress(elapsed, seconds)}  fault: {current or 'none'}  {describe(load.outcomes)}")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.1)
    finally:
        if has_faults:
            with suppress(httpx.HTTPError):
                await load.set_faults({})
        for task in (*watching, *tasks):
            task.cancel()
        await asyncio.gather(*watching, *tasks, return_exceptions=True)


def _progress(elapsed: float, seconds: float) -> str:
    return f"{elapsed:.0f} of {seconds:.0f} s" if seconds else f"{elapsed:.0f} s"


def describe(outcomes: Counter[str]) -> str:
    """The outcomes, the most frequent first."""
    return ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common()) or "no outcome yet"


@asynccontextmanager
async def connected_load(server: str, sidecar_url: str, sandbox_url: str) -> AsyncIterator[Load]:
    """A load with connected accounts, which are disconnected at the end."""
    options = [("grpc.enable_http_proxy", 0)]
    limits = httpx.Limits(max_connections=MAX_IN_FLIGHT)
    async with (
        grpc.aio.insecure_channel(server, options=options) as channel,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE, limits=limits) as browser,
    ):
        load = Load(channel, browser, sidecar_url, sandbox_url)
        try:
            await load.connect(server)
            yield load
        finally:
            await load.disconnect()


class Printer:
    """Shows the progress: one line that changes on a terminal, otherwise a line every ten seconds."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console = console
        self._status = status
        self._last = 0.0

    def show(self, text: str) -> None:
        """Show the progress."""
        if self._console.is_terminal:
            self._status.update(text)
        elif time.monotonic() - self._last >= 10:
            self._last = time.monotonic()
            self._console.print(text, soft_wrap=True, highlight=False)


def require_loopback(address: str) -> None:
    """Raise `BadParameter` unless the address is on this machine: the load is for no other server."""
    host = urlsplit(address if "//" in address else f"//{address}").hostname or ""
    with suppress(ValueError):
        if ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise typer.BadParameter(f"{address} is not on this machine")


async def check_dashboards(scraper: Scraper, stop: asyncio.Event, show: Callable[[str], None]) -> None:
    """Show how many queries of the dashboards return data, and which do not.

    Waits until the rules have recorded what the queries read, unless `stop` is set.
    """
    queries = list(dashboard_queries())
    try:
        empty = await scraper.without_data(queries)
        end = time.monotonic() + _RULES_EVALUATED
        while empty and not stop.is_set() and time.monotonic() < end:
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await stop.wait()
            empty = await scraper.without_data(empty)
        default = await scraper.without_data([query.without_default for query in queries if query not in empty])
    except httpx.HTTPError as error:
        show(f"Dashboards: not checked, because Prometheus fails: {type(error).__name__}: {error}")
        return
    show(f"Dashboards: {len(queries) - len(empty)} of {len(queries)} queries return data.")
    for query in empty:
        show(f"  no data: {query.dashboard}, {query.panel}: {query.expression}")
    for query in default:
        show(f"  nothing has happened: {query.dashboard}, {query.panel}")


@asynccontextmanager
async def _scraping(metrics: str, show: Callable[[str], None]) -> AsyncIterator[Scraper | None]:
    """Scrape the metrics; None where that is not wanted or not possible, which is shown."""
    async with AsyncExitStack() as stack:
        scraper = None
        if metrics:
            try:
                scraper = await stack.enter_async_context(scraping(metrics, shutil.which("prometheus")))
            except NoPrometheus as problem:
                show(f"Dashboards: not checked, because Prometheus does not run: {problem}")
        yield scraper


async def _main(
    server: str, sidecar: str, sandbox: str, metrics: str, seconds: float, rate: float, has_faults: bool
) -> int:
    console, stop = Console(), asyncio.Event()
    show_line = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        with console.status("Connecting accounts") as status:
            async with connected_load(server, sidecar, sandbox) as load, _scraping(metrics, show_line) as scraper:
                await run_load(load, seconds, rate, stop, Printer(console, status).show, has_faults=has_faults)
                if scraper is not None:
                    status.update("Waiting for the recording rules")
                    await check_dashboards(scraper, stop, show_line)
                status.update("Disconnecting the accounts")
    except (grpc.aio.AioRpcError, httpx.TransportError) as error:
        problem = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        console.print(f"No `make run` responds at {server}, {sidecar} and {sandbox}: {problem}", soft_wrap=True)
        return 1
    console.print(f"Sent: {describe(load.outcomes)}", soft_wrap=True, highlight=False)
    return 0 if load.outcomes["ok"] else 1


def main(
    seconds: Annotated[float, typer.Option(min=0, help="Duration; 0: until Ctrl-C.")] = 300,
    rate: Annotated[float, typer.Option(min=0.1, max=1000, help="Actions per second, of one to five calls each.")] = 20,
    server: Annotated[str, typer.Option(help="The gRPC address.")] = "127.0.0.1:50051",
    sidecar: Annotated[str, typer.Option(help="The URL of the sidecar.")] = "http://127.0.0.1:8080",
    sandbox: Annotated[str, typer.Option(help="The URL of the sandbox provider.")] = "http://127.0.0.1:9090",
    metrics: Annotated[
        str,
        typer.Option(help="The address of the metrics, for a Prometheus that runs meanwhile, if it is installed."),
    ] = "127.0.0.1:9464",
    faults: Annotated[bool, typer.Option(help="Faults of the provider, ten seconds in each half minute.")] = True,
) -> None:
    """Keep a mixed load with faults on a running `make run`, on this machine only."""
    for address in filter(None, (server, sidecar, sandbox, metrics)):
        require_loopback(address)
    sys.exit(asyncio.run(_main(server, sidecar, sandbox, metrics, seconds, rate, faults)))


if __name__ == "__main__":
    typer.run(main)
