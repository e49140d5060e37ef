"""The command `dev`: the server in dev mode, a sandbox provider and connected sample accounts.

The sample accounts are connected over the OAuth flow, with the provider's page and the sidecar's callback. If callers
must authenticate no account is connected, because this command has no identity that a policy could name. After that,
one line for each call says how it ended.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import grpc
import httpx
from rich.console import Console
from rich.table import Table

from integration_server.bootstrap import ServerAddresses, running_server
from integration_server.lifecycle import AddressTaken
from integration_server.providers.api_key import ApiKeyProvider
from integration_server.providers.built_in import built_in_class
from integration_server.providers.factory import ProviderFactory
from integration_server.providers.oauth2 import OAuth2Provider
from integration_server.rpc.interceptors import RecordCall
from integration_server.rpc.methods import Method
from integration_server.sandbox.browser_user import decide
from integration_server.sandbox.model import SAMPLE_SCOPES
from integration_server.sandbox.server import run_sandbox
from integration_server.sandbox.state import Sandbox
from integration_server.service.common_types import Clock
from integration_server.setting_types import parse_address
from integration_server.settings import Settings
from integration_server.wiring.system import utc_now
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1.integration_pb2 import Integration, Status
from integrations.v1.integration_service_pb2_grpc import IntegrationServiceStub

SAMPLE_USER = "ada"
DEFAULT_SANDBOX_ADDRESS = "127.0.0.1:9090"
DEFAULT_GRPC_ADDRESS = "127.0.0.1:50051"

_DEADLINE = 10.0  # seconds; everything runs on this machine
_CLIENT_ID = "integration-server"
_HEALTH_CHECKS = "/grpc.health.v1.Health/"
_NAME_WIDTH = 22  # of most names of RPCs


async def run_dev(
    settings: Settings,
    environment: Mapping[str, str],
    stop: asyncio.Event,
    console: Console,
) -> None:
    """Start the sandbox and the server, connect sample accounts, print the addresses, and run until `stop` is set.

    The settings are of dev mode, and have a `sandbox_address`.
    """
    activity = Activity(console, utc_now)
    running = running_with_sandbox(settings, environment, new_sandbox(), on_call=activity.record)
    async with running as (addresses, sandbox_url, simulated):
        _print_addresses(console, addresses, sandbox_url)
        if settings.authenticates_callers:
            console.print("Callers must authenticate: see docs/authentication-and-authorization.md.")
        else:
            connected = [
                await connect_account(addresses.grpc_address, SAMPLE_USER, name, name="Sample account")
                for name in simulated
            ]
            _print_integrations(console, connected)
            _print_next(console, addresses.grpc_address)
        console.print(
            "Press Ctrl-C to stop. Each call to the server is a line here: time, RPC, status, reason, duration."
        )
        activity.is_shown = True
        await stop.wait()
        activity.is_shown = False
        console.print("Stopping.")


class Activity:
    """Prints a line for each RPC that has ended, once it is shown. Health checks that succeed have none."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self.is_shown = False
        self._console = console
        self._clock = clock

    def record(self, method: Method, status: str, reason: str, seconds: float) -> None:
        """Print the line of an RPC."""
        if self.is_shown and not (method.path.startswith(_HEALTH_CHECKS) and status == "OK"):
            outcome = f"{status} {reason}".rstrip()
            line = f"{self._clock():%T}  {method.name:{_NAME_WIDTH}}  {outcome}  {seconds * 1000:.1f} ms"
            # Neither styled nor wrapped, so that a line stays a line in a pipe too.
            self._console.print(line, style="" if status == "OK" else "yellow", highlight=False, soft_wrap=True)


def _print_next(console: Console, grpc_address: str) -> None:
    """Print commands to try, each on a line that can be copied."""
    address = "" if grpc_address == DEFAULT_GRPC_ADDRESS else f" --address {grpc_address}"
    command = ".venv/bin/python -m integration_server"
    commands = {
        "List the integrations": f"{command} integrations list --user {SAMPLE_USER}{address}",
        "Watch the state of the server": f"{command} status --user {SAMPLE_USER}{address}",
        "Print events as they happen": f"{command} events tail{address}",
        "Connect an account and call its provider": (
            f".venv/bin/python examples/connect_and_call.py --server {grpc_address} --allow"
        ),
    }
    console.print("Next, in another terminal (README.md and examples/README.md have more examples):\n")
    for purpose, each in commands.items():
        console.print(f"# {purpose}\n{each}", highlight=False, soft_wrap=True)
    console.print()


def new_sandbox(clock: Clock = utc_now) -> Sandbox:
    """Return a sandbox with the scopes of the types that it simulates."""
    return Sandbox(clock=clock, scopes=[*SAMPLE_SCOPES, *built_in_class("google_calendar").required_scopes])


