"""A whole system in this process: server and sidecar as bootstrap builds them, a sandbox, and clients.

All communication uses loopback sockets. The sidecar has a public URL, as behind a proxy; `System.follow` is that proxy,
so that the sidecar can take any free port.
"""

import base64
import io
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

import grpc.aio
import httpx
import structlog
from grpc_health.v1.health_pb2_grpc import HealthStub

from integration_server.bootstrap import running_server
from integration_server.dev import register_sandbox, replace_google_calendar
from integration_server.observability.spans import Tracing
from integration_server.providers.built_in import built_in_class
from integration_server.providers.factory import ProviderFactory
from integration_server.sandbox.behaviour import Behaviour
from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.calendar_store import CalendarStore
from integration_server.sandbox.model import SAMPLE_SCOPES
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integration_server.settings import Settings
from integrations.v1 import event_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.google_calendar_pb2_grpc import GoogleCalendarServiceStub
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub
from tests.end_to_end.secret_scanner import assert_no_secrets, dump_rows, read_database_files

GoogleCalendarProvider = built_in_class("google_calendar")

if TYPE_CHECKING:
    from integrations.v1.google_calendar_pb2_grpc import GoogleCalendarServiceAsyncStub
    from integrations.v1.integration_service_pb2_grpc import IntegrationServiceAsyncStub

PUBLIC_URL = "https://localhost"  # dev mode allows no other
APP_CALLBACK = "https://app.example/oauth/callback"
RETURN_URL = "https://app.example/integrations?tab=all"
DEFAULT_RETURN_URL = "https://app.example/home"
CONFIRMING: Mapping[str, Any] = {"SKIP_CONFIRMATION": "false", "DEFAULT_RETURN_URL": DEFAULT_RETURN_URL}
"""The settings of a server whose callbacks have to be confirmed, as in production."""
JSON = {"Accept": "application/json"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

CLIENT_ID = "integration-server"
KEY = os.urandom(32)


class ShiftedClock:
    """The real time plus `shift`."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def __call__(self) -> datetime:
        """The server's current time."""
        return datetime.now(UTC) + self.shift


def callback_url(integration_type: str) -> str:
    """The public callback URL of an integration type."""
    return f"{PUBLIC_URL}/api/v1/integrations/callback/{integration_type}"


def query_of(url: str) -> dict[str, str]:
    """The query of a URL, in which each parameter occurs once."""
    parameters = parse_qs(urlsplit(url).query, strict_parsing=True)
    assert all(len(values) == 1 for values in parameters.values())
    return {name: values[0] for name, values in parameters.items()}


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of a server, in this process or in another."""

    grpc_address: str
    sidecar_url: str
    channel: grpc.aio.Channel = field(repr=False)
    browser: httpx.AsyncClient = field(repr=False)

    @property
    def service(self) -> "IntegrationServiceAsyncStub":
        """The service under test."""
        return IntegrationServiceStub(self.channel)

    @property
    def calendars(self) -> "GoogleCalendarServiceAsyncStub":
        """The Google Calendar service."""
        return GoogleCalendarServiceStub(self.channel)

    @property
    def health(self) -> Any:
        """The standard health service (its stub has no types)."""
        return HealthStub(self.channel)

    def raw(self, method: str) -> Callable[[bytes], Awaitable[bytes]]:
        """A method of the service under test with raw bytes as request and response."""
        call: Any = self.channel.unary_unary(f"/integrations.v1.IntegrationService/{method}")
        return cast(Callable[[bytes], Awaitable[bytes]], call)

    async def follow(self, location: str, headers: Mapping[str, str] = JSON) -> httpx.Response:
        """Follow a redirect to the public URL at the sidecar. The sidecar's own redirect is not followed."""
        assert location.startswith(PUBLIC_URL), location
        return await self.browser.get(self.sidecar_url + location.removeprefix(PUBLIC_URL), headers=dict(headers))

    async def begin(self, user_id: str = "ada", integration_type: str = "sandbox", **fields: Any) -> pb.ConnectResponse:
        """Begin a connection."""
        return await self.service.Connect(
            pb.ConnectRequest(user_id=user_id, integration_type=integration_type, **fields)
        )

    async def decide(
        self, connect_response: pb.ConnectResponse, *, account: str | None = None, allow: bool = True
    ) -> str:
        """Decide on the sandbox's consent page; the URL of its redirect."""
        return await decide(self.browser, connect_response.authorization_url, account=account, allow=allow)

    async def connect(
        self, user_id: str = "ada", integration_type: str = "sandbox", *, account: str = "ada", **fields: Any
    ) -> int:
        """Connect an account of the sandbox, with the callback at the sidecar; the integration's id."""
        connect_response = await self.begin(user_id, integration_type, **fields)
        response = await self.follow(await self.decide(connect_response, account=account))
        assert response.status_code == 200, response.text
        assert response.json()["success"] is True
        return int(response.json()["integration_id"])

    async def get(self, integration_id: int, user_id: str = "ada") -> Any:
        """One integration."""
        found = await self.service.GetIntegration(
            pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)
        )
        return found.integration

    async def bearer_token(self, integration_id: int, user_id: str = "ada", **fields: Any) -> str:
        """The access token that the server returns."""
        response = await self.service.GetCredentials(
            pb.GetCredentialsRequest(integration_id=integration_id, user_id=user_id, **fields)
        )
        return response.credentials.bearer_token