@asynccontextmanager
async def running_with_sandbox(
    settings: Settings,
    environment: Mapping[str, str],
    sandbox: Sandbox,
    *,
    clock: Clock = utc_now,
    on_call: RecordCall | None = None,
) -> AsyncIterator[tuple[ServerAddresses, str, Sequence[str]]]:
    """Run the sandbox, and a server with its types.

    Yields the server's addresses, the sandbox's URL, and the names of the simulated OAuth types.
    """
    sandbox_address = settings.sandbox_address or parse_address(DEFAULT_SANDBOX_ADDRESS)
    client_secret = secrets.token_urlsafe()
    simulated = {"sandbox": register_sandbox, "google_calendar": replace_google_calendar}
    if environment.get("GOOGLE_CALENDAR_CLIENT_ID"):
        del simulated["google_calendar"]  # the real one is configured
    callbacks = [f"{settings.public_url}/api/v1/integrations/callback/{name}" for name in simulated]
    sandbox.register_client(_CLIENT_ID, client_secret, callbacks, name="Integration Server")
    environment = {
        **environment,
        **{f"{name.upper()}_CLIENT_ID": _CLIENT_ID for name in simulated},
        **{f"{name.upper()}_CLIENT_SECRET": client_secret for name in simulated},
    }
    async with AsyncExitStack() as stack:
        try:
            sandbox_url = await stack.enter_async_context(run_sandbox(sandbox, *sandbox_address))
        except OSError as error:
            raise AddressTaken("SANDBOX_ADDRESS", sandbox_address, error) from error
        extra_providers = [partial(register, base_url=sandbox_url) for register in simulated.values()]
        server = running_server(settings, environment, extra_providers=extra_providers, clock=clock, on_call=on_call)
        addresses = await stack.enter_async_context(server)
        yield addresses, sandbox_url, list(simulated)


def register_sandbox(factory: ProviderFactory, base_url: str) -> None:
    """Register the sandbox's integration types: `sandbox` with OAuth and `sandbox_api_key` with an API key."""

    class SandboxProvider(OAuth2Provider):
        integration_type = "sandbox"
        oauth_authorize_url = f"{base_url}/oauth/authorize"
        oauth_token_url = f"{base_url}/oauth/token"
        revoke_url = f"{base_url}/oauth/revoke"
        issuer = base_url
        required_scopes = ("read",)
        verify_url = f"{base_url}/userinfo"
        account_id_field = "sub"
        account_label_field = "email"
        api_base_url = base_url

    class SandboxKeyProvider(ApiKeyProvider):
        integration_type = "sandbox_api_key"
        display_name = "Sandbox (API key)"
        verify_url = f"{base_url}/api/account"
        account_id_field = "id"
        account_label_field = "name"
        api_base_url = f"{base_url}/api"
        request_headers: Mapping[str, str] = {"X-Api-Key": "{api_key}"}

    for provider in (SandboxProvider, SandboxKeyProvider):
        factory.register(provider.integration_type, provider)


def replace_google_calendar(factory: ProviderFactory, base_url: str) -> None:
    """Replace Google Calendar by the sandbox, which simulates its API."""
    simulated = {
        "display_name": "Google Calendar (simulated by the sandbox)",
        "oauth_authorize_url": f"{base_url}/oauth/authorize",
        "oauth_token_url": f"{base_url}/oauth/token",
        "revoke_url": f"{base_url}/oauth/revoke",
        "verify_url": f"{base_url}/calendar/v3/users/me/calendarList/primary",
        "api_base_url": f"{base_url}/calendar/v3",
    }
    google_calendar = built_in_class("google_calendar")
    factory.replace("google_calendar", type("SandboxCalendarProvider", (google_calendar,), simulated))


async def connect_account(
    grpc_address: str, user_id: str, integration_type: str, *, account: str | None = None, name: str = ""
) -> Integration:
    """Connect as an application does: get the authorization URL, consent in a browser, follow the callback.

    `account` is the user's account at the sandbox; None: the one that its page preselects.
    """
    async with grpc.aio.insecure_channel(grpc_address) as channel, httpx.AsyncClient(timeout=_DEADLINE) as browser:
        service = IntegrationServiceStub(channel)
        request = pb.ConnectRequest(user_id=user_id, integration_type=integration_type, name=name)
        authorization = await service.Connect(request, timeout=_DEADLINE)
        response = await browser.get(await decide(browser, authorization.authorization_url, account=account))
        result = response.raise_for_status().json()
        integration_id = result["integration_id"]
        if token := result.get("confirmation_token"):
            confirmation = pb.ConfirmConnectionRequest(confirmation_token=token, user_id=user_id)
            integration_id = (await service.ConfirmConnection(confirmation, timeout=_DEADLINE)).integration_id
        lookup = pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)
        return (await service.GetIntegration(lookup, timeout=_DEADLINE)).integration


def _print_addresses(console: Console, addresses: ServerAddresses, sandbox_url: str) -> None:
    table = Table(title="Running", title_justify="left", show_header=False)
    table.add_row("gRPC", addresses.grpc_address)
    table.add_row("Sidecar (HTTP)", addresses.sidecar_url)
    table.add_row("Sandbox provider", sandbox_url)
    if addresses.metrics_url:
        table.add_row("Metrics", addresses.metrics_url)
    console.print(table)


def _print_integrations(console: Console, integrations: Sequence[Integration]) -> None:
    columns = ("id", "user", "type", "account", "status", "token expires (UTC)")
    table = Table(*columns, title="Integrations", title_justify="left")
    for integration in integrations:
        table.add_row(
            str(integration.integration_id),
            integration.user_id,
            integration.integration_type,
            integration.account_label,
            Status.Name(integration.status).removeprefix("STATUS_"),
            f"{integration.access_token_expire_time.ToDatetime():%F %T}",
        )
    console.print(table)