@asynccontextmanager
async def clients_of(grpc_address: str, sidecar_url: str) -> AsyncIterator[Clients]:
    """Clients of a running server."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 500)]
    async with (
        grpc.aio.insecure_channel(grpc_address, options=options) as channel,
        httpx.AsyncClient(trust_env=False, timeout=60) as browser,
    ):
        yield Clients(grpc_address, sidecar_url, channel, browser)


@dataclass(frozen=True, slots=True)
class System(Clients):
    """Server, sidecar and sandbox, all in this process."""

    sandbox: Sandbox
    sandbox_url: str
    clock: ShiftedClock
    logs: io.StringIO = field(repr=False)

    async def assert_no_secrets(self, database_url: str, **extra: bytes) -> None:
        """Raise `SecretLeaked` if the log, a row or an extra source contains a secret of the sandbox."""
        secrets = {"sandbox": self.sandbox.secrets, "key": {base64.b64encode(KEY).decode()}}
        logs = self.logs.getvalue().encode()
        assert_no_secrets(secrets, {"log": logs, "rows": await dump_rows(database_url), **extra})

    def reset(self) -> None:
        """Reset the clock, and the sandbox's grants, calendars, faults and calls."""
        self.clock.shift = timedelta()
        self.sandbox.behaviour = Behaviour()
        self.sandbox.calendars = CalendarStore(self.sandbox.now)
        self.sandbox.calls.clear()
        self.sandbox.token_calls.clear()
        for account in self.sandbox.accounts:
            self.sandbox.revoke_grants(account)


async def next_event(stream: Any) -> event_pb2.IntegrationEvent:
    """The next event of `WatchIntegrations`, whose responses sometimes have only a cursor."""
    while not (response := await stream.read()).HasField("event"):
        pass
    event: event_pb2.IntegrationEvent = response.event
    return event


@asynccontextmanager
async def run_system(
    database_url: str,
    *,
    key: bytes = KEY,
    sandbox: Sandbox | None = None,
    environment: Mapping[str, str] | None = None,
    extra_providers: Sequence[Callable[[ProviderFactory, str], None]] = (),
    tracing: Tracing | None = None,
    **settings: str,
) -> AsyncIterator[System]:
    """Run a system on a migrated database. `settings` are environment variables that override the defaults of tests.

    Raises `SecretLeaked` if the log or the database contains a secret of the sandbox at the end.

    `extra_providers` register further integration types, given the sandbox's URL.
    """
    sandbox = sandbox or Sandbox(
        behaviour=Behaviour(), scopes=[*SAMPLE_SCOPES, *GoogleCalendarProvider.required_scopes]
    )
    client_secret = os.urandom(16).hex()
    callbacks = [callback_url("sandbox"), callback_url("google_calendar"), APP_CALLBACK]
    sandbox.register_client(CLIENT_ID, client_secret, callbacks)
    clock = ShiftedClock()
    async with (
        capture_logs() as logs,
        run_sandbox(sandbox) as sandbox_url,
        running_server(
            settings_for(database_url, **{"ENCRYPTION_KEY": base64.b64encode(key).decode(), **settings}),
            {
                "SANDBOX_CLIENT_ID": CLIENT_ID,
                "SANDBOX_CLIENT_SECRET": client_secret,
                **_calendar_client_settings(extra_providers, client_secret),
                **(environment or {}),
            },
            extra_providers=[
                partial(_register, register, sandbox_url) for register in (register_sandbox, *extra_providers)
            ],
            clock=clock,
            tracing=tracing,
        ) as running,
        clients_of(running.grpc_address, running.sidecar_url) as clients,
    ):
        system = System(
            grpc_address=clients.grpc_address,
            sidecar_url=clients.sidecar_url,
            channel=clients.channel,
            browser=clients.browser,
            sandbox=sandbox,
            sandbox_url=sandbox_url,
            clock=clock,
            logs=logs,
        )
        yield system
    await system.assert_no_secrets(database_url, **read_database_files(database_url))


def _calendar_client_settings(extra: Sequence[object], client_secret: str) -> Mapping[str, str]:
    if replace_google_calendar not in extra:
        return {}
    return {"GOOGLE_CALENDAR_CLIENT_ID": CLIENT_ID, "GOOGLE_CALENDAR_CLIENT_SECRET": client_secret}


class Tee(io.StringIO):
    """Records the text and passes it on."""

    def write(self, text: str) -> int:
        """Write to both targets."""
        sys.stdout.write(text)
        return super().write(text)


@asynccontextmanager
async def capture_logs() -> AsyncIterator[io.StringIO]:
    """Record the log of the servers in this process."""
    before = structlog.get_config()
    captured = Tee()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(captured))
    try:
        yield captured
    finally:
        structlog.configure(**before)


def _register(register: Callable[[ProviderFactory, str], None], sandbox_url: str, factory: ProviderFactory) -> None:
    register(factory, sandbox_url)


def settings_for(database_url: str, **settings: str) -> Settings:
    """Settings for a test: free ports, the public address, dev mode."""
    return Settings.from_environment(
        {
            "DATABASE_URL": database_url,
            "DEV_MODE": "true",
            "ENCRYPTION_KEY": base64.b64encode(KEY).decode(),
            "GRPC_ADDRESS": "127.0.0.1:0",
            "SIDECAR_ADDRESS": "127.0.0.1:0",
            "METRICS_ADDRESS": "",
            "PUBLIC_URL": PUBLIC_URL,
            "ALLOWED_REDIRECT_URIS": APP_CALLBACK,
            "ALLOWED_RETURN_URLS": RETURN_URL,
            "SHUTDOWN_GRACE_SECONDS": "5",
            "FORCED_REFRESH_MIN_INTERVAL_SECONDS": "0",  # tests force refreshes to get other tokens
            **settings,
        }
    )
